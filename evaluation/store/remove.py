"""Delete cells from the log, take that back, and after a while remove them for good.

Deleting is a mark that can be undone: the row leaves the log, the image stays in the grid of its sweep. `purge` removes
what was marked long enough ago: ratings, votes and errors, images that no other cell shows and none is compared with,
and runs of which nothing is left, with the reference images that were kept for them. A cell of a run that lives on
keeps its place, without an image if nobody else has it.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy import ColumnElement, and_, delete, or_, select, tuple_, update
from sqlalchemy.orm import Session

from evaluation.store.opinions import forget_images, forget_opinions
from evaluation.store.records import CellKey
from evaluation.store.references import REFERENCE
from evaluation.store.rows import CellRow, ControlRow, PresetRow, PromptSetRow, RunCellRow, RunRow, ScoreRow
from lora_runtime.storage.database import count_changed

BATCH: Final = 500
"""Rows that one statement names."""


def mark_cells(
    session: Session, cells: Iterable[CellKey], deleted: datetime | None, *, organization: str | None
) -> int:
    """Mark cells as deleted at a time, or as not deleted (None); return how many changed.

    With an `organization`, cells of others are left alone.
    """
    changed = 0
    for batch in _batches(list(dict.fromkeys(cells))):
        which = [tuple_(RunCellRow.run_id, RunCellRow.position).in_(batch)]
        which.append(RunCellRow.deleted.is_(None) if deleted else RunCellRow.deleted.is_not(None))
        if organization is not None:
            own = select(RunRow.id).where(RunRow.organization == organization)
            which.append(RunCellRow.run_id.in_(own))
        changed += count_changed(session.execute(update(RunCellRow).where(*which).values(deleted=deleted)))
    return changed


def expire(session: Session, prefix: str, before: datetime, deleted: datetime) -> None:
    """Mark all that organizations whose id begins with `prefix` made before a time as deleted at `deleted`.

    Their presets and prompt sets of that age go at once.
    """
    theirs = select(RunRow.id).where(RunRow.organization.startswith(prefix, autoescape=True), RunRow.created < before)
    session.execute(
        update(RunCellRow)
        .where(RunCellRow.run_id.in_(theirs), or_(RunCellRow.deleted.is_(None), RunCellRow.deleted > deleted))
        .values(deleted=deleted)
    )
    for rows in (PresetRow, PromptSetRow):
        old = rows.organization.startswith(prefix, autoescape=True), rows.created < before
        session.execute(delete(rows).where(*old))


def find_deleted_runs(session: Session, before: datetime) -> Sequence[str]:
    """Return the runs that have cells deleted before a time."""
    return session.scalars(select(RunCellRow.run_id).where(RunCellRow.deleted < before).distinct()).all()


def purge_run(session: Session, run_id: str, before: datetime) -> list[str]:
    """Remove the cells of a run that were deleted before a time; return the blobs that nobody needs any more."""
    doomed = and_(RunCellRow.run_id == run_id, RunCellRow.deleted < before)
    identities = set(session.scalars(select(RunCellRow.identity).where(doomed)))
    blobs = _remove_images(session, identities, before)
    run = session.get(RunRow, run_id)
    if run is not None:
        forget_opinions(session, identities, run.organization)
    living = select(RunCellRow.position).where(RunCellRow.run_id == run_id, _is_alive(before)).limit(1)
    if session.scalar(living) is None:
        blobs += _find_references(session, run_id)
        session.execute(delete(RunCellRow).where(RunCellRow.run_id == run_id))
        session.execute(delete(RunRow).where(RunRow.id == run_id))
    else:
        session.execute(update(RunCellRow).where(doomed).values(error=None))
    return blobs


def _remove_images(session: Session, identities: set[str], before: datetime) -> list[str]:
    """Remove images that no living cell has and no other image is compared with."""
    gone = set(identities)
    gone -= set(session.scalars(select(RunCellRow.identity).where(RunCellRow.identity.in_(gone), _is_alive(before))))
    compared = select(ScoreRow.base).where(ScoreRow.base.in_(gone), ScoreRow.identity.not_in(gone))
    gone -= set(session.scalars(compared))
    blobs = set(session.scalars(select(CellRow.blob).where(CellRow.identity.in_(gone))))
    forget_images(session, gone)
    session.execute(delete(ScoreRow).where(ScoreRow.identity.in_(gone)))
    session.execute(delete(ControlRow).where(ControlRow.base.in_(gone)))
    session.execute(delete(CellRow).where(CellRow.identity.in_(gone)))
    blobs -= set(session.scalars(select(CellRow.blob).where(CellRow.blob.in_(blobs))))
    return sorted(blobs)


def _find_references(session: Session, run_id: str) -> list[str]:
    """The blobs of a run's reference images that no other run needs; files of the person's own stay where they are."""
    run = session.get(RunRow, run_id)
    spec = json.loads(run.spec) if run else {}
    found = [*spec.get("references", ()), *spec.get("likeness", ())]
    kept = {reference["sha256"]: Path(reference["path"]).name for reference in found}
    return [
        name
        for sha256, name in kept.items()
        if name.startswith(f"{sha256}{REFERENCE}")
        and session.scalar(select(RunRow.id).where(RunRow.id != run_id, RunRow.spec.contains(sha256)).limit(1)) is None
    ]


def _is_alive(before: datetime) -> ColumnElement[bool]:
    return or_(RunCellRow.deleted.is_(None), RunCellRow.deleted >= before)


def _batches(cells: Sequence[CellKey]) -> Iterator[Sequence[CellKey]]:
    for start in range(0, len(cells), BATCH):
        yield cells[start : start + BATCH]
