"""Render on several backends at the same time, each in a thread of its own, and hand their events to one reader.

One backend alone is read directly: it renders no faster than it is read.
"""

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from contextvars import copy_context
from dataclasses import dataclass
from queue import SimpleQueue

from lora_runtime.backends.base import Backend
from lora_runtime.events import place_event, read_events
from lora_runtime.values import RenderEvent, RenderRequest


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one backend renders; `indices` are the places of its requests in the whole."""

    backend: Backend
    requests: tuple[RenderRequest, ...]
    indices: tuple[int, ...]


def render_shares(
    shares: Sequence[Share], *, cancel: threading.Event | None = None
) -> Generator[RenderEvent, None, None]:
    """Yield the events of all shares as they come, with their places in the whole.

    See `Backend.render`: cancelled or closed early, every backend stops. An error that is a backend's as a whole ends
    the others too, and is raised.
    """
    if len(shares) == 1:
        with _closing(shares[0].backend.render(shares[0].requests, cancel=cancel)) as events:
            for event in events:
                yield place_event(event, shares[0].indices)
        return
    stop = threading.Event()
    queue: SimpleQueue[RenderEvent | Exception] = SimpleQueue()
    threads = [
        # In the context of the caller: a GPU that is lent is lent to whoever asked for the page.
        threading.Thread(
            target=copy_context().run,
            args=(_read, share, queue, stop),
            name=f"klein-{share.backend.name}-share",
            daemon=True,
        )
        for share in shares
    ]
    for thread in threads:
        thread.start()
    try:
        yield from read_events(queue, sum(len(share.requests) for share in shares), cancel=cancel, stop=stop.set)
    finally:
        for thread in threads:
            thread.join()


def _read(share: Share, queue: "SimpleQueue[RenderEvent | Exception]", stop: threading.Event) -> None:
    try:
        for event in share.backend.render(share.requests, cancel=stop):
            queue.put(place_event(event, share.indices))
    except Exception as error:  # noqa: BLE001 - it is raised where the events are read
        queue.put(error)


def _closing(events: Iterator[RenderEvent]) -> "closing[Generator[RenderEvent, None, None]]":
    """A backend may return any iterator; only a generator can be closed."""
    return closing(events if isinstance(events, Generator) else (event for event in events))
