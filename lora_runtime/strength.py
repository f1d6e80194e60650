"""How far a strength goes, and what is said of one that few LoRAs take. Nothing heavy, as help waits for it."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Final

from lora_runtime.errors import InvalidInput

STRENGTH: Final = (Decimal(-15), Decimal(15))
"""What renders here; sliders are used at 5 to 15. What a server takes is the server's own."""
USUAL: Final = (Decimal(-2), Decimal(2))
"""Where most LoRAs are whole; the BFL API goes no further."""


def is_usual(strength: Decimal) -> bool:
    """Whether most LoRAs take a strength."""
    low, high = USUAL
    return low <= strength <= high


def warn_strengths(strengths: Iterable[Decimal]) -> str:
    """Return a word of warning about strengths that few LoRAs are made for, or "" where there is none."""
    low, high = USUAL
    beyond = sorted(strength for strength in strengths if not is_usual(strength))
    if not beyond:
        return ""
    named = " to ".join(f"{strength.normalize():f}" for strength in dict.fromkeys((beyond[0], beyond[-1])))
    return f"Strength {named} is outside {low} to {high}: that is for sliders; most LoRAs break there."


def check_strength(strength: Decimal) -> Decimal:
    """A strength is a finite number within `STRENGTH`."""
    low, high = STRENGTH
    if not strength.is_finite() or not low <= strength <= high:
        raise InvalidInput(f"Strength: {strength} must be from {low} to {high}.")
    return strength
