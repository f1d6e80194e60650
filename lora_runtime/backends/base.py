"""The one seam between whoever wants images and whoever renders them."""

from collections.abc import Iterator, Sequence
from threading import Event
from typing import Protocol

from lora_runtime.values import ModelStatus, RenderEvent, RenderRequest


class Backend(Protocol):
    """Renders requests. Any number of callers may call `render` at the same time, each from its own thread."""

    name: str
    """`local` or `remote`: part of a cell's identity."""

    def models(self) -> Sequence[ModelStatus]:
        """Say, for every weights and precision this backend knows, whether it can run here."""
        ...

    def render(self, requests: Sequence[RenderRequest], *, cancel: Event | None = None) -> Iterator[RenderEvent]:
        """Yield each request's `Rendered` or `Failed` once, in the order they end, with `Progress` between.

        Where it is known when a request's batch begins, a `Progress` of step 0 says so.

        When `cancel` is set, requests not yet rendered end as `Failed` with `Cancelled`, at the latest after the
        denoising step under way. Closing the iterator early cancels what is left.
        """
        ...

    def close(self) -> None:
        """Let go of the device and of every thread."""
        ...
