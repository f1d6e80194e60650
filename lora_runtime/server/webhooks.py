"""Tell the webhook of a task that it has ended: signed, retried, written down.

What is owed is kept with the task that ended, and tried until it arrives or the tries are used up. A delivery is taken
for a while, as tasks are: when its process dies it is tried again, so a receiver may hear twice. Receivers that are
slow keep their own share of the tries busy and nobody else's: see `Busy`. Times are seconds since 1970.

The body is what a poll would say, with `timestamp`, and `error` and `message` where there is no result. BFL names two
ways to know the sender, so both are there: `X-Webhook-Secret` is the secret itself, `X-BFL-Signature` the HMAC-SHA256
of the raw body with it.
"""

import hashlib
import hmac
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from sqlalchemy import ColumnElement, Select, and_, func, not_, or_, select, update

from lora_runtime.backends.bfl_words import Status
from lora_runtime.errors import KleinLabError
from lora_runtime.server.access import ResultUrls
from lora_runtime.server.dispatch import Dispatcher
from lora_runtime.server.outbound import Outbound
from lora_runtime.server.replies import show_task, show_time
from lora_runtime.server.tasks import Task, Tasks
from lora_runtime.storage.database import Database, count_changed
from lora_runtime.storage.rows import DeliveryRow, TaskRow

logger = logging.getLogger(__name__)

ANSWER_S: Final = 30.0
"""How long a receiver may take. Source: BFL's webhook guide."""

_CLOSE_S: Final = 5.0

RETRY_AFTER_S: Final = (1.0, 5.0, 30.0)
"""How long to wait after each failed attempt; the one after the last ends it. Source: BFL's webhook guide."""

AT_ONE_HOST: Final = 4
AT_ONCE: Final = 16
"""How many tries of one organization may be under way: at one host, and together."""

_HOLD_S: Final = 60.0
"""Longer than an attempt takes."""

State: TypeAlias = Literal["pending", "delivered", "dropped"]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try: the status of the answer, or why there was none."""

    at: float
    status: int | None = None
    error: str | None = None

    @property
    def arrived(self) -> bool:
        """Whether the receiver said so: any 2xx."""
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """The webhook of a task, whose it is, and what was tried. `host` is the receiver, with scheme and port."""

    task_id: str
    organization: str
    host: str
    state: State
    due: float
    attempts: tuple[Attempt, ...]


class Busy:
    """The organizations, and their receivers, that have as many tries under way as are allowed."""

    def __init__(self, under_way: Iterable[Delivery]) -> None:
        pairs = Counter((delivery.organization, delivery.host) for delivery in under_way)
        totals = Counter(organization for organization, _ in pairs.elements())
        self.organizations = [name for name, count in totals.items() if count >= AT_ONCE]
        self.hosts = [pair for pair, count in pairs.items() if count >= AT_ONE_HOST]

    def spares(self) -> ColumnElement[bool]:
        """The condition that a task's webhook goes to none of them."""
        held = [and_(TaskRow.organization_id == name, _goes_to(host)) for name, host in self.hosts]
        return and_(TaskRow.organization_id.not_in(self.organizations), *map(not_, held))


