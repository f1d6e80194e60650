"""Frozen records that cross modules: what is asked for, and what comes back.

They carry no behaviour. `RenderRequest` is the one path of the project: Playground, sweep, HTTP API and command line
all make these and hand them to a backend, which answers with `Progress`, `Rendered` and `Failed`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Literal, TypeAlias

from PIL import Image

from lora_runtime.errors import KleinLabError

Precision: TypeAlias = Literal["fp8", "bf16", "fp32"]


@dataclass(frozen=True, kw_only=True)
class LoraRef:
    """A LoRA: a file that was found and hashed, or a finetune whose file is elsewhere. `name` is what people see.

    `sha256` identifies it: that of the file, or of the id where the file is elsewhere.

    `path` is None where only the server of the remote backend has the file. `finetune_id` is its id at that server,
    where it is known.

    `adapter` is which of several adapters in the file is meant; None where it holds one. The digest covers the choice.
    """

    name: str
    path: Path | None
    sha256: str
    trigger_phrase: str | None = None
    finetune_id: str | None = None
    adapter: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A reference image: a PNG, JPEG or WebP file that was checked. `sha256` is of its bytes and identifies it."""

    sha256: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class RenderRequest:
    """One image to render.

    `width` and `height` are pixels, multiples of 16. `seed` is 0 to 2^32 - 1 and already resolved.
    Without a `lora` the image is the base model's and `strength` is 0. `references` are in the order of the prompt's
    "image 1", "image 2".
    """

    weights: str
    precision: Precision
    prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance: float
    lora: LoraRef | None = None
    strength: Decimal = Decimal(0)
    references: tuple[Reference, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What an image cost. `seconds` is its share of the batch: batch seconds / batch size."""

    seconds: float
    batch_size: int
    waited_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """The image of `requests[index]`. `provenance` (backend, device, versions) is not part of its identity.

    A server says what it asks for the image, its `cost` in credits, and what it calls the request.
    """

    index: int
    image: Image.Image
    timing: Timing
    cost: float | None = None
    request_id: str | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Failed:
    """`requests[index]` ended without an image; the other requests are not touched."""

    index: int
    error: KleinLabError


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The requests `indices` have done `step` of `steps` denoising steps.

    `engines` is how many work for the same caller at this moment.
    """

    indices: tuple[int, ...]
    step: int
    steps: int
    engines: int = 1


RenderEvent: TypeAlias = Progress | Rendered | Failed


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """Whether a backend can run `weights` at `precision`, or why not.

    `digest` names the exact checkpoint; it is part of a cell's identity. `reason` is a sentence with the remedy,
    empty when `available`; `note` then says how it runs: in which arithmetic, with how much memory, offloaded or not.
    """

    weights: str
    precision: Precision
    available: bool
    reason: str = ""
    digest: str = ""
    note: str = ""
