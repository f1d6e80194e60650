"""Render on every GPU of a Ray cluster: one engine each, and on a machine without one, one for each eight cores.

An engine is an actor with our own `LocalBackend`, so its pixels are those of *local*. One thread deals requests to the
engines (`dealing.py`), listens to what they stream back, and looks which machines are there. Whatever Ray says of a
call that is not an event of ours means that its engine is lost: it is let go of, what it had is dealt again, and a new
engine is started where the machine is still there, or is back. The same actor is never asked twice.

Engines have names, so that several programs on one cluster share them, and the batches that they render.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lora_runtime.backends.base import choose_status
from lora_runtime.backends.crew import (
    EngineState,
    Member,
    Said,
    merge_statuses,
    read_code,
    say_left_out,
    share_out,
)
from lora_runtime.backends.dealing import CALLS, Call, DealtJob, Seat, choose_deal, find_steal
from lora_runtime.backends.desk import START_S, Desk, Post
from lora_runtime.backends.parcels import Item, list_items, pack
from lora_runtime.backends.renderer import Renderer
from lora_runtime.errors import Cancelled, KleinLabError, RenderFailed, Unavailable
from lora_runtime.events import read_events
from lora_runtime.values import Failed, ModelStatus, Precision, RenderEvent, RenderRequest

logger = logging.getLogger(__name__)

NAMESPACE: Final = "klein-lora-lab"

TALK: Final = "talk"
"""What an engine answers while all its other threads render."""

LISTEN_S: Final = 0.02
LOOK_S: Final = 2.0
"""How often it is looked which machines are there."""


class _Engine:
    """The actor. Its settings are those that `ray start` was given on its machine."""

    def __init__(self) -> None:
        self._renderer = Renderer()

    def describe(self, slot: int) -> Member:
        return self._renderer.describe(ray.get_runtime_context().get_node_id(), slot)

    def stop(self, call: str) -> None:
        self._renderer.stop(call)

    def render(
        self, call: str, requests: Sequence[RenderRequest], parcels: Sequence[tuple[Item, Any]]
    ) -> Iterator[Said]:
        """A parcel is an item with the reference of its content, which is fetched only if it is needed."""
        yield from self._renderer.render(call, requests, {item: partial(ray.get, ref) for item, ref in parcels})


class ClusterBackend:
    """The engines of a Ray cluster behind one queue.

    `address` is HOST:PORT of the cluster; None starts one of this machine alone, with all its GPUs. Whoever connected
    first in a process disconnects it when it closes.

    Raises:
        Unavailable: No cluster answers there.
    """

    name = "local"
    """Its images are those of any local engine."""

    label = "The cluster"
    server = None

    def __init__(self, address: str | None) -> None:
        self._connected = connect(address)
        self._address = address or "this machine"
        self._desk = Desk()
        self._on_nodes: dict[str, set[Item]] = {}
        """Node -> what has arrived there."""
        self._parcels: dict[Item, Any] = {}
        self._looked = 0.0
        self._alone_since = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="klein-cluster", daemon=True)
        self._thread.start()

    def status(self, weights: str, precision: Precision | None) -> ModelStatus:
        """See `Backend.status`: whether any engine can."""
        return choose_status(self.models(), weights, precision, backend="cluster")

    def models(self) -> Sequence[ModelStatus]:
        """See `Backend.models`; waits for the first engine.

        Raises:
            Unavailable: There is none.
        """
        with self._desk.changed:
            self._desk.changed.wait_for(lambda: self._desk.closed or self._desk.seated, START_S)
            members = [member for _, _, member in self._desk.seated]
        if not members:
            raise Unavailable(self._desk.say_none(self._address))
        return merge_statuses(members)

    def engines(self) -> Sequence[EngineState]:
        """Say who is there, and why others are not; waits for those that are starting."""
        return self._desk.describe()

    def render(
        self, requests: Sequence[RenderRequest], *, cancel: threading.Event | None = None
    ) -> Iterator[RenderEvent]:
        """See `Backend.render`. Requests of concurrent callers share batches."""
        stop = threading.Event()
        events: SimpleQueue[RenderEvent | Exception] = SimpleQueue()
        jobs = [
            DealtJob(index=index, request=request, events=events, cancel=stop) for index, request in enumerate(requests)
        ]
        self._desk.submit(jobs)
        yield from read_events(events, len(jobs), cancel=cancel, stop=stop.set)

    def close(self) -> None:
        """End the thread; whoever still waits gets `Cancelled`. Engines that nobody else uses end too."""
        with self._desk.changed:
            if self._desk.closed:
                return
            self._desk.closed = True
            self._desk.changed.notify_all()
        self._thread.join()
        self._desk.posts.clear()
        if self._connected:
            ray.shutdown()

    def _work(self) -> None:
        """Deal and listen until closed; an error of our own ends what is under way, and is said to every caller."""
        while not self._desk.closed:
            if not ray.is_initialized():  # any call would start a cluster of its own
                self._desk.fail_all(Unavailable("Ray was disconnected in this process. Start the program again."))
                return
            try:
                self._look()
                for post, call in self._desk.drop_cancelled():
                    self._stop(post, [call])
                self._deal()
                self._listen()
            except Exception as error:  # the thread must live, and the callers must hear of it
                logger.exception("The cluster's dealer failed")
                self._desk.fail_all(RenderFailed(f"The cluster failed: {type(error).__name__}: {error}"))
                time.sleep(1)
        for post in self._desk.posts.values():
            self._stop(post, post.streams.values())
        self._desk.fail_all(Cancelled("Stopped before it was rendered."))

    def _listen(self) -> None:
        """Hear what engines say, or wait for something to do."""
        streams = {
            post.coming.get(stream, stream): (post, stream)
            for post in self._desk.posts.values()
            for stream in post.streams
        }
        asked = {post.asked: post for post in self._desk.posts.values() if post.asked is not None}
        if not streams:
            with self._desk.changed:
                if not self._desk.closed and not (self._desk.queue and self._desk.seated):
                    self._desk.changed.wait(LISTEN_S if asked or self._desk.queue else LOOK_S)
        waiting = [*streams, *asked]
        if not waiting:
            return
        ready, _ = ray.wait(waiting, num_returns=1, timeout=LISTEN_S if streams else 0)
        if len(ready) < len(waiting):
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for each in ready:
            if each in asked:
                self._seat(asked[each])
            elif streams[each][1] in streams[each][0].streams:  # else its engine was lost a moment ago
                self._hear(*streams[each])

    def _look(self) -> None:
        """Find out which machines are there, and see to it that each has its engines."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        for post in [post for post in self._desk.posts.values() if post.node not in alive]:
            self._lose(post, "its machine has gone")
            with self._desk.changed:
                del self._desk.posts[post.node, post.slot]
        with self._desk.changed:
            for node, resources in alive.items():
                for slot, share in enumerate(share_out(resources)):
                    self._desk.posts.setdefault((node, slot), Post(node=node, slot=slot, resources=share))
        for post in self._desk.posts.values():
            if post.actor is None and not post.left_out and time.monotonic() >= post.retry_at:
                self._start(post)
        if self._desk.seated:
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since > START_S:
            self._desk.fail_all(Unavailable(self._desk.say_none(self._address)))

    def _start(self, post: Post) -> None:
        """Ask for the engine of a post, which is started unless another program did."""
        post.actor = ACTOR.options(
            name=f"engine-{post.node}-{post.slot}",
            namespace=NAMESPACE,
            get_if_exists=True,
            num_cpus=post.resources["CPU"],
            num_gpus=post.resources["GPU"],
            max_restarts=0,
            max_concurrency=CALLS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(post.node, soft=False),
        ).remote()
        post.asked = post.actor.describe.options(concurrency_group=TALK).remote(post.slot)
        post.asked_at = time.monotonic()

    def _seat(self, post: Post) -> None:
        """An engine has described itself: from now on it is dealt to."""
        asked, post.asked = post.asked, None
        try:
            member: Member = ray.get(asked)
        except RayError as error:
            self._lose(post, _first_line(error))
            return
        with self._desk.changed:
            post.member = member
            post.left_out = say_left_out(member, read_code())
            if post.left_out:
                logger.warning("%s", post.left_out)
            else:
                post.seat = Seat(name=member.name, runs=frozenset(), cache_bytes=member.cache_bytes)
                self._desk.agree()
            self._desk.changed.notify_all()

    def _deal(self) -> None:
        """Deal while somebody has room; take back from others what an idle engine could begin."""
        self._desk.fail_impossible()
        posts = {seat: post for post, seat, _ in self._desk.seated}
        while dealt := choose_deal(self._desk.queue, list(posts)):
            seat, jobs = dealt
            self._desk.take(jobs)
            self._call(posts[seat], seat, jobs)
        if not self._desk.queue and (stealable := find_steal(list(posts))):
            seat, call = stealable
            self._stop(posts[seat], [call])

    def _call(self, post: Post, seat: Seat, jobs: Sequence[DealtJob]) -> None:
        """Send requests to an engine, with the files that its machine lacks."""
        parcels: dict[Item, Any] = {}
        sent = []
        for job in jobs:
            try:
                for item in list_items(job.request):
                    if item not in self._on_nodes.setdefault(post.node, set()):
                        parcels[item] = self._pack(item)
                seat.remember(job, _size_of(job.request))
                sent.append(job)
            except KleinLabError as error:
                job.end(Failed(index=job.index, error=error))
        if not sent:
            return
        call = Call(jobs=tuple(sent))
        seat.calls.append(call)
        requests = [job.request for job in sent]
        stream = post.actor.render.options(num_returns="streaming").remote(call.id, requests, list(parcels.items()))
        post.streams[stream] = call

    def _pack(self, item: Item) -> Any:
        """The content of a file, put where every machine can get it."""
        if item not in self._parcels:
            self._parcels[item] = ray.put(pack(item))
        return self._parcels[item]

    def _hear(self, post: Post, stream: Any) -> None:
        """One thing that an engine said, once it is here, or its end; others are heard while it is on its way."""
        call, seat = post.streams[stream], post.seat
        assert seat is not None
        try:
            if stream not in post.coming:
                post.coming[stream] = next(stream)
                return
            said: Said = ray.get(post.coming.pop(stream))
        except StopIteration:
            del post.streams[stream]
            seat.calls.remove(call)
            self._desk.give_back(call, call.left)
            return
        except RayError as error:
            self._lose(post, _first_line(error))
            return
        if said.rows:
            seat.rows[call.jobs[0].key] = said.rows
            self._arrived(post.node, call, frozenset(said.lacks))
        for event in said.events:
            self._desk.pass_on(event, call, post, seat)

    def _arrived(self, node: str, call: Call, lacks: frozenset[int]) -> None:
        """What a call needed is on its machine now; content that every machine has is not held any longer.

        A request that `lacks` its files there, as somebody deleted them, is dealt again with them.
        """
        items = {item for index, job in enumerate(call.jobs) for item in list_items(job.request) if index not in lacks}
        there = self._on_nodes.setdefault(node, set())
        if lacks:
            there.clear()
            self._desk.give_back(call, [call.jobs[index] for index in lacks])
        there.update(items)
        everywhere = [self._on_nodes.get(post.node, set()) for post in self._desk.posts.values()]
        for item in items & self._parcels.keys():
            if all(item in each for each in everywhere):
                del self._parcels[item]

    def _lose(self, post: Post, why: str) -> None:
        """Let go of an engine; what it had is dealt again, and its place is filled again later."""
        actor = post.actor
        with self._desk.changed:
            calls = post.clear()
            self._desk.changed.notify_all()
        self._on_nodes.pop(post.node, None)
        count = sum(len(call.left) for call in calls)
        self._desk.lose(calls, why)
        if actor is not None:
            logger.warning("An engine on %s is lost: %s; %d requests are dealt again.", post.node[:8], why, count)
            with contextlib.suppress(RayError):
                ray.kill(actor)

    def _stop(self, post: Post, calls: Iterable[Call]) -> None:
        for call in calls:
            call.stopped = True
            post.actor.stop.options(concurrency_group=TALK).remote(call.id)


