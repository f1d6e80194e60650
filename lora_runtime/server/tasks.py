"""The durable queue: renders asked for over HTTP, from submit to expiry.

A task is one row from the moment its caller has an id. Workers claim rows for a while and renew the claim as long as
they live; the claims of a process that was killed are freed (`claims.py`), and the next one goes on. Whoever finishes a
task must still hold its claim, and its bill has one row per task, so a task ends once and is paid once whatever happens
in between. What is asked at the same time, submits and ends, is one transaction: a disk syncs only so often a second.

A task whose process died while it was rendered may be the cause. It waits longer each time and is rendered alone, so
that it takes no other with it; only what is rendered counts as an attempt, not what merely waited in that process.

Within an organization the oldest task is next; between organizations it is the turn of the one served longest ago.
Times are seconds since 1970.
"""

import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

from pydantic import TypeAdapter
from sqlalchemy import BindParameter, ColumnElement, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.orm import Session

from lora_runtime.backends.bfl_words import Status
from lora_runtime.errors import KleinLabError
from lora_runtime.registry.accounts import bill
from lora_runtime.server.claims import LEASE_S, Claims
from lora_runtime.server.room import Left, Room, count_active
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database, count_changed
from lora_runtime.storage.rows import DeliveryRow, OrganizationRow, TaskRow
from lora_runtime.storage.together import Together
from lora_runtime.values import RenderRequest

RESULT_TTL_S: Final = 600
"""How long a result can be fetched, from the end of its task. Source: `se` in real result URLs."""

MAX_ATTEMPTS: Final = 6
"""A task that was being rendered whenever the process died is the likely cause, and is given up."""

KEPT_S: Final = 30 * 86400.0
"""How long a task that has ended is remembered, its prompt included. The bill stays."""

RECALLED: Final = 512
"""How many tasks that ended are known without asking the database: as many as may be asked for at a time."""

_TURN_S: Final = 1e-6

REFERENCE_SUFFIX: Final = ".reference"
RESULT_SUFFIX: Final = ".result"

Details: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class NewTask:
    """What is accepted. `base_url` is the server as the caller reaches it; `lora_blob` the finetune's file, if kept."""

    organization: str
    endpoint: str
    request: RenderRequest
    millicredits: int
    output_format: str
    base_url: str
    finetune: str | None = None
    lora_blob: str | None = None
    webhook_url: str | None = None
    webhook_secret: str | None = None


@dataclass(frozen=True, kw_only=True)
class Task(NewTask):
    """A task and how far it is. A result is there until `expires`.

    `attempts` are the times that it began to be rendered; while it is pending, each was the end of its process.
    """

    id: str
    status: Status
    created: float
    attempts: int
    started: float | None
    ended: float | None
    expires: float | None
    result_blob: str | None
    details: Details | None


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """How a task ends: with a `result_blob`, which is billed, or with `details`."""

    task: Task
    status: Status
    values: Mapping[str, object]


