"""A score against strength, as an SVG that needs nothing else: every cell a point, the mean a line for each LoRA.

Strings as everywhere: texts are escaped, colours are CSS variables (`--series-1` to `--series-6`, `--ink`, `--muted`,
`--line`), so one drawing suits light, dark and print. LoRAs differ in shape too, not by colour alone, and the same
numbers stand in a table below. Lengths are in units of the view box.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from html import escape
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Final

from evaluation.captions import tell_records_apart
from evaluation.judge.answer import Answer
from evaluation.judge.metrics import SCORES
from evaluation.store.records import CellRecord
from evaluation.strengths import exact

WIDTH: Final = 720
HEIGHT: Final = 300
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 44
"""Room for the axes' labels."""
LABEL: Final = 34
"""The width of a label on the horizontal axis."""

MAX_POINTS: Final = 800
"""With more cells only the means are drawn."""

SERIES: Final = 6
"""Colours and shapes there are; further LoRAs begin anew."""

SHAPES: Final = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "M-3.6,-3.6h7.2v7.2h-7.2z",
    "M0,-4.8L4.6,3.4H-4.6z",
    "M0,-5L5,0L0,5L-5,0z",
    "M-4.6,-3.4H4.6L0,4.8z",
    "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
)


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
class _Point:
    record: CellRecord
    strength: Decimal
    value: float


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


def draw_chart(
    records: Sequence[CellRecord],
    name: str,
    *,
    chart_id: str = "chart",
    image_url: Callable[[Path], str] | None = None,
    answers: Sequence[Answer] = (),
) -> str:
    """Return the measure `name` against strength as a figure; one that says what to do when there is nothing to draw.

    The strengths to use are shaded.

    With `image_url` the points are buttons that say where their image is, for a page that opens them.

    Raises:
        KeyError: There is no such measure.
    """
    measure = MEASURES[name]
    series = _group(records, measure)
    if not series:
        return (
            f'<p class="hint chart-empty">No row has “{escape(measure.label)}” yet. '
            "Rate some images, or clear a filter.</p>"
        )
    points = [point for own in series.values() for point in own]
    x = _Scale(
        low=float(min(point.strength for point in points)),
        high=float(max(point.strength for point in points)),
        start=LEFT + 8,
        end=WIDTH - RIGHT - 8,
    )
    low, high, ticks = _nice_axis(measure, [point.value for point in points])
    y = _Scale(low=low, high=high, start=HEIGHT - BOTTOM, end=TOP)
    dots = len(points) <= MAX_POINTS
    drawn = ""
    for index, own in enumerate(series.values()):
        shapes = [_draw_point(point, index, measure, (x, y), image_url) for point in own] if dots else []
        drawn += _draw_series(own, index, x, y, shapes)
    note = "" if dots else f'<p class="hint">{len(points)} cells: too many to draw each; the lines are their means.</p>'
    return (
        f'<figure class="chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="group" '
        f'aria-labelledby="{chart_id}-title" aria-describedby="{chart_id}-desc">'
        f'<title id="{chart_id}-title">{escape(measure.label)} against strength</title>'
        f'<desc id="{chart_id}-desc">{escape(_describe(series, measure))}</desc>'
        f"{_draw_answers(answers, x)}{_draw_axes(measure, points, ticks, x, y)}{drawn}</svg>"
        f"<figcaption>{_draw_legend(series)}{note}</figcaption>{_draw_numbers(series, measure)}</figure>"
    )


def read_curve(records: Sequence[CellRecord], value: Callable[[CellRecord], float | None]) -> dict[Decimal, float]:
    """Return the mean of a value for each strength that has it, in order."""
    known: dict[Decimal, list[float]] = {}
    for record in sorted(records, key=lambda each: each.cell.request.strength):
        if (found := value(record)) is not None:
            known.setdefault(record.cell.request.strength, []).append(found)
    return {strength: mean(values) for strength, values in known.items()}


def _group(records: Sequence[CellRecord], measure: Measure) -> dict[str, list[_Point]]:
    """The points of each LoRA, by what it is called; two files of one name stay apart."""
    series: dict[str, list[_Point]] = {}
    for record in tell_records_apart(records):
        value = measure.value(record)
        if value is None or record.state != "done":
            continue
        lora = record.cell.request.lora
        point = _Point(record=record, strength=record.cell.request.strength, value=value)
        series.setdefault(lora.name if lora else "no LoRA", []).append(point)
    return series


def _means(points: Sequence[_Point]) -> dict[Decimal, list[float]]:
    found: dict[Decimal, list[float]] = {}
    for point in sorted(points, key=lambda each: each.strength):
        found.setdefault(point.strength, []).append(point.value)
    return found


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


