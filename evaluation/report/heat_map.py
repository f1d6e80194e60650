"""The evidence of a training run as a heat map: how many scenes pass, for each checkpoint and strength.

Every cell says it in numbers and a sign; its colour only repeats them. `templates/heat.html` draws it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Final

from evaluation.axes import Training
from evaluation.judge.answer import Answer
from evaluation.judge.evidence import HOLDS, VISIBLE, Point
from evaluation.judge.training import answer_training
from evaluation.strengths import name_strength

LEVELS: Final = 4
"""Shades from no scene to every scene."""

SIGNS: Final[Mapping[str, str]] = MappingProxyType(
    {"chosen": "★", "holds": "✓", "faint": "○", "copies": "≡", "lost": "✕"}
)
WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "chosen": "use this",
        "holds": "the LoRA is seen, and scenes hold",
        "faint": "hardly seen",
        "copies": "pictures have grown alike",
        "lost": "scenes are lost",
    }
)
"""What the signs mean, in the order of the legend."""


@dataclass(frozen=True, kw_only=True)
class HeatCell:
    """One checkpoint at one strength: `text` is "7/8", `says` the same in words, `level` 0 to `LEVELS` its shade."""

    text: str
    says: str
    level: int
    kind: str
    sign: str


@dataclass(frozen=True, kw_only=True)
class HeatRow:
    """One checkpoint; `problem` says why it has no cells. A cell is None where nothing was judged."""

    label: str
    cells: tuple[HeatCell | None, ...] = ()
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class HeatView:
    """The whole map; `legend` are the signs that are in it, with their words."""

    heads: tuple[str, ...]
    rows: tuple[HeatRow, ...]
    legend: tuple[tuple[str, str], ...]


def view_heat(training: Training | None, answers: Sequence[Answer]) -> HeatView | None:
    """Return the heat map of a training run; None for other sweeps, and where nothing was judged."""
    strengths = sorted({point.strength for answer in answers for point in answer.points})
    found = answer_training(training, answers)
    if training is None or found is None or not strengths:
        return None
    by_lora = {answer.value.lora.sha256: answer for answer in answers}
    rows = []
    for stage in training.stages:
        answer = by_lora.get(stage.sha256)
        cells = _view_cells(answer, strengths, is_chosen=answer is found.chosen) if answer else ()
        rows.append(HeatRow(label=stage.label, cells=cells, problem=stage.problem))
    kinds = {cell.kind for row in rows for cell in row.cells if cell}
    return HeatView(
        heads=tuple(map(name_strength, strengths)),
        rows=tuple(rows),
        legend=tuple((SIGNS[kind], words) for kind, words in WORDS.items() if kind in kinds),
    )


def _view_cells(answer: Answer, strengths: Sequence[Decimal], *, is_chosen: bool) -> tuple[HeatCell | None, ...]:
    points = {point.strength: point for point in answer.points}
    return tuple(
        _view_cell(points[strength], _find_kind(answer, points[strength], is_chosen=is_chosen))
        if strength in points
        else None
        for strength in strengths
    )


def _view_cell(point: Point, kind: str) -> HeatCell:
    passes = point.passes
    return HeatCell(
        text=f"{passes.passed}/{passes.of}",
        says=f"{passes.passed} of {passes.of} scenes pass: {WORDS[kind]}",
        level=round(passes.share * LEVELS),
        kind=kind,
        sign=SIGNS[kind],
    )


def _find_kind(answer: Answer, point: Point, *, is_chosen: bool) -> str:
    if is_chosen and point.strength == answer.best:
        return "chosen"
    intact = point.tally("intact")
    if point.change >= VISIBLE and intact.of and intact.share < HOLDS:
        return "copies"
    mark = answer.marks.get(point.strength, "lost" if point.holds.share < HOLDS else "faint")
    return "holds" if mark in ("use", "best") else mark
