"""The one seam between whoever wants images and whoever renders them."""

from collections.abc import Iterator, Sequence
from threading import Event
from typing import Protocol

from lora_runtime.errors import InvalidInput, Unavailable
from lora_runtime.values import ModelStatus, Precision, RenderEvent, RenderRequest


class Backend(Protocol):
    """Renders requests. Any number of callers may call `render` at the same time, each from its own thread."""

    name: str
    """`local` or `remote`: part of a cell's identity."""

    label: str
    """What people call the place where it renders."""

    @property
    def server(self) -> str | None:
        """The address of the server that renders; None where this code does.

        A server bills each image. It is asked for a LoRA at strength 0 too, as what that shows is for the server to
        say: here it is the base image by construction.
        """
        ...

    def status(self, weights: str, precision: Precision | None) -> ModelStatus:
        """Say whether it can run `weights` at `precision`; None is its default for them.

        Raises:
            Unavailable: It does not know the weights.
            InvalidInput: It does not offer them at this precision.
        """
        ...

    def models(self) -> Sequence[ModelStatus]:
        """Say the same of all weights and precisions that it knows, the default precision of each weights first."""
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


def choose_status(
    statuses: Sequence[ModelStatus], weights: str, precision: Precision | None, *, backend: str
) -> ModelStatus:
    """Return which of the statuses of a backend is meant; see `Backend.status`."""
    known = {status.precision: status for status in statuses if status.weights == weights}
    return known[choose_precision(tuple(known), precision, weights=weights, backend=backend)]


def choose_precision(offered: Sequence[Precision], asked: Precision | None, *, weights: str, backend: str) -> Precision:
    """Return which of the precisions that a backend offers for `weights` is meant: the first when none is asked for.

    Raises:
        Unavailable: It offers none.
        InvalidInput: It does not offer this one.
    """
    if not offered:
        raise Unavailable(f"The {backend} backend does not run {weights}. Choose other weights or another backend.")
    if asked is not None and asked not in offered:
        raise InvalidInput(f"Precision {asked} is not offered for {weights} here. Choose one of: {', '.join(offered)}.")
    return asked or offered[0]


def require_available(status: ModelStatus) -> ModelStatus:
    """Return the status of what can run.

    Raises:
        Unavailable: It cannot; the message says why.
    """
    if not status.available:
        raise Unavailable(status.reason)
    return status
