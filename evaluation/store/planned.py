"""The log's cells as arrays: what they are, kept in memory, and what is known of them now, asked each time.

What a run planned is written once and never changes; so it is read once a run, and a search, a count or an order over
all of it is a matter of arrays. Whatever may change, from wherever, is asked at every reading and is little: which
cells are deleted, failed or wait, and what people think.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from sqlalchemy import Select, func, null, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from evaluation.store.read import select_images
from evaluation.store.records import CellKey
from evaluation.store.rows import CellRow, RatingRow, RunCellRow, RunRow, ScoreRow
from lora_runtime.judges import name_judge

MOST_CELLS: Final = 200_000
"""How many cells are kept, of all organizations together: some 130 MB."""

BATCH: Final = 500
"""Runs that one statement names."""

MOST_NAMED: Final = 5000
"""Images that one statement names."""

OF_ROW: Final = (
    RunRow.origin, RunCellRow.run_id, RunCellRow.lora, RunCellRow.lora_sha256, RunCellRow.prompt, RunCellRow.seed,
    RunCellRow.weights, RunCellRow.precision, RunCellRow.backend, RunCellRow.width, RunCellRow.height,
    RunCellRow.steps, RunCellRow.guidance, RunCellRow.words,
)  # fmt: skip
"""What cells of one row of a sweep have in common."""

OF_CELL: Final = (RunCellRow.position, RunCellRow.identity, RunCellRow.strength)

Whole: TypeAlias = npt.NDArray[np.intp]
Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Coded:
    """A value for each cell: that of cell n is `values[codes[n]]`. So what is asked of a value is asked once."""

    codes: Whole
    values: Sequence[Any]

    @classmethod
    def of(cls, values: Iterable[Any]) -> "Coded":
        """Return these values, one for each cell."""
        known: dict[Any, int] = {}
        codes = np.fromiter((known.setdefault(value, len(known)) for value in values), np.intp)
        return cls(codes, tuple(known))

    def distinct(self) -> "Coded":
        """Return the same, with each value once."""
        if len(set(self.values)) == len(self.values):
            return self
        found = Coded.of(self.values)
        return Coded(found.codes[self.codes], found.values)

    def at(self, place: int) -> Any:
        """Return the value of one cell."""
        return self.values[self.codes[place]]

    def ask(self, question: Callable[[Any], Any], kind: type = bool) -> npt.NDArray[Any]:
        """Return the answer for each cell."""
        return np.fromiter((question(value) for value in self.values), kind, len(self.values))[self.codes]

    def take(self, places: Whole) -> "Coded":
        """Return the values at `places`, for instance one for each cell of those of its row."""
        return Coded(self.codes[places], self.values)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The cells of a run: position, identity, strength and the place of the row among `rows`."""

    cells: Sequence[tuple[int, str, float, int]]
    rows: Sequence[tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Planned:
    """All cells of an organization's runs: the newest run first, each in the order of its plan."""

    runs: dict[str, _Run]

    @cached_property
    def keys(self) -> Sequence[CellKey]:
        """What names each cell."""
        return [(run_id, cell[0]) for run_id, run in self.runs.items() for cell in run.cells]

    @cached_property
    def places(self) -> dict[CellKey, int]:
        """Where each cell stands."""
        return {key: place for place, key in enumerate(self.keys)}

    @cached_property
    def image(self) -> Coded:
        """Equal images are one value."""
        return self.find("identity")

    @cached_property
    def images(self) -> dict[str, int]:
        """The code of each image."""
        return {identity: code for code, identity in enumerate(self.image.values)}

    @cached_property
    def weights(self) -> dict[str, str]:
        """The weights that each image was rendered with."""
        return dict(zip(self.find("identity").ask(str, object), self.find("weights").ask(str, object), strict=True))

    @cached_property
    def repeated(self) -> Mask:
        """Which cells have an image that others have too."""
        codes = self.image.codes
        found: Mask = np.bincount(codes, minlength=1)[codes] > 1
        return found

    def find(self, name: str) -> Coded:
        """Return what is planned of each cell under a column's name."""
        if name not in self._found:
            self._found[name] = self._read(name)
        return self._found[name]

    def _read(self, name: str) -> Coded:
        of_cell = [column.key for column in OF_CELL]
        if name in of_cell:
            at = of_cell.index(name)
            return Coded.of(cell[at] for run in self.runs.values() for cell in run.cells)
        at = [column.key for column in OF_ROW].index(name)
        return Coded.of(row[at] for run in self.runs.values() for row in run.rows).take(self._row)

    @cached_property
    def _found(self) -> dict[str, Coded]:
        return {}

    @cached_property
    def _row(self) -> Whole:
        """The row of each cell, counted through all runs."""
        starts = accumulate((len(run.rows) for run in self.runs.values()), initial=0)
        found = (start + cell[3] for start, run in zip(starts, self.runs.values(), strict=False) for cell in run.cells)
        return np.fromiter(found, np.intp)


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """The planned cells, and which of them are `there`: tried, and not deleted. What people think is by image."""

    session: Session
    organization: str
    planned: Planned
    there: Mask
    state: Coded
    error: Coded
    rating: Coded
    note: Coded

    def ask(self, sql: Any, identities: Sequence[str]) -> dict[str, Any]:
        """Return what a column of the log's query is for these images."""
        if isinstance(sql, InstrumentedAttribute) and sql.class_ is CellRow:
            return dict(self._fetch(select(CellRow.identity, sql), CellRow.identity, identities))
        found: dict[str, Any] = {}
        query = select_images(sql, organization=self.organization)
        for start in range(0, len(identities), MOST_NAMED):
            found.update(self._fetch(query, RunCellRow.identity, identities[start : start + MOST_NAMED]))
        return found

    def ask_scores(self, metrics: Sequence[str], identities: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return the scores of these images by metric and identity: by the judge that is asked now, or by none."""
        found: dict[str, dict[str, float]] = {metric: {} for metric in metrics}
        if not found:
            return found
        judges = {name: name_judge(name) for name in self.planned.find("weights").values}
        # A text that is the same in every row is not fetched 20,000 times.
        metric, judge = ScoreRow.metric if len(found) > 1 else null(), func.nullif(ScoreRow.judge, "")
        query = select(ScoreRow.identity, ScoreRow.value, judge, metric).where(ScoreRow.metric.in_(found))
        for identity, value, judge_id, name in self._fetch(query, ScoreRow.identity, identities):
            if judge_id is None or judge_id == judges.get(self.planned.weights.get(identity, "")):
                found[name or metrics[0]][identity] = value
        return found

    def _fetch(self, query: Select[*tuple[Any, ...]], key: Any, identities: Sequence[str]) -> Sequence[Any]:
        """Where images are many, all that the table has is read: it is faster than to name each."""
        some = query if len(identities) > MOST_NAMED else query.where(key.in_(identities))
        return self.session.connection().execute(some).all()


def planned_name(column: object) -> str:
    """Return the name by which `Planned.find` has a column of the log's query, or ""."""
    return next((each.key for each in (*OF_ROW, *OF_CELL) if each is column), "")


class Plans:
    """What was planned, by organization. Threads may share it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Planned] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, session: Session, organization: str) -> Known:
        """Return all that is planned and known of an organization's cells."""
        planned = self._read_planned(session, organization)
        return _look(session, planned, organization)

    def forget(self) -> None:
        """Keep nothing, as at the start."""
        with self._lock:
            self._kept.clear()

    def _read_planned(self, session: Session, organization: str) -> Planned:
        newest = select(RunRow.id).where(RunRow.organization == organization).order_by(RunRow.created.desc(), RunRow.id)
        ids = session.scalars(newest).all()
        with self._lock:
            before = found = self._kept.get(organization, Planned(runs={}))
        if list(before.runs) != ids:
            new = _read_runs(session, [each for each in ids if each not in before.runs])
            found = Planned(runs={each: before.runs.get(each) or new[each] for each in ids})
        with self._lock:
            self._kept[organization] = found
            self._kept.move_to_end(organization)
            while len(self._kept) > 1 and sum(len(each.keys) for each in self._kept.values()) > MOST_CELLS:
                self._kept.popitem(last=False)
        return found


def _read_runs(session: Session, ids: Sequence[str]) -> dict[str, _Run]:
    query = select(*OF_CELL, *OF_ROW).select_from(RunCellRow).join(RunRow)
    query = query.order_by(RunCellRow.run_id, RunCellRow.position)
    cells: dict[str, list[tuple[int, str, float, int]]] = {run_id: [] for run_id in ids}
    rows: dict[str, dict[tuple[Any, ...], int]] = {run_id: {} for run_id in ids}
    for start in range(0, len(ids), BATCH):
        these = RunCellRow.run_id.in_(ids[start : start + BATCH])
        for position, identity, strength, *row in session.connection().execute(query.where(these)).all():
            run_id, own = row[1], rows[row[1]]
            cells[run_id].append((position, identity, strength, own.setdefault(tuple(row), len(own))))
    return {run_id: _Run(cells=cells[run_id], rows=tuple(rows[run_id])) for run_id in ids}


def _look(session: Session, planned: Planned, organization: str) -> Known:
    """What is known now: all cells have an image but for those that are asked for here."""
    there = np.ones(len(planned.keys), bool)
    state, error = (np.zeros(len(planned.keys), np.intp) for _ in range(2))
    errors: list[str | None] = [None]
    others = (
        select(RunCellRow.run_id, RunCellRow.position, RunCellRow.deleted, RunCellRow.error)
        .join(RunRow)
        .outerjoin(CellRow, CellRow.identity == RunCellRow.identity)
        .where(RunRow.organization == organization)
        .where(or_(RunCellRow.deleted.is_not(None), CellRow.identity.is_(None)))
    )
    for run_id, position, deleted, message in session.connection().execute(others).all():
        place = planned.places.get((run_id, position))
        if place is None:  # its run is newer than what was read before
            continue
        there[place] = deleted is None and message is not None
        state[place], error[place] = 1, len(errors)
        errors.append(message)
    stars, notes = (np.zeros(len(planned.images), np.intp) for _ in range(2))
    said: list[str] = [""]
    opinions = select(RatingRow.identity, RatingRow.rating, RatingRow.note).where(
        RatingRow.organization == organization
    )
    for identity, rating, note in session.connection().execute(opinions).all():
        if identity in planned.images:
            code = planned.images[identity]
            stars[code], notes[code] = rating or 0, len(said)
            said.append(note)
    images = planned.image.codes
    return Known(
        session=session,
        organization=organization,
        planned=planned,
        there=there,
        state=Coded(state, ("done", "failed")),
        error=Coded(error, errors),
        rating=Coded(stars[images], (None, 1, 2, 3, 4, 5)),
        note=Coded(notes[images], said),
    )