class Tasks:
    """The tasks of one database, and the claims of this process. `clock` and `claims` are for tests."""

    def __init__(
        self,
        database: Database,
        *,
        max_active: int,
        clock: Callable[[], float] = time.time,
        claims: Claims | None = None,
    ) -> None:
        self._database = database
        self._room = Room(max_active)
        self._clock = clock
        self._claims = claims or Claims()
        self._owner = self._claims.owner
        self._held: dict[str, Task] = {}
        self._ended: OrderedDict[str, Task] = OrderedDict()
        """Those last asked for of the ones that ended: they stay as they are."""
        self._lock = threading.Lock()
        self._submits = Together(self._submit_all)
        self._begins = Together(self._begin_all)
        self._ends = Together(self._end_all)

    def require_room(self, organization: str) -> None:
        """Refuse early what `submit` would refuse, before work is done for it.

        Raises:
            TooManyTasks: The organization has as many active tasks as are allowed.
        """
        self._room.require(organization, self.active(organization), self._clock())

    def submit(self, new: NewTask) -> str:
        """Accept a task and return its id; from here on it ends, whatever happens to this process.

        Raises:
            TooManyTasks: The organization has as many active tasks as are allowed.
            OutOfCredits: It is metered, and what is left does not pay for this task and those under way.
        """
        return self._submits.ask(new)

    def recall(self, task_id: str) -> Task | None:
        """Return a task that is known without asking the database: one that this process renders, or that has ended."""
        with self._lock:
            task = self._held.get(task_id) or self._ended.get(task_id)
        return task if task is not None and not self._has_expired(task) else None

    def find(self, task_id: str) -> Task | None:
        """Return the task, or None when there is none of that id, or its result has expired."""
        if known := self.recall(task_id):
            return known
        with self._database.session() as session:
            row = session.scalars(select(TaskRow).where(TaskRow.id == task_id)).first()
        if row is None:
            return None
        task = _task(row)
        if self._has_expired(task):
            return None
        if task.status is not Status.PENDING:
            with self._lock:
                self._ended[task_id] = task
                if len(self._ended) > RECALLED:
                    self._ended.popitem(last=False)
        return task

    def claim(self, most: int = 1) -> tuple[Task, ...]:
        """Take the next tasks for this process, at most `most`; none when none waits.

        One that is to be rendered alone comes alone. Say of each when it begins to be rendered (`begin`), and in the
        end `finish`, `fail` or `let_go` it.
        """
        while True:
            now = self._clock()
            with self._database.session() as session:
                numbers = self._next(session, now, most)
                found = self._take(session, numbers, now)
                freed = len(numbers) < most and self._claims.free_lost(session, now, self._list_held())
            with self._lock:
                self._held |= {task.id: task for task in found}
            hopeless = [task for task in found if task.attempts >= MAX_ATTEMPTS]
            for task in hopeless:
                said = f"The server stopped {MAX_ATTEMPTS} times while it rendered this."
                self.fail(task, Status.ERROR, {"error": said})
            if found and not hopeless:
                return tuple(found)
            if not numbers and not freed:
                return ()

    def begin(self, task: Task) -> None:
        """Count an attempt: from here on the death of this process may be the task's doing."""
        self._begins.ask(task)

    def renew(self) -> None:
        """Hold every claim of this process for another `LEASE_S`."""
        if held := self._list_held():
            own = update(TaskRow).where(TaskRow.id.in_(held), TaskRow.claimed_by == self._owner)
            with self._database.session() as session:
                session.execute(own.values(claimed_until=self._clock() + LEASE_S))

    def let_go(self, task: Task, *, wait_s: float = 0.0) -> None:
        """Give a task back as if it had never been claimed; nobody takes it for `wait_s` seconds."""
        self._forget(task)
        own = update(TaskRow).where(TaskRow.id == task.id, TaskRow.claimed_by == self._owner)
        with self._database.session() as session:
            session.execute(own.values(claimed_until=self._clock() + wait_s, attempts=task.attempts))

    def finish(self, task: Task, *, blob: str, started: float) -> bool:
        """Write the result and the bill in one transaction; False when the claim was lost to another process."""
        values = {"result_blob": blob, "started": started}
        return self._ends.ask(_Ending(task=task, status=Status.READY, values=values))

    def fail(self, task: Task, status: Status, details: Details) -> bool:
        """End a task without a result and without a bill; False when the claim was lost."""
        return self._ends.ask(_Ending(task=task, status=status, values={"details": dict(details)}))

    def active(self, organization: str) -> int:
        """How many tasks of `organization` wait or are under way."""
        with self._database.session() as session:
            return count_active(session, organization)[0]

    def needed_blobs(self) -> frozenset[str]:
        """The keys of the LoRA files and input images that active tasks need."""
        query = select(TaskRow.lora_blob, TaskRow.request).where(TaskRow.status == Status.PENDING)
        needed: set[str] = set()
        with self._database.session() as session:
            for lora, text in session.execute(query):
                needed |= {reference.path.name for reference in _requests().validate_json(text).references}
                needed |= {lora} if lora else set()
        return frozenset(needed)

    def expire(self, blobs: Blobs) -> int:
        """Delete the files of results whose time is over; return how many."""
        over = select(TaskRow).where(TaskRow.expires <= self._clock(), TaskRow.result_blob.is_not(None)).limit(500)
        with self._database.session() as session:
            rows = session.scalars(over).all()
            for row in rows:
                blobs.remove(str(row.result_blob))
                row.result_blob = None
        return len(rows)

    def forget_old(self) -> None:
        """Delete tasks that ended `KEPT_S` ago, and their deliveries."""
        old = select(TaskRow.id).where(TaskRow.ended < self._clock() - KEPT_S, TaskRow.result_blob.is_(None))
        with self._database.session() as session:
            session.execute(
                delete(DeliveryRow).where(DeliveryRow.task_id.in_(old)).execution_options(synchronize_session=False)
            )
            session.execute(delete(TaskRow).where(TaskRow.id.in_(old)).execution_options(synchronize_session=False))
        with self._lock:
            self._ended.clear()

    def _forget(self, task: Task) -> None:
        with self._lock:
            self._held.pop(task.id, None)

    def _list_held(self) -> list[str]:
        with self._lock:
            return list(self._held)

    def _has_expired(self, task: Task) -> bool:
        return task.expires is not None and task.expires <= self._clock()

    def _waiting(self, now: float) -> tuple[ColumnElement[bool], ...]:
        """Pending, and claimed by nobody who still lives; what this process holds is under way however slow it is."""
        # 2, 6, 12, ... LEASE_S more after each attempt but the first: a killer does not keep the others waiting.
        rested = TaskRow.claimed_until + LEASE_S * TaskRow.attempts * (TaskRow.attempts - 1)
        free = or_(TaskRow.claimed_by.is_(None), rested <= now)
        # As a plain list each id would be coerced by itself.
        held: BindParameter[str] = bindparam(None, self._list_held(), expanding=True)
        return TaskRow.status == Status.PENDING, free, TaskRow.id.not_in(held)

    def _next(self, session: Session, now: float, most: int) -> list[int]:
        """The numbers of the next tasks, each the oldest one of the organization that was served longest ago."""
        own = func.row_number().over(partition_by=TaskRow.organization_id, order_by=TaskRow.number)
        waiting = (
            select(TaskRow.number, TaskRow.attempts, OrganizationRow.served, own.label("turn"))
            .join(OrganizationRow, OrganizationRow.id == TaskRow.organization_id)
            .where(*self._waiting(now))
            .subquery()
        )
        order = (waiting.c.turn, waiting.c.served, waiting.c.number)
        found = session.execute(select(waiting.c.number, waiting.c.attempts).order_by(*order).limit(most)).all()
        alone = next((place for place, (_, attempts) in enumerate(found) if attempts), len(found))
        return [number for number, _ in found[: max(1, alone)]]

    def _take(self, session: Session, numbers: Sequence[int], now: float) -> list[Task]:
        """Claim those that no other process has taken meanwhile, in order."""
        free = select(TaskRow.number).where(TaskRow.number.in_(numbers), *self._waiting(now)).order_by(TaskRow.number)
        taken = update(TaskRow).where(TaskRow.number.in_(free.with_for_update(skip_locked=True)))
        claimed = taken.values(claimed_by=self._owner, claimed_until=now + LEASE_S).returning(TaskRow)
        if not numbers:
            return []
        rows = {row.number: row for row in session.scalars(claimed.execution_options(synchronize_session=False))}
        tasks = [_task(rows[number]) for number in numbers if number in rows]
        # Each turn is a moment later than the one before, so that the next claim goes on where this one ended.
        served = {task.organization: now + place * _TURN_S for place, task in enumerate(tasks)}
        for organization, at in sorted(served.items()):
            change = update(OrganizationRow).where(OrganizationRow.id == organization).values(served=at)
            session.execute(change.execution_options(synchronize_session=False))
        return tasks

    def _submit_all(self, submitted: Sequence[NewTask]) -> list[str | KleinLabError]:
        """Accept or refuse each, in order; organizations are locked in one order in every process."""
        now = self._clock()
        with self._database.session() as session:
            names = sorted({new.organization for new in submitted})
            left = {name: Left(session, name) for name in names}
            answers = [self._accept(new, left[new.organization]) for new in submitted]
            pairs = zip(submitted, answers, strict=True)
            rows = [_row(new, answer, now) for new, answer in pairs if isinstance(answer, str)]
            if rows:
                session.execute(insert(TaskRow), rows)
        return answers

    def _accept(self, new: NewTask, left: Left) -> str | KleinLabError:
        """The id of a new task, or why there is none."""
        try:
            self._room.require(new.organization, left.active, self._clock())
            left.pay(new.millicredits)
        except KleinLabError as error:
            return error
        left.active += 1
        return str(uuid.uuid4())

    def _begin_all(self, tasks: Sequence[Task]) -> list[None]:
        own = update(TaskRow).where(TaskRow.id.in_([task.id for task in tasks]), TaskRow.claimed_by == self._owner)
        with self._database.session() as session:
            session.execute(own.values(attempts=TaskRow.attempts + 1).execution_options(synchronize_session=False))
        return [None] * len(tasks)

    def _end_all(self, endings: Sequence[_Ending]) -> list[bool]:
        """End those whose claim is ours, write the bill of those that succeeded, and owe their webhooks."""
        now = self._clock()
        with self._database.session() as session:
            ended = [self._end(session, ending, now) for ending in endings]
        for ending in endings:
            self._forget(ending.task)
        return ended

    def _end(self, session: Session, ending: _Ending, now: float) -> bool:
        task = ending.task
        own = update(TaskRow).where(
            TaskRow.id == task.id, TaskRow.status == Status.PENDING, TaskRow.claimed_by == self._owner
        )
        ready = ending.status is Status.READY
        expires = now + RESULT_TTL_S if ready else None
        ended = session.execute(
            own.values(status=ending.status, ended=now, expires=expires, **ending.values).execution_options(
                synchronize_session=False
            )
        )
        if count_changed(ended) == 0:
            return False
        if ready:
            bill(session, task.organization, task.id, task.millicredits)
        if task.webhook_url is not None:
            session.add(DeliveryRow(task_id=task.id, state="pending", due=now, attempts=[]))
        return True


