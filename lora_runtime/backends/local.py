"""Render in this process. torch is imported when the first status or image is asked for, not before."""

import os
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from lora_runtime.backends.base import choose_precision
from lora_runtime.values import ModelStatus, Precision, RenderEvent, RenderRequest

if TYPE_CHECKING:
    from lora_runtime.pipeline.engine import Engine

_IMPORTING = threading.Lock()
"""Libraries that import each other in a circle deadlock when two threads import them for the first time at once."""


SPINS: Final = "3000"
"""How often a thread of torch looks for work before it sleeps: some 0.2 ms, more than the gap between two layers.

By default libgomp's look for milliseconds. Where anything else wants the processors, callers of the API among them,
each layer then waits that long for a thread that another one's spinning keeps from running.
"""


class LocalBackend:
    """The klein pipelines of this machine behind one engine."""

    name = "local"
    label = "This machine"
    server = None

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
            os.environ["GOMP_SPINCOUNT"] = SPINS  # read when torch is imported, which is later

    def status(self, weights: str, precision: Precision | None) -> ModelStatus:
        """See `Backend.status`; files and memory are looked at."""
        with _IMPORTING:
            from lora_runtime.pipeline.host import list_precisions, read_status
        offered = list_precisions(weights)
        return read_status(weights, choose_precision(offered, precision, weights=weights, backend=self.name))

    def models(self) -> Sequence[ModelStatus]:
        """One status per weights and precision, the default precision of each weights first."""
        with _IMPORTING:
            from lora_runtime.pipeline.host import list_models
        return list_models()

    def render(
        self, requests: Sequence[RenderRequest], *, cancel: threading.Event | None = None
    ) -> Iterator[RenderEvent]:
        """See `Backend.render`. Requests of concurrent callers share batches."""
        with _IMPORTING:
            from lora_runtime.pipeline.host import start_engine
        with self._lock:
            if self._engine is None:
                self._engine = start_engine()
            engine = self._engine
        return engine.render(requests, cancel=cancel)

    def close(self) -> None:
        """End the engine's thread, if it was ever started."""
        with self._lock:
            engine = self._engine
        if engine is not None:
            engine.close()
