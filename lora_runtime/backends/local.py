"""Render in this process. torch is imported when the first status or image is asked for, not before."""

import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from lora_runtime.catalogue import WEIGHTS, find_weights
from lora_runtime.errors import Unavailable
from lora_runtime.pipeline.find import find_checkpoint, read_digest
from lora_runtime.settings import settings
from lora_runtime.values import ModelStatus, RenderEvent, RenderRequest

if TYPE_CHECKING:
    from lora_runtime.pipeline.batch import Model
    from lora_runtime.pipeline.engine import Engine


class LocalBackend:
    """The klein pipelines of this machine behind one engine."""

    name = "local"

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def models(self) -> Sequence[ModelStatus]:
        """One status per weights and precision, the default precision of each weights first."""
        from lora_runtime.pipeline.load import choose_device
        from lora_runtime.pipeline.precision import precisions

        device = choose_device()
        statuses = []
        for weights in WEIGHTS.values():
            try:
                digest, reason = read_digest(find_checkpoint(weights)), ""
            except Unavailable as error:
                digest, reason = "", str(error)
            statuses += [
                ModelStatus(
                    weights=weights.name, precision=precision, available=not reason, reason=reason, digest=digest
                )
                for precision in precisions(weights, device)
            ]
        return statuses

    def render(
        self, requests: Sequence[RenderRequest], *, cancel: threading.Event | None = None
    ) -> Iterator[RenderEvent]:
        """See `Backend.render`. Requests of concurrent callers share batches."""
        with self._lock:
            engine = self._engine
        return engine.render(requests, cancel=cancel)

    def close(self) -> None:
        """End the engine's thread, if it was ever started."""
        with self._lock:
            engine = self.__dict__.get("_engine")
        if engine is not None:
            engine.close()

    @cached_property
    def _engine(self) -> "Engine":
        from lora_runtime.pipeline.engine import Engine

        return Engine(_load)


def _load(request: RenderRequest) -> "Model":
    from lora_runtime.pipeline.batch import Model
    from lora_runtime.pipeline.load import choose_device, load_pipeline

    weights = find_weights(request.weights)
    pipeline = load_pipeline(weights, request.precision, find_checkpoint(weights), choose_device())
    return Model(
        pipeline,
        weights=weights,
        precision=request.precision,
        adapter_cache_bytes=settings().adapter_cache_bytes,
    )
