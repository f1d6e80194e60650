"""Who holds a claim on a task, and when it is known to be held by nobody any more.

A claim names its process: the machine, the id and the start of it. A process of this machine that has gone is known to
have gone, and its claims are free at once. Of another machine's, what counts is whether the claim is renewed: a claim
that stays as it is for `LEASE_S`, watched on a clock that never steps back, is free, whatever its end says.
"""

import os
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from lora_runtime.backends.bfl_words import Status
from lora_runtime.storage.rows import TaskRow

LEASE_S: Final = 20.0
"""How long a claim holds without being renewed: a task of a killed process waits no longer than this."""


class Claims:
    """The claims of this process, and what it saw of those of others. `ticks` is a clock that never steps back."""

    def __init__(self, *, ticks: Callable[[], float] = time.monotonic) -> None:
        self.owner = f"{_name_machine()}/{_name_process(os.getpid())}/{uuid.uuid4().hex}"
        self._ticks = ticks
        self._seen: dict[tuple[int, str, float], float] = {}
        """Task, owner and end of a claim -> since when it is known."""

    def free_lost(self, session: Session, now: float, held: Collection[str]) -> bool:
        """Let the claims of others that nobody holds any more end now, and say whether there were any.

        `held` are the tasks of this process.
        """
        others = select(TaskRow.number, TaskRow.claimed_by, TaskRow.claimed_until).where(
            TaskRow.status == Status.PENDING,
            TaskRow.claimed_by.is_not(None),
            TaskRow.claimed_until > now,
            TaskRow.id.not_in(held),
        )
        claims = [(number, owner or "", until) for number, owner, until in session.execute(others)]
        ticks = self._ticks()
        self._seen = {claim: self._seen.get(claim, ticks) for claim in claims}
        gone = set(filter(_has_gone, {owner for _, owner, _ in claims}))
        lost = [claim for claim, since in self._seen.items() if claim[1] in gone or ticks - since >= LEASE_S]
        for number, owner, until in lost:
            same = (TaskRow.number == number, TaskRow.claimed_by == owner, TaskRow.claimed_until == until)
            session.execute(
                update(TaskRow).where(*same).values(claimed_until=now).execution_options(synchronize_session=False)
            )
        return bool(lost)


def _has_gone(owner: str) -> bool:
    """Whether the process that `owner` names was of this machine, and is no more."""
    machine, _, rest = owner.partition("/")
    process = rest.partition("/")[0]
    return bool(machine) and machine == _name_machine() and process != _name_process(int(process.partition("-")[0]))


def _name_process(pid: int) -> str:
    """The process that has this id now: an id is given again, but not with the same start."""
    try:
        state, *facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return f"{pid}-gone"
    return f"{pid}-gone" if state in ("Z", "X") else f"{pid}-{facts[18]}"


def _name_machine() -> str:
    """Where an id means the same process: one namespace of ids between two starts of a Linux; elsewhere nothing."""
    try:
        booted = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{booted}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""
