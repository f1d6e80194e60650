"""What a sweep will cost before it runs: credits where a server bills each image.

The price is the catalogue's, so it is an estimate: only the server's own bill counts, and a server that is another lab
may ask for nothing at all.
"""

from decimal import Decimal

from lora_runtime.catalogue import ENDPOINTS
from lora_runtime.registry.accounts import price, to_credits
from lora_runtime.values import Precision


def estimate_credits(weights: str, precision: Precision | None, *, width: int, height: int) -> Decimal | None:
    """Return the credits of one image with a LoRA; None when no endpoint has these weights at this precision.

    A precision of None is the first that the catalogue names for the weights. Sizes are pixels.
    """
    for endpoint in ENDPOINTS.values():
        fits = precision is None or endpoint.precision in (precision, None)
        if endpoint.finetuned and endpoint.weights == weights and fits:
            return to_credits(price(endpoint, output_px=width * height))
    return None


def format_credits(amount: Decimal) -> str:
    """Write an amount for people: "about 9.8 credits", never more than one decimal place."""
    rounded = max(amount, Decimal("0.1")).quantize(Decimal("0.1")) if amount else Decimal(0)
    shown = f"{rounded:f}".removesuffix(".0")
    return f"about {shown} {'credit' if shown == '1' else 'credits'}"
