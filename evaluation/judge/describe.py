"""What an answer rests on, in sentences: how many scenes pass which test, which goes first, what counts for nothing."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Final

from evaluation.captions import shorten
from evaluation.judge.evidence import Evidence, Point, Scene
from evaluation.strengths import exact
from lora_runtime.written import count_of

TESTS: Final[Mapping[str, str]] = MappingProxyType(
    {"acts": "changed", "prompt": "prompt kept", "intact": "picture whole", "like": "like the look"}
)
"""The tests of a trial, and the words for passing them."""

NO_JUDGE: Final = (
    "no judge is here to tell whether pictures show their prompts; get one with: python -m lora_runtime download judge"
)


def describe(
    evidence: Evidence, points: Sequence[Point], best: Point | None, split: tuple[Sequence[Point], Sequence[Point]]
) -> list[str]:
    """Return what an answer rests on; `split` are the points up to where scenes are lost for good, and the others."""
    said = []
    if best is not None:
        said.append(f"At {exact(best.strength)}: {say_tests(best)}.")
    kept, lost = split
    if lost:
        said.append(f"From {exact(lost[0].strength)} on scenes are lost: {say_tests(lost[0])}.")
        if any(point.kept for point in lost):
            said.append("Above that some strengths keep their scenes again, which counts for nothing.")
    elif kept:
        said.append(f"{exact(kept[-1].strength)}, the highest tried, still keeps its scenes: {say_tests(kept[-1])}.")
    if worst := _find_worst(points):
        scene, strength = worst
        said.append(
            f"The first to go is seed {scene.seed}, “{shorten(scene.prompt, 60)}”: lost from {exact(strength)}."
        )
    if evidence.undrawn:
        scene = evidence.undrawn[0]
        said.append(
            f"{count_of(len(evidence.undrawn), 'scene')} count for nothing, as the base model does not draw what was "
            f"asked: “{shorten(scene.prompt, 60)}”, seed {scene.seed}."
        )
    if evidence.missing:
        missing = count_of(evidence.missing, "picture")
        said.append(f"{missing} failed, wait or have no base image, and count for nothing.")
    for point in evidence.points:
        if point.strength < 0:
            said.append(f"{exact(point.strength)} turns the LoRA around: {say_tests(point)}.")
    said.extend(evidence.people.lines)
    if points and evidence.judge is None:
        said.append(f"{NO_JUDGE[0].upper()}{NO_JUDGE[1:]}.")
    if points:
        said.append(_say_likeness(evidence, judged=any(point.tally("like").of for point in points)))
    return said


def _say_likeness(evidence: Evidence, *, judged: bool) -> str:
    """Whether it is the look that was measured, and what may flatter it."""
    if evidence.copied:
        return (
            f"{count_of(evidence.copied, 'picture')} here copy one given of the look: the LoRA was trained on it, "
            "and likeness rewards copying. Give pictures that it never saw."
        )
    if judged:
        return (
            f"Like the look: nearer to the {count_of(evidence.likeness, 'picture')} given of it than every base image "
            "is. That counts only if the LoRA was not trained on them."
        )
    if evidence.likeness:
        return (
            "What is measured is change: nothing here finds the look in the pictures given of it, so likeness counts "
            "for nothing. Give several that are alike, and see `python -m lora_runtime download judge`."
        )
    return "What is measured is change; that it is the look of the LoRA, only eyes or votes can tell."


def _find_worst(points: Sequence[Point]) -> tuple[Scene, Decimal] | None:
    """The scene that is lost first and stays lost, and from which strength on."""
    first: dict[Scene, Decimal] = {}
    for point in points:
        for trial in point.trials:
            if trial.holds:
                first.pop(trial.scene, None)
            else:
                first.setdefault(trial.scene, point.strength)
    return min(first.items(), key=lambda item: (item[1], item[0])) if first else None


def say_tests(point: Point) -> str:
    """Return one strength's tests in words."""
    said = [f"SSIM to base {1 - point.change:.2f}"]
    for test, words in TESTS.items():
        found = point.tally(test)
        if found.of:
            said.append(f"{words} in {found.passed} of {found.of}")
    return ", ".join(said)


def say_share(point: Point) -> str:
    """Return how many scenes a strength keeps."""
    return f"{point.holds.passed} of {point.holds.of} are left"


def join_points(points: Sequence[Point]) -> str:
    """Return the range of strengths from the first point to the last."""
    low, high = exact(points[0].strength), exact(points[-1].strength)
    return low if low == high else f"{low} to {high}"
