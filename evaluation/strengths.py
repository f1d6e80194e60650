"""The strengths text: "0-1.2 [7]", "0.7-0.9 (+0.05)", "0, .5, .., 2" -> exact decimals.

    text   = item {"," item}
    item   = number | range | filler
    range  = number "-" number ("[" count "]" | "(" ["+"] step ")")
    filler = ".."          goes on with the step between the two values before it, up to the value after it

A range runs from its first number to its second, so `1-0 [5]` goes down. `[5]` is how many values, both ends among
them, rounded to four decimal places where the division does not end. `(+0.05)` is a step: a range never goes beyond
its end and stops before it when the step does not land there. A filler always ends on the value written after it.
Values keep the order they are written in; one that comes twice is kept once. Blanks mean nothing.
Never a float: 0.1 + 0.2 is 0.3 here.
"""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Final, NoReturn

from lora_runtime.errors import InvalidStrengths

LOWEST: Final = Decimal(-4)
HIGHEST: Final = Decimal(4)
PLACES: Final = 4
MAX_VALUES: Final = 64
MAX_TEXT: Final = 2000
DEFAULT_STRENGTHS: Final = "0, 0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.2"

_QUANTUM = Decimal(1).scaleb(-PLACES)
# Phones and word processors turn "-" into a dash and ".." into an ellipsis.
_NUMBER = re.compile(r"[+\-−–]?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)")
_DASH = re.compile(r"[-−–]")
_FILLER = re.compile(r"\.\.\.?|…")
_COUNT = re.compile(r"[0-9]+")
_BLANKS = re.compile(r"\s*")


def parse_strengths(text: str) -> tuple[Decimal, ...]:
    """Return the values of `text`, in order, each once and in its shortest form; at most 64, each from -4 to 4.

    Raises:
        InvalidStrengths: With the position of the first wrong character; the end of the text is a position too.
    """
    if len(text) > MAX_TEXT:
        _refuse(text, MAX_TEXT, f"the text is longer than {MAX_TEXT} characters")
    reader = _Reader(text)
    values: list[Decimal] = []
    filler_at: int | None = None
    while True:
        start = reader.skip_blanks()
        if reader.take(_FILLER):
            if filler_at is not None or len(values) < 2:
                reader.fail("a filler needs two values before it, as in 0, 0.5, .., 2", start)
            filler_at = start
        else:
            item = reader.read_item()
            if filler_at is not None:
                values += _fill(reader, values[-2], values[-1], item[0], filler_at)
                filler_at = None
            values += item
        if len(set(values)) > MAX_VALUES:
            reader.fail(f"these are more than {MAX_VALUES} values", start)
        if reader.at_end():
            break
        reader.expect(",", "a comma between values")
    if filler_at is not None:
        reader.fail("the filler needs a value after it, as in 0, 0.5, .., 2", filler_at)
    return tuple(Decimal(exact(value)) for value in dict.fromkeys(values))


def format_strength(value: Decimal) -> str:
    """Write `value` as labels and file names show it: exact, with at least two decimal places ("0.70", "0.1667")."""
    whole, _, fraction = exact(value).partition(".")
    return f"{whole}.{fraction.ljust(2, '0')}"


def name_strength(strength: Decimal) -> str:
    """Return what heads a strength's column: "0.70", or "0 · base"."""
    return format_strength(strength) if strength else "0 · base"


def format_strengths(values: Iterable[Decimal]) -> str:
    """Write `values` as a list that `parse_strengths` reads back to the same values."""
    return ", ".join(exact(value) for value in values)


def exact(value: Decimal) -> str:
    """Write `value` in the one shortest way: 0.7, 0.70 and 7E-1 are all "0.7", and -0 is "0"."""
    return f"{(value + 0).normalize():f}"


def unite_strengths(old: Sequence[Decimal], new: Iterable[Decimal]) -> tuple[Decimal, ...]:
    """Return every value of both once, ascending; descending when `old` was.

    Raises:
        InvalidStrengths: They are more than 64.
    """
    down = len(old) > 1 and all(before > after for before, after in pairwise(old))
    values = sorted({Decimal(exact(value)) for value in (*old, *new)}, reverse=down)
    if len(values) > MAX_VALUES:
        text = format_strengths(values)
        _refuse(text, len(text), f"together these are {len(values)} values; at most {MAX_VALUES} are allowed")
    return tuple(values)


def refine_strengths(one: Decimal, other: Decimal, count: int = 3) -> tuple[Decimal, ...]:
    """Return up to `count` values evenly between two, ascending: fewer where they would be less than 0.0001 apart."""
    low, high = sorted((one, other))
    values = ((low + (high - low) * i / (count + 1)).quantize(_QUANTUM) for i in range(1, count + 1))
    return tuple(Decimal(exact(value)) for value in dict.fromkeys(values) if low < value < high)


