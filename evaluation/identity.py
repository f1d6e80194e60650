"""What decides the pixels of an image, as one hash.

Plan, store, resume and two sweeps that share a cell all agree by it on which image a cell is. Device, batch and
versions are provenance, not identity.
"""

import hashlib
import json
from dataclasses import replace
from decimal import Decimal
from typing import Final

from evaluation.strengths import exact
from lora_runtime.values import RenderRequest

IDENTITY_VERSION: Final = 1
"""Goes up when the recipe of `identity` changes, or when the same request starts to mean other pixels."""

ASKS_AT_ZERO: Final = frozenset({"remote"})
"""Backends that are really asked for a LoRA at strength 0; elsewhere strength 0 is the base image by construction."""


def identity(request: RenderRequest, *, backend: str, digest: str) -> str:
    """Return the hex SHA-256 of what decides the pixels of `request`.

    The LoRA counts by its content, the strength by its value (0.7 is 0.70). At strength 0 the LoRA does not count: it
    is the base image, the same for every LoRA; but not where that is for the server to show (`ASKS_AT_ZERO`).
    """
    request = rendered_request(request, backend=backend)
    facts = {
        "version": IDENTITY_VERSION,
        "backend": backend,
        "weights": request.weights,
        "digest": digest,
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


def rendered_request(request: RenderRequest, *, backend: str = "local") -> RenderRequest:
    """Return what `backend` is really asked for: the base image when the LoRA has no strength, but for ASKS_AT_ZERO."""
    asked = request.lora is not None and (request.strength or backend in ASKS_AT_ZERO)
    return request if asked else base_request(request)


def base_request(request: RenderRequest) -> RenderRequest:
    """Return `request` without its LoRA."""
    return replace(request, lora=None, strength=Decimal(0))