class Deliveries:
    """The deliveries of one database. `clock` is for tests."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def claim(self, under_way: Iterable[Delivery] = ()) -> Delivery | None:
        """Take the delivery that is due longest and may be tried beside those `under_way`, or None.

        `record` its attempt within a minute.
        """
        now = self._clock()
        due = (
            select(DeliveryRow, TaskRow)
            .join(TaskRow, TaskRow.id == DeliveryRow.task_id)
            .where(DeliveryRow.state == "pending", DeliveryRow.due <= now, Busy(under_way).spares())
        )
        with self._database.session() as session:
            rows = session.execute(due.order_by(DeliveryRow.due).limit(1)).first()
            if rows is None:
                return None
            found = _delivery(*rows)
            taken = session.execute(
                update(DeliveryRow)
                .where(DeliveryRow.task_id == found.task_id, DeliveryRow.due == found.due)
                .values(due=now + _HOLD_S)
                .execution_options(synchronize_session=False)
            )
            return found if count_changed(taken) else None

    def wait_s(self, most: float) -> float:
        """How long until the next one is due that is not due yet; at most `most` seconds."""
        now = self._clock()
        later = select(func.min(DeliveryRow.due)).where(DeliveryRow.state == "pending", DeliveryRow.due > now)
        with self._database.session() as session:
            due = session.scalars(later).one()
        return most if due is None else min(most, due - now)

    def record(self, delivery: Delivery, attempt: Attempt) -> Delivery:
        """Write an attempt down, and when to try again, if at all."""
        tried = len(delivery.attempts)
        again = not attempt.arrived and tried < len(RETRY_AFTER_S)
        with self._database.session() as session:
            row = session.get_one(DeliveryRow, delivery.task_id)
            row.attempts = [*row.attempts, {"at": attempt.at, "status": attempt.status, "error": attempt.error}]
            row.due = self._clock() + RETRY_AFTER_S[tried] if again else row.due
            row.state = "delivered" if attempt.arrived else "pending" if again else "dropped"
            return _delivery(row, session.scalars(_task_of(delivery.task_id)).one())

    def find(self, task_id: str) -> Delivery | None:
        """Return the delivery of a task that has ended, or None when none is owed."""
        with self._database.session() as session:
            row = session.get(DeliveryRow, task_id)
            return None if row is None else _delivery(row, session.scalars(_task_of(task_id)).one())


class Webhooks:
    """Delivers what is owed, each in a thread of its own: a receiver that hangs takes the turns of nobody else."""

    def __init__(self, deliveries: Deliveries, tasks: Tasks, urls: ResultUrls, outbound: Outbound) -> None:
        self._deliveries = deliveries
        self._tasks = tasks
        self._urls = urls
        self._outbound = outbound
        self._dispatcher = Dispatcher("webhook", self._claim, self._deliver, wait_s=deliveries.wait_s)

    def start(self) -> None:
        """Begin to deliver."""
        self._dispatcher.start()

    def wake(self) -> None:
        """Look now: a task has ended."""
        self._dispatcher.wake()

    def close(self) -> None:
        """Stop; a delivery that still waits for its receiver is tried again at the next start."""
        self._dispatcher.close(patience_s=_CLOSE_S)

    def _claim(self, under_way: Sequence[Delivery], _room: int) -> Sequence[Delivery]:
        """One at a time: which may be next depends on those under way."""
        found = self._deliveries.claim(under_way)
        return () if found is None else (found,)

    def _deliver(self, delivery: Delivery) -> None:
        try:
            task = self._tasks.find(delivery.task_id)
            attempt = Attempt(at=time.time(), error="The result expired before it could be told.")
            if task is not None and task.webhook_url is not None:
                attempt = self._post(task, task.webhook_url)
            after = self._deliveries.record(delivery, attempt)
            if after.state == "dropped":
                logger.warning("The webhook of task %s was given up: %s", after.task_id, _reason(attempt))
        except KleinLabError as error:  # it is taken again when its hold runs out
            logger.warning("The webhook of task %s is tried again later: %s", delivery.task_id, error)

    def _post(self, task: Task, url: str) -> Attempt:
        at = time.time()
        try:
            body = make_body(task, self._urls, at)
            status = self._outbound.post(url, body, make_headers(body, task.webhook_secret), timeout_s=ANSWER_S)
        except KleinLabError as error:
            return Attempt(at=at, error=str(error))
        except Exception:  # an attempt is written down whatever happens in it, or it would be made for ever
            logger.exception("The webhook of task %s could not be sent", task.id)
            return Attempt(at=at, error="The server failed on this webhook. Its log says why.")
        return Attempt(at=at, status=status)


def make_body(task: Task, urls: ResultUrls, at: float) -> bytes:
    """The raw body for a task that has ended."""
    body = show_task(task, urls, task.base_url).model_dump(mode="json") | {"timestamp": show_time(at)}
    if task.status is not Status.READY:
        reason = (task.details or {}).get("error", task.status.value)
        body |= {"error": task.status.value, "message": reason}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def make_headers(body: bytes, secret: str | None) -> dict[str, str]:
    """Both ways to know the sender; without a secret there are none."""
    if not secret:
        return {}
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {"X-Webhook-Secret": secret, "X-BFL-Signature": f"sha256={signature}"}


def _reason(attempt: Attempt) -> str:
    return attempt.error or f"the answer was {attempt.status}"


def _task_of(task_id: str) -> Select[TaskRow]:
    return select(TaskRow).where(TaskRow.id == task_id)


def _delivery(row: DeliveryRow, task: TaskRow) -> Delivery:
    states: dict[str, State] = {"delivered": "delivered", "dropped": "dropped"}
    attempts = tuple(
        Attempt(at=attempt["at"], status=attempt["status"], error=attempt["error"]) for attempt in row.attempts
    )
    host = re.match(r"[^/?#]*//[^/?#]*", task.webhook_url or "")
    return Delivery(
        task_id=row.task_id,
        organization=task.organization_id,
        host=host[0] if host else "",
        state=states.get(row.state, "pending"),
        due=row.due,
        attempts=attempts,
    )


def _goes_to(host: str) -> ColumnElement[bool]:
    """Whether a task's webhook is at `host`, whatever follows it there."""
    url = TaskRow.webhook_url
    return or_(url == host, *(url.startswith(host + end, autoescape=True) for end in "/?#"))
