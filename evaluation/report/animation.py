"""A run as a picture that moves: up through its strengths and back, every row at once, as an animated WebP.

It plays in any browser, chat or README. Each frame says its strength, so that a paused one still tells what it shows.
Lengths are pixels, times milliseconds.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw

from evaluation.axes import SweepSpec
from evaluation.captions import title_spec
from evaluation.report.contact_sheet import ACCENT, INK, MIN_TILE, MUTED, PAPER, draw_tile, fit_text, pick_font
from evaluation.store.records import CellRecord
from evaluation.strengths import format_strength

STEP_MS: Final = 600
"""How long a strength is shown: below three changes a second, which WCAG 2.3.1 asks for."""
END_MS: Final = 1200
"""How long the two ends are."""

MAX_PIXELS: Final = 4_000_000
"""Of one frame: what a phone still plays."""
QUALITY: Final = 90

GAP: Final = 6
LABEL: Final = 24
HEAD: Final = 64
"""The title, and the strength with a bar below it."""


@dataclass(frozen=True, kw_only=True)
class _Mosaic:
    """Where the rows of a run stand in a frame."""

    tile: tuple[int, int]
    across: int
    down: int
    labelled: bool

    @property
    def size(self) -> tuple[int, int]:
        width = self.across * (self.tile[0] + GAP) + GAP
        return width, HEAD + self.down * (self.tile[1] + GAP + (LABEL if self.labelled else 0)) + GAP

    def corner(self, at: int) -> tuple[int, int]:
        down, across = divmod(at, self.across)
        height = self.tile[1] + GAP + (LABEL if self.labelled else 0)
        return GAP + across * (self.tile[0] + GAP), HEAD + down * height


def moves(records: Sequence[CellRecord]) -> bool:
    """Return whether a run has strengths to go through: at one alone there is nothing to animate."""
    return len({record.cell.request.strength for record in records}) > 1


def strengths_webp(spec: SweepSpec, records: Sequence[CellRecord]) -> bytes:
    """Return the animation of a run: its strengths from the lowest to the highest and back, without end."""
    strengths = sorted({record.cell.request.strength for record in records})
    rows = {record.cell.row: record.cell.row_label for record in records}
    cells = {(record.cell.row, record.cell.request.strength): record for record in records}
    mosaic = _lay_out(spec, len(rows))
    up = []
    for at, strength in enumerate(strengths):
        frame = Image.new("RGB", mosaic.size, PAPER)
        draw = ImageDraw.Draw(frame)
        _draw_head(draw, frame.width, title_spec(spec), format_strength(strength), at / max(1, len(strengths) - 1))
        for place, (row, label) in enumerate(sorted(rows.items())):
            corner = mosaic.corner(place)
            if record := cells.get((row, strength)):
                draw_tile(frame, draw, record, corner, mosaic.tile)
            if mosaic.labelled:
                font = pick_font(13, label)
                under = (corner[0], corner[1] + mosaic.tile[1] + 4)
                draw.text(under, fit_text(label, font, mosaic.tile[0]), fill=MUTED, font=font)
        up.append(frame)
    frames = [*up, *up[-2:0:-1]]
    ends = {0, len(up) - 1}
    buffer = io.BytesIO()
    up[0].save(
        buffer, format="WEBP", save_all=True, append_images=frames[1:], loop=0, quality=QUALITY,
        duration=[END_MS if at in ends else STEP_MS for at in range(len(frames))],
    )  # fmt: skip
    return buffer.getvalue()


def _lay_out(spec: SweepSpec, rows: int) -> _Mosaic:
    """Rows side by side, as near to a square as they go, at the size they were rendered at where that fits."""
    across = max(1, min(rows, round(math.sqrt(rows * spec.height / spec.width))))
    scale = float(max(1, math.ceil(2 * MIN_TILE / min(spec.width, spec.height))))
    while True:
        tile = (max(1, round(spec.width * scale)), max(1, round(spec.height * scale)))
        mosaic = _Mosaic(tile=tile, across=across, down=math.ceil(rows / across), labelled=rows > 1)
        if math.prod(mosaic.size) <= MAX_PIXELS or max(tile) <= LABEL:
            return mosaic
        scale *= 0.93


def _draw_head(draw: ImageDraw.ImageDraw, width: int, title: str, strength: str, share: float) -> None:
    """The prompt, the strength of this frame, and how far up the strengths it is."""
    font = pick_font(13, title)
    draw.text((GAP, 5), fit_text(title, font, width - 2 * GAP), fill=MUTED, font=font)
    draw.text((GAP, 24), f"strength {strength}", fill=INK, font=pick_font(20))
    draw.rectangle((GAP, 54, GAP + round(share * (width - 2 * GAP)), 57), fill=ACCENT)
