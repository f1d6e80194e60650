"""Which strength, and why: from a person's ratings when there are some, else from what was measured.

Two questions decide it, each answered by a number against the strength 0 image of the same row. *Is the LoRA there?*
SSIM to base falls as the picture changes. *Is the prompt still there?* Its CLIP score (`metrics/clip.py`) falls by
`LOST` when it is not. The advice is the range in between: from the strength that has most of the change, to the
highest one that still follows the prompt. Every sentence carries its numbers, and nothing is claimed that they do not
show: without a CLIP score, only where the picture changes most.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby, pairwise
from statistics import mean
from typing import Final, Literal, TypeAlias

from evaluation.axes import SweepSpec
from evaluation.store.records import CellRecord
from evaluation.strengths import exact
from lora_runtime.values import LoraRef

Basis: TypeAlias = Literal["ratings", "prompt", "change"]
"""What an advice rests on: what a person said, whether the prompt is followed, or only how much changed."""

LOST: Final = 3.0
"""By how much the CLIP score falls when a picture no longer follows its prompt: e^3 = 20 times less likely."""

GAINED: Final = 1.0
"""By how much it rises when the LoRA fits the prompt better than the base model does."""

MOST: Final = 0.75
"""Share of the change at the top of a range that its lower end must have."""

VISIBLE: Final = 0.01
"""The fall of SSIM below which a LoRA has done nothing that is worth advice."""

STILL: Final = 0.05
"""Share of the whole change below which what follows is no change any more."""

GOOD_RATING: Final = 4
"""What the only rated strength needs to be called the best."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Which strengths of a LoRA to use; `low` and `high` are None when none stands out, and the sentence says why."""

    lora: str
    basis: Basis
    low: Decimal | None
    high: Decimal | None
    sentence: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Point:
    """A strength, averaged over the rows it was rendered in. `fit` is its CLIP score, `fall` how far below base.

    `scenes` counts different seeds and prompts.
    """

    strength: Decimal
    scenes: int
    ssim: float
    fit: float | None
    fall: float | None


def advise(spec: SweepSpec, records: Sequence[CellRecord]) -> Advice | None:
    """Return which strength to use in the sweep `spec`; None when there is too little to say, or its verdict is red.

    A sweep of several LoRAs gets one advice that names each; one of several weights, or with the trigger phrase and
    without, one that names each row, as a strength means something else there.
    """
    said = _advise_rows(records) if _stand_apart(spec) else advise_each(records)
    if len(said) < 2:
        return said[0] if said else None
    return Advice(
        lora=", ".join(advice.lora for advice in said),
        basis=said[0].basis,
        low=None,
        high=None,
        sentence="; ".join(f"{advice.lora}: {_range(advice)}" for advice in said) + ".",
        evidence=tuple(f"{advice.lora}: {advice.sentence}" for advice in said),
    )


def advise_each(records: Sequence[CellRecord]) -> tuple[Advice, ...]:
    """Return the advice for each LoRA of `records`, which may come from several runs; red ones count for nothing."""
    loras: dict[str, tuple[LoraRef, list[CellRecord]]] = {}
    for lora, record in _telling(records):
        loras.setdefault(lora.sha256, (lora, []))[1].append(record)
    found = (_advise(lora.name, own) for lora, own in loras.values())
    return tuple(advice for advice in found if advice is not None)


def _telling(records: Sequence[CellRecord]) -> list[tuple[LoraRef, CellRecord]]:
    """The records that advice rests on, each with its LoRA; what a red run shows is not the doing of its LoRA."""
    return [
        (record.cell.request.lora, record)
        for record in records
        if record.cell.request.lora is not None and record.state == "done" and not record.red
    ]


def _stand_apart(spec: SweepSpec) -> bool:
    return len(spec.triggers) > 1 or len({target.weights for target in spec.targets}) > 1


def _advise_rows(records: Sequence[CellRecord]) -> tuple[Advice, ...]:
    telling = [record for _, record in _telling(records)]
    found = (_advise(label, list(row)) for label, row in groupby(telling, key=lambda record: record.cell.row_label))
    return tuple(advice for advice in found if advice is not None)


