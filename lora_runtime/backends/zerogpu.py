"""Render on ZeroGPU: a GPU that Hugging Face lends for seconds, to one call at a time, in a process forked for it.

The model is loaded once, before the page is served, in the process that never has the GPU; each fork inherits it and
finds it on the device. What a fork does to it, such as attaching a LoRA, is gone with the fork or stays in it: each
lease attaches what its requests name. Visitors pay for a lease with their quota, and may ask for few a day, so a grid
is one lease, and its length is computed from the images. A fork ends after the denoising step in which it was
cancelled.

Source: `spaces` 0.51 (zero/wrappers.py, zero/client.py).
"""

import logging
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from threading import Event, Lock
from typing import TYPE_CHECKING, Final, TypeAlias

from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import Weights, find_weights
from lora_runtime.errors import Cancelled, KleinLabError, Unavailable
from lora_runtime.events import make_portable, place_event
from lora_runtime.settings import settings
from lora_runtime.values import Failed, ModelStatus, Precision, Rendered, RenderEvent, RenderRequest

if TYPE_CHECKING:
    from lora_runtime.pipeline.batch import Model

logger = logging.getLogger(__name__)

MAX_LEASE_S: Final = 80
"""A longer grid takes several leases: `spaces` asks for half as much again, and nobody may have more than 120 s at once
whose quota for the day is 120 s."""

START_S: Final = 8.0
"""Forking, and moving klein 4B onto the device."""

ATTACH_S: Final = 2.0
"""Reading and attaching one LoRA."""

MARGIN: Final = 1.3
"""How much longer than expected a lease may take: one that runs out ends in an error."""

RATE: Final = 60e12
"""Operations a second that half an RTX PRO 6000 is trusted with, until the first lease was measured."""

Task: TypeAlias = Callable[[tuple[RenderRequest, ...]], Iterator[RenderEvent]]
Lend: TypeAlias = Callable[[Task, Callable[[tuple[RenderRequest, ...]], int]], Task]
"""Turns a function into one that runs where the GPU is, for as long as the second function says."""


class ZeroGpuBackend:
    """The klein pipelines behind leases of a GPU.

    `lend` is `spaces.GPU`, and `render` what happens in the fork; without them it is the engine, with the weights of
    the settings loaded beforehand. Make it in the main thread before the page is launched.
    """

    name = "local"
    """Its images are those of any local GPU."""

    label = "This machine"
    server = None

    def __init__(self, *, lend: Lend | None = None, render: Task | None = None) -> None:
        self._models_of = LocalBackend()
        self._pace = Pace()
        self._lease = (lend or _lend)(render or _make_render(_load()), self._pace.estimate)

    def status(self, weights: str, precision: Precision | None) -> ModelStatus:
        """See `Backend.status`: what runs on the GPU, once it is lent."""
        return self._models_of.status(weights, precision)

    def models(self) -> Sequence[ModelStatus]:
        """See `Backend.models`."""
        return self._models_of.models()

    def render(self, requests: Sequence[RenderRequest], *, cancel: Event | None = None) -> Iterator[RenderEvent]:
        """See `Backend.render`. While a GPU is waited for, nothing can be cancelled.

        Raises:
            Unavailable: No GPU was lent, or not for long enough; what was rendered before is kept.
        """
        left = list(range(len(requests)))
        while left and not (cancel and cancel.is_set()):
            part = self._pace.fill_lease(requests, left)
            for event in self._rent(tuple(requests[index] for index in part), cancel):
                placed = place_event(event, part)
                if isinstance(placed, Rendered | Failed):
                    left.remove(placed.index)
                yield placed
        for index in left:
            yield Failed(index=index, error=Cancelled("Stopped before it was rendered."))

    def close(self) -> None:
        """Nothing is held between leases."""
        self._models_of.close()

    def _rent(self, requests: tuple[RenderRequest, ...], cancel: Event | None) -> Iterator[RenderEvent]:
        """The events of one lease, up to its end or until it is cancelled."""
        took = 0.0
        events = self._lease(requests)
        with closing(events if isinstance(events, Generator) else (event for event in events)) as stream:
            while not (cancel and cancel.is_set()):
                try:
                    event = next(stream, None)
                except KleinLabError:
                    raise
                except Exception as error:  # what `spaces` raises is Gradio's, which is not known here
                    said = str(getattr(error, "message", None) or error)
                    raise Unavailable(f"Hugging Face lent no GPU, or took it back: {said}") from error
                if event is None:
                    self._pace.learn(requests, took)
                    return
                took += event.timing.seconds if isinstance(event, Rendered) else 0
                yield event


