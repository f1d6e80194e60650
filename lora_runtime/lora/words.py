"""How a sentence about a file quotes what the file says of itself: never at length, never a control character."""

from collections.abc import Iterable

QUOTED = 80
"""The most characters of a quotation."""
LISTED = 10
"""The most names of a list."""


def clip(value: object, most: int = QUOTED) -> str:
    """Return `value` as Python writes it, its middle left out where that is longer than `most` characters."""
    return shorten(repr(value), most)


def shorten(text: str, most: int = QUOTED) -> str:
    """Return `text` in print, its middle left out where it is longer than `most` characters."""
    shown = text if text.isprintable() else repr(text)[1:-1]
    half = most // 2 - 1
    return shown if len(shown) <= most else f"{shown[:half]}..{shown[-half:]}"


def list_some(names: Iterable[str], most: int = LISTED) -> str:
    """Return the first names of a list, and how many more there are."""
    listed = list(names)
    shown = ", ".join(shorten(name, 40) for name in listed[:most])
    return shown if len(listed) <= most else f"{shown} and {len(listed) - most} more"
