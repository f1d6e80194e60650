"""Follow a run to its end: what a page has under way, how far it is, and how it is stopped.

A page has one run of a kind under way at most, with a cancel event of its own: another one, Stop, or closing the page
sets it, and the run stops at its next denoising step with everything done kept.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Final, cast

from evaluation.moments import Moment, note_event
from evaluation.sweep import Planned, SweepEvent
from lora_runtime.errors import KleinLabError

REDRAW_S: Final = 0.12
"""Cells of one batch end together; drawing for each of them would only keep the page busy."""


class Runs:
    """The runs of one kind that pages have under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancels: dict[str, threading.Event] = {}

    def stop(self, session: str) -> None:
        """Stop what the page has under way at its next step, if there is anything."""
        with self._lock:
            cancel = self._cancels.get(session)
        if cancel is not None:
            cancel.set()

    def is_running(self, session: str) -> bool:
        """Whether the page has anything under way."""
        with self._lock:
            return session in self._cancels

    def follow(
        self,
        session: str,
        start: Callable[[threading.Event], Iterator[SweepEvent]],
        *,
        estimate: Callable[[Planned], float | None] = lambda _: None,
        redraw_s: float = REDRAW_S,
    ) -> Generator[Moment, None, Moment | None]:
        """Start a run and yield how it goes; what the page still has under way is stopped. Returns the last moment.

        `estimate` says how many seconds it takes in all, `redraw_s` how long to wait between two moments. A run that
        fails once it is planned ends with a moment that says so. One moment is changed in place and yielded again:
        draw it at once.

        Raises:
            KleinLabError: It could not be planned.
        """
        cancel = self._begin(session)
        moment: Moment | None = None
        drawn = 0.0
        try:
            with closing(cast(Generator[SweepEvent], start(cancel))) as events:
                for event in events:
                    moment = note_event(event, moment, estimate)
                    moment.cancelled = cancel.is_set()
                    now = time.monotonic()
                    if moment.is_first or moment.is_last or now - drawn >= redraw_s:
                        drawn = now
                        yield moment
                        moment.changed = set()
        except KleinLabError as error:
            if moment is None:
                raise
            moment.error = error
            yield moment
        finally:
            cancel.set()
            self._end(session, cancel)
        return moment

    def _begin(self, session: str) -> threading.Event:
        cancel = threading.Event()
        with self._lock:
            before = self._cancels.get(session)
            self._cancels[session] = cancel
        if before is not None:
            before.set()
        return cancel

    def _end(self, session: str, cancel: threading.Event) -> None:
        with self._lock:
            if self._cancels.get(session) is cancel:
                del self._cancels[session]
