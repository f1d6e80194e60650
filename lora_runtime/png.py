"""PNG files that carry their cell: a text chunk `klein_lab` with all it takes to make the image again.

The chunk is flat JSON whose keys are the argument names of `diffusers.Flux2KleinPipeline.__call__` where there is one.
The bytes depend on the image and the request alone, so the same image is the same file.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

from PIL import Image, PngImagePlugin

from lora_runtime.catalogue import find_weights
from lora_runtime.values import RenderRequest

CHUNK: Final = "klein_lab"
METADATA_VERSION: Final = 1

Metadata: TypeAlias = Mapping[str, str | int | float | list[int] | list[str] | None]


def request_metadata(request: RenderRequest, *, identity: str | None = None, server: str | None = None) -> Metadata:
    """Return the chunk of `request`; at strength 0 it names the LoRA that the request names, if any.

    `server` is the address of the server of an image that was not made on this machine.
    """
    weights = find_weights(request.weights)
    strength = request.strength
    return {
        "version": METADATA_VERSION,
        "identity": identity,
        "prompt": request.prompt,
        "seed": request.seed,
        # A float of few digits is written with the same digits.
        "strength": int(strength) if strength == int(strength) else float(strength),
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "max_sequence_length": weights.max_sequence_length,
        "text_encoder_out_layers": list(weights.text_encoder_out_layers),
        "weights": request.weights,
        "precision": request.precision,
        "lora": request.lora.name if request.lora else None,
        "lora_sha256": request.lora.sha256 if request.lora else None,
        **({"server": server} if server else {}),
        **({"references": [reference.sha256 for reference in request.references]} if request.references else {}),
    }


def encode_png(image: Image.Image, metadata: Metadata) -> bytes:
    """Return `image` as a lossless PNG that carries `metadata`."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(CHUNK, json.dumps(metadata, ensure_ascii=False))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def restamp_png(path: Path, metadata: Metadata) -> bytes:
    """Return the image of `path` with other metadata; not one pixel changes."""
    with Image.open(path) as image:
        return encode_png(image, metadata)


def read_metadata(path: Path) -> dict[str, object] | None:
    """Return the metadata that a PNG carries, or None when it carries none."""
    with Image.open(path) as image:
        image.load()
        chunk = image.info.get(CHUNK)
    return dict(json.loads(chunk)) if chunk is not None else None
