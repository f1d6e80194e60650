"""Rows -> records: what is known about the cells of runs, and the log of all that was tried.

A run's cells follow from its spec. Planning and hashing hundreds of them takes far longer than a query; hence plans are
kept by the text of their spec, which never changes once a run is logged, and what a cell is stands in columns too: the
log (`select_log`, `planned.py`) is searched, sorted and counted without any plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeAlias

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, Row, Select, and_, exists, func, or_, select
from sqlalchemy.orm import Session

from evaluation.axes import SweepSpec, read_spec
from evaluation.grid import Cell, plan
from evaluation.store.records import CellKey, CellRecord, Origin, Run, RunStatus, Verdict
from evaluation.store.rows import CellRow, RatingRow, RunCellRow, RunRow, ScoreRow
from lora_runtime.errors import NotFound
from lora_runtime.judges import name_judge
from lora_runtime.storage.blobs import Blobs

PLANS: Final = 4096
"""How many plans are kept: those of all runs that a long log has."""

BATCH: Final = 500
"""Runs that one statement names."""

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
    plans = [_read_plan(row.spec) for row in rows]
    planned = [(row, found.cells) for row, found in zip(rows, plans, strict=True)]
    of_runs = RunCellRow.run_id.in_([row.id for row in rows])
    history = _read_cells(session, blobs, planned, of_runs)
    runs = zip(rows, plans, history, strict=True)
    return [(_run(row, found.spec, records), records) for row, found, records in runs]


def read_known(session: Session, blobs: Blobs, row: RunRow, cells: Sequence[Cell]) -> tuple[CellRecord, ...]:
    """Return what is known about some cells of a run."""
    these = and_(RunCellRow.run_id == row.id, RunCellRow.position.in_([cell.position for cell in cells]))
    return _read_cells(session, blobs, [(row, cells)], these)[0]


def _read_cells(
    session: Session, blobs: Blobs, planned: Sequence[tuple[RunRow, Sequence[Cell]]], wanted: ColumnElement[bool]
) -> list[tuple[CellRecord, ...]]:
    known = {(found.run_id, found.position): found for found in session.execute(_cells(wanted))}
    scores = _read_scores(session, wanted)
    return [
        tuple(_record(row, cell, known.get((row.id, cell.position)), scores, blobs) for cell in cells)
        for row, cells in planned
    ]


def read_records(session: Session, blobs: Blobs, keys: Sequence[CellKey]) -> tuple[CellRecord, ...]:
    """Return the cells of `keys` in their order, but for those that are not there."""
    found: dict[CellKey, CellRecord] = {}
    runs = list(dict.fromkeys(run_id for run_id, _ in keys))
    for start in range(0, len(runs), BATCH):
        rows = session.scalars(select(RunRow).where(RunRow.id.in_(runs[start : start + BATCH]))).all()
        found |= {record.key: record for _, records in read_history(session, blobs, rows) for record in records}
    return tuple(found[key] for key in keys if key in found)


def make_row(run_id: str, cell: Cell) -> RunCellRow:
    """Return the row of a new cell."""
    request, lora = cell.request, cell.request.lora
    texts = (request.prompt, lora.name if lora else "", run_id, request.weights, request.precision)
    return RunCellRow(
        run_id=run_id,
        position=cell.position,
        identity=cell.identity,
        lora=lora.name if lora else None,
        lora_sha256=lora.sha256 if lora else None,
        strength=float(request.strength),
        prompt=request.prompt,
        seed=request.seed,
        weights=request.weights,
        precision=request.precision,
        backend=cell.target.backend,
        width=request.width,
        height=request.height,
        steps=request.steps,
        guidance=request.guidance,
        words="\n".join(texts).lower(),
        error=None,
    )


def select_log(*columns: Any, organization: str | None = None, origin: Origin | None = None) -> Select[Any]:
    """Return the query of the log: each cell that was tried and not deleted, with its run, image and rating."""
    return _join(select(*columns)).where(
        RunCellRow.deleted.is_(None),
        or_(CellRow.identity.is_not(None), RunCellRow.error.is_not(None)),
        *_of(organization, origin),
    )


def select_images(column: Any, *, organization: str) -> Select[Any]:
    """Return the query of a column by the identity of its image; equal images come several times."""
    return _join(select(RunCellRow.identity, column)).where(*_of(organization, None))


def read_mark(session: Session, *, organization: str | None) -> LogMark:
    """Return what tells whether `read_log` would say something else than before, without reading the log."""
    counts = (func.count(), func.count(CellRow.identity), func.max(CellRow.created))
    rows, images, newest = session.execute(select_log(*counts, organization=organization)).one()
    scored = ScoreRow.identity.in_(_identities(*_of(organization, None)))
    scores = session.scalar(select(func.count()).select_from(ScoreRow).where(scored))
    return LogMark(rows=rows, images=images, scores=scores or 0, newest=newest)


def select_runs(*, limit: int, organization: str | None, origin: Origin | None, under_way: bool = False) -> Select[Any]:
    """Return the query of the newest runs, newest first, but for those whose every cell was deleted."""
    left = exists().where(RunCellRow.run_id == RunRow.id, RunCellRow.deleted.is_(None))
    newest = select(RunRow).where(left, *_of(organization, origin))
    if under_way:
        newest = newest.where(RunRow.under_way)
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


def _identities(*wanted: ColumnElement[bool]) -> Select[Any]:
    return select(RunCellRow.identity).join(RunRow, RunRow.id == RunCellRow.run_id).where(*wanted)


def _join(query: Select[Any]) -> Select[Any]:
    """A query of run cells, with their run, their image and what a person thinks of it."""
    of_image = and_(RatingRow.identity == RunCellRow.identity, RatingRow.organization == RunRow.organization)
    return (
        query.select_from(RunCellRow)
        .join(RunRow, RunRow.id == RunCellRow.run_id)
        .outerjoin(RatingRow, of_image)  # first, as a search looks into notes: images of the rest are not looked up
        .outerjoin(CellRow, CellRow.identity == RunCellRow.identity)
    )


def _cells(*wanted: ColumnElement[bool]) -> Select[Any]:
    """The columns of run cells that a record needs beside its plan; plain columns, as rows are many."""
    query = (
        select(RunCellRow.run_id, RunCellRow.position, RunCellRow.error, RunCellRow.deleted)
        .add_columns(CellRow.blob, CellRow.seconds, CellRow.provenance, CellRow.created)
        .add_columns(CellRow.cost, CellRow.request_id)
        .add_columns(RatingRow.rating, RatingRow.note)
    )
    return _join(query).where(*wanted)


def _read_scores(session: Session, of_cells: ColumnElement[bool]) -> Scores:
    """The scores of the images of run cells, whatever they are compared with, by the judge that is asked now.

    Scores of another judge are numbers on another scale: they stay hidden until that judge is asked again.
    """
    query = (
        select(ScoreRow.identity, ScoreRow.base, ScoreRow.metric, ScoreRow.judge, ScoreRow.value, CellRow.weights)
        .join(CellRow, CellRow.identity == ScoreRow.identity)
        .where(ScoreRow.identity.in_(_identities(of_cells)))
    )
    asked: dict[str, str | None] = {}
    found: dict[tuple[str, str], dict[str, float]] = {}
    for identity, base, metric, judge, value, weights in session.execute(query):
        if weights not in asked:
            asked[weights] = name_judge(weights)
        if judge in ("", asked[weights]):
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
        cost=found.cost if image else None,
        request_id=found.request_id if image else None,
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
