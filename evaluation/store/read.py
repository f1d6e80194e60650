"""Rows -> records: what is known about the cells of runs, and the log of all that was tried.

A run's cells follow from its spec, so a row of the log is found by one query over indexed columns and the run's plan.
Planning and hashing hundreds of cells takes far longer than the query; hence plans are kept by the text of their spec,
which never changes once a run is logged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeAlias

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, Row, Select, and_, exists, func, or_, select, true
from sqlalchemy.orm import Session

from evaluation.axes import SweepSpec, read_spec
from evaluation.grid import Cell, plan
from evaluation.store.records import CellRecord, Origin, Run, RunStatus, Verdict
from evaluation.store.rows import CellRow, RatingRow, RunCellRow, RunRow, ScoreRow
from lora_runtime.errors import NotFound
from lora_runtime.storage.blobs import Blobs

PLANS: Final = 4096
"""How many plans are kept: those of all runs that a long log has."""

Scores: TypeAlias = Mapping[tuple[str, str], Mapping[str, float]]
"""(identity, base) -> metric -> value; an image's own scores have itself for a base."""


@dataclass(frozen=True, kw_only=True)
class LogMark:
    """What changes when the log gets an image, a failure or a score, or when a row leaves it or comes back."""

    rows: int
    images: int
    scores: int
    newest: datetime | None


@dataclass(frozen=True, kw_only=True)
class _Plan:
    spec: SweepSpec
    cells: tuple[Cell, ...]


def read_history(session: Session, blobs: Blobs, rows: Sequence[RunRow]) -> list[tuple[Run, tuple[CellRecord, ...]]]:
    """Return runs with all their cells, in the order of `rows`."""
    of_runs = RunCellRow.run_id.in_([row.id for row in rows])
    known = {(found.run_id, found.position): found for found in session.execute(_cells(of_runs))}
    scores = _read_scores(session, of_runs)
    history = []
    for row in rows:
        planned = _read_plan(row.spec)
        records = tuple(_record(row, cell, known.get((row.id, cell.position)), scores, blobs) for cell in planned.cells)
        history.append((_run(row, planned.spec, records), records))
    return history


def read_record(session: Session, blobs: Blobs, row: RunRow, cell: Cell) -> CellRecord:
    """Return what is known about one cell of a run."""
    this = and_(RunCellRow.run_id == row.id, RunCellRow.position == cell.position)
    return _record(row, cell, session.execute(_cells(this)).first(), _read_scores(session, this), blobs)


def read_log(
    session: Session, blobs: Blobs, *, limit: int, organization: str | None, origin: Origin | None
) -> list[CellRecord]:
    """Return the cells that were tried and not deleted, those of the newest run first, at most `limit`."""
    newest = (
        _cells(*_of_log(organization, origin))
        .join(RunRow, RunRow.id == RunCellRow.run_id)
        .order_by(RunRow.created.desc(), RunRow.id, RunCellRow.position)
        .limit(limit)
    )
    known = session.execute(newest).all()
    of_runs = {found.run_id for found in known}
    all_runs = session.scalars(select(RunRow).where(*_of(organization, origin)))
    runs = {row.id: row for row in all_runs if row.id in of_runs}
    scores = _read_scores(session, and_(true(), *_of(organization, origin)))
    records = []
    for found in known:
        row = runs[found.run_id]
        record = _record(row, _read_plan(row.spec).cells[found.position], found, scores, blobs)
        if record.state != "pending":  # its file may have been deleted by hand
            records.append(record)
    return records


def read_mark(session: Session, *, organization: str | None) -> LogMark:
    """Return what tells whether `read_log` would say something else than before, without reading the log."""
    counts = select(func.count(), func.count(CellRow.identity), func.max(CellRow.created)).select_from(RunCellRow)
    joined = counts.join(RunRow).outerjoin(CellRow, CellRow.identity == RunCellRow.identity)
    rows, images, newest = session.execute(joined.where(*_of_log(organization, None))).one()
    scored = ScoreRow.identity.in_(_identities(*_of(organization, None)))
    scores = session.scalar(select(func.count()).select_from(ScoreRow).where(scored))
    return LogMark(rows=rows, images=images, scores=scores or 0, newest=newest)


def select_runs(*, limit: int, organization: str | None, origin: Origin | None) -> Select[Any]:
    """Return the query of the newest runs, newest first, but for those whose every cell was deleted."""
    left = exists().where(RunCellRow.run_id == RunRow.id, RunCellRow.deleted.is_(None))
    newest = select(RunRow).where(left, *_of(organization, origin))
    return newest.order_by(RunRow.created.desc(), RunRow.id).limit(limit)


