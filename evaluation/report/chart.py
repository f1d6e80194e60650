"""A score against strength: every cell a point, the mean a line for each LoRA. `templates/chart.html` draws it as SVG.

Colours are CSS variables (`--series-1` to `--series-6`, `--ink`, `--muted`, `--line`), so one drawing suits light, dark
and print. LoRAs differ in shape too, not by colour alone, and the same numbers stand in a table below. Lengths are in
units of the view box.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import mean
from typing import Any, Final

import pandas as pd

from evaluation.captions import call_files
from evaluation.judge.answer import Answer
from evaluation.report.columns import Measure, list_columns, list_rows
from evaluation.store.records import CellRecord
from evaluation.strengths import exact

WIDTH: Final = 720
HEIGHT: Final = 300
LEFT, RIGHT, TOP, BOTTOM = 52, WIDTH - 16, 14, HEIGHT - 44
"""The edges of what is drawn; around it is room for the axes' labels."""
LABEL: Final = 34
"""The width of a label on the horizontal axis."""

MAX_POINTS: Final = 800
"""With more cells only the means are drawn."""

SHAPES: Final = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "M-3.6,-3.6h7.2v7.2h-7.2z",
    "M0,-4.8L4.6,3.4H-4.6z",
    "M0,-5L5,0L0,5L-5,0z",
    "M-4.6,-3.4H4.6L0,4.8z",
    "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
)
"""One for each colour; further LoRAs begin anew."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One cell. `cell` names it as "RUN/POSITION"; `image` is its address on a page that opens it."""

    x: float
    y: float
    cell: str
    words: str
    image: str


@dataclass(frozen=True, kw_only=True)
class Series:
    """One LoRA: its colour and shape, the line through its means, its cells, its numbers as rows of a table."""

    name: str
    colour: int
    shape: str
    line: str
    dots: tuple[Dot, ...]
    numbers: tuple[tuple[str, ...], ...]
    said: str


