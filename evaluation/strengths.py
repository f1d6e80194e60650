"""The strengths text: "0-1.2 [7]", "0.7-0.9 (+0.05)", "0.7 to 0.9", "0, .5, .., 2" -> exact decimals.

    text   = item {"," item}                 a blank will do for the comma after a number, [count] or (step)
    item   = number | range | filler
    range  = number "-" number ["[" count "]" | "(" ["+"] step ")"]
    filler = ".."          goes on with the step between the two values before it, up to the value after it

A range runs from its first number to its second, so `1-0 [5]` goes down. `[5]` is how many values, both ends among
them, rounded to four decimal places where the division does not end; a range that does not say is five, and
`note_strengths` says so. `(+0.05)` is a step: a range never goes beyond its end and stops before it when the step does
not land there. A filler always ends on the value written after it.
Values keep the order they are written in; one that comes twice is kept once. Blanks stand between values where no
comma does ("0 0.5 1"), and mean nothing elsewhere; where they could mean a range, or a comma a decimal point, the text
is refused.
Never a float: 0.1 + 0.2 is 0.3 here.

Signs count for what they are meant as: `to`, `..`, `~`, `→` and every dash make a range, `;` and `、` stand between
values, digits may be those of any script, and the brackets of a list may stay. A comma is never a decimal point.
"""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Final, NoReturn

from lora_runtime.errors import InvalidStrengths
from lora_runtime.strength import STRENGTH, is_usual, warn_strengths
from lora_runtime.written import plain_signs, read_decimal

LOWEST, HIGHEST = STRENGTH
PLACES: Final = 4
MAX_VALUES: Final = 64
MAX_TEXT: Final = 2000
DEFAULT_COUNT: Final = 5
"""How many values a range has that does not say: 0.7-0.9 is then what BFL's page advises to try, in steps of 0.05."""
DEFAULT_STRENGTHS: Final = "0, 0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.2"
LEAST_EVEN: Final = 5
"""From how many even values on a list is written as a range."""

_QUANTUM = Decimal(1).scaleb(-PLACES)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]+|\.(?!\.))?|\.[0-9]+)")
_RANGE = re.compile(r"[-=]+>|→|~|…|\.\.\.?|to(?![a-z])|-", re.IGNORECASE)
_FILLER = re.compile(r"\.\.\.?|…")
_COUNT = re.compile(r"[0-9]+")
_COMMA = re.compile(r"[,;]")
_BLANKS = re.compile(r"\s*")
_AHEAD = re.compile(rf"(?={_NUMBER.pattern}|{_FILLER.pattern})")
_LIST = re.compile(r"\s*\[(.*)\]\s*", re.DOTALL)

# "0,7": a comma between digits without blanks, each number without a point of its own.
_PAIR = re.compile(r"(?<![0-9.])([0-9]+),([0-9]+)(?![0-9.])")
# "0,7" is 0 and 7, and hardly meant; "1,3" is two strengths of a slider.
_ZERO_PAIR = re.compile(r"(?<![0-9.])0,[0-9]+(?![0-9.])")
# Texts that can be read as a list, and hardly are one: "0,05", "0,5; 1", "0,5 1", "0,1, 0,2", "0,3-1,2".
_DOUBTFUL = re.compile(
    r"[0-9],0[0-9]|;.*[0-9],[0-9]|[0-9],[0-9].*;|[0-9],[0-9]+\s+[0-9.]|[0-9]\s+[0-9]+,[0-9]|[0-9],[0-9]+\s*(?:[-~→…]|\.\.|to)\s*[0-9]+,[0-9]"
    r"|\A\s*[0-9]+,[0-9]+(?:,\s+[0-9]+,[0-9]+)+\s*\Z",
    re.IGNORECASE | re.DOTALL,
)


def parse_strengths(text: str) -> tuple[Decimal, ...]:
    """Return the values of `text`, in order, each once and in its shortest form; at most 64, each from -15 to 15.

    Raises:
        InvalidStrengths: With the position of the first wrong character; the end of the text is a position too.
    """
    return _read(text).values()


