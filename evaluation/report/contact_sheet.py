"""The labelled grid as one image: rows by strengths, a caption on top, a label under every tile.

Lengths are pixels. Tiles keep the size they were rendered at where that fits under `MAX_PIXELS` and `MAX_SIDE`; a
larger grid gets smaller tiles, never smaller text. Small images are enlarged by a whole factor, so pixels stay square.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from evaluation.axes import SweepSpec, list_rows
from evaluation.captions import list_facts, title_spec
from evaluation.store.store import CellRecord
from evaluation.strengths import format_strength

MAX_PIXELS: Final = 40_000_000
MAX_SIDE: Final = 32_000
MIN_TILE: Final = 128
"""Images with a shorter side are enlarged; a label needs this width."""
SMALLEST_TILE: Final = 16
"""No tile is shrunk below this; 400 rows of it still fit."""

MARGIN: Final = 28
GAP: Final = 12
ROW_LABEL: Final = 150
"""The widest a column of row labels gets."""
LABEL: Final = 44
"""Height of the two lines under a tile."""
MIN_WIDTH: Final = 480
"""A caption needs this."""
CAPTION_LINES: Final = 3
LONGEST_CAPTION: Final = 1000
"""Characters that are looked at before wrapping."""

PAPER: Final = (250, 249, 246)
INK: Final = (32, 33, 36)
MUTED: Final = (112, 114, 120)
ACCENT: Final = (20, 97, 160)
EMPTY: Final = (236, 235, 231)
RED: Final = (176, 42, 48)
PALE_RED: Final = (251, 233, 231)

SYSTEM_FONTS: Final = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKjp-Regular.otf", "SourceHanSans-Regular.ttc", "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf", "Hiragino Sans GB.ttc", "PingFang.ttc", "msyh.ttc", "meiryo.ttc", "malgun.ttf",
    "Arial Unicode.ttf", "arial.ttf", "DejaVuSans.ttf",
)  # fmt: skip
"""Fonts of Linux, macOS and Windows with scripts that Pillow's own lacks, by file name; Pillow knows the folders."""

