"""How far two targets of one sweep are apart: FP8 against BF16, this machine against a remote one.

Each pair of cells shares weights, seed, prompt, LoRA and strength; only where and at which precision it was rendered
differs.
The mean over the strengths is set beside the mean of one strength step on the same scale, because that is the question
behind it: does the precision move the picture less than the knob does?
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

from PIL import Image

from evaluation.grid import Cell
from evaluation.judge.metrics.mean_difference import measure_mean_difference
from evaluation.judge.metrics.ssim import measure_ssim
from evaluation.store.store import CellRecord
from evaluation.strengths import format_strength


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Two images of one strength on two targets: SSIM (1 is equal) and mean difference of channel values (0 to 255).

    `row` and `base` are the cells of the two.
    """

    row: Cell
    base: Cell
    ssim: float
    difference: float


def measure_distances(records: Sequence[CellRecord]) -> tuple[Distance, ...]:
    """Compare every row rendered on another target with the first row of its weights, where both strengths are done."""
    first: dict[tuple[str, int], CellRecord] = {}
    found = []
    for record in records:
        if record.image is None:
            continue
        other = first.setdefault((record.cell.target.weights, record.cell.column), record)
        if record.cell.target != other.cell.target:
            ssim, difference = _compare(record, other)
            found.append(Distance(row=record.cell, base=other.cell, ssim=ssim, difference=difference))
    return tuple(found)


def describe_distances(records: Sequence[CellRecord]) -> tuple[str, ...]:
    """Return one sentence for every row beside the first of its weights; none when the sweep has one target each."""
    distances = measure_distances(records)
    if not distances:
        return ()
    step = _mean_step(records)
    sentences = []
    for row in dict.fromkeys(distance.row.row for distance in distances):
        own = [distance for distance in distances if distance.row.row == row]
        worst = min(own, key=lambda distance: distance.ssim)
        names = f"{own[0].row.row_label} against {own[0].base.row_label}"
        beside = "" if step is None else f"; one step of strength: {step:.1f}"
        sentences.append(
            f"{names}, same seed and strength: SSIM {mean(item.ssim for item in own):.3f} on average, lowest "
            f"{worst.ssim:.3f} at strength {format_strength(worst.row.request.strength)}; mean difference "
            f"{mean(item.difference for item in own):.1f} of 255{beside}."
        )
    return tuple(sentences)


def _mean_step(records: Sequence[CellRecord]) -> float | None:
    """The mean difference between neighbouring strengths of the first row."""
    row = sorted(
        (record for record in records if record.cell.row == 0 and record.image),
        key=lambda record: record.cell.request.strength,
    )
    steps = [_compare(lower, higher)[1] for lower, higher in pairwise(row)]
    return mean(steps) if steps else None


def _compare(first: CellRecord, second: CellRecord) -> tuple[float, float]:
    image, other = _open((first, second))
    return measure_ssim(image, other), measure_mean_difference(image, other)


def _open(records: Iterable[CellRecord]) -> list[Image.Image]:
    images = []
    for record in records:
        if record.image is None:
            raise ValueError("only cells with an image can be compared")
        with Image.open(record.image) as file:
            images.append(file.convert("RGB"))
    return images
