"""Runs, cells, scores, controls, ratings: what must survive a restart.

An image belongs to an identity, not to a run: two runs that plan the same cell share it. A cell's state is derived,
never stored: *done* when its identity has an image whose file is there, *failed* when its last try left an error,
*pending* otherwise. The file is written and synced before its row, so a crash leaves an unused file at worst, and
a file deleted by hand makes its cell pending again.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Final, Literal, TypeAlias

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, and_, select, update
from sqlalchemy.orm import Session

from evaluation.grid import ASKS_AT_ZERO, Cell, SweepSpec, identity, plan, rendered_request
from evaluation.schema import CellRow, ControlRow, RatingRow, RunCellRow, RunRow, ScoreRow
from lora_runtime.accounts import LOCAL
from lora_runtime.blobs import Blobs
from lora_runtime.database import Database
from lora_runtime.errors import Conflict, InvalidInput, NotFound
from lora_runtime.png import encode_png, request_metadata
from lora_runtime.settings import Settings
from lora_runtime.values import Precision, Rendered, RenderRequest

State: TypeAlias = Literal["pending", "done", "failed"]
RunStatus: TypeAlias = Literal["done", "failed", "unfinished"]
Origin: TypeAlias = Literal["sweep", "playground", "api"]
"""What made a run: the Sweep tab or the command line, the Playground, a program."""

MAX_NOTE: Final = 2000
RECENT: Final = 50
"""How many of the last images count towards the measured speed."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a sweep can be trusted. `ok` is None when there was too little to judge; `findings` are sentences."""

    ok: bool | None
    summary: str
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """One execution of a sweep. *failed*: every cell was tried and some have no image; *unfinished*: some wait.

    Whoever knows its id may look at it; lists show it to its `organization` alone.
    """

    id: str
    created: datetime
    spec: SweepSpec
    status: RunStatus
    verdict: Verdict | None
    organization: str = LOCAL
    origin: Origin = "sweep"


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """A cell of a run and what is known about it. `scores` compare it with the base image of its row.

    `provenance` says how its image was made: the backend's words (device, versions) and `batch_size`.
    """

    run_id: str
    cell: Cell
    state: State
    image: Path | None = None
    error: str | None = None
    seconds: float | None = None
    created: datetime | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    rating: int | None = None
    note: str = ""

    @property
    def cost(self) -> float | None:
        """What the image cost, in credits of the remote backend."""
        return float(self.provenance["cost"]) if "cost" in self.provenance else None


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image's file and how it was made; see `CellRecord`."""

    path: Path
    provenance: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Control:
    """A LoRA attached at strength 0, against the base image: the largest difference of a channel value (0 to 255).

    `tolerance` is the difference that the two devices and batch shapes allow.
    """

    difference: int
    tolerance: int