ACTOR: Final[Any] = ray.remote(concurrency_groups={TALK: 2})(_Engine)


def connect(address: str | None) -> bool:
    """Connect this process to a cluster, or to one of this machine alone; return whether it was not before.

    Raises:
        Unavailable: No cluster answers there, or the process is connected to another one.
    """
    if ray.is_initialized():
        connected = ray.get_runtime_context().gcs_address
        if address and address.rpartition(":")[2] != connected.rpartition(":")[2]:
            raise Unavailable(
                f"This program is connected to the Ray cluster at {connected}, and to one at a time. Close what uses "
                f"that one, or start another program for {address}."
            )
        return False
    alone: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    try:
        ray.init(
            address=address or "local", namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **alone
        )
    except Exception as error:  # whatever it is: many kinds, from many layers
        raise Unavailable(
            f"No Ray cluster answers at {address or 'this machine'}: {_first_line(error)} Start one with "
            "`ray start --head`, join it from this machine with `ray start --address=HOST:PORT`, and give that address."
        ) from error
    return True


def _size_of(request: RenderRequest) -> int:
    """Bytes of the LoRA of a request, whose file was there a moment ago."""
    path = request.lora.path if request.lora else None
    return path.stat().st_size if isinstance(path, Path) and path.exists() else 0


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