class _Reader:
    """The text and how far it has been read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def read_item(self) -> list[Decimal]:
        """A number, or the values of a range."""
        start = self._read_value()
        self.skip_blanks()
        dash_at = self.position
        if not self.take(_DASH):
            return [start]
        end = self._read_value()
        self.skip_blanks()
        bracket_at = self.position
        if self._take_character("["):
            return self._read_counted(start, end, bracket_at)
        if not self._take_character("("):
            # At the end of the text there is nothing to point at but the dash.
            at = dash_at if self.at_end() else bracket_at
            self.fail("a range needs a count or a step after it, as in 0-1 [5] or 0-1 (+0.25)", at)
        return self._read_stepped(start, end, bracket_at)

    def take(self, pattern: re.Pattern[str]) -> str | None:
        """Read `pattern` if it is next."""
        match = pattern.match(self.text, self.position)
        if match is None:
            return None
        self.position = match.end()
        return match.group()

    def expect(self, character: str, what: str) -> None:
        """Read `character`, which must be next."""
        self.skip_blanks()
        if not self._take_character(character):
            self.fail(f"expected {what}")

    def skip_blanks(self) -> int:
        """Go to the next character that means something and return its position."""
        self.take(_BLANKS)
        return self.position

    def at_end(self) -> bool:
        """Whether only blanks are left."""
        return self.skip_blanks() == len(self.text)

    def fail(self, problem: str, position: int | None = None) -> NoReturn:
        """Refuse the text because of what stands at `position`, by default the next character."""
        _refuse(self.text, self.position if position is None else position, problem)

    def _read_counted(self, start: Decimal, end: Decimal, bracket_at: int) -> list[Decimal]:
        count_at = self.skip_blanks()
        digits = self.take(_COUNT)
        # Compared by length first: int() of a very long text is slow, and refused.
        count = int(digits) if digits and len(digits.lstrip("0")) <= len(str(MAX_VALUES)) else 0
        if not 2 <= count <= MAX_VALUES:
            self.fail(f"expected how many values, a whole number from 2 to {MAX_VALUES}", count_at)
        self.expect("]", 'a closing "]"')
        values = [(start + (end - start) * i / (count - 1)).quantize(_QUANTUM) for i in range(count)]
        if start != end and len(set(values)) < count:
            self.fail(f"{count} values between {start} and {end} are less than {_QUANTUM} apart", bracket_at)
        return values

    def _read_stepped(self, start: Decimal, end: Decimal, bracket_at: int) -> list[Decimal]:
        step_at = self.skip_blanks()
        step = self._read_number("a step such as +0.05")
        if step <= 0:
            self.fail("the step must be greater than 0; to go down, write the larger number first: 1-0 (+0.1)", step_at)
        self.expect(")", 'a closing ")"')
        count = int(abs(end - start) // step) + 1
        if count > MAX_VALUES:
            self.fail(f"this step makes {count} values; at most {MAX_VALUES} are allowed", bracket_at)
        signed = step if end >= start else -step
        return [start + signed * i for i in range(count)]

    def _read_value(self) -> Decimal:
        """A number from LOWEST to HIGHEST."""
        start = self.skip_blanks()
        value = self._read_number("a number such as 0.7 or a range such as 0-1.2 [7]")
        if not LOWEST <= value <= HIGHEST:
            self.fail(f"a strength must be from {LOWEST} to {HIGHEST}", start)
        return value

    def _read_number(self, expected: str) -> Decimal:
        start = self.skip_blanks()
        written = self.take(_NUMBER)
        if written is None:
            self.fail(f"expected {expected}")
        _, _, fraction = written.partition(".")
        if len(fraction.rstrip("0")) > PLACES:
            self.fail(f"at most {PLACES} decimal places are allowed", start + written.index(".") + 1 + PLACES)
        return Decimal(_DASH.sub("-", written))

    def _take_character(self, character: str) -> bool:
        if not self.text.startswith(character, self.position):
            return False
        self.position += 1
        return True


def _fill(reader: _Reader, before: Decimal, last: Decimal, end: Decimal, filler_at: int) -> list[Decimal]:
    """The values strictly between `last` and `end`, in steps of `last - before`."""
    step = last - before
    if step == 0 or (end - last) / step < 0:
        reader.fail(f"going on from {before}, {last} never reaches {end}", filler_at)
    count = int((end - last) // step)
    if count > MAX_VALUES:
        reader.fail(f"the filler makes more than {MAX_VALUES} values", filler_at)
    return [value for i in range(1, count + 1) if (value := last + step * i) != end]


def _refuse(text: str, position: int, problem: str) -> NoReturn:
    found = f'at "{text[position : position + 12]}"' if position < len(text) else "at the end"
    raise InvalidStrengths(f"Strengths, character {position + 1} ({found}): {problem}.", text=text, position=position)
