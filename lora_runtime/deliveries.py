"""Webhooks that are owed: kept with the task that ended, tried until they arrive or the tries are used up.

A delivery is taken for a while, as tasks are: when its process dies it is tried again, so a receiver may hear twice.
Times are seconds since 1970.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from sqlalchemy import select, update

from lora_runtime.database import Database, count_changed
from lora_runtime.schema import DeliveryRow

RETRY_AFTER_S: Final = (1.0, 5.0, 30.0)
"""How long to wait after each failed attempt; the one after the last ends it. Source: BFL's webhook guide."""

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
    """The webhook of a task, and what was tried."""

    task_id: str
    state: State
    due: float
    attempts: tuple[Attempt, ...]


class Deliveries:
    """The deliveries of one database. `clock` is for tests."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def claim(self) -> Delivery | None:
        """Take the delivery that is due longest, or None. `record` its attempt within a minute."""
        now = self._clock()
        due = select(DeliveryRow).where(DeliveryRow.state == "pending", DeliveryRow.due <= now)
        with self._database.session() as session:
            row = session.scalars(due.order_by(DeliveryRow.due).limit(1)).first()
            if row is None:
                return None
            found = _delivery(row)
            taken = session.execute(
                update(DeliveryRow)
                .where(DeliveryRow.task_id == found.task_id, DeliveryRow.due == found.due)
                .values(due=now + _HOLD_S)
                .execution_options(synchronize_session=False)
            )
            return found if count_changed(taken) else None

    def record(self, delivery: Delivery, attempt: Attempt) -> Delivery:
        """Write an attempt down, and when to try again, if at all."""
        tried = len(delivery.attempts)
        again = not attempt.arrived and tried < len(RETRY_AFTER_S)
        with self._database.session() as session:
            row = session.get_one(DeliveryRow, delivery.task_id)
            row.attempts = [*row.attempts, {"at": attempt.at, "status": attempt.status, "error": attempt.error}]
            row.due = self._clock() + RETRY_AFTER_S[tried] if again else row.due
            row.state = "delivered" if attempt.arrived else "pending" if again else "dropped"
            return _delivery(row)

    def find(self, task_id: str) -> Delivery | None:
        """Return the delivery of a task that has ended, or None when none is owed."""
        with self._database.session() as session:
            row = session.get(DeliveryRow, task_id)
            return None if row is None else _delivery(row)


def _delivery(row: DeliveryRow) -> Delivery:
    states: dict[str, State] = {"delivered": "delivered", "dropped": "dropped"}
    attempts = tuple(
        Attempt(at=attempt["at"], status=attempt["status"], error=attempt["error"]) for attempt in row.attempts
    )
    return Delivery(task_id=row.task_id, state=states.get(row.state, "pending"), due=row.due, attempts=attempts)
