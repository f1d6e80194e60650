"""Read the events that other threads put into a queue, as `Backend.render` yields them."""

import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Final

from lora_runtime.values import Progress, RenderEvent

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
