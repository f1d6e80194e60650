"""How much a LoRA changes each block of the transformer, as a picture: one bar a block; `finetunes.html` draws it.

Positions are percentages and heights pixels, so the picture fills any width while its letters keep their size. A
sentence and a table say the same without the picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from lora_runtime.catalogue import Shape, find_weights
from lora_runtime.lora.check import Report, measure_blocks

HEIGHT_PX: Final = 140
FLOOR_PX: Final = 106
"""Where the bars stand; block numbers and names are below."""
_HEADROOM_PX: Final = 22
"""Above the tallest bar, for its value."""
_GAP: Final = 1.2
"""Between the groups, in bars."""
_WIDEST: Final = 7.0
"""Per cent of the picture: a model of few blocks gets slender bars too."""
_BAR: Final = 0.72
"""How much of its column a bar fills."""
_NUMBERED: Final = 12
"""Up to so many blocks each has its number below it; of more, every fourth, which fits a phone."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A block and the Frobenius norm of its change at strength 1; 0 when the LoRA leaves it alone."""

    label: str
    norm: float


@dataclass(frozen=True, kw_only=True)
class Group:
    """Blocks of one kind. `name` stands below them, `where` is how a sentence goes on about them."""

    name: str
    kind: str
    where: str
    bars: tuple[Bar, ...]


def list_groups(blocks: Mapping[str, float], shape: Shape) -> tuple[Group, ...]:
    """Return every block of a transformer of `shape` with its norm in `blocks` (as `measure_blocks` names them)."""

    def make(kind: str, number: int) -> Group:
        bars = [Bar(label=f"{kind} block {index}", norm=blocks.get(f"{kind} {index}", 0.0)) for index in range(number)]
        return Group(name=kind.capitalize(), kind=kind, where=f"in the {kind} blocks", bars=tuple(bars))

    groups = [make("double", shape.double_blocks), make("single", shape.single_blocks)]
    if "top" in blocks:
        bar = Bar(label="layers outside the blocks", norm=blocks["top"])
        groups.append(Group(name="Other", kind="top", where="outside the blocks", bars=(bar,)))
    return tuple(groups)


def describe_norms(groups: Sequence[Group]) -> str:
    """Return the picture in a sentence: where most of the change is, and which block changes most."""
    squares = [sum(bar.norm**2 for bar in group.bars) for group in groups]
    share, most = max(zip(squares, groups, strict=True), key=lambda pair: pair[0])
    bars = [bar for group in groups for bar in group.bars]
    strongest = max(bars, key=lambda bar: bar.norm)
    untouched = sum(bar.norm == 0 for bar in bars)
    left = f" {untouched} of {len(bars)} are left as they are." if untouched else ""
    per_cent = round(100 * share / sum(squares))
    return (
        f"{per_cent} % of it is {most.where}; the strongest is {strongest.label}, {write_norm(strongest.norm)}.{left}"
    )


@dataclass(frozen=True, kw_only=True)
class Word:
    """A text in the picture, at `x` per cent and `y` pixels."""

    kind: str
    text: str
    x: float
    y: float
    anchor: str = "middle"


@dataclass(frozen=True, kw_only=True)
class Column:
    """A bar, and the column around it, which answers to the pointer; `x` and `step` in per cent, `height` in pixels."""

    kind: str
    words: str
    x: float
    step: float
    height: float

    @property
    def width(self) -> float:
        """How wide the bar is, in per cent."""
        return self.step * _BAR


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The norm profile of a LoRA, in bars and words. `end` is where the floor line ends, in per cent."""

    sentence: str
    columns: tuple[Column, ...]
    words: tuple[Word, ...]
    rows: tuple[tuple[str, str], ...]
    end: float
    floor: int = FLOOR_PX
    height: int = HEIGHT_PX


def picture_norms(report: Report) -> Picture:
    """Return the norm profile of a LoRA as what there is to draw."""
    groups = list_groups(measure_blocks(report), find_weights(report.fits[0]).shape)
    slots = sum(len(group.bars) for group in groups) + _GAP * (len(groups) - 1)
    step = min(100 / slots, _WIDEST)
    most = max(bar.norm for group in groups for bar in group.bars)
    every = 1 if slots <= _NUMBERED else 4
    columns: list[Column] = []
    words: list[Word] = []
    at = 0.0
    for group in groups:
        for index, bar in enumerate(group.bars):
            x = (at + index) * step
            columns.append(_stand(group, bar, x=x, step=step, share=bar.norm / most))
            if bar.norm == most:
                words.append(_write_value(bar, columns[-1]))
            if index % every == 0 and group.kind != "top":
                words.append(Word(kind="tick", text=str(index), x=x + step * _BAR / 2, y=FLOOR_PX + 14))
        words.append(Word(kind="kind", text=group.name, x=at * step, y=FLOOR_PX + 31, anchor="start"))
        at += len(group.bars) + _GAP
    rows = tuple((bar.label.capitalize(), write_norm(bar.norm)) for group in groups for bar in group.bars)
    return Picture(
        sentence=describe_norms(groups),
        columns=tuple(columns),
        words=tuple(words),
        rows=rows,
        end=min(100.0, slots * step),
    )


def _stand(group: Group, bar: Bar, *, x: float, step: float, share: float) -> Column:
    height = max(share * (FLOOR_PX - _HEADROOM_PX), 2.0 if bar.norm else 0.0)
    words = f"{bar.label.capitalize()}: {write_norm(bar.norm)}"
    return Column(kind=group.kind, words=words, x=x, step=step, height=height)


def _write_value(bar: Bar, column: Column) -> Word:
    """The number above the tallest bar, within the picture."""
    middle = column.x + column.width / 2
    anchor, x = "middle", middle
    if middle < 8:
        anchor, x = "start", column.x
    elif middle > 92:
        anchor, x = "end", column.x + column.width
    return Word(kind="value", text=write_norm(bar.norm), x=x, y=FLOOR_PX - column.height - 6, anchor=anchor)


def write_norm(norm: float) -> str:
    """Return three figures, however large."""
    return f"{norm:.3g}" if norm < 1000 else f"{norm:,.0f}"