def note_strengths(text: str) -> str:
    """Return what to know of `text`: what was assumed in reading it, and which strengths are unusual; "" for nothing.

    Raises:
        InvalidStrengths: As `parse_strengths`.
    """
    read = _read(text)
    said = f"A range without a count or a step is {DEFAULT_COUNT} values: {', '.join(read.assumed)}."
    return " ".join(filter(None, (said if read.assumed else "", warn_strengths(read.values()))))


def join_strengths(given: object) -> str:
    """Return the strengths text of what a program sent: a text, a number, or a list of both.

    Raises:
        InvalidInput: It is something else.
    """
    values = given[:MAX_TEXT] if isinstance(given, list | tuple) else (given,)
    remedy = 'Send a list of numbers, or a text such as "0, 0.5, 1".'
    return ", ".join(
        each if isinstance(each, str) else exact(read_decimal("Strengths", each, remedy=remedy)) for each in values
    )


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


def write_strengths(values: Sequence[Decimal]) -> str:
    """Write `values` as a person would: as `format_strengths`, but five or more even ones as "0-1.2 [7]"."""
    items, start = [], 0
    while start < len(values):
        end = _find_even(values, start)
        even = end - start >= LEAST_EVEN
        items.append(_write_range(values[start:end]) if even else exact(values[start]))
        start = end if even else start + 1
    return ", ".join(items)


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
    """The text, how far it has been read, and what was found; `plain` is the text with plain signs in the same places.

    `assumed` are the ranges that did not say how many values they are, as they were read.
    """

    def __init__(self, text: str, plain: str) -> None:
        self.text = text
        self.plain = plain
        self.position = 0
        self.found: list[Decimal] = []
        self.assumed: list[str] = []

    def values(self) -> tuple[Decimal, ...]:
        """What was found, each once and in its shortest form."""
        return tuple(Decimal(exact(value)) for value in dict.fromkeys(self.found))

    def read(self) -> None:
        """Read the whole text."""
        filler_at: int | None = None
        while True:
            start = self.skip_blanks()
            said = len(self.assumed)
            if self.take(_FILLER):
                if filler_at is not None or len(self.found) < 2:
                    self.fail("a filler needs two values before it, as in 0, 0.5, .., 2", start)
                filler_at = start
            else:
                item = self.read_item()
                if filler_at is not None:
                    self.found += _fill(self, self.found[-2], self.found[-1], item[0], filler_at)
                    filler_at = None
                self.found += item
            if len(set(self.found)) > MAX_VALUES:
                self.fail(f"these are more than {MAX_VALUES} values", start)
            if self.at_end():
                break
            blank = self.plain[self.position - 1].isspace() and len(self.assumed) == said
            if not self.take(_COMMA) and not (blank and self.take(_AHEAD) is not None):
                more = ", or how many a range has, as in 0-1 [5] or 0-1 (+0.25)" if len(self.assumed) > said else ""
                self.fail(f"expected a comma between values{more}")
        if filler_at is not None:
            self.fail("the filler needs a value after it, as in 0, 0.5, .., 2", filler_at)

    def read_item(self) -> list[Decimal]:
        """A number, or the values of a range."""
        start, end_of_number = self._read_value(), self.position
        sign_at = self.skip_blanks()
        sign = self.take(_RANGE)
        if sign is None:
            return [start]
        negative = sign == "-" and sign_at > end_of_number and self.skip_blanks() == sign_at + 1
        end = self._read_value()
        bracket_at = self.skip_blanks()
        if self._take_character("["):
            return self._read_counted(start, end, bracket_at)
        if self._take_character("("):
            return self._read_stepped(start, end, bracket_at)
        if negative:
            self.fail(f"write a comma before a value of its own, {start}, -{end}, or a range as {start}-{end}", sign_at)
        self.assumed.append(f"{exact(start)}-{exact(end)} [{DEFAULT_COUNT}]")
        return self._count_out(start, end, DEFAULT_COUNT, sign_at)

    def take(self, pattern: re.Pattern[str]) -> str | None:
        """Read `pattern` if it is next."""
        match = pattern.match(self.plain, self.position)
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
        return self.skip_blanks() == len(self.plain)

    def fail(self, problem: str, position: int | None = None) -> NoReturn:
        """Refuse the text because of what stands at `position`, by default the next character."""
        _refuse(self.text, self.position if position is None else position, problem)

    def _read_counted(self, start: Decimal, end: Decimal, bracket_at: int) -> list[Decimal]:
        count_at = self.skip_blanks()
        digits = self.take(_COUNT)
        # Compared by length first: int() of a very long text is slow, and refused.
        count = int(digits) if digits and len(digits.lstrip("0")) <= len(str(MAX_VALUES)) else 0
        if not 2 <= count <= MAX_VALUES:
            step = "; a step is written (+0.05)" if self.take(_NUMBER) else ""
            self.fail(f"expected how many values, a whole number from 2 to {MAX_VALUES}{step}", count_at)
        self.expect("]", 'a closing "]"')
        return self._count_out(start, end, count, bracket_at)

    def _count_out(self, start: Decimal, end: Decimal, count: int, at: int) -> list[Decimal]:
        values = _count_evenly(start, end, count)
        if start != end and len(set(values)) < count:
            self.fail(f"{count} values between {start} and {end} are less than {_QUANTUM} apart", at)
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
        return Decimal(written)

    def _take_character(self, character: str) -> bool:
        if not self.plain.startswith(character, self.position):
            return False
        self.position += 1
        return True


