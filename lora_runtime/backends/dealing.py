"""Who renders what: requests of any callers, dealt out to engines of different speed. No network and no threads here.

An engine is dealt what it can take at once, and that much again so that it never waits; of what is left at the end so
much that all are done at the same time. When nothing is left, an engine that idles is given what another has not begun
(`find_steal`). The seat that is expected to be done first gets the oldest request, where attaching a LoRA and loading
weights count as the time of so many images: a finetune thus goes where it is attached, and never waits for it.

`cluster.py` deals to engines of a Ray cluster by these rules, `benchmarks/scale.py` to a thousand simulated ones.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from uuid import uuid4

from lora_runtime.batches import Job, batch_key
from lora_runtime.values import Precision

Model: TypeAlias = tuple[str, Precision]
"""Weights and precision."""

ATTACH_IMAGES: Final = 1.0
LOAD_IMAGES: Final = 30.0
"""Attaching a LoRA and loading weights, in images of the same kind."""

ROWS: Final = 8
"""How many requests an engine is dealt before it said how many it takes at once."""

CALLS: Final = 48
"""How many calls an engine answers at the same time."""

LOSSES: Final = 4
"""With how many engines a request may go down before it is taken for the cause."""

ALONE_AFTER: Final = 2
"""After how many such losses it is dealt alone, so that it takes no other with it."""

_numbers = itertools.count()


@dataclass(eq=False, kw_only=True)
class DealtJob(Job):
    """A request that is dealt to engines, and again when one is lost."""

    number: int = field(default_factory=lambda: next(_numbers))
    begun: bool = False
    step: int = -1
    """The last one that its caller was told of: what is dealt again is told of from there on."""
    losses: int = 0

    def __post_init__(self) -> None:
        self.key = batch_key(self.request)
        self.model: Model = (self.request.weights, self.request.precision)
        self.lora = self.request.lora.sha256 if self.request.lora else None

    @property
    def share_left(self) -> float:
        """How much of it is still to be done, 1 being all."""
        return 1 - max(0, self.step) / self.request.steps if self.begun else 1.0


@dataclass(eq=False, kw_only=True)
class Call:
    """Requests that were dealt to an engine together."""

    jobs: tuple[DealtJob, ...]
    id: str = field(default_factory=lambda: uuid4().hex)
    """No other program that shares the engine has it."""
    stopped: bool = False
    returned: set[DealtJob] = field(default_factory=set)
    """Those that were given back, to be dealt again."""

    @property
    def left(self) -> tuple[DealtJob, ...]:
        """Those that are still to end here."""
        return tuple(job for job in self.jobs if not job.ended and job not in self.returned)

    @property
    def begun(self) -> bool:
        """Whether one of them is being rendered, or was."""
        return any(job.begun for job in self.jobs)


@dataclass(eq=False, kw_only=True)
class Seat:
    """An engine as who deals knows it: what it runs, how quick it is, what it has in memory, what it was dealt."""

    name: str
    runs: frozenset[Model]
    cache_bytes: int = 2 * 1024**3
    models_kept: int = 2
    calls: list[Call] = field(default_factory=list)
    rows: dict[Hashable, int] = field(default_factory=dict)
    """Batch key -> how many requests it takes at once."""
    seconds: dict[Hashable, float] = field(default_factory=dict)
    """Batch key -> of an image, as measured."""
    attached: "OrderedDict[str, int]" = field(default_factory=OrderedDict)
    """LoRA -> bytes, least recently used first: as far as is known from here."""
    loaded: "OrderedDict[Model, None]" = field(default_factory=OrderedDict)
    rendered: int = 0

    @property
    def jobs(self) -> Iterator[DealtJob]:
        """What it was dealt and has not ended."""
        return (job for call in self.calls for job in call.left)

    def room(self, key: Hashable) -> int:
        """How many more requests it may be dealt: those that wait there are at most one batch."""
        if not self.calls:
            return self.rows.get(key, ROWS)
        waiting = sum(not job.begun for job in self.jobs)
        return self.rows.get(key, ROWS) - waiting if len(self.calls) < CALLS else 0

    def measure(self, key: Hashable, seconds: float) -> None:
        """Note how long an image took, the newest counting a quarter."""
        known = self.seconds.get(key, seconds)
        self.seconds[key] = known + (seconds - known) / 4

    def remember(self, job: DealtJob, size_bytes: int) -> bool:
        """Note what the engine has in memory once it renders `job`; return whether its LoRA has to be attached."""
        self.loaded[job.model] = None
        self.loaded.move_to_end(job.model)
        while len(self.loaded) > self.models_kept:
            self.loaded.popitem(last=False)
        if job.lora is None:
            return False
        new = job.lora not in self.attached
        self.attached[job.lora] = size_bytes
        self.attached.move_to_end(job.lora)
        while len(self.attached) > 1 and sum(self.attached.values()) > self.cache_bytes:
            self.attached.popitem(last=False)
        return new

    def expect_s(self, job: DealtJob, seconds: float) -> float:
        """When it would have rendered `job`, in seconds from now; `seconds` is of an image where it has none yet."""
        pace = self.seconds.get(job.key, seconds)
        load = 0.0 if job.model in self.loaded else LOAD_IMAGES
        attach = 0.0 if job.lora is None or job.lora in self.attached else ATTACH_IMAGES
        return self.busy_s(seconds) + (1 + load + attach) * pace

    def busy_s(self, seconds: float) -> float:
        """When it would have rendered all that it was dealt; `seconds` as in `expect_s`."""
        return sum(self.seconds.get(each.key, seconds) * each.share_left for each in self.jobs)


def choose_deal(queue: Sequence[DealtJob], seats: Sequence[Seat]) -> tuple[Seat, tuple[DealtJob, ...]] | None:
    """Return what to deal next, and to whom; None when nobody has room for what waits. `queue` is oldest first."""
    looked: set[Hashable] = set()
    for oldest in queue:
        if oldest.key in looked:
            continue
        looked.add(oldest.key)
        able = [seat for seat in seats if oldest.model in seat.runs]
        free = [seat for seat in able if seat.room(oldest.key) > 0]
        if not free:
            continue
        typical = _typical(able, oldest.key)
        expected = {each: each.expect_s(oldest, typical) for each in able}
        seat = min(free, key=lambda each: expected[each])
        if any(seat.jobs) and min(expected.values()) < expected[seat]:
            continue  # it has its share; who is done sooner will have room in a moment
        if oldest.losses >= ALONE_AFTER:
            return seat, (oldest,)
        return seat, _fill(oldest, queue, seat, able, free, typical)
    return None


def find_steal(seats: Sequence[Seat]) -> tuple[Seat, Call] | None:
    """Return a call that an engine has not begun, and that one with nothing to do could render instead."""
    idle = [seat for seat in seats if not seat.calls]
    if not idle:
        return None
    found = (
        (seat, call)
        for seat in seats
        if sum(bool(call.left) for call in seat.calls) > 1
        for call in seat.calls
        if not call.begun and not call.stopped and call.left
        if any(all(job.model in other.runs for job in call.left) for other in idle)
    )
    return max(found, key=lambda each: sum(1 for _ in each[0].jobs), default=None)


def _fill(
    oldest: DealtJob, queue: Sequence[DealtJob], seat: Seat, able: Sequence[Seat], free: Sequence[Seat], typical: float
) -> tuple[DealtJob, ...]:
    """The oldest request and those that join it: the share of `seat` by its speed, with the LoRAs that it has first."""
    same = [job for job in queue if job.key == oldest.key and job.losses < ALONE_AFTER]
    share = min(_share(seat, len(same), oldest.key, able, typical), seat.room(oldest.key)) if len(same) > 1 else 1
    elsewhere = {lora for each in free if each is not seat for lora in each.attached}

    def order(job: DealtJob) -> tuple[bool, int, int]:
        here = job.lora is None or job.lora in seat.attached
        return (job is not oldest, 0 if here else 1 + (job.lora in elsewhere), job.number)

    return tuple(sorted(same, key=order)[: max(1, share)])


def _share(seat: Seat, count: int, key: Hashable, seats: Iterable[Seat], typical: float) -> int:
    """How many of `count` images go to `seat` if all seats are done at the same time, or before that with what they
    have already."""
    busy = {each: each.busy_s(typical) for each in seats}
    while True:
        speeds = {each: 1 / each.seconds.get(key, typical) for each in busy}
        end = (count + sum(busy[each] * speed for each, speed in speeds.items())) / sum(speeds.values())
        late = [each for each in busy if busy[each] > end]
        if not late:
            return math.ceil((end - busy[seat]) * speeds[seat]) if seat in busy else 0
        for each in late:
            del busy[each]


def _typical(seats: Iterable[Seat], key: Hashable) -> float:
    """Seconds of an image on an engine of which nothing is known: the mean of the others'."""
    known = [seat.seconds[key] for seat in seats if key in seat.seconds]
    return sum(known) / len(known) if known else 1.0
