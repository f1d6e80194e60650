"""Follow a run: one that belongs to the page that started it, or one that goes on by itself.

`Runs` are those of pages: a page has one of a kind under way at most, with a cancel event of its own: another one,
Stop, or closing the page sets it, and the run stops at its next denoising step with everything done kept.

`Watches` are the pages that look at a sweep under way. It does not end with them, and a page looks at one at a time.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import closing
from typing import Final, cast

from evaluation.moments import Moment, note_event
from evaluation.sweep import Planned, SweepEvent
from evaluation.under_way import Going
from lora_runtime.errors import KleinLabError

REDRAW_S: Final = 0.12
"""Cells of one batch end together; drawing for each of them would only keep the page busy."""

LAST_WORD_S: Final = 5
"""How long what a page shows next waits for the last moment of the sweep that it showed."""


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


class Watch:
    """A page that looks at a sweep, until it shows something else or is closed."""

    def __init__(self, going: Going) -> None:
        self.going = going
        self._lock = threading.Lock()
        self._taken = False
        self._off = threading.Event()
        self._ended = threading.Event()

    def take(self) -> bool:
        """Return whether nobody has taken it before: it is followed once."""
        with self._lock:
            taken, self._taken = self._taken, True
            return not taken

    def off(self) -> None:
        """End it."""
        self._off.set()

    def end(self) -> None:
        """End it, and wait until the page was sent the last of it: what is sent now comes later."""
        self.off()
        if not self.take():
            self._ended.wait(LAST_WORD_S)

    async def moments(self) -> AsyncGenerator[Moment]:
        """Yield how far the sweep is now, and again each time that it has moved, until it is over or this is ended."""
        version = -1
        try:
            while not self._off.is_set():
                moment = self.going.look(version)
                if moment is not None:
                    yield moment
                    if moment.over:
                        return
                    version = moment.version
                await asyncio.sleep(REDRAW_S)
        finally:
            self._ended.set()


class Watches:
    """Which sweep each page looks at; keyed by its session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: dict[str, Watch] = {}

    def begin(self, session: str, going: Going | None) -> None:
        """Have the page look at another sweep, or at none that is under way."""
        with self._lock:
            before = self._watches.pop(session, None)
        if before is not None:
            before.end()
        if going is not None:
            with self._lock:
                self._watches[session] = Watch(going)

    def take(self, session: str) -> Watch | None:
        """Return the watch of the page that nobody follows yet."""
        with self._lock:
            watch = self._watches.get(session)
        return watch if watch is not None and watch.take() else None

    def forget(self, session: str) -> None:
        """End the watch of a page that was closed; nobody waits for its last word."""
        with self._lock:
            watch = self._watches.pop(session, None)
        if watch is not None:
            watch.off()
