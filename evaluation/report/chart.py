"""A score against strength: every cell a point, the mean a line for each LoRA. `templates/chart.html` draws it as SVG.

Colours are CSS variables (`--series-1` to `--series-6`, `--ink`, `--muted`, `--line`), so one drawing suits light, dark
and print. LoRAs differ in shape too, not by colour alone, and the same numbers stand in a table below. Lengths are in
units of the view box.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Final, TypeAlias

from evaluation.captions import tell_records_apart
from evaluation.judge.metrics import SCORES
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
class Measure:
    """Something to draw: its words, where a record has it, and the ends of its axis when they are fixed."""

    label: str
    value: Callable[[CellRecord], float | None]
    ends: tuple[float, float] | None = None
    digits: int = 3


def _score(name: str) -> Callable[[CellRecord], float | None]:
    return lambda record: record.scores.get(name)


MEASURES: Final[Mapping[str, Measure]] = MappingProxyType(
    {
        **{
            name: Measure(label=score.label, value=_score(name), digits=3 if name == "ssim" else 1)
            for name, score in SCORES.items()
        },
        "rating": Measure(label="Rating", value=lambda record: record.rating, ends=(1, 5), digits=1),
        "seconds": Measure(label="Seconds an image", value=lambda record: record.seconds, digits=2),
    }
)
"""What a chart can show, by name."""


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
    """

    name: str
    label: str
    series: tuple[Series, ...] = ()
    across: tuple[tuple[float, str], ...] = ()
    up: tuple[tuple[float, str], ...] = ()
    spare: frozenset[float] = frozenset()
    left_out: int = 0
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


def list_measures(records: Sequence[CellRecord]) -> list[str]:
    """Return the names of the measures that some of the records have."""
    return [name for name, measure in MEASURES.items() if any(measure.value(record) is not None for record in records)]


def view_chart(
    records: Sequence[CellRecord], name: str, *, place: Callable[[Path], str] = lambda path: ""
) -> ChartView:
    """Return the measure `name` against strength; `place` says where a page finds the image of a point.

    Raises:
        KeyError: There is no such measure.
    """
    measure = MEASURES[name]
    found = _group(records, measure)
    values = [value for own in found.values() for _, value in own]
    if not values:
        return ChartView(name=name, label=measure.label)
    strengths = sorted({record.cell.request.strength for own in found.values() for record, _ in own})
    low, high, ticks = _nice_axis(measure, values)
    x = _Scale(low=float(strengths[0]), high=float(strengths[-1]), start=LEFT + 8, end=RIGHT - 8)
    y = _Scale(low=low, high=high, start=BOTTOM, end=TOP)
    across, spare = _label_strengths(strengths, x)

    def view_dot(record: CellRecord, value: float) -> Dot:
        request = record.cell.request
        words = f"{exact(request.strength)} · seed {request.seed} · {measure.label} {value:.{measure.digits}f}"
        image = place(record.image) if record.image else ""
        cell = f"{record.run_id}/{record.cell.position}"
        return Dot(x=x(request.strength), y=y(value), cell=cell, words=words, image=image)

    def view_series(index: int, called: str, own: Sequence[_Point]) -> Series:
        at = {each: [value for record, value in own if record.cell.request.strength == each] for each in strengths}
        means = {strength: mean(values) for strength, values in at.items() if values}
        first, *_, last = *means, *means
        written = {strength: f"{value:.{measure.digits}f}" for strength, value in means.items()}
        return Series(
            name=called,
            colour=index % len(SHAPES) + 1,
            shape=SHAPES[index % len(SHAPES)],
            line=" ".join(f"{x(strength)},{y(value)}" for strength, value in means.items()),
            dots=tuple(view_dot(*point) for point in own) if len(values) <= MAX_POINTS else (),
            numbers=tuple(
                (
                    exact(each),
                    written[each],
                    *(f"{of(at[each]):.{measure.digits}f}" for of in (min, max)),
                    f"{len(at[each])}",
                )
                for each in means
            ),
            said=f"{called}: {written[first]} at strength {exact(first)}, {written[last]} at {exact(last)}.",
        )

    return ChartView(
        name=name,
        label=measure.label,
        series=tuple(view_series(index, *named) for index, named in enumerate(found.items())),
        across=across,
        up=tuple((y(tick), f"{tick:g}") for tick in ticks),
        spare=spare,
        left_out=len(values) if len(values) > MAX_POINTS else 0,
    )


_Point: TypeAlias = tuple[CellRecord, float]


def _group(records: Sequence[CellRecord], measure: Measure) -> dict[str, list[_Point]]:
    """The points of each LoRA, by what it is called; two files of one name stay apart."""
    series: dict[str, list[_Point]] = {}
    for record in tell_records_apart(records):
        value, lora = measure.value(record), record.cell.request.lora
        if value is not None and record.state == "done":
            series.setdefault(lora.name if lora else "no LoRA", []).append((record, value))
    return series


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
