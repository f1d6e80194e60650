"""How far a run is: what its events come to, for whoever shows it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from evaluation.judge.answer import Answer
from evaluation.store.records import CellRecord
from evaluation.sweep import CellEnded, Finished, Planned, Stepped, SweepEvent
from lora_runtime.errors import KleinLabError


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What follows from the images of a run that has ended: its answers, or why there are none."""

    answers: tuple[Answer, ...] = ()
    problem: str = ""


@dataclass(kw_only=True)
class Moment:
    """How far a run is, each time that it is to be shown: once it is planned, now and then, and at its end.

    `changed` are the positions of the cells that ended since the moment before. `begun`: a step or a cell came.
    `error` is what ended it early. A run that is under way beside others has a `place` in the queue, 0 from its turn
    on; `behind` are the runs that wait while it is there. `over`: no further moment follows.
    """

    planned: Planned
    records: list[CellRecord]
    seconds: float | None = None
    changed: set[int] = field(default_factory=set)
    stepped: Stepped | None = None
    begun: bool = False
    finished: Finished | None = None
    measured: Measured | None = None
    error: KleinLabError | None = None
    cancelled: bool = False
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    place: int = 0
    behind: int = 0
    over: bool = False
    version: int = 0

    @property
    def is_first(self) -> bool:
        """Whether the run has just been planned."""
        return not self.begun and not self.is_last

    @property
    def is_last(self) -> bool:
        """Whether all its images are there, or no more will come."""
        return self.finished is not None or self.error is not None

    def count(self, state: str) -> int:
        """How many cells are in a state: pending, done, failed."""
        return sum(record.state == state for record in self.records)

    def seconds_passed(self) -> float:
        """Seconds since it started, up to its end."""
        return (self.ended or time.monotonic()) - self.started

    def seconds_left(self) -> float | None:
        """About how many seconds it still takes, if that is known."""
        return None if self.seconds is None else self.seconds - self.seconds_passed()


def note_event(
    event: SweepEvent, moment: Moment | None, estimate: Callable[[Planned], float | None] = lambda _: None
) -> Moment:
    """Take an event into the moment and return it; the first event makes it. What failed before waits again."""
    if isinstance(event, Planned):
        return Moment(planned=event, records=[_fresh(record) for record in event.cells], seconds=estimate(event))
    if moment is None:
        raise TypeError(f"A run begins with Planned, not {event}.")
    moment.begun = True
    match event:
        case Stepped():
            moment.stepped = event
        case CellEnded(record=record):
            moment.records[record.cell.position] = record
            moment.changed.add(record.cell.position)
            moment.stepped = None
        case Finished():
            moment.finished, moment.ended = event, time.monotonic()
    return moment


def _fresh(record: CellRecord) -> CellRecord:
    return replace(record, state="pending", error=None) if record.state == "failed" else record
