"""What an organization may still submit: how many tasks, paid by what; and when one that is refused comes again.

Who was refused is given a moment to come back at, each a little later than the one before: so many callers that are
sent away ask again one after the other, and not all of them each second.
"""

import threading
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from lora_runtime.backends.bfl_words import Status
from lora_runtime.errors import OutOfCredits, TooManyTasks
from lora_runtime.registry.accounts import balance, lock_organization, to_credits
from lora_runtime.storage.rows import TaskRow

RETRY_S: Final = 1.0
"""How long who is refused waits at least."""

RETRIES_PER_S: Final = 50
"""How many of an organization's callers that were refused are asked to come back in one second."""


class Room:
    """At most `most` tasks of an organization are active at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._next: dict[str, float] = {}
        """Organization -> when the next of its callers that is refused is to come back."""

    def require(self, organization: str, active: int, now: float) -> None:
        """Refuse one more task than are allowed.

        Raises:
            TooManyTasks: As many as are allowed are active; it says when to ask again.
        """
        if active < self._most:
            return
        with self._lock:
            again = max(self._next.get(organization, 0.0), now + RETRY_S)
            self._next[organization] = again + 1 / RETRIES_PER_S
        raise TooManyTasks(
            f"{active} tasks of {organization} are active, which is the limit. Wait until one has ended.",
            retry_after_s=again - now,
        )


class Left:
    """What an organization has under way and can still pay, as long as a transaction holds it."""

    def __init__(self, session: Session, organization: str) -> None:
        metered = lock_organization(session, organization).metered
        self.organization = organization
        self.active, reserved = count_active(session, organization)
        self._millicredits = balance(session, organization) - reserved if metered else None

    def pay(self, millicredits: int) -> None:
        """Set aside what a task costs.

        Raises:
            OutOfCredits: It is more than what is left.
        """
        if self._millicredits is None:
            return
        if self._millicredits < millicredits:
            raise OutOfCredits(
                f"Insufficient credits: this task costs {to_credits(millicredits)}, and "
                f"{to_credits(self._millicredits)} are left to {self.organization}. Add credits."
            )
        self._millicredits -= millicredits


def count_active(session: Session, organization: str) -> tuple[int, int]:
    """Return how many tasks are active, and what they will cost in thousandths of a credit."""
    query = select(func.count(), func.coalesce(func.sum(TaskRow.millicredits), 0)).where(
        TaskRow.status == Status.PENDING, TaskRow.organization_id == organization
    )
    count, reserved = session.execute(query).one()
    return int(count), int(reserved)
