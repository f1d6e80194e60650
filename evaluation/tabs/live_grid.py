"""The grid on the page as one value: its table with empty places, its cells by position, and what is said over it.

A value says the whole state, so a slow page that skips one misses nothing. Gradio sends what differs from the value
before: while a sweep runs, the cells that changed; grid.js puts in only those. Hence every redraw of a run carries one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evaluation.axes import SweepSpec
from evaluation.judge.answer import Answer
from evaluation.judge.training import list_named
from evaluation.report.draw import draw
from evaluation.report.grid_view import CellView, GridView, view_cell, view_grid
from evaluation.store.records import CellRecord


@dataclass(frozen=True, kw_only=True)
class LiveGrid:
    """`advised` are the columns whose strength holds, be it only here, `best` the cell to begin with, by its position;
    `busy`: a sweep fills it.
    """

    table: str = ""
    cells: Mapping[str, str] = field(default_factory=dict)
    busy: bool = False
    advised: tuple[int, ...] = ()
    best: str | None = None

    def value(self) -> dict[str, Any]:
        """What the page is given."""
        told = {"busy": self.busy, "advised": list(self.advised), "best": self.best}
        return {"table": self.table, "cells": self.cells, **told}

    def with_cells(self, records: Iterable[CellRecord]) -> "LiveGrid":
        """The same grid with some of its cells drawn anew."""
        drawn = {str(record.cell.position): _draw(view_cell(record, running=self.busy)) for record in records}
        return replace(self, cells={**self.cells, **drawn})


def draw_grid(
    spec: SweepSpec,
    records: Sequence[CellRecord],
    *,
    running: bool = False,
    own: bool = True,
    answers: Sequence[Answer] = (),
) -> LiveGrid:
    """Return the grid of a sweep, with the strengths of its answers marked."""
    drawn = draw_view(view_grid(spec, records, running=running, own=own, answers=answers))
    strengths = sorted({record.cell.request.strength for record in records})
    marked = [{mark for answer in answers if (mark := answer.marks.get(strength))} for strength in strengths]
    advised = tuple(column for column, marks in enumerate(marked) if marks & {"use", "best"})
    best = next((str(record.cell.position) for _, record in list_named(spec.training, records, answers)), None)
    return replace(drawn, busy=running, advised=advised, best=best)


def draw_view(view: GridView) -> LiveGrid:
    """Return a grid as it stands, e.g. one that is only planned."""
    cells = [cell for row in view.rows for cell in row.cells if cell is not None]
    return LiveGrid(
        table=draw("grid.html", grid=view, live=True), cells={str(cell.position): _draw(cell) for cell in cells}
    )


def _draw(cell: CellView) -> str:
    return draw("cell.html", cell=cell, live=True)
