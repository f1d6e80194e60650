"""What the benchmarks render: one picture at several strengths, by the recipe of the weights."""

from collections.abc import Iterable
from decimal import Decimal

from lora_runtime.catalogue import Weights
from lora_runtime.values import LoraRef, Precision, RenderRequest

STRENGTHS = tuple(Decimal(text) for text in ("0", "0.2", "0.4", "0.6", "0.7", "0.8", "1", "1.2"))
PROMPT = "a red cat in the meadow"


def list_requests(
    weights: Weights,
    precision: Precision,
    size: int,
    *,
    lora: LoraRef | None,
    strengths: Iterable[Decimal] = STRENGTHS,
    prompt: str = PROMPT,
    seed: int = 7,
) -> list[RenderRequest]:
    """List one request a strength, `size` px square."""
    return [
        RenderRequest(
            weights=weights.name,
            precision=precision,
            prompt=prompt,
            seed=seed,
            width=size,
            height=size,
            steps=weights.steps,
            guidance=weights.guidance,
            lora=lora,
            strength=strength,
        )
        for strength in strengths
    ]
