"""The durable queue: renders asked for over HTTP, from submit to expiry.

A task is one row from the moment its caller has an id. Workers claim rows for a while and renew the claim as long as
they live; the claims of a process that was killed run out, and the next one goes on. Whoever finishes a task must still
hold its claim, and its bill has one row per task, so a task ends once and is paid once whatever happens in between.

A task whose process died while it was rendered may be the cause. It waits longer each time and is rendered alone, so
that it takes no other with it; only what is rendered counts as an attempt, not what merely waited in that process.

Within an organization the oldest task is next; between organizations it is the turn of the one served longest ago.
Times are seconds since 1970.
"""

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, Select, delete, func, or_, select, update
from sqlalchemy.orm import Session

from lora_runtime.backends.bfl_words import Status
from lora_runtime.errors import OutOfCredits, TooManyTasks
from lora_runtime.registry.accounts import balance, bill, lock_organization, to_credits
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database, count_changed
from lora_runtime.storage.rows import DeliveryRow, OrganizationRow, TaskRow
from lora_runtime.values import RenderRequest

RESULT_TTL_S: Final = 600
"""How long a result can be fetched, from the end of its task. Source: `se` in real result URLs."""

LEASE_S: Final = 20.0
"""How long a claim holds without being renewed: a task of a killed process waits no longer than this."""

MAX_ATTEMPTS: Final = 6
"""A task that was being rendered whenever the process died is the likely cause, and is given up."""

KEPT_S: Final = 30 * 86400.0
"""How long a task that has ended is remembered, its prompt included. The bill stays."""

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