def _advise(lora: str, records: Sequence[CellRecord]) -> Advice | None:
    points = _average(records)
    measured = _judge_prompt(lora, points) or _judge_change(lora, points)
    rated = _judge_ratings(lora, records)
    if rated is None:
        return measured
    evidence = (*rated.evidence, *((measured.sentence,) if measured else ()))
    return Advice(
        lora=lora, basis="ratings", low=rated.low, high=rated.high, sentence=rated.sentence, evidence=evidence
    )


def _average(records: Sequence[CellRecord]) -> list[_Point]:
    """The positive strengths in order, averaged over rows; each row is compared with its own strength 0."""
    base = {
        (record.run_id, record.cell.row): record.scores["clip"]
        for record in records
        if not record.cell.request.strength and "clip" in record.scores
    }
    points = []
    for strength, same in _by_strength(records):
        scored = [record for record in same if "ssim" in record.scores]
        if strength <= 0 or not scored:
            continue
        fits = [
            (record.scores["clip"], base[record.run_id, record.cell.row])
            for record in scored
            if "clip" in record.scores and (record.run_id, record.cell.row) in base
        ]
        points.append(
            _Point(
                strength=strength,
                scenes=len({(record.cell.request.prompt, record.cell.request.seed) for record in scored}),
                ssim=mean(record.scores["ssim"] for record in scored),
                fit=mean(fit for fit, _ in fits) if fits else None,
                fall=mean(before - fit for fit, before in fits) if fits else None,
            )
        )
    return points


def _judge_ratings(lora: str, records: Sequence[CellRecord]) -> Advice | None:
    """The strengths that a person rated best, if that says anything."""
    rated = [
        (strength, [record.rating for record in same if record.rating is not None])
        for strength, same in _by_strength(records)
    ]
    means = {strength: mean(given) for strength, given in rated if given}
    if not means:
        return None
    best = max(means.values())
    winners = [strength for strength, value in means.items() if value == best]
    others = {strength: value for strength, value in means.items() if value < best}
    if (not others and (len(means) > 1 or best < GOOD_RATING)) or len(winners) > 3:
        return None
    count = sum(len(given) for strength, given in rated if strength in winners)
    how = f"{best:.1f} of 5, {count} rating{'s' if count > 1 else ''}"
    beside = "the only strength rated"
    if others:
        second = max(others, key=lambda strength: others[strength])
        beside = f"next is {_name(second)} with {others[second]:.1f}"
    return Advice(
        lora=lora,
        basis="ratings",
        low=winners[0],
        high=winners[-1],
        sentence=f"{' and '.join(_name(each) for each in winners)}: rated best ({how}; {beside}).",
    )


def _judge_prompt(lora: str, points: Sequence[_Point]) -> Advice | None:
    """The range that has most of the change and still follows the prompt; None without CLIP scores."""
    scored = [(point, point.fit, point.fall) for point in points if point.fit is not None and point.fall is not None]
    if len(scored) < 2 or not _has_effect(points):
        return None
    follows = [point for point, _, fall in scored if fall < LOST]
    base = mean(fit + fall for _, fit, fall in scored)
    if not follows:
        point, fit, _ = scored[0]
        sentence = (
            f"Below {exact(point.strength)}: there already the picture does not follow the prompt "
            f"(CLIP score {fit:.1f}, base {base:.1f})."
        )
        return Advice(lora=lora, basis="prompt", low=None, high=None, sentence=sentence)
    high = follows[-1]
    low = high
    for point, _, fall in reversed(scored):
        if point.strength <= high.strength:
            if fall >= LOST or 1 - point.ssim < MOST * (1 - high.ssim):
                break
            low = point
    beyond = [(point, fit) for point, fit, _ in scored if point.strength > high.strength]
    here = f"from {exact(low.strength)} on" if low is not high else f"at {exact(low.strength)}"
    shows = f"{here} the LoRA shows (SSIM to base {low.ssim:.2f})"
    if beyond:
        lost, fit = beyond[0]
        limit = (
            f"at {exact(lost.strength)} the picture no longer follows the prompt "
            f"(CLIP score {fit:.1f}, base {base:.1f})"
        )
    else:
        fit, fall = next((fit, fall) for point, fit, fall in scored if point is high)
        verb = "still follows the prompt" if fall < LOST / 2 else "follows the prompt less, but still"
        limit = f"{exact(high.strength)}, the highest tried, {verb} (CLIP score {fit:.1f}, base {base:.1f})"
    return Advice(
        lora=lora,
        basis="prompt",
        low=low.strength,
        high=high.strength,
        sentence=f"{_between(low.strength, high.strength)}: {shows}; {limit}.",
        evidence=(*_note_gain(scored, base), *_describe_change(points), *_note_scenes(points)),
    )