def _draw_answers(answers: Sequence[Answer], x: _Scale) -> str:
    bands = ((x(each.low) - 4, x(each.high) + 4) for each in answers if each.low is not None and each.high is not None)
    return "".join(
        f'<rect class="answer" aria-hidden="true" x="{left}" y="{TOP}" width="{right - left:g}" '
        f'height="{HEIGHT - TOP - BOTTOM}" fill="var(--good-soft)"/>'
        for left, right in bands
    )


def _draw_axes(measure: Measure, points: Sequence[_Point], ticks: Sequence[float], x: _Scale, y: _Scale) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    lines = "".join(
        f'<path class="rule" d="M{LEFT},{y(tick)}H{right}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{y(tick) + 4}" text-anchor="end">{tick:g}</text>'
        for tick in ticks
    )
    marks, last, last_large = "", math.inf, math.inf
    for strength in sorted({point.strength for point in points}, reverse=True):  # the highest one is never left out
        at = x(strength)
        if last - at < LABEL:
            continue
        spare = last_large - at < 2 * LABEL  # on a phone, labels are twice as large
        last, last_large = at, last_large if spare else at
        kind = "tick spare" if spare else "tick"
        marks += f'<text class="{kind}" x="{at}" y="{bottom + 18}" text-anchor="middle">{exact(strength)}</text>'
    middle = (TOP + bottom) / 2
    return (
        f'<g aria-hidden="true">{lines}{marks}'
        f'<text class="axis" x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">Strength</text>'
        f'<text class="axis" x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">'
        f"{escape(measure.label)}</text></g>"
    )


def _draw_series(points: Sequence[_Point], index: int, x: _Scale, y: _Scale, dots: Sequence[str]) -> str:
    means = {strength: mean(values) for strength, values in _means(points).items()}
    path = " ".join(f"{x(strength)},{y(value)}" for strength, value in means.items())
    number = index % SERIES + 1
    return f'<g style="--series:var(--series-{number})"><polyline class="mean" points="{path}"/>{"".join(dots)}</g>'


def _draw_point(
    point: _Point, index: int, measure: Measure, axes: tuple[_Scale, _Scale], image_url: Callable[[Path], str] | None
) -> str:
    (x, y), image = axes, point.record.image
    role = 'role="button" tabindex="-1"' if image_url else 'role="img"'
    shown = f'data-image="{escape(image_url(image))}" ' if image_url and image else ""
    request = point.record.cell.request
    run_id, position = point.record.key
    words = f"{exact(request.strength)} · seed {request.seed} · {measure.label} {point.value:.{measure.digits}f}"
    return (
        f'<path class="dot" {role} {shown}data-id="{escape(run_id)}/{position}" '
        f'transform="translate({x(point.strength)} {y(point.value)})" d="{SHAPES[index % SERIES]}" '
        f'aria-label="Strength {escape(words)}"><title>{escape(words)}</title></path>'
    )


def _draw_legend(series: Mapping[str, Sequence[_Point]]) -> str:
    items = "".join(
        f'<li style="--series:var(--series-{index % SERIES + 1})"><svg viewBox="-6 -6 12 12" width="12" height="12" '
        f'aria-hidden="true"><path class="key" d="{SHAPES[index % SERIES]}"/></svg><bdi>{escape(name)}</bdi></li>'
        for index, name in enumerate(series)
    )
    return f'<ul class="legend">{items}<li class="muted">points: cells · line: their mean</li></ul>'


def _draw_numbers(series: Mapping[str, Sequence[_Point]], measure: Measure) -> str:
    rows = "".join(
        f'<tr><th scope="row"><bdi>{escape(name)}</bdi></th><td>{exact(strength)}</td>'
        f"<td>{mean(values):.{measure.digits}f}</td><td>{min(values):.{measure.digits}f}</td>"
        f"<td>{max(values):.{measure.digits}f}</td><td>{len(values)}</td></tr>"
        for name, points in series.items()
        for strength, values in _means(points).items()
    )
    heads = "".join(
        f'<th scope="col">{word}</th>' for word in ("LoRA", "Strength", "Mean", "Lowest", "Highest", "Cells")
    )
    return (
        '<details class="numbers"><summary>The numbers</summary><div class="numbers-scroll" tabindex="0" role="region" '
        f'aria-label="{escape(measure.label)} by strength"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _describe(series: Mapping[str, Sequence[_Point]], measure: Measure) -> str:
    """What the chart shows, in words."""
    said = []
    for name, points in series.items():
        means = [(strength, mean(values)) for strength, values in _means(points).items()]
        (first, start), (last, end) = means[0], means[-1]
        said.append(
            f"{name}: {start:.{measure.digits}f} at strength {exact(first)}, {end:.{measure.digits}f} at {exact(last)}."
        )
    return " ".join(said)
