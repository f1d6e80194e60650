"""Follow a run to its end: what a page has under way, how far it is, and how it is stopped.

A page has one run of a kind under way at most, with a cancel event of its own: another one, Stop, or closing the page
sets it, and the run stops at its next denoising step with everything done kept.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final, cast

from evaluation.store.records import CellRecord
from evaluation.sweep import CellEnded, Finished, Planned, Stepped, SweepEvent
from lora_runtime.errors import KleinLabError

REDRAW_S: Final = 0.12
"""Cells of one batch end together; drawing for each of them would only keep the page busy."""


@dataclass(kw_only=True)
class Moment:
    """How far a run is, each time that the page is to show it: once it is planned, now and then, and at its end.

    `changed` are the positions of the cells that ended since the moment before. `error` is what ended it early.
    """

    planned: Planned
    records: list[CellRecord]
    seconds: float | None = None
    changed: set[int] = field(default_factory=set)
    stepped: Stepped | None = None
    finished: Finished | None = None
    error: KleinLabError | None = None
    cancelled: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def is_first(self) -> bool:
        """Whether the run has just been planned."""
        return self.stepped is None and not self.changed and not self.is_last

    @property
    def is_last(self) -> bool:
        """Whether it has ended, well or not."""
        return self.finished is not None or self.error is not None

    def count(self, state: str) -> int:
        """How many cells are in a state: pending, done, failed."""
        return sum(record.state == state for record in self.records)

    def seconds_passed(self) -> float:
        """Seconds since it started."""
        return time.monotonic() - self.started

    def seconds_left(self) -> float | None:
        """About how many seconds it still takes, if that is known."""
        return None if self.seconds is None else self.seconds - self.seconds_passed()


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
        fails once it is planned ends with a moment that says so. One moment is changed in place and yielded again: draw
        it at once.

        Raises:
            KleinLabError: It could not be planned.
        """
        cancel = self._begin(session)
        moment: Moment | None = None
        drawn = 0.0
        try:
            with closing(cast(Generator[SweepEvent], start(cancel))) as events:
                for event in events:
                    moment = _note(event, moment, estimate)
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


def _note(event: SweepEvent, moment: Moment | None, estimate: Callable[[Planned], float | None]) -> Moment:
    """Take an event into the moment; the first one makes it."""
    if isinstance(event, Planned):
        return Moment(planned=event, records=list(event.cells), seconds=estimate(event))
    if moment is None:
        raise TypeError(f"A run begins with Planned, not {event}.")
    match event:
        case Stepped():
            moment.stepped = event
        case CellEnded(record=record):
            moment.records[record.cell.position] = record
            moment.changed.add(record.cell.position)
            moment.stepped = None
        case Finished():
            moment.finished = event
    return moment
