"""Which strength: from evidence that is written down here to the word, the strengths and the sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal

import pytest

from evaluation.judge.answer import Answer, answer_from
from evaluation.judge.evidence import Evidence, Point, Scene, Share, Trial, Value
from evaluation.strengths import exact
from tests.drawing_backend import STYLE

SCENES = tuple(Scene(prompt=prompt, seed=seed) for prompt in ("a cat", "a fish", "a boat", "an owl") for seed in (1, 2))
SUBJECT = replace(STYLE, name="subject", trigger_phrase="ohwx")
VALUE = Value(lora=STYLE, weights="pocket", precision="bf16", backend="local", trigger=None)

CURVE: Mapping[str, tuple[float, int]] = {
    "0.2": (0.02, 8), "0.4": (0.07, 8), "0.5": (0.1, 8), "0.55": (0.12, 8), "0.6": (0.15, 8), "0.65": (0.16, 8),
    "0.7": (0.19, 8), "0.75": (0.21, 8), "0.8": (0.23, 8), "0.85": (0.25, 8), "0.9": (0.27, 8), "0.95": (0.29, 8),
    "1": (0.31, 8), "1.05": (0.33, 8), "1.1": (0.35, 8), "1.2": (0.39, 7), "1.6": (0.5, 1), "2": (0.6, 0),
    "2.4": (0.7, 0),
}  # fmt: skip
"""Strength -> how far the pictures change, and in how many of 8 scenes all is still there: a LoRA of a style."""

RANGES = {
    "0-1.2 [7]": ("0.2", "0.4", "0.6", "0.8", "1", "1.2"),
    "0-2.4 [7]": ("0.4", "0.8", "1.2", "1.6", "2", "2.4"),
    "0.5-1.1 (+0.05)": tuple(name for name in CURVE if Decimal("0.5") <= Decimal(name) <= Decimal("1.1")),
    "0-0.8 [5]": ("0.2", "0.4", "0.6", "0.8"),
    "0, 1": ("1",),
}


def trial(scene: Scene, strength: str, change: float, *, holds: bool = True, difference: float = 20) -> Trial:
    return Trial(
        scene=scene,
        strength=Decimal(strength),
        change=change,
        difference=difference,
        acts=difference > 1,
        prompt=holds,
        intact=True,
    )


def show(
    curve: Mapping[str, tuple[float, int]], *, scenes: Sequence[Scene] = SCENES, difference: float = 20
) -> Evidence:
    """Evidence in which the last scenes are the first to be lost."""
    points = tuple(
        Point(
            strength=Decimal(strength),
            trials=tuple(
                trial(scene, strength, change, holds=index < kept, difference=difference)
                for index, scene in enumerate(scenes)
            ),
        )
        for strength, (change, kept) in sorted(curve.items(), key=lambda item: Decimal(item[0]))
    )
    return Evidence(value=VALUE, points=points, scenes=tuple(scenes), undrawn=(), missing=0, judge="judge")


def say(evidence: Evidence) -> Answer:
    (found,) = answer_from([evidence])
    return found


@pytest.mark.parametrize("typed", RANGES)
def test_the_range_that_was_typed_does_not_decide(typed: str) -> None:
    found = say(show({name: CURVE[name] for name in RANGES[typed]}))
    tried = [Decimal(name) for name in RANGES[typed]]
    right = [strength for strength in tried if Decimal("0.7") <= strength <= Decimal("1.2")]
    assert (found.word, found.low, found.high) == ("use", right[0], right[-1])
    assert found.best in right
    assert (found.scenes, found.passed) == (8, 8)
    assert found.interval == pytest.approx((0.676, 1), abs=1e-3)


def test_the_sentence_has_its_numbers_and_the_lines_say_what_it_rests_on() -> None:
    found = say(show({name: CURVE[name] for name in RANGES["0-2.4 [7]"]}))
    assert found.sentence == "0.8 to 1.2, best 0.8: 8 of 8 scenes pass every test there (68% to 100%)."
    assert (
        found.lines[0]
        == "At 0.8: SSIM to base 0.77, changed in 8 of 8, prompt kept in 8 of 8, picture whole in 8 of 8."
    )
    assert found.lines[1].startswith(
        "From 1.6 on scenes are lost: SSIM to base 0.50, changed in 8 of 8, prompt kept in 1"
    )
    assert found.lines[2] == "The first to go is seed 2, “an owl”: lost from 1.2.", "the worst scene has its name"
    assert {str(strength): mark for strength, mark in found.marks.items()} == {
        "0.4": "faint", "0.8": "best", "1.2": "use", "1.6": "lost", "2": "lost", "2.4": "lost"
    }  # fmt: skip


@pytest.mark.parametrize(("scale", "warned"), [(1, False), (10, True)])
def test_a_strength_that_few_loras_take_is_named_with_a_warning(scale: int, warned: bool) -> None:
    curve = {exact(Decimal(name) * scale): CURVE[name] for name in RANGES["0-1.2 [7]"]}
    found = say(show(curve))
    assert (found.word, found.best) == ("use", scale)
    said = "Strength 10 is outside -2 to 2: that is for sliders; most LoRAs break there."
    assert (found.lines[-1] == said) is warned
    assert any("outside" in line for line in found.lines) is warned


@pytest.mark.parametrize(
    ("curve", "difference", "word"),
    [
        ({"0.5": (0.05, 8), "1": (0.1, 8)}, 20, "try_higher"),
        ({"0.8": (0.7, 2), "1.2": (0.8, 0)}, 20, "try_lower"),
        ({"0.4": (0.02, 8), "0.8": (0.1, 1), "1.2": (0.2, 0)}, 20, "no_strength_does_both"),
        ({"0.5": (0.001, 8), "1": (0.001, 8)}, 0.26, "does_nothing"),
        ({"0.5": (0.004, 8), "1.2": (0.013, 8)}, 2.4, "does_nothing"),
        ({"0.5": (0.2, 2), "1": (0.3, 2), "1.5": (0.4, 7)}, 20, "rebound"),
        ({"-1": (0.3, 8), "-0.5": (0.2, 8)}, 20, "only_negative"),
        ({}, 20, "cannot_tell"),
    ],
)
def test_where_no_strength_is_named_a_word_says_why(
    curve: Mapping[str, tuple[float, int]], difference: float, word: str
) -> None:
    found = say(show(curve, difference=difference))
    assert found.word == word
    assert (found.low, found.high, found.best, found.passed, found.interval) == (None,) * 5
    assert found.facts["best"] is None
    assert found.sentence.endswith(".")


def test_a_rebound_beyond_lost_strengths_counts_for_nothing() -> None:
    found = say(show({"0.4": (0.2, 8), "0.6": (0.3, 8), "0.8": (0.4, 1), "1": (0.5, 0), "1.2": (0.6, 6)}))
    assert (found.word, found.high) == ("use", Decimal("0.6"))
    assert "Above that some strengths keep their scenes again, which counts for nothing." in found.lines


def test_negative_strengths_get_a_line_of_their_own() -> None:
    found = say(show({"-1": (0.3, 4), **{name: CURVE[name] for name in RANGES["0-1.2 [7]"]}}))
    assert found.word == "use"
    assert [line for line in found.lines if line.startswith("-1 turns the LoRA around: SSIM to base 0.70")]


def test_one_scene_says_what_holds_here_and_that_it_cannot_tell() -> None:
    curve = {name: (CURVE[name][0], 1) for name in RANGES["0-1.2 [7]"]}
    found = say(show(curve, scenes=SCENES[:1]))
    assert (found.word, found.best) == ("cannot_tell", None)
    assert found.sentence == (
        "Here 0.8 to 1.2 holds, 1 first, but 1 scene cannot tell. Make sure with 4 prompts and 2 seeds."
    )
    assert (found.here, found.best) == (1, None)
    assert [mark for mark in found.marks.values() if mark != "faint"] == ["use"] * 3


@pytest.mark.parametrize(
    ("like", "word", "best"), [((0, 0, 8), "use", "0.8"), ((0, 0, 4), "no_strength_does_both", None)]
)
def test_with_pictures_of_the_look_likeness_decides_not_change(
    like: Sequence[int], word: str, best: str | None
) -> None:
    plain = show({"0.2": (0.1, 8), "0.6": (0.3, 8), "0.8": (0.4, 8)})
    points = tuple(
        replace(point, trials=tuple(replace(trial, like=index < count) for index, trial in enumerate(point.trials)))
        for point, count in zip(plain.points, like, strict=True)
    )
    found = say(replace(plain, points=points, likeness=5))
    assert (found.word, found.best) == (word, None if best is None else Decimal(best))
    assert f"like the look in {like[-1]} of 8" in " ".join((found.sentence, *found.lines))
    assert "counts only if the LoRA was not trained on them" in found.lines[-1]
    assert "likeness rewards copying" in say(replace(plain, points=points, likeness=5, copied=2)).lines[-1]
    assert "nothing here finds the look in the pictures given of it" in say(replace(plain, likeness=5)).lines[-1]


def test_shares_of_scenes_decide_not_means() -> None:
    half = say(show({"0.6": (0.3, 8), "0.8": (0.4, 4), "1": (0.4, 4)}))
    assert (half.high, half.marks[Decimal("0.8")]) == (Decimal("0.6"), "lost"), "half of the scenes are gone"


def test_a_base_that_does_not_draw_the_prompt_is_told() -> None:
    none = replace(show({}, scenes=()), undrawn=SCENES)
    assert say(none).word == "base_does_not_draw_this"
    assert "“a cat” (8 of 8 scenes)" in say(none).sentence
    most = replace(
        show({name: (change, 3) for name, (change, _) in CURVE.items()}, scenes=SCENES[:3]), undrawn=SCENES[3:]
    )
    assert say(most).word == "base_does_not_draw_this"
    few = replace(show(CURVE), undrawn=(Scene(prompt="a unicorn", seed=3),), missing=2)
    assert say(few).word == "use"
    assert [line for line in say(few).lines if line.startswith("1 scene count for nothing")]
    assert [line for line in say(few).lines if line.startswith("2 pictures failed, wait")]


def test_without_a_judge_it_says_how_to_get_one() -> None:
    found = say(replace(show(CURVE), judge=None))
    assert (found.word, found.best) == ("cannot_tell", None)
    assert "python -m lora_runtime download judge" in found.sentence


def test_the_trigger_phrase_is_asked_for_and_its_difference_told() -> None:
    value = replace(VALUE, lora=SUBJECT)
    faint = {name: (change / 10, kept) for name, (change, kept) in CURVE.items() if Decimal(name) <= 1}
    without = replace(show(faint), value=replace(value, trigger=False))
    assert say(without).word == "cannot_tell"
    assert "lack its trigger phrase “ohwx”" in say(without).sentence
    seen = {name: CURVE[name] for name in faint}
    both = answer_from([replace(show(seen), value=replace(value, trigger=True)), without])
    assert [each.label for each in both] == [
        "subject · with the trigger phrase",
        "subject · without the trigger phrase",
    ]
    assert [each.word for each in both] == ["use", "cannot_tell"]
    for each in both:
        assert each.lines[-1] == (
            "The trigger phrase makes a difference: at 1 the LoRA changes SSIM by 0.31 with it, by 0.03 without."
        )


def test_each_value_of_the_axis_has_an_answer_and_a_name() -> None:
    values = [VALUE, replace(VALUE, weights="pocket-base"), replace(VALUE, lora=replace(SUBJECT, sha256="2" * 64))]
    found = answer_from([replace(show(CURVE), value=value) for value in values])
    assert [each.label for each in found] == [
        "style · pocket klein",
        "style · pocket klein Base",
        "subject · pocket klein",
    ]
    assert found[1].facts == {
        "lora": "style", "weights": "pocket-base", "word": "use", "low": 0.7, "high": 1.2, "best": 0.95, "scenes": 8,
        "passed": 8, "interval": [0.676, 1.0], "judge": "judge", "votes": 0, "sentence": found[1].sentence,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("passed", "of", "low", "high"), [(7, 8, 0.529, 0.978), (0, 8, 0, 0.324), (1, 1, 0.207, 1), (0, 0, 0, 1)]
)
def test_intervals_are_wilsons(passed: int, of: int, low: float, high: float) -> None:
    assert Share(passed=passed, of=of).interval == pytest.approx((low, high), abs=1e-3)


def test_a_picture_is_marked_by_its_own_scene() -> None:
    (answer,) = answer_from([show({name: CURVE[name] for name in RANGES["0-2.4 [7]"]})])
    first, last = SCENES[0], SCENES[-1]
    assert [answer.mark(last, Decimal(name)) for name in ("0.8", "1.2", "2")] == [
        answer.marks[Decimal("0.8")],
        "lost",
        "lost",
    ]
    assert answer.marks[Decimal("1.2")] in ("use", "best")
    assert (answer.marks[Decimal("1.6")], answer.mark(first, Decimal("1.6"))) == ("lost", "use")
    assert answer.mark(Scene(prompt="another", seed=1), Decimal("1.6")) == "lost", (
        "what was not measured, as its strength"
    )
    assert answer.mark(first, Decimal("0.3")) is None
