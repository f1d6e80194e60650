"""Prompts under a name, and the sweep that makes an answer sure."""

from dataclasses import replace
from decimal import Decimal

import pytest

from evaluation.grid import plan
from evaluation.judge.answer import Answer
from evaluation.judge.evidence import Value
from evaluation.prompt_sets import FOUR_SCENES, PromptSet, describe_effort, find_prompt_set, find_subject, make_sure
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
    assert find_prompt_set("four scenes") is FOUR_SCENES
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
    with pytest.raises(NotFound, match="There are: four scenes"):
        find_prompt_set("five scenes")


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
