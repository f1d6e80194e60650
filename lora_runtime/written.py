"""Numbers and texts as people type them and programs send them -> exact values, or a sentence that names the field.

A form sends "7", `gradio_client` 7 or 7.0, an agent either, a Chinese keyboard "７": one number each. Forms, programs
and command lines read through here, so that no words of `int()` or `float()` reach anybody.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Final, TypeAlias

from lora_runtime.errors import InvalidInput

Whole: TypeAlias = int | str
Number: TypeAlias = float | str
"""What a program may send for a whole number and for a number."""

FLOAT_PLACES: Final = 9
"""Decimal places of a float that count; what is beyond is the noise of 0.1 + 0.2."""

LONGEST_QUOTE: Final = 80
"""Characters of a wrong value that an error repeats."""

MOST_LISTED: Final = 10
"""Names that an error lists of those there are."""

_WHOLE = re.compile(r"[+-]?[0-9]{1,40}(?:\.0{0,40})?")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:e[+-]?[0-9]{1,3})?", re.IGNORECASE)

_SIGNS: Final[Mapping[str, str]] = MappingProxyType(
    dict.fromkeys("−ー─", "-")
    | dict.fromkeys("∼˜", "~")
    | dict.fromkeys("⟶➔➜➝➞⇒⟹⇨", "→")
    | dict.fromkeys("、､،", ",")
    | dict.fromkeys("。｡٫", ".")
    | {"؛": ";", "‥": "…", "【": "[", "】": "]", "〔": "[", "〕": "]", "﹢": "+"}
)
"""What keyboards, phones and word processors put in the place of a plain sign, beside dashes, blanks and wide forms."""


def plain_signs(text: str) -> str:
    """Return `text` with plain digits, dashes, blanks and signs in the place of those that stand for them.

    One character stays one character, so that positions stay true.
    """
    return text if text.isascii() else "".join(map(_plain, text))


def read_text(field: str, given: object) -> str:
    """Read a text; None is an empty one.

    Raises:
        InvalidInput: It is something else.
    """
    if given is None:
        return ""
    if not isinstance(given, str):
        raise InvalidInput(f"{field}: {quote(given)} is not a text. Send one, in quotes.")
    return given


def read_whole(field: str, given: object, *, remedy: str = "Write one such as 7.") -> int:
    """Read a whole number: 7, 7.0, "7" or "７".

    Raises:
        InvalidInput: It is none; `remedy` says what to write.
    """
    written = _write(given)
    if written is None or not _WHOLE.fullmatch(written):
        raise InvalidInput(f"{field}: {quote(given)} is not a whole number. {remedy}")
    return int(written.partition(".")[0])


def read_decimal(field: str, given: object, *, remedy: str = "Write one such as 0.85.") -> Decimal:
    """Read a number exactly as it is written, a float to nine decimal places; a comma may stand for the point.

    Raises:
        InvalidInput: It is none; `remedy` says what to write.
    """
    written = _write(given)
    if written is not None and "." not in written:
        written = written.replace(",", ".")
    if written is None or not _DECIMAL.fullmatch(written):
        raise InvalidInput(f"{field}: {quote(given)} is not a number. {remedy}")
    number = Decimal(written)
    is_noisy = isinstance(given, float) and abs(number) < 10**FLOAT_PLACES
    return round(number, FLOAT_PLACES).normalize() if is_noisy else number


def quote(given: object, most: int = LONGEST_QUOTE) -> str:
    """Return what was given as an error repeats it: at most so many characters of it, in one line, whatever it is."""
    if isinstance(given, list | tuple | Mapping) or _is_long(given):
        return "an object" if isinstance(given, Mapping) else "that number" if _is_long(given) else "a list"
    shown = repr(given[:most] if isinstance(given, str | bytes) else given)
    whole = not isinstance(given, str | bytes) or len(given) <= most
    return shown if whole and len(shown) <= most + 2 else f"{shown[:most]}…{shown[-1]}"


def shorten(text: str, most: int = LONGEST_QUOTE) -> str:
    """Return `text` in print, its middle left out where it is longer than `most` characters."""
    shown = text if text.isprintable() else repr(text)[1:-1]
    half = most // 2 - 1
    return shown if len(shown) <= most else f"{shown[:half]}..{shown[-half:]}"


def count_of(number: int, word: str) -> str:
    """Return a number with what it counts: "1 image", "2 images"."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def list_some(names: Iterable[str], most: int = MOST_LISTED) -> str:
    """Return the first names of a list, and how many more there are; "none yet" when it is empty."""
    listed = list(names)
    more = len(listed) - most
    shown = ", ".join(shorten(name, LONGEST_QUOTE) for name in listed[:most])
    return (shown or "none yet") + (f" and {more} more" if more > 0 else "")


def _write(given: object) -> str | None:
    """The digits of what was given, in plain signs; None for what cannot be a number."""
    if isinstance(given, str):
        return plain_signs(given).strip()
    if isinstance(given, bool) or not isinstance(given, int | float | Decimal) or _is_long(given):
        return None
    return str(given)


def _is_long(given: object) -> bool:
    """Whether a number has more digits than any field takes; Python refuses to write out the longest."""
    return isinstance(given, int) and given.bit_length() > 128


def _plain(character: str) -> str:
    """The one plain character that `character` stands for, or itself."""
    if character.isascii():
        return character
    if character in _SIGNS:
        return _SIGNS[character]
    if "\uff01" <= character <= "\uff5e":  # wide forms, in the order of ASCII
        return chr(ord(character) - 0xFEE0)
    digit, category = unicodedata.decimal(character, None), unicodedata.category(character)
    if digit is not None:
        return str(digit)
    if category in ("Zs", "Zl", "Zp", "Cf"):  # blanks of every width, among them none
        return " "
    return "-" if category == "Pd" else character
