"""What decides the pixels of an image, as one hash.

Plan, store, resume and two sweeps that share a cell all agree by it on which image a cell is. Device, batch and
versions are provenance, not identity.
"""

import hashlib
import json
from dataclasses import replace
from decimal import Decimal
from typing import Final

from evaluation.axes import Target
from evaluation.strengths import exact
from lora_runtime.values import RenderRequest

IDENTITY_VERSION: Final = 1
"""Goes up when the recipe of `identity` changes, or when the same request starts to mean other pixels."""


def identity(request: RenderRequest, target: Target) -> str:
    """Return the hex SHA-256 of what decides the pixels of `request` on `target`.

    The LoRA counts by its content, the strength by its value (0.7 is 0.70). At strength 0 the LoRA does not count: it
    is the base image, the same for every LoRA; but not where that is for the server to show.
    """
    request = rendered_request(request, target)
    facts = {
        "version": IDENTITY_VERSION,
        "backend": target.backend,
        "weights": request.weights,
        "digest": target.digest,
        "precision": request.precision,
        "lora": request.lora.sha256 if request.lora else None,
        "strength": exact(request.strength),
        "prompt": request.prompt,
        "seed": request.seed,
        "width": request.width,
        "height": request.height,
        "steps": request.steps,
        "guidance": float(request.guidance),
        "references": [reference.sha256 for reference in request.references],
    }
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def rendered_request(request: RenderRequest, target: Target) -> RenderRequest:
    """Return what `target` is really asked for: the base image when the LoRA has no strength, unless by a server."""
    asked = request.lora is not None and (request.strength or target.server)
    return request if asked else base_request(request)


def base_request(request: RenderRequest) -> RenderRequest:
    """Return `request` without its LoRA."""
    return replace(request, lora=None, strength=Decimal(0))