class Store:
    """The evaluation's tables and images. Any number of threads and processes may share them."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    @classmethod
    def open(cls, settings: Settings) -> "Store":
        """Open the store of the home folder.

        Raises:
            StorageFailed: The folder or the database cannot be written.
        """
        return cls(Database(settings.sqlalchemy_url()), Blobs(settings.home / "blobs"))

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def create_run(self, spec: SweepSpec, *, organization: str = LOCAL, origin: Origin = "sweep") -> str:
        """Log a new run of `spec` and return its id; every cell without an image is pending."""
        # 64 bits, as a link with it may be shown to others and must not be guessed; the letters keep spreadsheets from
        # reading an id such as 3e12 as a number.
        run_id = f"run-{secrets.token_hex(8)}"
        with self._database.session() as session:
            text = _specs().dump_json(spec).decode()
            session.add(
                RunRow(id=run_id, organization=organization, origin=origin, created=_now(), spec=text, verdict=None)
            )
            session.flush()
            session.add_all(
                RunCellRow(run_id=run_id, position=cell.position, identity=cell.identity, error=None)
                for cell in plan(spec)
            )
        return run_id

    def run(self, run_id: str) -> Run:
        """Return one run.

        Raises:
            NotFound: There is no such run.
        """
        with self._database.session() as session:
            return self._history(session, [_find_run(session, run_id)])[0][0]

    def cells(self, run_id: str) -> tuple[CellRecord, ...]:
        """Return every cell of a run, in the order of the plan.

        Raises:
            NotFound: There is no such run.
        """
        with self._database.session() as session:
            return self._history(session, [_find_run(session, run_id)])[0][1]

    def record(self, run_id: str, cell: Cell) -> CellRecord:
        """Return what is known now about one cell of a run."""
        with self._database.session() as session:
            return self._records(session, {run_id: (cell,)}, position=cell.position)[run_id][0]

    def runs(self, limit: int = 100) -> tuple[Run, ...]:
        """Return the newest runs, newest first."""
        return tuple(run for run, _ in self.history(limit))

    def history(
        self, limit: int = 100, *, organization: str | None = None, origin: Origin | None = None
    ) -> tuple[tuple[Run, tuple[CellRecord, ...]], ...]:
        """Return the newest runs with their cells, newest first; None is every organization or origin."""
        newest = select(RunRow).order_by(RunRow.created.desc(), RunRow.id).limit(limit)
        if organization is not None:
            newest = newest.where(RunRow.organization == organization)
        if origin is not None:
            newest = newest.where(RunRow.origin == origin)
        with self._database.session() as session:
            return self._history(session, session.scalars(newest).all())

    def image(self, identity: str) -> StoredImage | None:
        """Return the image of an identity, or None when there is none."""
        with self._database.session() as session:
            row = session.get(CellRow, identity)
        path = self._find_file(row)
        return StoredImage(path=path, provenance=row.provenance) if row and path else None

    def save_image(self, request: RenderRequest, rendered: Rendered, *, backend: str, digest: str) -> None:
        """Keep the image of `request`: the file first, then its row.

        When another run was faster, its image stays and this one is dropped; when its file has gone, this one takes
        its place.

        Raises:
            StorageFailed: The disk is full or not writable; what was kept before is whole.
        """
        request = rendered_request(request, backend=backend)
        key = identity(request, backend=backend, digest=digest)
        chunk = request_metadata(request, identity=key, server=digest if backend in ASKS_AT_ZERO else None)
        blob = self._blobs.put(encode_png(rendered.image, chunk), suffix=".png")
        provenance = {**rendered.provenance, "batch_size": str(rendered.timing.batch_size)}

        def write() -> None:
            with self._database.session() as session:
                row = session.get(CellRow, key)
                if self._find_file(row) is not None:
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
        text = _verdicts().dump_json(verdict).decode()
        with self._database.session() as session:
            session.execute(update(RunRow).where(RunRow.id == run_id).values(verdict=text))

    def save_scores(self, cell: Cell, scores: Mapping[str, float]) -> None:
        """Keep a cell's scores against the base image of its row; both images are there."""

        def write() -> None:
            with self._database.session() as session:
                for metric, value in scores.items():
                    session.merge(
                        ScoreRow(identity=cell.identity, reference=cell.reference, metric=metric, value=value)
                    )

        _again_on_conflict(write)

    def save_control(self, reference: str, lora_sha256: str, control: Control) -> None:
        """Keep how far a LoRA at strength 0 was from the base image `reference`."""

        def write() -> None:
            with self._database.session() as session:
                session.merge(
                    ControlRow(
                        reference=reference,
                        lora_sha256=lora_sha256,
                        difference=control.difference,
                        tolerance=control.tolerance,
                    )
                )

        _again_on_conflict(write)

    def control(self, reference: str, lora_sha256: str) -> Control | None:
        """Return what is known about a LoRA at strength 0 against the base image `reference`."""
        with self._database.session() as session:
            row = session.get(ControlRow, (reference, lora_sha256))
            return Control(difference=row.difference, tolerance=row.tolerance) if row else None

    def rate(self, run_id: str, position: int, rating: int | None, note: str = "") -> None:
        """Keep a person's rating (1 to 5, or None) and note of a cell, in place of an earlier one.

        Raises:
            InvalidInput: The rating is not from 1 to 5, or the note too long.
            NotFound: There is no such cell.
        """
        if rating is not None and not 1 <= rating <= 5:
            raise InvalidInput(f"Rating: {rating} is not from 1 to 5.")
        if len(note) > MAX_NOTE:
            raise InvalidInput(f"Note: {len(note)} characters are too many; at most {MAX_NOTE} are allowed.")

        def write() -> None:
            with self._database.session() as session:
                if session.get(RunCellRow, (run_id, position)) is None:
                    raise NotFound(f"Run {run_id} has no cell {position}.")
                session.merge(RatingRow(run_id=run_id, position=position, rating=rating, note=note))

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

    def _set_errors(self, run_id: str, positions: Sequence[int], message: str | None) -> None:
        cells = update(RunCellRow).where(RunCellRow.run_id == run_id, RunCellRow.position.in_(positions))
        with self._database.session() as session:
            session.execute(cells.values(error=message))

    def _history(self, session: Session, rows: Sequence[RunRow]) -> tuple[tuple[Run, tuple[CellRecord, ...]], ...]:
        specs = {row.id: _specs().validate_json(row.spec) for row in rows}
        records = self._records(session, {run_id: plan(spec) for run_id, spec in specs.items()})
        return tuple((_run(row, specs[row.id], records[row.id]), records[row.id]) for row in rows)

    def _records(
        self, session: Session, plans: Mapping[str, Sequence[Cell]], *, position: int | None = None
    ) -> dict[str, tuple[CellRecord, ...]]:
        """What is known about the cells of each run, or about the one at `position`."""
        wanted: list[ColumnElement[bool]] = [RunCellRow.run_id.in_(plans)]
        if position is not None:
            wanted.append(RunCellRow.position == position)
        of_person = and_(RatingRow.run_id == RunCellRow.run_id, RatingRow.position == RunCellRow.position)
        query = (
            select(RunCellRow, CellRow, RatingRow)
            .outerjoin(CellRow, CellRow.identity == RunCellRow.identity)
            .outerjoin(RatingRow, of_person)
            .where(*wanted)
        )
        known = {(cell.run_id, cell.position): (cell, image, person) for cell, image, person in session.execute(query)}
        scores: dict[tuple[str, str], dict[str, float]] = {}
        scored = select(RunCellRow.identity).where(*wanted)
        for score in session.scalars(select(ScoreRow).where(ScoreRow.identity.in_(scored))):
            scores.setdefault((score.identity, score.reference), {})[score.metric] = score.value
        return {
            run_id: tuple(
                self._record(
                    run_id, cell, *known[run_id, cell.position], scores.get((cell.identity, cell.reference), {})
                )
                for cell in cells
            )
            for run_id, cells in plans.items()
        }

    def _record(
        self,
        run_id: str,
        cell: Cell,
        tried: RunCellRow,
        image: CellRow | None,
        person: RatingRow | None,
        scores: Mapping[str, float],
    ) -> CellRecord:
        record = CellRecord(
            run_id=run_id,
            cell=cell,
            state="failed" if tried.error is not None else "pending",
            error=tried.error,
            rating=person.rating if person else None,
            note=person.note if person else "",
        )
        path = self._find_file(image)
        if image is None or path is None:
            return record
        return replace(
            record,
            state="done",
            error=None,
            image=path,
            seconds=image.seconds,
            created=_utc(image.created),
            provenance=image.provenance,
            scores=scores,
        )

    def _find_file(self, row: CellRow | None) -> Path | None:
        """The image's file, unless somebody deleted it by hand."""
        try:
            return self._blobs.path(row.blob) if row else None
        except NotFound:
            return None


