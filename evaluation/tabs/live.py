"""What a page has under way: its cancel event, and the clock that says how often to redraw and how long it still takes.

The Sweep tab and the Playground each keep their own.
"""

import threading
import time
from dataclasses import dataclass, field
from typing import Final

REDRAW_S: Final = 0.12
"""Cells of one batch end together; drawing the table for each of them would only keep the page busy."""


class Cancels:
    """The cancel event of each page that renders."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancels: dict[str, threading.Event] = {}

    def start(self, session: str) -> threading.Event:
        """Return a new cancel event; what the same page still has under way is stopped."""
        cancel = threading.Event()
        with self._lock:
            before = self._cancels.get(session)
            self._cancels[session] = cancel
        if before is not None:
            before.set()
        return cancel

    def stop(self, session: str) -> None:
        """Stop what the page has under way at its next step, if there is anything."""
        with self._lock:
            cancel = self._cancels.pop(session, None)
        if cancel is not None:
            cancel.set()

    def is_running(self, session: str) -> bool:
        """Whether the page has anything under way."""
        with self._lock:
            return session in self._cancels

    def end(self, session: str, cancel: threading.Event) -> None:
        """Forget what has ended."""
        with self._lock:
            if self._cancels.get(session) is cancel:
                del self._cancels[session]


@dataclass
class Watch:
    """When a run started, when it was drawn last, and how many seconds it takes in all, if that is known."""

    seconds: float | None
    started: float = field(default_factory=time.monotonic)
    drawn: float = 0.0

    def is_due(self) -> bool:
        """Whether the page may be redrawn; a call that says yes starts the next wait."""
        now = time.monotonic()
        if now - self.drawn < REDRAW_S:
            return False
        self.drawn = now
        return True

    def seconds_passed(self) -> float:
        """Seconds since it started."""
        return time.monotonic() - self.started

    def seconds_left(self) -> float | None:
        """About how many seconds it still takes, if that is known."""
        return None if self.seconds is None else self.seconds - self.seconds_passed()