@dataclass(frozen=True, kw_only=True)
class ChartView:
    """Everything `chart.html` draws; without `series` there is nothing yet. Ticks are a length and its words.

    `spare` ticks are left out where labels are large; `left_out` cells were too many to draw each.
    `bands` are the strengths to use, as a start and a width.
    """

    name: str
    label: str
    series: tuple[Series, ...] = ()
    across: tuple[tuple[float, str], ...] = ()
    up: tuple[tuple[float, str], ...] = ()
    spare: frozenset[float] = frozenset()
    left_out: int = 0
    bands: tuple[tuple[float, float], ...] = ()
    size: tuple[int, int] = (WIDTH, HEIGHT)
    edges: tuple[int, int, int, int] = (LEFT, RIGHT, TOP, BOTTOM)


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """From values to lengths."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float | Decimal) -> float:
        span = self.high - self.low or 1.0
        return round(self.start + (float(value) - self.low) / span * (self.end - self.start), 1)


def list_measures(table: pd.DataFrame) -> list[str]:
    """Return the names of the measures that some rows of a table have."""
    return [name for name in list_columns("measure") if table[name].notna().any()]


def view_chart(
    table: pd.DataFrame, name: str, *, place: Callable[[str], str] = lambda image: "", answers: Sequence[Answer] = ()
) -> ChartView:
    """Return the measure `name` against strength; `place` says where a page finds the image of a point.

    The strengths to use are shaded. An image that several runs show is one point.

    Raises:
        KeyError: There is no such measure.
    """
    column = list_columns("measure")[name]
    measure = column.measure or Measure(digits=3)
    known = table[(table["state"] == "done") & table[name].notna()].drop_duplicates(["lora_sha256", "identity"])
    if known.empty:
        return ChartView(name=name, label=column.label)
    values = [float(value) for value in known[name]]
    strengths = sorted({_decimal(strength) for strength in known["strength"]})
    low, high, ticks = _nice_axis(measure, values)
    x = _Scale(low=float(strengths[0]), high=float(strengths[-1]), start=LEFT + 8, end=RIGHT - 8)
    y = _Scale(low=low, high=high, start=BOTTOM, end=TOP)
    across, spare = _label_strengths(strengths, x)

    def view_dot(row: Mapping[str, Any]) -> Dot:
        strength, value = row["strength"], row[name]
        words = f"{exact(_decimal(strength))} · seed {row['seed']} · {column.label} {value:.{measure.digits}f}"
        image = place(row["image"]) if row["image"] else ""
        return Dot(x=x(strength), y=y(value), cell=f"{row['run']}/{row['position']}", words=words, image=image)

    def view_series(index: int, called: str, own: pd.DataFrame) -> Series:
        numbers = own.groupby("strength")[name].agg(["mean", "min", "max", "count"]).reset_index()
        rows = tuple(
            (exact(_decimal(strength)), *(f"{value:.{measure.digits}f}" for value in found), f"{count}")
            for strength, *found, count in numbers.itertuples(index=False)
        )
        means = zip(numbers["strength"], numbers["mean"], strict=True)
        return Series(
            name=called,
            colour=index % len(SHAPES) + 1,
            shape=SHAPES[index % len(SHAPES)],
            line=" ".join(f"{x(strength)},{y(value)}" for strength, value in means),
            dots=tuple(view_dot(row) for row in list_rows(own)) if len(values) <= MAX_POINTS else (),
            numbers=rows,
            said=f"{called}: {rows[0][1]} at strength {rows[0][0]}, {rows[-1][1]} at {rows[-1][0]}.",
        )

    return ChartView(
        name=name,
        label=column.label,
        series=tuple(view_series(index, *named) for index, named in enumerate(_group(known))),
        across=across,
        up=tuple((y(tick), f"{tick:g}") for tick in ticks),
        spare=spare,
        left_out=len(values) if len(values) > MAX_POINTS else 0,
        bands=tuple(_shade(answers, x)),
    )


def read_curve(records: Sequence[CellRecord], value: Callable[[CellRecord], Any]) -> dict[Decimal, float]:
    """Return the mean of a value for each strength that has it, in order; equal images count once."""
    known: dict[Decimal, list[float]] = {}
    distinct = {record.cell.identity: record for record in records}.values()
    for record in sorted(distinct, key=lambda each: each.cell.request.strength):
        if (found := value(record)) is not None:
            known.setdefault(record.cell.request.strength, []).append(found)
    return {strength: mean(values) for strength, values in known.items()}


def _shade(answers: Sequence[Answer], x: _Scale) -> Iterator[tuple[float, float]]:
    """Where the strengths to use begin, and how wide they are, with a little room on both sides."""
    for answer in answers:
        if answer.low is not None and answer.high is not None:
            yield x(answer.low) - 4, x(answer.high) - x(answer.low) + 8


def _group(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each LoRA, by what it is called; two files of one name stay apart."""
    files = table[["lora_sha256", "lora"]].dropna().drop_duplicates("lora_sha256")
    called = table["lora_sha256"].map(call_files(dict(files.itertuples(index=False)))).fillna("no LoRA")
    return list(table.groupby(called, sort=False))


def _decimal(strength: float) -> Decimal:
    return Decimal(str(strength))


def _nice_axis(measure: Measure, values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Ends and ticks of the vertical axis: round numbers around the values."""
    low, high = measure.ends or (min(values), max(values))
    if low == high:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    rough = (high - low) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.99)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(number * step, 10) for number in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def _label_strengths(strengths: Sequence[Decimal], x: _Scale) -> tuple[tuple[tuple[float, str], ...], frozenset[float]]:
    """As many labels as there is room for, and which are spare; the highest strength is never left out."""
    ticks, spare, last, last_large = [], set(), math.inf, math.inf
    for strength in reversed(strengths):
        at = x(strength)
        if last - at < LABEL:
            continue
        if last_large - at < 2 * LABEL:  # on a phone, labels are twice as large
            spare.add(at)
        else:
            last_large = at
        last = at
        ticks.append((at, exact(strength)))
    return tuple(ticks), frozenset(spare)
