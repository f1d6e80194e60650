"""The desk of a cluster: requests that wait, the places where engines are, and what follows from what engines say.

One thread, that of `cluster.py`, sees to it; callers put requests in and look at it from theirs. No network here.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from lora_runtime.backends.crew import EngineState, Member, merge_statuses
from lora_runtime.backends.dealing import LOSSES, Call, DealtJob, Seat
from lora_runtime.errors import Cancelled, KleinLabError, RenderFailed, Unavailable
from lora_runtime.values import Failed, Progress, Rendered, RenderEvent

START_S: Final = 120.0
"""How long an engine may take to start, and a cluster that has lost all of them to come back."""

RETRY_S: Final = (5.0, 300.0)
"""How long a place whose engine was lost stays empty: at first, and at most; it doubles each time."""


@dataclass(eq=False, kw_only=True)
class Post:
    """A place for an engine on a machine, and who is there. `retry_at` is when a lost one may be replaced."""

    node: str
    slot: int
    resources: Mapping[str, float]
    actor: Any = None
    asked: Any = None
    """The reference of its description, until that is here."""
    asked_at: float = 0.0
    member: Member | None = None
    seat: Seat | None = None
    left_out: str = ""
    losses: int = 0
    retry_at: float = 0.0
    streams: dict[Any, Call] = field(default_factory=dict)
    coming: dict[Any, Any] = field(default_factory=dict)
    """Stream -> the reference of what it said last, until that is here."""

    def clear(self) -> tuple[Call, ...]:
        """Forget the engine, which is lost; return what it had."""
        calls = tuple(self.streams.values())
        self.actor, self.asked, self.streams, self.coming, self.seat, self.member = None, None, {}, {}, None, None
        self.losses += 1
        self.retry_at = time.monotonic() + min(RETRY_S[0] * 2 ** (self.losses - 1), RETRY_S[1])
        return calls

    @property
    def settled(self) -> bool:
        """Whether it is known who is there, or that nobody is for now."""
        return bool(self.seat or self.left_out or (self.losses and self.asked is None))

    @property
    def state(self) -> str:
        """See `EngineState`."""
        if self.seat:
            return "working" if any(self.seat.jobs) else "idle"
        return self.left_out or ("starting" if self.asked is not None else "lost; it is tried again soon")


class Desk:
    """What is known of a cluster. `changed` guards `queue` and `posts`."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.queue: list[DealtJob] = []
        self.posts: dict[tuple[str, int], Post] = {}
        self.closed = False

    @property
    def seated(self) -> list[tuple[Post, Seat, Member]]:
        """The places whose engine is dealt to."""
        with self.changed:
            return [(post, post.seat, post.member) for post in self.posts.values() if post.seat and post.member]

    def submit(self, jobs: Sequence[DealtJob]) -> None:
        """Put requests into the queue.

        Raises:
            Unavailable: The desk is closed.
        """
        with self.changed:
            if self.closed:
                raise Unavailable("The cluster backend is closed. Start the app again.")
            self.queue += jobs
            self.changed.notify_all()

    def take(self, jobs: Iterable[DealtJob]) -> None:
        """Take requests out of the queue, as they are dealt."""
        taken = set(jobs)
        with self.changed:
            self.queue = [job for job in self.queue if job not in taken]

    def describe(self) -> list[EngineState]:
        """Say who is there, and why others are not, as soon as nobody is starting any more."""
        with self.changed:
            self.changed.wait_for(
                lambda: self.closed or (self.posts and all(post.settled for post in self.posts.values())), START_S
            )
            return [
                EngineState(
                    name=post.member.name if post.member else f"{post.node[:8]}-{post.slot}",
                    device=post.member.device if post.member else "",
                    state=post.state,
                    runs=tuple(f"{weights} {precision}" for weights, precision in sorted(post.seat.runs))
                    if post.seat
                    else (),
                    rendered=post.seat.rendered if post.seat else 0,
                )
                for post in self.posts.values()
            ]

    def say_none(self, where: str) -> str:
        """Say why no engine works."""
        with self.changed:
            reasons = sorted({post.left_out for post in self.posts.values() if post.left_out})
        why = " ".join(reasons) or "Look with `ray status` whether a machine is there."
        return f"The cluster at {where} has no engine that works. {why}"

    def agree(self) -> None:
        """Let each engine run what it can, of the checkpoints that are meant."""
        merged = merge_statuses([member for _, _, member in self.seated])
        meant = {(each.weights, each.precision): each.digest for each in merged}
        for _, seat, member in self.seated:
            seat.runs = frozenset(
                (each.weights, each.precision)
                for each in member.statuses
                if each.available and each.digest == meant[each.weights, each.precision]
            )

    def pass_on(self, event: RenderEvent, call: Call, post: Post, seat: Seat) -> None:
        """Hand an event of a call to the callers of its requests."""
        assert post.member is not None
        if isinstance(event, Progress):
            callers: dict[int, list[DealtJob]] = {}
            for job in (call.jobs[index] for index in event.indices):
                job.begun = True
                if not job.drop_if_cancelled() and event.step > job.step:
                    job.step = event.step
                    callers.setdefault(id(job.events), []).append(job)
            for own in callers.values():
                indices = tuple(job.index for job in own)
                own[0].events.put(replace(event, indices=indices, engines=self.count_engines(own[0])))
            return
        job = call.jobs[event.index]
        if isinstance(event, Rendered):
            seat.rendered += 1
            post.losses = 0
            seat.measure(job.key, event.timing.seconds)
            facts = {**event.provenance, "engine": post.member.name}
            waited = max(0.0, time.perf_counter() - job.queued_at - event.timing.seconds * event.timing.batch_size)
            job.end(
                replace(event, index=job.index, provenance=facts, timing=replace(event.timing, waited_seconds=waited))
            )
        elif isinstance(event.error, Cancelled) and not job.cancel.is_set():
            self.give_back(call, [job])  # it was taken from here for another engine
        else:
            job.end(replace(event, index=job.index))

    def count_engines(self, job: DealtJob) -> int:
        """How many engines have requests of the same caller."""
        return sum(any(each.events is job.events for each in seat.jobs) for _, seat, _ in self.seated)

    def give_back(self, call: Call, jobs: Iterable[DealtJob]) -> None:
        """Requests that an engine has not rendered are dealt again, in their old order."""
        back = [job for job in jobs if job not in call.returned and not job.drop_if_cancelled()]
        call.returned.update(back)
        with self.changed:
            for job in back:
                job.begun = False
            self.queue = sorted([*self.queue, *back], key=lambda job: job.number)

    def lose(self, calls: Iterable[Call], why: str) -> None:
        """Deal again what an engine had that is lost; a request that went down with too many ends."""
        for call in calls:
            for job in call.left:
                job.losses += 1
                if job.losses >= LOSSES:
                    said = f"{job.losses} engines went down while they had this request. The last: {why}."
                    job.end(Failed(index=job.index, error=RenderFailed(said)))
            self.give_back(call, call.left)
        self.agree()

    def drop_cancelled(self) -> Iterator[tuple[Post, Call]]:
        """End what nobody wants any more, at once; yield the calls in which nothing else is left."""
        with self.changed:
            self.queue = [job for job in self.queue if not job.drop_if_cancelled()]
        for post in self.posts.values():
            for call in post.streams.values():
                left = [job for job in call.left if not job.drop_if_cancelled()]
                if not left and not call.stopped:
                    yield post, call

    def fail_impossible(self) -> None:
        """End requests for which there are engines, but none that can."""
        members = [member for _, _, member in self.seated]
        able = {model for _, seat, _ in self.seated for model in seat.runs}
        starting = (post.asked_at for post in self.posts.values() if post.asked is not None)
        if not members or any(time.monotonic() - since < START_S for since in starting):
            return
        for job in [job for job in self.queue if job.model not in able]:
            reasons = {
                status.reason
                for member in members
                for status in member.statuses
                if (status.weights, status.precision) == job.model and status.reason
            }
            said = " ".join(sorted(reasons)) or f"No engine runs {job.request.weights} at {job.request.precision}."
            job.end(Failed(index=job.index, error=Unavailable(said)))
        with self.changed:
            self.queue = [job for job in self.queue if not job.ended]

    def fail_all(self, error: KleinLabError) -> None:
        """End everything that waits or was dealt."""
        dealt = [job for post in self.posts.values() for call in post.streams.values() for job in call.jobs]
        with self.changed:
            waiting, self.queue = self.queue, []
        for job in (*waiting, *dealt):
            job.end(Failed(index=job.index, error=error))
