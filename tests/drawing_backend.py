"""A real, deterministic backend for the tests of sweep, store and command line: it draws what a request says.

The seed picks the background, the prompt the colour of a disc, the LoRA and its strength a growing square. It renders
lazily, one request at a time, and counts what it rendered.
"""

import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

from evaluation.axes import SweepSpec
from evaluation.grid import make_spec
from lora_runtime.backends.base import choose_status
from lora_runtime.catalogue import WEIGHTS
from lora_runtime.errors import Cancelled, KleinLabError
from lora_runtime.lora.library import find_lora
from lora_runtime.values import (
    Failed,
    LoraRef,
    ModelStatus,
    Precision,
    Progress,
    Rendered,
    RenderEvent,
    RenderRequest,
    Timing,
)

_FOLDER = tempfile.TemporaryDirectory()


def make_lora(name: str) -> LoraRef:
    """A real LoRA file of one layer, the same bytes for the same name in every process; written without torch."""
    path = Path(_FOLDER.name) / f"{name}.safetensors"
    width = WEIGHTS["pocket"].shape.hidden
    layer = "transformer.transformer_blocks.0.attn.to_q"
    values = np.random.default_rng(list(name.encode())).standard_normal((2, width), dtype=np.float32)
    save_file({f"{layer}.lora_A.weight": values[:1], f"{layer}.lora_B.weight": values[1:].T.copy()}, path)
    return find_lora(str(path))


STYLE, SUBJECT = make_lora("style"), make_lora("subject")


def make_drawing_spec(**changes: Any) -> SweepSpec:
    """A small sweep for `DrawingBackend`: one LoRA, one prompt, one seed, strengths 0, 0.5 and 1."""
    asked = {"loras": [STYLE], "prompts": ["a red fox"], "strengths": "0-1 [3]", "seeds": [7], **changes}
    return make_spec(DrawingBackend(), **{"width": 64, "height": 64, **asked})


class DrawingBackend:
    name = "drawing"
    label = "drawing"

    def __init__(
        self,
        *,
        server: str | None = None,
        digest: str = "d1",
        acts: Callable[[Decimal], Decimal] = lambda strength: strength,
        fails: Callable[[RenderRequest], KleinLabError | None] = lambda request: None,
        attach_changes: int = 0,
        device: str = "cpu",
        batch_size: int = 1,
        delay_s: float = 0,
        log: Path | None = None,
    ) -> None:
        self.server = server
        self.digest = digest
        self.acts = acts
        self.fails = fails
        self.attach_changes = attach_changes
        """By how much a LoRA at strength 0 changes one pixel: a fault that the control must find."""
        self.device = device
        self.batch_size = batch_size
        self.delay_s = delay_s
        self.log = log
        """Gets a line for each image. While a file `held` lies beside it, what is stronger than the number in it is not
        drawn."""
        self.rendered: list[RenderRequest] = []
        self.closed_early = False

    def status(self, weights: str, precision: Precision | None) -> ModelStatus:
        return choose_status(self.models(), weights, precision, backend=self.name)

    def models(self) -> Sequence[ModelStatus]:
        return [
            ModelStatus(weights="pocket", precision="fp32", available=True, digest=self.digest),
            ModelStatus(weights="pocket", precision="bf16", available=True, digest=self.digest),
            ModelStatus(weights="pocket-base", precision="fp32", available=False, reason="Not installed: run make."),
        ]

    def render(
        self, requests: Sequence[RenderRequest], *, cancel: threading.Event | None = None
    ) -> Iterator[RenderEvent]:
        done = False
        try:
            for index, request in enumerate(requests):
                yield Progress(indices=(index,), step=1, steps=request.steps)
                if self._is_stopped(request, cancel or threading.Event()):
                    yield Failed(index=index, error=Cancelled("Stopped before it was rendered."))
                    continue
                error = self.fails(request)
                if error is not None:
                    yield Failed(index=index, error=error)
                    continue
                yield self._draw(index, request)
            done = True
        finally:
            self.closed_early = not done

    def close(self) -> None:
        pass

    def _is_stopped(self, request: RenderRequest, cancel: threading.Event) -> bool:
        """Whether it is stopped before or while it draws, as the engine is between two steps."""
        while self._is_held(request):
            if cancel.wait(0.02):
                return True
        return cancel.wait(self.delay_s) if self.delay_s else cancel.is_set()

    def _is_held(self, request: RenderRequest) -> bool:
        try:
            return self.log is not None and request.strength > Decimal(self.log.with_name("held").read_text())
        except FileNotFoundError:
            return False

    def _note(self, request: RenderRequest) -> None:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{request.seed} {request.strength} {request.lora is not None}\n")

    def _draw(self, index: int, request: RenderRequest) -> Rendered:
        self.rendered.append(request)
        self._note(request)
        paint = hashlib.sha256(f"{request.seed}".encode()).digest()
        ink = hashlib.sha256(request.prompt.encode(errors="replace")).digest()
        image = Image.new("RGB", (request.width, request.height), (paint[0], paint[1], paint[2]))
        draw = ImageDraw.Draw(image)
        draw.ellipse((8, 8, request.width - 8, request.height - 8), fill=(ink[0], ink[1], ink[2]))
        if request.lora is not None:
            side = float(self.acts(request.strength)) * request.width / 4
            colour = bytes.fromhex(request.lora.sha256[:6])
            if side:
                draw.rectangle((0, 0, abs(side), abs(side) / 2), fill=(colour[0], colour[1], 255 if side > 0 else 0))
            else:
                first = image.getpixel((0, 0))
                assert isinstance(first, tuple)
                image.putpixel((0, 0), (first[0] ^ self.attach_changes, *first[1:]))
        return Rendered(
            index=index,
            image=image,
            timing=Timing(seconds=0.25, batch_size=self.batch_size),
            provenance={"backend": self.name, "device": self.device},
        )