def _find_run(session: Session, run_id: str) -> RunRow:
    row = session.get(RunRow, run_id)
    if row is None:
        raise NotFound(f"There is no run {run_id!r}. `python -m evaluation runs` lists them.")
    return row


def _run(row: RunRow, spec: SweepSpec, records: Sequence[CellRecord]) -> Run:
    states = {record.state for record in records}
    status: RunStatus = "unfinished" if "pending" in states else "failed" if "failed" in states else "done"
    verdict = _verdicts().validate_json(row.verdict) if row.verdict else None
    return Run(
        id=row.id,
        created=_utc(row.created),
        spec=spec,
        status=status,
        verdict=verdict,
        organization=row.organization,
        origin=_origins().validate_python(row.origin),
    )


def _again_on_conflict(write: Callable[[], None]) -> None:
    """Run `write`; when somebody else inserted the same row first, run it once more to meet that row."""
    try:
        write()
    except Conflict:
        write()


def _now() -> datetime:
    """The time as the tables hold it."""
    return datetime.now(UTC).replace(tzinfo=None)


def _utc(stored: datetime) -> datetime:
    return stored.replace(tzinfo=UTC)


@lru_cache(maxsize=1)
def _specs() -> TypeAdapter[SweepSpec]:
    return TypeAdapter(SweepSpec)


@lru_cache(maxsize=1)
def _origins() -> TypeAdapter[Origin]:
    return TypeAdapter(Origin)


@lru_cache(maxsize=1)
def _requests() -> TypeAdapter[RenderRequest]:
    return TypeAdapter(RenderRequest)


@lru_cache(maxsize=1)
def _verdicts() -> TypeAdapter[Verdict]:
    return TypeAdapter(Verdict)