def _row(new: NewTask, task_id: str, now: float) -> dict[str, Any]:
    kept = ("endpoint", "finetune", "lora_blob", "output_format", "millicredits", "base_url", "webhook_url")
    return {name: getattr(new, name) for name in (*kept, "webhook_secret")} | {
        "id": task_id,
        "organization_id": new.organization,
        "status": Status.PENDING,
        "request": _requests().dump_json(new.request).decode(),
        "created": now,
        "claimed_until": 0.0,
        "attempts": 0,
    }


def _task(row: TaskRow) -> Task:
    return Task(
        id=row.id,
        organization=row.organization_id,
        endpoint=row.endpoint,
        finetune=row.finetune,
        status=Status(row.status),
        request=_requests().validate_json(row.request),
        lora_blob=row.lora_blob,
        output_format=row.output_format,
        millicredits=row.millicredits,
        base_url=row.base_url,
        webhook_url=row.webhook_url,
        webhook_secret=row.webhook_secret,
        created=row.created,
        attempts=row.attempts,
        started=row.started,
        ended=row.ended,
        expires=row.expires,
        result_blob=row.result_blob,
        details=row.details,
    )


@lru_cache(maxsize=1)
def _requests() -> TypeAdapter[RenderRequest]:
    return TypeAdapter(RenderRequest)