def _read(text: str) -> _Reader:
    """Read `text`; a comma that is meant as a decimal point is told of, not read as something else."""
    if len(text) > MAX_TEXT:
        _refuse(text, MAX_TEXT, f"the text is longer than {MAX_TEXT} characters")
    plain = plain_signs(text)
    listed = _LIST.fullmatch(plain)
    if listed:
        plain = f"{' ' * listed.start(1)}{listed[1]}{' ' * (len(plain) - listed.end(1))}"
    reader = _Reader(text, plain)
    try:
        reader.read()
    except InvalidStrengths:
        _refuse_decimal_comma(text, plain)
        raise
    if _DOUBTFUL.search(plain):
        _refuse_decimal_comma(text, plain)
    if not all(map(is_usual, reader.found)) and _ZERO_PAIR.search(plain):
        _refuse_decimal_comma(text, plain, usual=True)
    return reader


def _refuse_decimal_comma(text: str, plain: str, *, usual: bool = False) -> None:
    """Refuse `text` when points in the place of its commas would make numbers of it, or `usual` strengths."""
    first, pointed = _PAIR.search(plain), _PAIR.sub(r"\1.\2", plain)
    if first is None:
        return
    reader = _Reader(pointed, pointed)
    try:
        reader.read()
    except InvalidStrengths:
        return
    if usual and not all(map(is_usual, reader.found)):
        return
    shown = " ".join(pointed.split())
    meant = shown if len(shown) <= 40 else f"{first[1]}.{first[2]}"
    _refuse(text, first.end(1), f"a comma stands between two values; write a decimal point, as in {meant}")


def _count_evenly(start: Decimal, end: Decimal, count: int) -> list[Decimal]:
    """So many values from `start` to `end`, rounded to four decimal places."""
    return [(start + (end - start) * i / (count - 1)).quantize(_QUANTUM) for i in range(count)]


def _find_even(values: Sequence[Decimal], start: int) -> int:
    """Where the longest range that begins at `start` ends."""
    for end in range(len(values), start + LEAST_EVEN - 1, -1):
        own = values[start:end]
        if _count_evenly(own[0], own[-1], len(own)) == list(own):
            return end
    return start + 1


def _write_range(values: Sequence[Decimal]) -> str:
    return f"{exact(values[0])}-{exact(values[-1])} [{len(values)}]"


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
