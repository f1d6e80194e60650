"""How much a LoRA changes each block of the transformer, as a picture: one bar a block, as an SVG made of text.

Positions are percentages and heights pixels, so the picture fills any width while its letters keep their size; colours
are the page's own variables, so it follows light and dark. A pointer on a bar says its value; a sentence and a table
say the same without the picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from lora_runtime.catalogue import Shape, find_weights
from lora_runtime.lora.check import Report, measure_blocks

_HEIGHT_PX: Final = 140
_FLOOR_PX: Final = 106
"""Where the bars stand; block numbers and names are below."""
_HEADROOM_PX: Final = 22
"""Above the tallest bar, for its value."""
_GAP: Final = 1.2
"""Between the groups, in bars."""
_WIDEST: Final = 7.0
"""Per cent of the picture: a model of few blocks gets slender bars too."""
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
    return f"{per_cent} % of it is {most.where}; the strongest is {strongest.label}, {_number(strongest.norm)}.{left}"


def draw_norms(report: Report, *, key: str) -> str:
    """Return the norm profile of a LoRA as a figure: the picture, its sentence, and the numbers as a table.

    `key` tells several figures of a page apart.
    """
    groups = list_groups(measure_blocks(report), find_weights(report.fits[0]).shape)
    sentence = describe_norms(groups)
    return (
        f'<figure class="ft-norms"><figcaption><b>Change per block at strength 1</b> {escape(sentence)}</figcaption>'
        f"{_draw_picture(groups, sentence, key)}{_draw_table(groups)}</figure>"
    )


def _draw_picture(groups: Sequence[Group], sentence: str, key: str) -> str:
    slots = sum(len(group.bars) for group in groups) + _GAP * (len(groups) - 1)
    step = min(100 / slots, _WIDEST)
    most = max(bar.norm for group in groups for bar in group.bars)
    every = 1 if slots <= _NUMBERED else 4
    parts, at = [], 0.0
    for group in groups:
        for index, bar in enumerate(group.bars):
            x = (at + index) * step
            parts.append(_draw_bar(group, bar, x=x, step=step, share=bar.norm / most))
            if index % every == 0 and group.kind != "top":
                parts.append(_draw_text("tick", x + step * 0.36, _FLOOR_PX + 14, str(index)))
        parts.append(_draw_text("kind", at * step, _FLOOR_PX + 31, group.name, anchor="start"))
        at += len(group.bars) + _GAP
    line = f'<line x1="0" x2="{min(100.0, slots * step):.2f}%" y1="{_FLOOR_PX}.5" y2="{_FLOOR_PX}.5"/>'
    return (
        f'<svg role="img" aria-labelledby="{key}-title {key}-about" width="100%" height="{_HEIGHT_PX}">'
        f'<title id="{key}-title">Norm of the weight change, block by block</title>'
        f'<desc id="{key}-about">{escape(sentence)}</desc>{line}{"".join(parts)}</svg>'
    )


def _draw_bar(group: Group, bar: Bar, *, x: float, step: float, share: float) -> str:
    """A bar, and the column around it: that answers to the pointer however short the bar is."""
    height = max(share * (_FLOOR_PX - _HEADROOM_PX), 2.0 if bar.norm else 0.0)
    width = step * 0.72
    value = ""
    if share == 1:
        middle = x + width / 2
        anchor, place = ("start", x) if middle < 8 else ("end", x + width) if middle > 92 else ("middle", middle)
        value = _draw_text("value", place, _FLOOR_PX - height - 6, _number(bar.norm), anchor=anchor)
    return (
        f'<g class="{group.kind}"><title>{escape(bar.label.capitalize())}: {_number(bar.norm)}</title>'
        f'<rect class="column" x="{x:.2f}%" y="0" width="{step:.2f}%" height="{_FLOOR_PX}"/>'
        f'<rect class="bar" x="{x:.2f}%" y="{_FLOOR_PX - height:.1f}" width="{width:.2f}%" height="{height:.1f}" '
        f'rx="1.5"/>{value}</g>'
    )


def _draw_text(kind: str, x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x:.2f}%" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _draw_table(groups: Sequence[Group]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(bar.label.capitalize())}</th><td>{_number(bar.norm)}</td></tr>'
        for group in groups
        for bar in group.bars
    )
    return (
        "<details><summary>The numbers</summary>"
        '<div class="ft-numbers" tabindex="0" role="region" aria-label="Norm of each block"><table><thead><tr>'
        f'<th scope="col">Block</th><th scope="col">Norm</th></tr></thead><tbody>{rows}</tbody></table></div></details>'
    )


def _number(norm: float) -> str:
    """Three figures, however large."""
    return f"{norm:.3g}" if norm < 1000 else f"{norm:,.0f}"
