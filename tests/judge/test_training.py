"""Which checkpoint, at which strength: from evidence that is written down, and from the overtrained LoRA's stages."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal

import pytest

from evaluation.axes import Stage, Training
from evaluation.judge.answer import answer_from
from evaluation.judge.evidence import Evidence, find_value
from evaluation.judge.training import TrainingAnswer, answer_training, list_named, say_facts
from evaluation.store.store import Store
from evaluation.sweep import Finished, run_sweep
from tests.drawing_backend import STYLE, DrawingBackend, make_drawing_spec
from tests.judge.test_answer import show
from tests.training_runs import make_drawn_run

Curve = Mapping[str, tuple[float, int]]

FAINT: Curve = {"0.5": (0.03, 8), "1": (0.08, 8)}
GOOD: Curve = {"0.5": (0.1, 8), "1": (0.3, 8)}
WORSE: Curve = {"0.5": (0.2, 6), "1": (0.4, 4)}
GONE: Curve = {"0.5": (0.4, 1), "1": (0.6, 0)}


def train(stages: Mapping[str, Curve], *, copied: Sequence[str] = ()) -> tuple[Training, list[Evidence]]:
    """Evidence of checkpoints; what is lost in those `copied` was lost as it is no picture of its own."""
    found = []
    for label, curve in stages.items():
        evidence = show(curve)
        lora = replace(STYLE, name=f"my-style-{label}", sha256=f"{label:0>64}")
        points = evidence.points
        if label in copied:
            points = tuple(
                replace(
                    point,
                    trials=tuple(replace(each, prompt=True, intact=each.prompt) for each in point.trials),
                )
                for point in points
            )
        found.append(replace(evidence, value=replace(evidence.value, lora=lora), points=points))
    return Training(
        name="my-style", stages=tuple(Stage(label=label, sha256=f"{label:0>64}") for label in stages)
    ), found


def say(stages: Mapping[str, Curve], *, copied: Sequence[str] = ()) -> TrainingAnswer:
    training, evidence = train(stages, copied=copied)
    found = answer_training(training, answer_from(evidence[::-1]))  # the order of the cells says nothing
    assert found is not None
    return found


def test_the_named_checkpoint_comes_first_and_each_with_a_cell_that_shows_it(store: Store) -> None:
    run = make_drawn_run(["500", "1000", "1500"])
    spec = make_drawing_spec(loras=(), training=run, strengths="0, 0.5, 1")
    *_, finished = run_sweep(spec, backend=DrawingBackend(), store=store)
    assert isinstance(finished, Finished)
    ended, records = store.look(finished.run_id)
    values = dict.fromkeys(find_value(record) for record in records if record.cell.request.lora)
    shown = [replace(show(curve), value=value) for curve, value in zip((WORSE, GOOD, WORSE), values, strict=True)]
    named = list_named(ended.spec.training, records, answer_from(shown))
    assert [answer.label.rpartition("-")[2] for answer, _ in named] == ["1000", "500", "1500"]
    for answer, record in named:
        assert (record.cell.request.lora, record.cell.request.strength) == (answer.value.lora, answer.best)


def test_the_checkpoint_that_is_surest_to_hold_is_named_with_its_strength() -> None:
    found = say({"250": FAINT, "500": WORSE, "1000": GOOD, "1500": WORSE})
    assert (found.word, found.checkpoint, found.facts["strength"]) == ("use", "1000", 1.0)
    assert found.sentence == "Use checkpoint 1000 at 1: 8 of 8 scenes pass every test there (68% to 100%)."
    assert found.lines[0].startswith("250: Try higher than 1")
    assert found.facts["interval"] == [0.676, 1.0]
    assert found.copies_from is None


def test_of_equals_the_earlier_one_is_named() -> None:
    assert say({"500": GOOD, "1000": GOOD, "1500": GOOD}).checkpoint == "500"


def test_later_checkpoints_that_only_copy_are_told() -> None:
    found = say({"1000": GOOD, "1500": WORSE, "2250": GONE, "3000": GONE}, copied=("2250", "3000"))
    assert (found.checkpoint, found.copies_from) == ("1000", "2250")
    assert found.sentence.endswith("From 2250 on the checkpoints only copy.")
    assert found.lines[-1] == (
        "2250 only copies: at 0.5 already, pictures of different prompts have grown alike, or broken, in 7 of 8 scenes."
    )
    lost = say({"1000": GOOD, "2250": GONE})
    assert lost.copies_from is None, "a prompt that is lost is no copy"
    back = say({"1000": GOOD, "2250": GONE, "3000": WORSE}, copied=("2250",))
    assert back.copies_from is None, "what comes after it holds again"


@pytest.mark.parametrize(
    ("stages", "word", "nearest"),
    [
        ({"250": FAINT, "500": FAINT}, "try_higher", "500"),
        ({"250": FAINT, "500": GONE}, "try_higher", "250"),
        ({"250": GONE, "500": GONE}, "try_lower", "250"),
    ],
)
def test_where_none_holds_the_nearest_says_why(stages: Mapping[str, Curve], word: str, nearest: str) -> None:
    found = say(stages)
    assert (found.word, found.checkpoint, found.facts["strength"]) == (word, None, None)
    assert found.sentence.startswith(f"No checkpoint is named. {nearest}: Try ")


def test_checkpoints_that_were_not_rendered_are_told() -> None:
    training, evidence = train({"1000": GOOD})
    broken = Stage(label="1500", problem="x.safetensors was cut off.")
    found = answer_training(replace(training, stages=(*training.stages, broken)), answer_from(evidence))
    assert found is not None
    assert found.lines[-1] == "1500 was not rendered. x.safetensors was cut off."


def test_programs_get_an_object_a_checkpoint() -> None:
    training, evidence = train({"500": FAINT, "1000": GOOD})
    facts = say_facts(training, answer_from(evidence))
    assert [(each["checkpoint"], each["word"], each["best"]) for each in facts] == [
        ("500", "try_higher", None), ("1000", "use", 1.0)
    ]  # fmt: skip
    assert answer_training(None, answer_from(evidence)) is None
    assert answer_training(training, ()) is None
    assert Decimal(str(facts[1]["low"])) == 1
