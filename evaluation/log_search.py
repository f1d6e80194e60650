"""Which cells of the log a view shows, and in which order. Equal images are one row: the newest cell that passes.

A search, a filter, a count, an order are a matter of arrays (`evaluation.store.planned`); a column that is in no plan
is asked of the database. Which of equal cells stands for its image follows from the filters: under a run it is that
run's, under a LoRA that LoRA's; where rows are grouped, an image stands in each group that has it.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property, partial
from typing import Any, Final

import numpy as np

from evaluation.judge.metrics import SCORES
from evaluation.report.columns import Column, Filter, Sql, Value, list_columns
from evaluation.store.planned import Coded, Known, Mask, Whole, planned_name
from evaluation.store.records import CellKey
from lora_runtime.errors import InvalidInput
from lora_runtime.written import read_decimal

PAGE_ROWS: Final = 60
"""How many rows are drawn before "Show more"."""

KNOWN: Final = ("state", "error", "rating", "note")
"""The columns that are known of every cell, beside what was planned."""


@dataclass(frozen=True, kw_only=True)
class LogView:
    """What of the log is shown and how. `chosen` has an option for each filter that is set; a limit of None is none."""

    text: str = ""
    chosen: Mapping[str, str] = field(default_factory=dict)
    low: Decimal | None = None
    high: Decimal | None = None
    group: str = ""
    sort: str = "created"
    descending: bool = True
    rows: int = PAGE_ROWS
    chart: bool = False
    measure: str = "clip"

    @property
    def is_filtered(self) -> bool:
        """Whether any filter is set."""
        return bool(self.text.strip() or self.chosen or self.low is not None or self.high is not None)


def list_filters() -> Mapping[str, Column]:
    """Return the columns that filter, in the order they are shown; runs come last."""
    found = list_columns("filter")
    return dict(sorted(found.items(), key=lambda named: named[0] == "run"))


def read_view(view: LogView, asked: Mapping[str, object]) -> LogView:
    """Return `view` with what the filter bar says; the page may send anything, so the unknown is left out."""
    group = str(asked.get("group") or "")
    return replace(
        view,
        chosen={name: str(asked[name]) for name in list_filters() if asked.get(name) not in (None, "")},
        low=_read_strength(asked.get("low")),
        high=_read_strength(asked.get("high")),
        group=group if group in list_columns("group") else "",
        measure=str(asked.get("measure") or view.measure),
        rows=PAGE_ROWS,
    )


def sort_view(view: LogView, column: str) -> LogView:
    """Return `view` sorted by a column; a second time turns the order around."""
    if column not in list_columns():
        return view
    descending = not view.descending if view.sort == column else False
    return replace(view, sort=column, descending=descending, rows=PAGE_ROWS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """A view of what is known of an organization's log. Cells are named by their place in the plans."""

    known: Known
    view: LogView

    @property
    def keys(self) -> Sequence[CellKey]:
        """What names each cell in the store."""
        return self.known.planned.keys

    @cached_property
    def shown(self) -> Mask:
        """Which cells pass every filter."""
        passes: Mask = self._misses == 0
        return self._found & passes

    @cached_property
    def group(self) -> Coded:
        """What the rows are grouped by; None alone where they are not."""
        if not self.view.group:
            return Coded(np.zeros(len(self.keys), np.intp), (None,))
        return self.find(list_columns("group")[self.view.group])

    def count_images(self, cells: Mask) -> int:
        """Return how many images these cells have."""
        return int(np.count_nonzero(np.bincount(self.known.planned.image.codes[cells])))

    def name_loras(self) -> Mapping[str, str]:
        """Return the name of each LoRA of the log, by SHA-256."""
        planned = self.known.planned
        sha256, name = planned.find("lora_sha256"), planned.find("lora")
        first = np.unique(sha256.codes[self.known.there], return_index=True)[1]
        cells = np.flatnonzero(self.known.there)[first].tolist()
        return {sha256.at(cell): name.at(cell) for cell in cells if sha256.at(cell)}

    def count(self, column: Column) -> Mapping[Value, int]:
        """Return each value of a filter's column, and how many images the other filters let through that have it."""
        found, missed = self.find(column), self._missed.get(column.name)
        cells = self.shown if missed is None else self._found & (self._misses - missed == 0)
        planned, size = self.known.planned, len(found.values)
        counts = np.bincount(found.codes[cells & ~planned.repeated], minlength=size)
        repeated = cells & planned.repeated
        pairs = np.unique(planned.image.codes[repeated] * size + found.codes[repeated])
        counts += np.bincount(pairs % size, minlength=size)
        return {value: count for value, count in zip(found.values, counts.tolist(), strict=True) if count}

    def list_rows(self) -> Whole:
        """Return a cell for each row, in the order of the view: of equal images in one group the newest."""
        cells = np.flatnonzero(self.shown)
        return self._order(cells[_find_first(self._pair(cells))])

    def list_images(self) -> Whole:
        """Return a cell for each image, in the order of the view."""
        cells = np.flatnonzero(self.shown)
        return self._order(cells[_find_first(self.known.planned.image.codes[cells])])

    def list_cells(self) -> Whole:
        """Return every cell that is shown, in the order of the view."""
        return self._order(np.flatnonzero(self.shown))

    def list_behind(self, row: CellKey) -> Sequence[CellKey]:
        """Return the cells that a row stands for: those with its image, as far as its group shows them."""
        place = self.known.planned.places.get(row)
        if place is None or not self.known.there[place]:
            return ()
        cells = np.flatnonzero(self.shown)
        same = cells[self._pair(cells) == self._pair(np.array([place]))]
        return [self.keys[each] for each in sorted({place, *same.tolist()})]

    def find(self, column: Column) -> Coded:
        """Return what tells a column's values apart."""
        sql = column.sql if column.key is None else column.key
        return self._read(column, sql).distinct()

    def _read(self, column: Column, sql: Sql | None) -> Coded:
        if column.name in KNOWN:
            found: Coded = getattr(self.known, column.name)
            return found
        if name := planned_name(sql):
            return self.known.planned.find(name)
        image = self.known.planned.image
        asked = self.ask([column], image.values)[column.name]
        return Coded(image.codes, [asked.get(identity) for identity in image.values])

    def ask(self, columns: Sequence[Column], identities: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        """Return what the database says of images, by column and identity."""
        scores = [column.name for column in columns if column.name in SCORES]
        rest = [column for column in columns if column.name not in SCORES]
        asked = {column.name: self.known.ask(column.sql, identities) for column in rest}
        return {**self.known.ask_scores(scores, identities), **asked}

    @cached_property
    def _found(self) -> Mask:
        """Which cells have every word of the search, and a strength within the limits."""
        found, planned = self.known.there, self.known.planned
        for word in self.view.text.lower().split():
            has = partial(_has, word=word)
            found = found & (planned.find("words").ask(has) | self.known.note.ask(has) | self.known.error.ask(has))
        strength = planned.find("strength")
        for limit, within in ((self.view.low, operator.le), (self.view.high, operator.ge)):
            if limit is not None:
                found = found & strength.ask(partial(within, float(limit)))
        return found

    @cached_property
    def _missed(self) -> Mapping[str, Mask]:
        """Which cells each filter that is set does not let through."""
        chosen = {name: column for name, column in list_filters().items() if name in self.view.chosen}
        return {
            name: self.find(column).ask(partial(_misses, column.filter, self.view.chosen[name]))
            for name, column in chosen.items()
            if column.filter
        }

    @cached_property
    def _misses(self) -> Whole:
        found: Whole = np.zeros(len(self.keys), np.intp)
        for missed in self._missed.values():
            found += missed
        return found

    def _pair(self, cells: Whole) -> Whole:
        """A number for each image in each group."""
        planned = self.known.planned
        return self.group.codes[cells] * len(planned.image.values) + planned.image.codes[cells]

    def _order(self, cells: Whole) -> Whole:
        """By group, numbers in order and others by their newest row; then as sorted, and the newest first."""
        ranks: list[Whole] = []
        if (self.view.sort, self.view.descending) != ("created", True):
            column = list_columns()[self.view.sort]
            sort = self._read(column, column.sql)
            ranks.append(_rank(sort.values, descending=self.view.descending)[sort.codes[cells]])
        if self.view.group:
            codes = self.group.codes[cells]
            if list_columns("group")[self.view.group].kind == "text":
                _, first, place = np.unique(codes, return_index=True, return_inverse=True)
                ranks.append(first[place])
            else:
                ranks.append(_rank(self.group.values)[codes])
        return cells[np.lexsort(ranks)] if ranks else cells


def _find_first(numbers: Whole) -> Whole:
    """Where each number comes for the first time, in order."""
    return np.sort(np.unique(numbers, return_index=True)[1])


def _misses(known: Filter, option: str, value: Value) -> bool:
    return option not in known.options(value)


def _has(text: str | None, *, word: str) -> bool:
    return text is not None and word in text.lower()


def _rank(values: Sequence[Value], *, descending: bool = False) -> Whole:
    """The place of each value in their order; capitals do not count, and None comes last."""
    plain = [value.lower() if isinstance(value, str) else value for value in values]
    there = np.array([value is not None for value in plain], bool)
    known = [value for value in plain if value is not None]
    numbers = all(isinstance(value, int | float) for value in known)
    # Texts as objects, as an array of texts gives each the room of the longest.
    found, places = np.unique(np.array(known, None if numbers else object), return_inverse=True)
    ranks = np.full(len(values), len(found), np.intp)
    ranks[there] = len(found) - 1 - places if descending else places
    return ranks


def _read_strength(written: object) -> Decimal | None:
    try:
        return read_decimal("Strength", written)
    except InvalidInput:
        return None