def find_file(blobs: Blobs, blob: str | None) -> Path | None:
    """Return an image's file, unless somebody deleted it by hand."""
    try:
        return blobs.path(blob) if blob else None
    except NotFound:
        return None


def write_verdict(verdict: Verdict) -> str:
    """Return a verdict as JSON text."""
    return _verdicts().dump_json(verdict).decode()


def _of(organization: str | None, origin: Origin | None) -> list[ColumnElement[bool]]:
    wanted: list[ColumnElement[bool]] = []
    if organization is not None:
        wanted.append(RunRow.organization == organization)
    if origin is not None:
        wanted.append(RunRow.origin == origin)
    return wanted


def _of_log(organization: str | None, origin: Origin | None) -> list[ColumnElement[bool]]:
    """What was tried and not deleted; the query has the tables of runs, run cells and, joined from outside, cells."""
    return [
        RunCellRow.deleted.is_(None),
        or_(CellRow.identity.is_not(None), RunCellRow.error.is_not(None)),
        *_of(organization, origin),
    ]


def _identities(*wanted: ColumnElement[bool]) -> Select[Any]:
    return select(RunCellRow.identity).join(RunRow, RunRow.id == RunCellRow.run_id).where(*wanted)


def _cells(*wanted: ColumnElement[bool]) -> Select[Any]:
    """The columns of run cells, with their image and what a person thinks of it; plain columns, as rows are many."""
    of_person = and_(RatingRow.run_id == RunCellRow.run_id, RatingRow.position == RunCellRow.position)
    return (
        select(RunCellRow.run_id, RunCellRow.position, RunCellRow.error, RunCellRow.deleted)
        .add_columns(CellRow.blob, CellRow.seconds, CellRow.provenance, CellRow.created)
        .add_columns(RatingRow.rating, RatingRow.note)
        .outerjoin(CellRow, CellRow.identity == RunCellRow.identity)
        .outerjoin(RatingRow, of_person)
        .where(*wanted)
    )


def _read_scores(session: Session, of_cells: ColumnElement[bool]) -> Scores:
    """The scores of the images of run cells, whatever they are compared with."""
    query = select(ScoreRow.identity, ScoreRow.base, ScoreRow.metric, ScoreRow.value)
    found: dict[tuple[str, str], dict[str, float]] = {}
    for identity, base, metric, value in session.execute(query.where(ScoreRow.identity.in_(_identities(of_cells)))):
        found.setdefault((identity, base), {})[metric] = value
    return found


def _record(row: RunRow, cell: Cell, found: Row[Any] | None, scores: Scores, blobs: Blobs) -> CellRecord:
    """The record of a cell; one that was purged from a run that is still there (None) waits like a new one."""
    if found is None:
        return CellRecord(run_id=row.id, cell=cell, state="pending")
    image = find_file(blobs, found.blob)
    own, compared = (cell.identity, cell.identity), (cell.identity, cell.base)
    return CellRecord(
        run_id=row.id,
        cell=cell,
        state="done" if image else "failed" if found.error is not None else "pending",
        image=image,
        error=None if image else found.error,
        seconds=found.seconds if image else None,
        created=_utc(found.created) if image else None,
        provenance=found.provenance if image else {},
        scores={**scores.get(own, {}), **scores.get(compared, {})} if image else {},
        rating=found.rating,
        note=found.note or "",
        deleted=found.deleted is not None,
        red=_is_red(row.verdict),
        organization=row.organization,
        origin=_origins().validate_python(row.origin),
    )


def _run(row: RunRow, spec: SweepSpec, records: Sequence[CellRecord]) -> Run:
    states = {record.state for record in records}
    status: RunStatus = "unfinished" if "pending" in states else "failed" if "failed" in states else "done"
    return Run(
        id=row.id,
        created=_utc(row.created),
        spec=spec,
        status=status,
        verdict=_read_verdict(row.verdict) if row.verdict else None,
        organization=row.organization,
        origin=_origins().validate_python(row.origin),
    )


@lru_cache(maxsize=PLANS)
def _read_verdict(text: str) -> Verdict:
    return _verdicts().validate_json(text)


def _is_red(verdict: str | None) -> bool:
    return verdict is not None and _read_verdict(verdict).ok is False


def _utc(stored: datetime) -> datetime:
    return stored.replace(tzinfo=UTC)


@lru_cache(maxsize=PLANS)
def _read_plan(text: str) -> _Plan:
    spec = read_spec(text)
    return _Plan(spec=spec, cells=plan(spec))


@lru_cache(maxsize=1)
def _origins() -> TypeAdapter[Origin]:
    return TypeAdapter(Origin)


@lru_cache(maxsize=1)
def _verdicts() -> TypeAdapter[Verdict]:
    return TypeAdapter(Verdict)