class Tasks:
    """The tasks of one database, and the claims of this process. `clock` is for tests."""

    def __init__(self, database: Database, *, max_active: int, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._max_active = max_active
        self._clock = clock
        self._owner = uuid.uuid4().hex
        self._held: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    def require_room(self, organization: str) -> None:
        """Refuse early what `submit` would refuse, before work is done for it.

        Raises:
            TooManyTasks: The organization has as many active tasks as are allowed.
        """
        self._require_room(organization, self.active(organization))

    def submit(self, new: NewTask) -> str:
        """Accept a task and return its id; from here on it ends, whatever happens to this process.

        Raises:
            TooManyTasks: The organization has as many active tasks as are allowed.
            OutOfCredits: It is metered, and what is left does not pay for this task and those under way.
        """
        task_id = str(uuid.uuid4())
        with self._database.session() as session:
            organization = lock_organization(session, new.organization)
            active, reserved = _count_active(session, new.organization)
            self._require_room(new.organization, active)
            left = balance(session, new.organization) - reserved
            if organization.metered and left < new.millicredits:
                raise OutOfCredits(
                    f"Insufficient credits: this task costs {to_credits(new.millicredits)}, and {to_credits(left)} are "
                    f"left to {new.organization}. Add credits."
                )
            session.add(_row(new, task_id, self._clock()))
        return task_id

    def find(self, task_id: str) -> Task | None:
        """Return the task, or None when there is none of that id, or its result has expired."""
        with self._database.session() as session:
            row = session.scalars(select(TaskRow).where(TaskRow.id == task_id)).first()
        if row is None or (row.expires is not None and row.expires <= self._clock()):
            return None
        return _task(row)

    def claim(self) -> Task | None:
        """Take the next task for this process, or None when none waits.

        Say when it begins to be rendered (`begin`), and in the end `finish`, `fail` or `let_go` it.
        """
        while True:
            now = self._clock()
            with self._database.session() as session:
                number = session.scalars(self._next(now)).first()
                if number is None:
                    return None
                taken = session.execute(
                    update(TaskRow)
                    .where(TaskRow.number == number, *self._waiting(now))
                    .values(claimed_by=self._owner, claimed_until=now + LEASE_S)
                    .execution_options(synchronize_session=False)
                )
                if count_changed(taken) == 0:
                    continue  # another worker was quicker
                task = _task(session.get_one(TaskRow, number, populate_existing=True))
                served = update(OrganizationRow).where(OrganizationRow.id == task.organization)
                session.execute(served.values(served=now).execution_options(synchronize_session=False))
            with self._lock:
                self._held |= {task.id}
            if task.attempts < MAX_ATTEMPTS:
                return task
            self.fail(task, Status.ERROR, {"error": f"The server stopped {MAX_ATTEMPTS} times while it rendered this."})

    def begin(self, task: Task) -> None:
        """Count an attempt: from here on the death of this process may be the task's doing."""
        own = update(TaskRow).where(TaskRow.id == task.id, TaskRow.claimed_by == self._owner)
        with self._database.session() as session:
            session.execute(own.values(attempts=task.attempts + 1).execution_options(synchronize_session=False))

    def renew(self) -> None:
        """Hold every claim of this process for another `LEASE_S`."""
        if held := self._held:
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
        now = self._clock()
        values = {"result_blob": blob, "started": started, "expires": now + RESULT_TTL_S}
        with self._database.session() as session:
            ended = self._end(session, task, Status.READY, now, values)
            if ended:
                bill(session, task.organization, task.id, task.millicredits)
        self._forget(task)
        return ended

    def fail(self, task: Task, status: Status, details: Details) -> bool:
        """End a task without a result and without a bill; False when the claim was lost."""
        with self._database.session() as session:
            ended = self._end(session, task, status, self._clock(), {"details": dict(details)})
        self._forget(task)
        return ended

    def active(self, organization: str) -> int:
        """How many tasks of `organization` wait or are under way."""
        with self._database.session() as session:
            return _count_active(session, organization)[0]

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

    def _require_room(self, organization: str, active: int) -> None:
        if active >= self._max_active:
            raise TooManyTasks(
                f"{active} tasks of {organization} are active, which is the limit. Wait until one has ended.",
                retry_after_s=1.0,
            )

    def _forget(self, task: Task) -> None:
        with self._lock:
            self._held -= {task.id}

    def _waiting(self, now: float) -> tuple[ColumnElement[bool], ...]:
        """Pending, and claimed by nobody who still lives; what this process holds is under way however slow it is."""
        # 2, 6, 12, ... LEASE_S more after each attempt but the first: a killer does not keep the others waiting.
        rested = TaskRow.claimed_until + LEASE_S * TaskRow.attempts * (TaskRow.attempts - 1)
        free = or_(TaskRow.claimed_by.is_(None), rested <= now)
        return TaskRow.status == Status.PENDING, free, TaskRow.id.not_in(self._held)

    def _next(self, now: float) -> Select[int]:
        """The oldest waiting task of the organization that was served longest ago."""
        oldest = func.min(TaskRow.number)
        return (
            select(oldest)
            .join(OrganizationRow, OrganizationRow.id == TaskRow.organization_id)
            .where(*self._waiting(now))
            .group_by(OrganizationRow.id, OrganizationRow.served)
            .order_by(OrganizationRow.served, oldest)
            .limit(1)
        )

    def _end(self, session: Session, task: Task, status: Status, now: float, values: Mapping[str, object]) -> bool:
        """End a task whose claim is ours, and owe its webhook."""
        own = update(TaskRow).where(
            TaskRow.id == task.id, TaskRow.status == Status.PENDING, TaskRow.claimed_by == self._owner
        )
        ended = session.execute(
            own.values(status=status, ended=now, **values).execution_options(synchronize_session=False)
        )
        if count_changed(ended) == 0:
            return False
        if task.webhook_url is not None:
            session.add(DeliveryRow(task_id=task.id, state="pending", due=now, attempts=[]))
        return True


def _count_active(session: Session, organization: str) -> tuple[int, int]:
    """How many tasks are active, and what they will cost."""
    query = select(func.count(), func.coalesce(func.sum(TaskRow.millicredits), 0)).where(
        TaskRow.status == Status.PENDING, TaskRow.organization_id == organization
    )
    count, reserved = session.execute(query).one()
    return int(count), int(reserved)


def _row(new: NewTask, task_id: str, now: float) -> TaskRow:
    return TaskRow(
        id=task_id,
        organization_id=new.organization,
        endpoint=new.endpoint,
        finetune=new.finetune,
        status=Status.PENDING,
        request=_requests().dump_json(new.request).decode(),
        lora_blob=new.lora_blob,
        output_format=new.output_format,
        millicredits=new.millicredits,
        base_url=new.base_url,
        webhook_url=new.webhook_url,
        webhook_secret=new.webhook_secret,
        created=now,
        claimed_by=None,
        claimed_until=0.0,
        attempts=0,
        started=None,
        ended=None,
        expires=None,
        result_blob=None,
        details=None,
    )


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
