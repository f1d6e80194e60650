"""What requests must share to be rendered in one batch: said once, for the engine and for whoever deals to engines."""

from collections.abc import Hashable

from lora_runtime.values import RenderRequest


def batch_key(request: RenderRequest) -> Hashable:
    """Return what is equal for requests that fit into one batch; prompts, seeds, LoRAs and strengths are free."""
    references = tuple(reference.sha256 for reference in request.references)
    shape = (request.width, request.height, request.steps, request.guidance)
    return (request.weights, request.precision, *shape, references)
