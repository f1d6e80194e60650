"""Which strength to use, and how sure that is; or in a word of its own, why none is named.

A strength is right where the LoRA is seen and the scene is still there. Seen: the pictures have changed by `VISIBLE`,
which says the same whatever range was typed. Still there: most scenes keep prompt and picture (`evidence.py`). The
answer is the strengths from the first that is seen to the last before scenes are lost; the best is the one that most
scenes pass, in the middle of those. Nothing is said of a red sweep: this is the one place that decides it, for the
page, the report, the command line and programs alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, Literal, TypeAlias

from evaluation.captions import shorten
from evaluation.judge.describe import NO_JUDGE, describe, join_points, say_share, say_tests
from evaluation.judge.evidence import HOLDS, VISIBLE, Evidence, Point, Scene, Value, find_value, gather, tell_apart
from evaluation.judge.people import People, find_votes
from evaluation.judge.prompt_fit import embed_kept
from evaluation.store.records import CellRecord
from evaluation.store.store import Store
from evaluation.strengths import exact
from lora_runtime.errors import KleinLabError
from lora_runtime.judges import find_judge
from lora_runtime.strength import warn_strengths
from lora_runtime.written import count_of

Word: TypeAlias = Literal[
    "use",
    "cannot_tell",
    "try_higher",
    "try_lower",
    "base_does_not_draw_this",
    "does_nothing",
    "no_strength_does_both",
    "only_negative",
    "rebound",
]
Mark: TypeAlias = Literal["use", "best", "faint", "lost"]
"""What a strength is marked with: use it, use it first, the LoRA is hardly seen, scenes are lost."""

SURE: Final = 0.305
"""What the interval of the best strength must not go below, for a strength to be named: 5 of 8 scenes, or 4 of 4."""

SEEN_APART: Final = VISIBLE / 2
"""How much more a LoRA must change with its trigger phrase than without, for the phrase to make a difference."""

FAR: Final = Decimal(4)
"""How far up a LoRA is looked for before it is said to do nothing."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer for one value of a sweep's axis.

    `low`, `high` and `best` are None where no strength is named; `here` is the one to try first where some hold in too
    few scenes to tell. `passed` of `scenes` pass every test at the best
    strength, and `interval` is the 95% interval of that share. `lines` are what it rests on, in sentences, and `marks`
    say it of each strength, for the grid and the chart; `points` are its evidence, strength by strength.
    """

    value: Value
    label: str
    word: Word
    sentence: str
    low: Decimal | None = None
    high: Decimal | None = None
    best: Decimal | None = None
    here: Decimal | None = None
    scenes: int = 0
    passed: int | None = None
    interval: tuple[float, float] | None = None
    judge: str | None = None
    votes: int = 0
    lines: tuple[str, ...] = ()
    marks: Mapping[Decimal, Mark] = field(default_factory=dict)
    points: tuple[Point, ...] = ()

    def mark(self, scene: Scene, strength: Decimal) -> Mark | None:
        """Return what a picture is marked with: as its strength, unless its own scene is lost there, or alone holds."""
        mark = self.marks.get(strength)
        at = (point for point in self.points if point.strength == strength)
        trial = next((each for point in at for each in point.trials if each.scene == scene), None)
        if mark is None or trial is None:
            return mark
        if not trial.holds:
            return "lost"
        return mark if mark != "lost" else "use" if trial.acts else "faint"

    @property
    def facts(self) -> dict[str, object]:
        """The answer as programs read it: strengths are numbers, what is not known is null."""
        return {
            "lora": self.value.lora.name,
            "weights": self.value.weights,
            "word": self.word,
            **{name: None if (at := getattr(self, name)) is None else float(at) for name in ("low", "high", "best")},
            "scenes": self.scenes,
            "passed": self.passed,
            "interval": None if self.interval is None else [round(end, 3) for end in self.interval],
            "judge": self.judge,
            "votes": self.votes,
            "sentence": self.sentence,
        }


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """A word, why, which strengths hold as far as this evidence goes, and which to use, or to try `here`, first."""

    word: Word
    why: str
    usable: tuple[Point, ...] = ()
    best: Point | None = None
    here: Point | None = None


def answer_run(store: Store, run_id: str) -> tuple[Answer, ...]:
    """Return the answers of a run, one for each value of its axis; none when its verdict is red.

    Raises:
        NotFound: There is no such run.
        InvalidInput, Unavailable: The judge cannot be loaded.
    """
    return answer_cells(store, store.cells(run_id))


def answer_cells(store: Store, records: Sequence[CellRecord]) -> tuple[Answer, ...]:
    """Return the answers of cells, which may come from several runs; those of red runs count for nothing."""
    return answer_from(
        gather(records, partial(_find_image, store), find_judge, partial(embed_kept, store), find_votes(store, records))
    )


def tell_cells(store: Store, records: Sequence[CellRecord]) -> tuple[tuple[Answer, ...], str]:
    """Return the answers of cells, and why there are none where a judge cannot be loaded: pictures are shown anyway."""
    try:
        return answer_cells(store, records), ""
    except KleinLabError as error:
        return (), str(error)


def find_answer(record: CellRecord, answers: Sequence[Answer]) -> Answer | None:
    """Return the one of `answers` that a cell belongs to."""
    value = find_value(record)
    return next((answer for answer in answers if answer.value == value), None)


def answer_from(evidence: Sequence[Evidence]) -> tuple[Answer, ...]:
    """Return the answer to each evidence."""
    labels = tell_apart([each.value for each in evidence])
    return tuple(
        _answer(label, each, _note_trigger(each, evidence)) for label, each in zip(labels, evidence, strict=True)
    )


def _find_image(store: Store, identity: str) -> Path | None:
    found = store.image(identity)
    return found.path if found else None


def _answer(label: str, evidence: Evidence, trigger: Sequence[str]) -> Answer:
    found = _decide(evidence)
    points = [point for point in evidence.points if point.strength > 0]
    best, people = found.best, evidence.people
    said = _recommend(found.usable, best, judged=evidence.judge is not None) if best else found.why
    warning = warn_strengths([best.strength] if best else [])
    return Answer(
        value=evidence.value,
        label=label,
        word=found.word,
        sentence=f"{said} {people.sentence}".strip(),
        low=found.usable[0].strength if best else None,
        high=found.usable[-1].strength if best else None,
        best=best.strength if best else None,
        here=found.here.strength if found.here else None,
        scenes=len(evidence.scenes),
        passed=best.passes.passed if best else None,
        interval=best.passes.interval if best else None,
        judge=evidence.judge,
        votes=people.votes,
        lines=(*describe(evidence, points, best, _split(points)), *trigger, *([warning] if warning else [])),
        marks=_mark(points, found.usable, best),
        points=evidence.points,
    )


def _decide(evidence: Evidence) -> _Verdict:
    """Say the word, and which strengths it stands on."""
    points = [point for point in evidence.points if point.strength > 0]
    if not points:
        return _without_points(evidence)
    if len(evidence.undrawn) > len(evidence.scenes):
        return _undrawn(evidence)
    kept, lost = _split(points)
    usable = tuple(point for point in kept if point.seen and point.kept)
    if usable:
        return _carry(evidence, usable)
    later = [point for point in points if point not in kept and point.kept and point.seen]
    if later:
        return _Verdict(
            word="rebound",
            why=f"Only {join_points(later)} keeps its scenes, above strengths that lose them: that may be chance. "
            "Add prompts, and strengths around it.",
        )
    top = points[-1]
    phrase = evidence.value.lora.trigger_phrase
    if evidence.value.trigger is False:
        return _Verdict(
            word="cannot_tell",
            why=f"Cannot tell: the LoRA is hardly seen, and the prompts lack its trigger phrase “{phrase}”. Write it "
            "into them.",
        )
    if not lost and top.change >= VISIBLE:
        return _Verdict(
            word="no_strength_does_both",
            why=f"No strength does both: nothing is lost up to {exact(top.strength)}, and the pictures do not grow "
            f"like the {evidence.likeness} given of the look ({say_tests(top)}).",
        )
    if not lost:
        reach = top.change * max(float(FAR / top.strength), 1.0) ** 2
        if not _acts(top) or reach < VISIBLE:
            return _Verdict(
                word="does_nothing",
                why=f"The LoRA does nothing that is seen: at {exact(top.strength)} the pictures differ from the base "
                f"images by {_difference(top):.1f} of 255 (SSIM {1 - top.change:.2f}).",
            )
        return _Verdict(
            word="try_higher",
            why=f"Try higher than {exact(top.strength)}: the pictures still grow away from the base images (SSIM "
            f"{1 - top.change:.2f}) and nothing is lost.",
        )
    if not kept and lost[0].change >= VISIBLE:
        return _Verdict(
            word="try_lower",
            why=f"Try lower than {exact(lost[0].strength)}: there already scenes are lost ({say_share(lost[0])}).",
        )
    return _Verdict(
        word="no_strength_does_both",
        why=f"No strength does both: scenes are lost from {exact(lost[0].strength)} on ({say_share(lost[0])}), before "
        "the LoRA is seen.",
    )


def _without_points(evidence: Evidence) -> _Verdict:
    if evidence.undrawn:
        return _undrawn(evidence)
    if evidence.points:
        return _Verdict(
            word="only_negative",
            why="Only negative strengths were tried: they turn the LoRA around. Add strengths above 0.",
        )
    why = "no picture has its base image (strength 0) beside it" if evidence.missing else "nothing was rendered"
    return _Verdict(word="cannot_tell", why=f"Cannot tell: {why}. Add strength 0 and a few above it.")


def _undrawn(evidence: Evidence) -> _Verdict:
    scene = evidence.undrawn[0]
    return _Verdict(
        word="base_does_not_draw_this",
        why=f"The base model does not draw this: without the LoRA too, the picture does not show “"
        f"{shorten(scene.prompt, 60)}” ({len(evidence.undrawn)} of "
        f"{len(evidence.undrawn) + len(evidence.scenes)} scenes). Ask for what it knows.",
    )


def _carry(evidence: Evidence, usable: tuple[Point, ...]) -> _Verdict:
    """Name the strengths, when scenes or votes carry it."""
    people, span = evidence.people, join_points(usable)
    carried = [point for point in usable if evidence.judge and point.passes.interval[0] >= SURE]
    carried = carried or [point for point in usable if point.strength in people.decides]
    if carried:
        return _Verdict(word="use", why="", usable=usable, best=_choose_best(carried, usable, people))
    if evidence.judge is None:
        return _Verdict(word="cannot_tell", why=f"Cannot tell: {NO_JUDGE}.")
    here = _choose_best(usable, usable, people)
    first = f", {exact(here.strength)} first" if len(usable) > 1 else ""
    shown = f"Here {span} holds{first}" if any(point.passes.passed for point in usable) else f"Nothing holds at {span}"
    return _Verdict(
        word="cannot_tell",
        here=here if here.passes.passed else None,
        why=f"{shown}, but {count_of(len(evidence.scenes), 'scene')} cannot tell. "
        "Make sure with 4 prompts and 2 seeds.",
        usable=usable,
    )


def _split(points: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    """The points up to where scenes are lost for good, and those from there on. A dip that passes is not the end."""
    for index, point in enumerate(points):
        if not point.kept and not any(later.kept for later in points[index + 1 : index + 2]):
            return list(points[:index]), list(points[index:])
    return list(points), []


def _choose_best(carried: Sequence[Point], usable: Sequence[Point], people: People) -> Point:
    """The strength that most scenes pass, people leaning; of equals the one in the middle of the range.

    Of two in the middle the higher one: that scenes are kept there is tested, that the look is seen is a mere change.
    """
    middle = (usable[0].strength + usable[-1].strength) / 2

    def order(point: Point) -> tuple[float, Decimal, Decimal]:
        leant = point.passes.share + people.lean(point.strength) / len(point.trials)
        return -leant, abs(point.strength - middle), -point.strength

    return min(carried, key=order)


def _acts(point: Point) -> bool:
    return point.tally("acts").share >= HOLDS


def _recommend(usable: Sequence[Point], best: Point, *, judged: bool) -> str:
    """The sentence that names a strength, with its numbers."""
    low, high = best.passes.interval
    named = exact(best.strength) if len(usable) == 1 else f"{join_points(usable)}, best {exact(best.strength)}"
    tests = "pass every test there" if judged else "changed and stayed whole, without a judge of their prompts"
    return f"{named}: {best.passes.passed} of {count_of(best.passes.of, 'scene')} {tests} ({low:.0%} to {high:.0%})."


def _mark(points: Sequence[Point], usable: Sequence[Point], best: Point | None) -> dict[Decimal, Mark]:
    """What each strength is marked with."""
    return {
        point.strength: "best" if point is best else "use" if point in usable else "lost" if not point.kept else "faint"
        for point in points
    }


def _note_trigger(evidence: Evidence, every: Sequence[Evidence]) -> list[str]:
    """Whether the trigger phrase makes a difference, where there is a row with it and one without."""
    own = evidence.value
    pair = [each for each in every if each is not evidence and replace(each.value, trigger=own.trigger) == own]
    if own.trigger is None or not pair or not evidence.points or not pair[0].points:
        return []
    here, there = evidence.points[-1], pair[0].points[-1]
    with_it, without = (here, there) if own.trigger else (there, here)
    verb = "makes a difference" if with_it.change - without.change >= SEEN_APART else "makes hardly a difference"
    return [
        f"The trigger phrase {verb}: at {exact(with_it.strength)} the LoRA changes SSIM by {with_it.change:.2f} with "
        f"it, by {without.change:.2f} without."
    ]


def _difference(point: Point) -> float:
    return median(trial.difference for trial in point.trials)
