"""Prompts under a name, and the sweep that makes an answer sure."""

from dataclasses import replace
from decimal import Decimal

import pytest

from evaluation.grid import plan
from evaluation.judge.answer import Answer
from evaluation.judge.evidence import Value
from evaluation.prompt_sets import FOUR_SCENES, PromptSet, PromptSets, describe_effort, find_subject, make_sure
from evaluation.store.store import Store
from evaluation.sweep import run_sweep
from lora_runtime.errors import InvalidInput, NotFound
from tests.drawing_backend import STYLE, DrawingBackend, make_drawing_spec


@pytest.mark.parametrize(
    ("prompt", "trigger", "subject"),
    [
        ("a red cat in the snow", None, "a red cat"),
        ("in the middle, a medium red rocket, underwater", None, "a medium red rocket"),
        ("a portrait of an old man", None, "a portrait of an old man"),
        ("under the sea", None, "under the sea"),
        ("a red ohwx on the beach", "ohwx", "a red ohwx"),
        ("a red cat, ohwx, on the beach", "ohwx", "ohwx a red cat"),
    ],
)
def test_what_a_prompt_shows_without_where(prompt: str, trigger: str | None, subject: str) -> None:
    assert find_subject(prompt, trigger) == subject


def test_a_set_is_filled_round_a_prompt() -> None:
    assert FOUR_SCENES.fill("a red cat in the snow", None) == (
        "a red cat on the beach", "a red cat in a forest", "a red cat in the city", "a red cat at night"
    )  # fmt: skip
    own = PromptSet(name="own", prompts=("{trigger}, {subject}", "{subject}", "{trigger}, {subject}"))
    assert own.fill("a cat at night", "ohwx") == ("ohwx, a cat", "a cat")
    assert own.fill("a cat at night", None) == ("a cat",)
    with pytest.raises(InvalidInput, match=r"none of \{subject\} and \{trigger\}"):
        PromptSet(name="wrong", prompts=("{colour} cat",))
    with pytest.raises(InvalidInput, match="holds no prompt"):
        PromptSet(name="empty", prompts=())
    spec = make_drawing_spec(prompts=["a red fox in the snow", "a dog"], seeds=[7, 8])
    assert [*FOUR_SCENES.put_round(spec).prompts[3:5]] == ["a red fox at night", "a dog on the beach"]
    assert len(plan(FOUR_SCENES.put_round(spec))) == 8 * 2 * 3
    with pytest.raises(InvalidInput, match="The sweep has 408 cells"):
        FOUR_SCENES.put_round(make_drawing_spec(strengths="0-1 [51]", seeds=[7, 8]))


@pytest.mark.parametrize(
    ("prompts", "trigger", "kept"),
    [
        (["a red cat in the snow", "A red cat at night"], None, ["{subject} in the snow", "{subject} at night"]),
        (["a red ohwx on the beach", "ohwx, a dog"], "ohwx", ["{subject} on the beach", "{trigger}, a dog"]),
        (["a cat", "{subject} at night", "a catalogue"], None, ["{subject}", "{subject} at night", "a catalogue"]),
        (["{trigger}, {subject}", "a {subject}"], None, ["{trigger}, {subject}", "a {subject}"]),
    ],
)
def test_prompts_become_a_set_as_they_are_written(prompts: list[str], trigger: str | None, kept: list[str]) -> None:
    own = PromptSet.of("  my   own ", prompts, trigger)
    assert (own.name, own.prompts) == ("my own", tuple(kept))
    assert "{" in prompts[0] or own.fill(prompts[0], trigger)[0] == prompts[0]


def test_sets_are_kept_replaced_and_deleted_by_whose_they_are(store: Store) -> None:
    sets, own = PromptSets(store), PromptSet(name="own", prompts=("{subject} at sea",))
    assert sets.save("one", own) is False
    assert sets.list("one") == (FOUR_SCENES, own)
    assert sets.list("two") == (FOUR_SCENES,)
    assert sets.save("one", replace(own, prompts=("{subject}",))) is True
    assert sets.find("one", "own").prompts == ("{subject}",)
    with pytest.raises(NotFound, match="There are: four scenes"):
        sets.find("two", "own")
    with pytest.raises(NotFound, match="no prompt set named 'own'"):
        sets.delete("two", "own")
    for built_in in (lambda: sets.save("one", FOUR_SCENES), lambda: sets.delete("one", FOUR_SCENES.name)):
        with pytest.raises(InvalidInput, match="is built in"):
            built_in()
    sets.delete("one", "own")
    assert sets.list("one") == (FOUR_SCENES,)


def test_to_make_sure_is_four_prompts_times_two_seeds_at_the_strengths_that_matter(store: Store) -> None:
    spec = make_drawing_spec(prompts=["a red fox in the snow"], strengths="0-1.2 [7]", seeds=[2**32 - 1])
    value = Value(lora=STYLE, weights="pocket", precision="fp32", backend="drawing", trigger=None)
    answer = Answer(
        value=value, label="", word="cannot_tell", sentence="", marks={Decimal("0.8"): "use", Decimal("0.4"): "faint"}
    )
    sure = make_sure(spec, [answer])
    assert sure.strengths == (0, Decimal("0.6"), Decimal("0.8"), 1)
    assert (len(sure.prompts), sure.seeds) == (4, (2**32 - 1, 0))
    assert make_sure(spec, ()).strengths == spec.strengths
    assert make_sure(make_sure(spec, [answer]), ()).prompts == sure.prompts, "asked again it is the same"
    assert len(plan(sure)) == 32
    assert describe_effort(sure, store) == "32 new pictures"
    list(run_sweep(replace(sure, strengths=sure.strengths[:2]), backend=DrawingBackend(), store=store))
    assert describe_effort(sure, store) == "16 new pictures, about 4 s"
    base = replace(spec, strengths=(Decimal(0),))
    with pytest.raises(InvalidInput, match="no LoRA in this sweep"):
        make_sure(replace(base, loras=()), ())
    with pytest.raises(InvalidInput, match="strength 0 alone"):
        make_sure(base, ())
    with pytest.raises(InvalidInput, match="The sweep has 408 cells"):
        make_sure(make_drawing_spec(strengths="0-1 [51]"), ())
