"""What runs on a machine of a cluster: our engine, the files that have arrived, and the calls under way.

No Ray here: `cluster.py` makes an actor of it.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Final

from lora_runtime.backends.crew import Member, Said, read_code
from lora_runtime.backends.local import LocalBackend
from lora_runtime.backends.parcels import Item, Parcel, Shelf, list_items
from lora_runtime.catalogue import find_weights
from lora_runtime.errors import KleinLabError
from lora_runtime.events import make_portable, place_event
from lora_runtime.settings import settings
from lora_runtime.values import Failed, RenderEvent, RenderRequest

GATHER_S: Final = 0.2
"""How long what is said waits for company, so that an engine renders and does not talk. The end waits for nothing."""


class Renderer:
    """Renders calls of any number of threads with one engine. Its settings are those of its machine."""

    def __init__(self) -> None:
        self._backend = LocalBackend()
        self._shelf = Shelf(settings().home / "cluster")
        self._stops: dict[str, threading.Event] = {}

    def describe(self, node: str, slot: int) -> Member:
        """Say what it is and what it can run."""
        from lora_runtime.pipeline.host import name_device

        return Member(
            name=f"{os.uname().nodename}/{node[:4]}{f'-{slot}' if slot else ''}",
            node=node,
            device=name_device(),
            code=read_code(),
            pid=os.getpid(),
            cache_bytes=settings().adapter_cache_bytes,
            statuses=tuple(self._backend.models()),
        )

    def render(
        self, call: str, requests: Sequence[RenderRequest], parcels: Mapping[Item, Callable[[], Parcel]]
    ) -> Iterator[Said]:
        """Yield what there is to say, as it comes. A parcel is fetched where its item is not here yet."""
        stop = self._stops.setdefault(call, threading.Event())
        try:
            here, local, lacks, wrong = [], [], [], []
            for index, request in enumerate(requests):
                try:
                    if self._unpack(request, parcels):
                        local.append(self._shelf.localise(request))
                        here.append(index)
                    else:
                        lacks.append(index)
                except KleinLabError as error:
                    wrong.append(make_portable(Failed(index=index, error=error)))
            yield Said(rows=_count_rows(local[0]) if local else 1, lacks=tuple(lacks), events=tuple(wrong))
            for events in _gather(self._backend.render(local, cancel=stop)):
                yield Said(events=tuple(make_portable(place_event(event, here)) for event in events))
        finally:
            self._stops.pop(call, None)

    def stop(self, call: str) -> None:
        """End a call after the step under way, if it is under way here."""
        if stop := self._stops.get(call):
            stop.set()

    def _unpack(self, request: RenderRequest, parcels: Mapping[Item, Callable[[], Parcel]]) -> bool:
        """Keep what came with a request; return whether all that it needs is here."""
        for item in list_items(request):
            if self._shelf.find(item) is None:
                if item not in parcels:
                    return False
                self._shelf.keep(item, parcels[item]())
        return True


def _count_rows(request: RenderRequest) -> int:
    """How many requests like this one are rendered at once."""
    from lora_runtime.pipeline.load import choose_device
    from lora_runtime.pipeline.memory import largest_batch

    weights = find_weights(request.weights)
    return largest_batch(weights, request.width, request.height, choose_device(), request.references)


def _gather(events: Iterator[RenderEvent]) -> Iterator[list[RenderEvent]]:
    """Yield what has come since the last time, which was `GATHER_S` ago: many small events travel as one."""
    come: SimpleQueue[RenderEvent | Exception | None] = SimpleQueue()

    def read() -> None:
        try:
            for event in events:
                come.put(event)
            come.put(None)
        except Exception as error:  # noqa: BLE001 - raised where they are gathered
            come.put(error)

    threading.Thread(target=read, name="klein-call", daemon=True).start()
    said = 0.0
    while True:
        together = [come.get()]
        while not isinstance(together[-1], Exception | None):
            try:
                together.append(come.get(timeout=max(0.0, said + GATHER_S - time.monotonic())))
            except Empty:
                break
        said = time.monotonic()
        found = [event for event in together if event is not None and not isinstance(event, Exception)]
        if found:
            yield found
        last = together[-1]
        if isinstance(last, Exception):
            raise last
        if last is None:
            return