class Pace:
    """How long images take: computed from the weights and sizes, corrected by what the leases before took."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._factors: dict[str, float] = {}

    def estimate(self, requests: tuple[RenderRequest, ...]) -> int:
        """Return the seconds of a lease for `requests`, which `spaces` stretches for slower devices."""
        loras = {request.lora.sha256 for request in requests if request.lora}
        images = sum(map(self._seconds, requests))
        return math.ceil(START_S + ATTACH_S * len(loras) + MARGIN * images)

    def fill_lease(self, requests: Sequence[RenderRequest], left: Sequence[int]) -> list[int]:
        """Return the first of `left` that fit into one lease; one image at least."""
        part = list(left[:1])
        for index in left[1:]:
            if self.estimate(tuple(requests[each] for each in (*part, index))) > MAX_LEASE_S:
                break
            part.append(index)
        return part

    def learn(self, requests: Sequence[RenderRequest], took_s: float) -> None:
        """Note how long the images of a whole lease took."""
        expected = sum(map(compute_seconds, requests))
        with self._lock:
            self._factors[requests[0].weights] = took_s / expected

    def _seconds(self, request: RenderRequest) -> float:
        with self._lock:
            return compute_seconds(request) * self._factors.get(request.weights, 1.0)


def compute_seconds(request: RenderRequest) -> float:
    """Return the seconds of one image at `RATE`: the transformer's matrix products and attention, and the decoder."""
    weights = find_weights(request.weights)
    shape = weights.shape
    references = len(request.references) + 1
    tokens = references * (request.width // 16) * (request.height // 16) + weights.max_sequence_length
    blocks = (26 * shape.double_blocks + 13 * shape.single_blocks) * shape.hidden**2
    attention = 4 * tokens**2 * shape.hidden * (shape.double_blocks + shape.single_blocks)
    passes = request.steps * _passes(request, weights)
    decoding = 1e7 * request.width * request.height
    return (passes * (2 * blocks * tokens + attention) + decoding) / RATE


def _passes(request: RenderRequest, weights: Weights) -> int:
    """How often a step runs the transformer: with guidance, once with the prompt and once without."""
    return 2 if request.guidance > 1 and not weights.distilled else 1


def _lend(task: Task, seconds: Callable[[tuple[RenderRequest, ...]], int]) -> Task:
    import spaces

    lent: Task = spaces.GPU(duration=seconds)(task)
    return lent


def _load() -> "tuple[Model, ...]":
    """The weights of the settings; when they are not here, each lease says so, or loads what it needs."""
    import spaces  # noqa: F401 - before anything touches the device: it stands in for one until a lease

    from lora_runtime.pipeline.host import load_default

    try:
        return (load_default(find_weights(settings().weights)),)
    except KleinLabError as error:
        logger.warning("%s", error)
        return ()


def _make_render(loaded: "tuple[Model, ...]") -> Task:
    """What runs in the fork: an engine of its own, as threads are not inherited."""

    def render(requests: tuple[RenderRequest, ...]) -> Iterator[RenderEvent]:
        from lora_runtime.pipeline.host import start_engine

        engine = start_engine(loaded)
        try:
            for event in engine.render(requests):
                yield make_portable(event)
        finally:
            engine.close()

    return render
