"""Events on their way: from other threads through a queue, and from other processes as a pickle."""

import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Final

from lora_runtime.errors import RenderFailed
from lora_runtime.values import Failed, Progress, RenderEvent

_LOOK_S: Final = 0.05
"""How often a waiting reader looks whether it was cancelled."""


def read_events(
    events: "SimpleQueue[RenderEvent | Exception]",
    requests: int,
    *,
    cancel: threading.Event | None,
    stop: Callable[[], None],
) -> Iterator[RenderEvent]:
    """Yield events until so many requests have ended; an exception among them is raised.

    `stop` is called once when `cancel` is set, upon which the rest must end soon; and at the end, whatever it was.
    """
    told = False
    try:
        while requests:
            if not told and cancel is not None and cancel.is_set():
                told = True
                stop()
            try:
                event = events.get(timeout=_LOOK_S)
            except Empty:
                continue
            if isinstance(event, Exception):
                raise event
            requests -= not isinstance(event, Progress)
            yield event
    finally:
        stop()


def make_portable(event: RenderEvent) -> RenderEvent:
    """Return an event that another process can read: an error that cannot be rebuilt there becomes its words."""
    if not isinstance(event, Failed):
        return event
    try:
        pickle.loads(pickle.dumps(event.error))
    except Exception:  # noqa: BLE001 - whatever a foreign class does there
        return replace(event, error=RenderFailed(str(event.error)))
    return event


def place_event(event: RenderEvent, indices: Sequence[int]) -> RenderEvent:
    """Return an event of a part of some requests, with its places in the whole."""
    if isinstance(event, Progress):
        return replace(event, indices=tuple(indices[index] for index in event.indices))
    return replace(event, index=indices[event.index])
