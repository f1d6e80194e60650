"""Requests on their way to an engine, and what they must share to be rendered in one batch.

Said once, for the engine and for whoever deals to engines.
"""

import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event

from lora_runtime.errors import Cancelled
from lora_runtime.values import Failed, Rendered, RenderEvent, RenderRequest


@dataclass(eq=False, kw_only=True)
class Job:
    """One request on its way, and where its events go. `cancel` is set when its caller wants no more of it."""

    index: int
    request: RenderRequest
    events: SimpleQueue[RenderEvent | Exception]
    cancel: Event
    queued_at: float = field(default_factory=time.perf_counter)
    ended: bool = False

    def end(self, event: Rendered | Failed) -> None:
        """Tell the caller how it ended; only the first time counts."""
        if not self.ended:
            self.ended = True
            self.events.put(event)

    def drop_if_cancelled(self) -> bool:
        """End it when its caller wants no more of it; return whether it has ended."""
        if self.cancel.is_set():
            self.end(Failed(index=self.index, error=Cancelled("Stopped before it was rendered.")))
        return self.ended


def batch_key(request: RenderRequest) -> Hashable:
    """Return what is equal for requests that fit into one batch; prompts, seeds, LoRAs and strengths are free."""
    references = tuple(reference.sha256 for reference in request.references)
    shape = (request.width, request.height, request.steps, request.guidance)
    return (request.weights, request.precision, *shape, references)
