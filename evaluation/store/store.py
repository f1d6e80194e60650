"""Runs, cells, scores, controls, ratings: what must survive a restart.

An image belongs to an identity, not to a run: two runs that plan the same cell share it. A cell's state is derived,
never stored: *done* when its identity has an image whose file is there, *failed* when its last try left an error,
*pending* otherwise. The file is written and synced before its row, so a crash leaves an unused file at worst, and
a file deleted by hand makes its cell pending again.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from evaluation.axes import SweepSpec, Target, write_spec
from evaluation.grid import Cell
from evaluation.identity import identity, rendered_request
from evaluation.store import opinions
from evaluation.store.planned import Plans
from evaluation.store.read import (
    LogMark,
    find_file,
    make_row,
    read_history,
    read_known,
    read_mark,
    read_records,
    select_runs,
    write_verdict,
)
from evaluation.store.records import (
    CellKey,
    CellRecord,
    Control,
    Origin,
    Outcome,
    Run,
    RunStatus,
    State,
    StoredImage,
    Verdict,
    Vote,
)
from evaluation.store.remove import expire, find_deleted_runs, mark_cells, purge_run
from evaluation.store.rows import CellRow, ControlRow, RunCellRow, RunRow, ScoreRow
from lora_runtime.errors import Conflict, NotFound
from lora_runtime.png import encode_png, request_metadata
from lora_runtime.registry.accounts import LOCAL
from lora_runtime.settings import Settings
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database
from lora_runtime.values import Precision, Rendered, RenderRequest
from lora_runtime.written import quote

__all__ = ["CellKey", "CellRecord", "Control", "Origin", "Run", "RunStatus", "State", "Store", "StoredImage", "Verdict"]

RECENT: Final = 50
"""How many of the last images count towards the measured speed."""


class Store:
    """The evaluation's tables and images. Any number of threads and processes may share them."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs
        self.plans = Plans()

    @classmethod
    def open(cls, settings: Settings) -> "Store":
        """Open the store of the home folder.

        Raises:
            StorageFailed: The folder or the database cannot be written.
        """
        return cls(Database(settings.sqlalchemy_url()), Blobs(settings.home / "blobs"))

    @property
    def database(self) -> Database:
        """The database that the tables are in."""
        return self._database

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def create_run(
        self, spec: SweepSpec, cells: Sequence[Cell], *, organization: str = LOCAL, origin: Origin = "sweep"
    ) -> str:
        """Log a new run of `spec`, whose plan is `cells`, and return its id; what has no image yet is pending."""
        # 64 bits, as a link with it may be shown to others and must not be guessed; the letters keep spreadsheets from
        # reading an id such as 3e12 as a number.
        run_id = f"run-{secrets.token_hex(8)}"
        with self._database.session() as session:
            text = write_spec(spec)
            session.add(
                RunRow(id=run_id, organization=organization, origin=origin, created=_now(), spec=text, verdict=None)
            )
            session.flush()
            session.add_all(make_row(run_id, cell) for cell in cells)
        return run_id

    def set_under_way(self, runs: Sequence[str], under_way: bool) -> None:
        """Keep that a server goes on with these runs, or that none does any more."""
        with self._database.session() as session:
            session.execute(update(RunRow).where(RunRow.id.in_(runs)).values(under_way=under_way))

    def run(self, run_id: str) -> Run:
        """Return one run.

        Raises:
            NotFound: There is no such run.
        """
        return self.look(run_id)[0]

    def cells(self, run_id: str) -> tuple[CellRecord, ...]:
        """Return every cell of a run, in the order of the plan; deleted ones too.

        Raises:
            NotFound: There is no such run.
        """
        return self.look(run_id)[1]

    def look(self, run_id: str) -> tuple[Run, tuple[CellRecord, ...]]:
        """Return a run and its cells, as `run` and `cells` do, by one reading.

        Raises:
            NotFound: There is no such run.
        """
        with self._database.session() as session:
            return read_history(session, self._blobs, [_find_run(session, run_id)])[0]

    def record(self, run_id: str, cell: Cell) -> CellRecord:
        """Return what is known now about one cell of a run."""
        return self.known(run_id, (cell,))[0]

    def known(self, run_id: str, cells: Sequence[Cell]) -> tuple[CellRecord, ...]:
        """Return what is known now about cells of a run, which whoever asks has planned."""
        with self._database.session() as session:
            return read_known(session, self._blobs, _find_run(session, run_id), cells)

    def runs(self, limit: int = 100) -> tuple[Run, ...]:
        """Return the newest runs, newest first."""
        return tuple(run for run, _ in self.history(limit))

    def history(
        self,
        limit: int = 100,
        *,
        organization: str | None = None,
        origin: Origin | None = None,
        under_way: bool = False,
    ) -> tuple[tuple[Run, tuple[CellRecord, ...]], ...]:
        """Return the newest runs with their cells, newest first; None is every organization or origin.

        A run whose every cell was deleted is not among them; with `under_way`, nor one that no server goes on with.
        """
        newest = select_runs(limit=limit, organization=organization, origin=origin, under_way=under_way)
        with self._database.session() as session:
            return tuple(read_history(session, self._blobs, session.scalars(newest).all()))

    def records(self, keys: Sequence[CellKey]) -> tuple[CellRecord, ...]:
        """Return the cells of `keys` in their order, but for those that are not there (any more)."""
        with self._database.session() as session:
            return read_records(session, self._blobs, keys)

    def log_mark(self, *, organization: str | None = None) -> LogMark:
        """Return a mark that is another one when `log` has changed; what people think of rows is not in it."""
        with self._database.session() as session:
            return read_mark(session, organization=organization)

    def delete_cells(self, cells: Iterable[CellKey], *, organization: str | None = None) -> int:
        """Take cells out of the log until `restore_cells`, or for good with `purge`; return how many there were.

        With an `organization`, cells of others are left alone.
        """
        with self._database.session() as session:
            return mark_cells(session, cells, _now(), organization=organization)

    def restore_cells(self, cells: Iterable[CellKey], *, organization: str | None = None) -> int:
        """Put deleted cells back into the log; return how many there were."""
        with self._database.session() as session:
            return mark_cells(session, cells, None, organization=organization)

    def expire(self, prefix: str, before: datetime, *, deleted: datetime) -> None:
        """Take what organizations with this `prefix` made before a time out of the log, as if deleted at `deleted`.

        Both times have their zone.
        """
        with self._database.session() as session:
            expire(session, prefix, _naive(before), _naive(deleted))

    def purge(self, before: datetime) -> int:
        """Remove for good what was deleted before a time (with its zone); return how many images that were.

        Raises:
            StorageFailed: A file could not be removed; its row has gone.
        """
        moment = _naive(before)
        with self._database.session() as session:
            runs = find_deleted_runs(session, moment)
        count = 0
        for run_id in runs:
            with self._database.session() as session:
                blobs = purge_run(session, run_id, moment)
            for blob in blobs:
                self._blobs.remove(blob)
            count += len(blobs)
        return count

    def image(self, identity: str) -> StoredImage | None:
        """Return the image of an identity, or None when there is none."""
        with self._database.session() as session:
            row = session.get(CellRow, identity)
        path = find_file(self._blobs, row.blob if row else None)
        return StoredImage(path=path, provenance=row.provenance) if row and path else None

    def find_image(self, blob: str | None) -> Path | None:
        """Return the file of a blob, or None when there is none."""
        return find_file(self._blobs, blob)

    def save_image(self, request: RenderRequest, rendered: Rendered, target: Target) -> None:
        """Keep the image of `request` on `target`: the file first, then its row.

        When another run was faster, its image stays and this one is dropped; when its file has gone, this one takes
        its place.

        Raises:
            StorageFailed: The disk is full or not writable; what was kept before is whole.
        """
        request = rendered_request(request, target)
        key = identity(request, target)
        chunk = request_metadata(request, identity=key, server=target.server)
        blob = self._blobs.put(encode_png(rendered.image, chunk), suffix=".png")
        provenance = {**rendered.provenance, "batch_size": str(rendered.timing.batch_size)}

        def write() -> None:
            with self._database.session() as session:
                row = session.get(CellRow, key)
                if row is not None and find_file(self._blobs, row.blob) is not None:
                    return
                session.merge(
                    CellRow(
                        identity=key,
                        blob=blob,
                        request=_requests().dump_json(request).decode(),
                        weights=request.weights,
                        precision=request.precision,
                        width=request.width,
                        height=request.height,
                        steps=request.steps,
                        seconds=rendered.timing.seconds,
                        cost=rendered.cost,
                        request_id=rendered.request_id,
                        provenance=provenance,
                        created=_now(),
                    )
                )

        _again_on_conflict(write)

    def set_error(self, run_id: str, position: int, message: str) -> None:
        """Keep why a cell failed."""
        self._set_errors(run_id, (position,), message)

    def clear_errors(self, run_id: str, positions: Sequence[int]) -> None:
        """Make failed cells pending again, before another try."""
        self._set_errors(run_id, positions, None)

    def set_verdict(self, run_id: str, verdict: Verdict) -> None:
        """Keep the verdict on a run, in place of an earlier one."""
        text = write_verdict(verdict)
        with self._database.session() as session:
            session.execute(update(RunRow).where(RunRow.id == run_id).values(verdict=text))

    def save_scores(self, cell: Cell, scores: Mapping[str, float]) -> None:
        """Keep a cell's scores against the base image of its row; both images are there."""
        self._save_scores(cell.identity, cell.base, scores)

    def save_own_scores(self, identity: str, scores: Mapping[str, float], *, judge: str = "") -> None:
        """Keep scores of an image that compare it with no other one, by the judge of this id."""
        self._save_scores(identity, identity, scores, judge=judge)

    def save_control(self, base: str, lora_sha256: str, control: Control) -> None:
        """Keep how far a LoRA at strength 0 was from the base image `base`."""

        def write() -> None:
            with self._database.session() as session:
                session.merge(
                    ControlRow(
                        base=base,
                        lora_sha256=lora_sha256,
                        difference=control.difference,
                        tolerance=control.tolerance,
                    )
                )

        _again_on_conflict(write)

    def control(self, base: str, lora_sha256: str) -> Control | None:
        """Return what is known about a LoRA at strength 0 against the base image `base`."""
        with self._database.session() as session:
            row = session.get(ControlRow, (base, lora_sha256))
            return Control(difference=row.difference, tolerance=row.tolerance) if row else None

    def rate(
        self, run_id: str, position: int, rating: int | None, note: str = "", *, organization: str | None = None
    ) -> None:
        """Keep a person's rating (1 to 5, or None) and note of a cell's image, in place of an earlier one.

        It shows in every run of the same organization that has the image. With an `organization`, only of its own runs.

        Raises:
            InvalidInput: The rating is not from 1 to 5, or the note too long.
            NotFound: There is no such cell.
        """
        opinions.check_rating(rating, note)

        def write() -> None:
            with self._database.session() as session:
                run = _find_run(session, run_id)
                if organization is not None and run.organization != organization:
                    raise NotFound(f"Run {run_id} is somebody else's. Sweep its settings again to rate your own.")
                opinions.keep_rating(session, run, position, rating, note)

        _again_on_conflict(write)

    def vote(self, left: str, right: str, outcome: Outcome, *, voter: str = LOCAL, organization: str = LOCAL) -> None:
        """Keep a blind choice between two images, by identity, as they were shown; raises what `add_vote` does."""
        with self._database.session() as session:
            opinions.add_vote(session, left, right, outcome, voter=voter, organization=organization, created=_now())

    def take_back(self, vote: Vote) -> None:
        """Remove a vote that its voter takes back."""
        with self._database.session() as session:
            opinions.remove_vote(session, vote)

    def votes(self, identities: Iterable[str], *, organization: str | None = None) -> tuple[Vote, ...]:
        """Return the votes between two of these images, oldest first; None is every organization."""
        with self._database.session() as session:
            return opinions.read_votes(session, identities, organization)

    def embeddings(self, identities: Iterable[str], judge: str) -> dict[str, npt.NDArray[np.float32]]:
        """Return the vectors by which a judge (its id) knows these images, as far as it has seen them."""
        with self._database.session() as session:
            return opinions.read_embeddings(session, identities, judge)

    def save_embeddings(self, judge: str, vectors: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Keep the vectors of images that a judge has seen."""

        def write() -> None:
            with self._database.session() as session:
                opinions.keep_embeddings(session, judge, vectors)

        _again_on_conflict(write)

    def seconds_per_image(
        self, weights: str, precision: Precision, width: int, height: int, steps: int
    ) -> float | None:
        """Return the median of the last images like this one, or None when there is none yet."""
        like_this = (
            select(CellRow.seconds)
            .where(CellRow.weights == weights, CellRow.precision == precision)
            .where(CellRow.width == width, CellRow.height == height, CellRow.steps == steps)
            .order_by(CellRow.created.desc())
            .limit(RECENT)
        )
        with self._database.session() as session:
            seconds = session.scalars(like_this).all()
        return median(seconds) if seconds else None

    def _save_scores(self, identity: str, base: str, scores: Mapping[str, float], *, judge: str = "") -> None:
        def write() -> None:
            with self._database.session() as session:
                for metric, value in scores.items():
                    session.merge(ScoreRow(identity=identity, base=base, metric=metric, judge=judge, value=value))

        _again_on_conflict(write)

    def _set_errors(self, run_id: str, positions: Sequence[int], message: str | None) -> None:
        cells = update(RunCellRow).where(RunCellRow.run_id == run_id, RunCellRow.position.in_(positions))
        with self._database.session() as session:
            session.execute(cells.values(error=message))


def _find_run(session: Session, run_id: str) -> RunRow:
    row = session.get(RunRow, run_id)
    if row is None:
        raise NotFound(f"There is no run {quote(run_id)}. `python -m evaluation runs` lists them.")
    return row


def _again_on_conflict(write: Callable[[], None]) -> None:
    """Run `write`; when somebody else inserted the same row first, run it once more to meet that row."""
    try:
        write()
    except Conflict:
        write()


def _now() -> datetime:
    """The time as the tables hold it."""
    return _naive(datetime.now(UTC))


def _naive(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None)


@lru_cache(maxsize=1)
def _requests() -> TypeAdapter[RenderRequest]:
    return TypeAdapter(RenderRequest)