NO_CHARACTER: Final = "\U0010fffe"

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where everything stands."""

    tile: tuple[int, int]
    rows: int
    columns: int
    left: int
    top: int

    def size(self) -> tuple[int, int]:
        width = self.left + self.columns * (self.tile[0] + GAP) - GAP + MARGIN
        height = self.top + self.rows * (self.tile[1] + LABEL + GAP) - GAP + MARGIN
        return max(width, MIN_WIDTH), height

    def corner(self, row: int, column: int) -> tuple[int, int]:
        return self.left + column * (self.tile[0] + GAP), self.top + row * (self.tile[1] + LABEL + GAP)


def grid_png(spec: SweepSpec, records: Sequence[CellRecord]) -> Image.Image:
    """Draw every cell of a run; failed ones with their reason, pending ones empty."""
    layout, caption = _lay_out(spec)
    sheet = Image.new("RGB", layout.size(), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = MARGIN
    for line in caption:
        draw.text((MARGIN, y), line, fill=INK, font=pick_font(20, title_spec(spec)))
        y += 27
    facts = "  ·  ".join(list_facts(spec))
    if missing := _count_missing(spec):
        facts = f"{missing} characters are in no font of this machine  ·  {facts}"
    small = pick_font(14, facts)
    draw.text((MARGIN, y + 2), fit_text(facts, small, sheet.width - 2 * MARGIN), fill=MUTED, font=small)
    for record in records:
        cell = record.cell
        corner = layout.corner(cell.row, cell.column)
        if cell.column == 0 and layout.left > MARGIN:
            _draw_row_label(draw, cell.row_label, corner, layout)
        draw_tile(sheet, draw, record, corner, layout.tile)
        _draw_label(draw, record, (corner[0], corner[1] + layout.tile[1] + 6), layout.tile[0])
    return sheet


def grid_bytes(spec: SweepSpec, records: Sequence[CellRecord]) -> bytes:
    """Return the same as the bytes of a PNG."""
    buffer = io.BytesIO()
    grid_png(spec, records).save(buffer, format="PNG")
    return buffer.getvalue()


def _lay_out(spec: SweepSpec) -> tuple[_Layout, list[str]]:
    """The layout with the largest tiles that the caps allow, and the lines of the caption."""
    labels = [row.label for row in list_rows(spec)]
    longest = max(pick_font(14, label).getlength(_printable(label)) for label in labels)
    left = MARGIN + (min(math.ceil(longest) + 20, ROW_LABEL) if len(labels) > 1 else 0)
    scale = float(max(1, math.ceil(MIN_TILE / min(spec.width, spec.height))))
    while True:
        tile = (max(round(spec.width * scale), 1), max(round(spec.height * scale), 1))
        layout = _Layout(tile=tile, rows=len(labels), columns=len(spec.strengths), left=left, top=0)
        caption = _wrap(title_spec(spec), pick_font(20, title_spec(spec)), layout.size()[0] - 2 * MARGIN, CAPTION_LINES)
        layout = replace(layout, top=MARGIN + 27 * len(caption) + 40)
        width, height = layout.size()
        fits = width * height <= MAX_PIXELS and max(width, height) <= MAX_SIDE
        if fits or min(tile) <= SMALLEST_TILE:
            return layout, caption
        scale *= 0.93


def _draw_row_label(draw: ImageDraw.ImageDraw, label: str, corner: tuple[int, int], layout: _Layout) -> None:
    font = pick_font(14, label)
    lines = _wrap(label, font, layout.left - MARGIN - 16, max(1, layout.tile[1] // 19))
    draw.multiline_text((MARGIN, corner[1]), "\n".join(lines), fill=INK, font=font, spacing=5)


def draw_tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    record: CellRecord,
    corner: tuple[int, int],
    tile: tuple[int, int],
) -> None:
    """Draw what a cell shows: its picture, or why there is none."""
    if record.image is not None:
        with Image.open(record.image) as image:
            picture = image.convert("RGB")
        larger = tile[0] >= picture.width
        sheet.paste(picture.resize(tile, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS), corner)
        return
    box = (*corner, corner[0] + tile[0] - 1, corner[1] + tile[1] - 1)
    failed = record.state == "failed"
    draw.rectangle(box, fill=PALE_RED if failed else EMPTY, outline=RED if failed else None)
    head = "failed" if failed else "not rendered"
    x, y = corner[0] + 10, corner[1] + 10
    draw.text((x, y), fit_text(head, pick_font(14), tile[0] - 20), fill=RED if failed else MUTED, font=pick_font(14))
    reason = _wrap(record.error or "", pick_font(12), tile[0] - 20, max(0, (tile[1] - 40) // 16))
    draw.multiline_text((x, y + 22), "\n".join(reason), fill=INK, font=pick_font(12), spacing=4)


def _draw_label(draw: ImageDraw.ImageDraw, record: CellRecord, corner: tuple[int, int], width: int) -> None:
    strength = record.cell.request.strength
    label = record.cell.column_label
    if pick_font(14).getlength(label) > width:
        label = format_strength(strength)
    draw.text(corner, label, fill=INK if strength else ACCENT, font=pick_font(14))
    if strength and "ssim" in record.scores:
        similarity = fit_text(f"SSIM to base {record.scores['ssim']:.2f}", pick_font(12), width)
        draw.text((corner[0], corner[1] + 19), similarity, fill=MUTED, font=pick_font(12))


def _wrap(text: str, font: Font, width: int, most: int) -> list[str]:
    """Break `text` into at most `most` lines; an ellipsis ends what does not fit. Words longer than a line break."""
    words = _printable(text).split()
    lines: list[str] = []
    while words and len(lines) < most:
        line = words.pop(0)
        while words and font.getlength(f"{line} {words[0]}") <= width:
            line += f" {words.pop(0)}"
        if len(lines) == most - 1 and words:
            line = f"{line} {words[0]}"
        cut = _cut(line, font, width)
        if cut < len(line) and len(lines) < most - 1:
            words.insert(0, line[cut:])
            line = line[:cut]
        lines.append(
            fit_text(line, font, width) if len(lines) < most - 1 or not words else fit_text(f"{line} …", font, width)
        )
    return lines


def fit_text(text: str, font: Font, width: int) -> str:
    """Return `text` in one line, ending in an ellipsis when it is too long."""
    text = _printable(text)
    if font.getlength(text) <= width:
        return text
    return text[: _cut(text, font, width - math.ceil(font.getlength("…")))].rstrip(" …") + "…"


def _cut(text: str, font: Font, width: int) -> int:
    """How many characters of `text` fit, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text[:LONGEST_CAPTION])


def _count_missing(spec: SweepSpec) -> int:
    """How many of the characters that people wrote no font here can draw."""
    texts = (title_spec(spec), *list_facts(spec), *(row.label for row in list_rows(spec)))
    return sum(len(_missing(pick_font(14, text), text)) for text in texts)


def pick_font(size: int, text: str = "") -> Font:
    """Pillow's own font, or one of the system's that has more of the characters of `text`."""
    own = _own_font(size)
    if not _missing(own, text):
        return own
    others = (font for name in SYSTEM_FONTS if (font := _open_font(size, name)) is not None)
    return min((own, *others), key=lambda font: len(_missing(font, text)))


def _missing(font: Font, text: str) -> set[str]:
    """The characters of `text` that a font draws as it draws one that does not exist."""
    blank = bytes(font.getmask(NO_CHARACTER))
    written = {each for each in _printable(text) if ord(each) > 0x7F}
    return {each for each in written if bytes(font.getmask(each)) == blank}


@lru_cache(maxsize=8)
def _own_font(size: int) -> Font:
    return ImageFont.load_default(size=size)


@lru_cache(maxsize=64)
def _open_font(size: int, name: str) -> Font | None:
    """A system font by its file's name, or None when that is not here."""
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None