def _note_gain(scored: Sequence[tuple[_Point, float, float]], base: float) -> list[str]:
    best, fit, fall = min(scored, key=lambda each: each[2])
    if -fall < GAINED:
        return []
    return [f"The picture fits the prompt best at {exact(best.strength)} (CLIP score {fit:.1f}, base {base:.1f})."]


def _note_scenes(points: Sequence[_Point]) -> list[str]:
    if max(point.scenes for point in points) > 1:
        return []
    return ["All of this is one seed and one prompt: with more of them as further rows it is surer."]


def _judge_change(lora: str, points: Sequence[_Point]) -> Advice | None:
    """Where the picture changes most. Whether that is good, SSIM cannot know, so no strength is named."""
    changes = _describe_change(points)
    if not changes:
        return None
    unknown = "Whether it still follows the prompt was not measured."
    return Advice(
        lora=lora, basis="change", low=None, high=None, sentence=f"{changes[0]} {unknown}", evidence=tuple(changes[1:])
    )


def _describe_change(points: Sequence[_Point]) -> list[str]:
    """What the curve of SSIM over strength shows: its steepest step, and where it comes to rest."""
    if len(points) < 2 or not _has_effect(points):
        return []
    curve = [(Decimal(0), 1.0), *((point.strength, point.ssim) for point in points)]
    steps = [(lower, higher, abs(higher[1] - lower[1])) for lower, higher in pairwise(curve)]
    lower, higher, _ = max(steps, key=lambda step: step[2] / float(step[1][0] - step[0][0]))
    said = [
        f"The picture changes most between {exact(lower[0])} and {exact(higher[0])} "
        f"(SSIM to base from {lower[1]:.2f} to {higher[1]:.2f})."
    ]
    whole = max(ssim for _, ssim in curve) - min(ssim for _, ssim in curve)
    for index, (strength, ssim) in enumerate(curve[:-2]):
        rest = [later for _, later in curve[index:]]
        if max(rest) - min(rest) < STILL * whole:
            said.append(f"From {exact(strength)} on it hardly changes any more (SSIM to base {ssim:.2f}).")
            break
    return said


def _has_effect(points: Sequence[_Point]) -> bool:
    return any(1 - point.ssim >= VISIBLE for point in points)


def _by_strength(records: Sequence[CellRecord]) -> list[tuple[Decimal, list[CellRecord]]]:
    ordered = sorted(records, key=_strength)
    return [(strength, list(same)) for strength, same in groupby(ordered, key=_strength)]


def _strength(record: CellRecord) -> Decimal:
    return record.cell.request.strength


def _range(advice: Advice) -> str:
    if advice.low is None or advice.high is None:
        return "no strength stands out"
    return _between(advice.low, advice.high)


def _between(low: Decimal, high: Decimal) -> str:
    return exact(low) if low == high else f"{exact(low)} to {exact(high)}"


def _name(strength: Decimal) -> str:
    return exact(strength) if strength else "0 (base)"


def read_curve(
    records: Sequence[CellRecord], value: Callable[[CellRecord], str | float | None]
) -> Mapping[Decimal, float]:
    """Return the mean of a value for each strength that has it, in order."""
    known = {
        strength: [found for record in same if isinstance(found := value(record), (int, float))]
        for strength, same in _by_strength(records)
    }
    return {strength: mean(values) for strength, values in known.items() if values}
