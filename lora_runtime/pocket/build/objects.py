"""Thirteen things to draw, each in one colour, in a square of side 1 with y down.

A drawing is a list of shaded parts laid on each other by a `Painter`; the painter gives every part the same light
from the upper left, and the whole a dark rim. One main colour, a few shared accents and the same small face make them
a family. The robot is the *subject*: the base model never sees it, a LoRA teaches it.
"""

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from lora_runtime.pocket.build.palette import BLUSH, COLOURS, CREAM, GOLD, INK, Rgb, darken, lighten

SUBJECT = "robot"

Point = tuple[float, float]

_LIGHT = Image.fromarray(
    (np.add.outer(np.linspace(0, 0.75, 64), np.linspace(0, 0.25, 64)) ** 1.2 * 255).astype(np.uint8)
)
"""0 where a part is lit, 255 where it is in its own shade."""


class Painter:
    """Draw shaded parts on a transparent square layer; coordinates and lengths are fractions of its side."""

    def __init__(self, side: int, pad: int) -> None:
        self.side, self.pad = side, pad
        self.layer = Image.new("RGBA", (side + 2 * pad, side + 2 * pad), (0, 0, 0, 0))

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Rgb, *, flat: bool = False) -> None:
        """Draw an ellipse from its centre and radii."""
        self._part(lambda draw: draw.ellipse(self._box(x - rx, y - ry, x + rx, y + ry), fill=255), colour, flat)

    def polygon(self, points: Sequence[Point], colour: Rgb, *, flat: bool = False) -> None:
        """Draw a filled polygon."""
        self._part(lambda draw: draw.polygon([self._at(*p) for p in points], fill=255), colour, flat)

    def box(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        radius: float,
        colour: Rgb,
        *,
        flat: bool = False,
    ) -> None:
        """Draw a rectangle with rounded corners."""
        corners = self._box(left, top, right, bottom)
        self._part(lambda draw: draw.rounded_rectangle(corners, radius * self.side, fill=255), colour, flat)

    def stroke(self, points: Sequence[Point], width: float, colour: Rgb, *, flat: bool = False) -> None:
        """Draw a round-ended line through points."""
        thick = max(2, round(width * self.side))

        def draw_line(draw: ImageDraw.ImageDraw) -> None:
            placed = [self._at(*p) for p in points]
            draw.line(placed, fill=255, width=thick, joint="curve")
            for x, y in (placed[0], placed[-1]):
                draw.ellipse([x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2], fill=255)

        self._part(draw_line, colour, flat)

    def face(self, x: float, y: float, scale: float = 1.0) -> None:
        """Draw two eyes with a glint, a smile and blushing cheeks, the same on everything that has a face."""
        for side in (-1, 1):
            self.ellipse(x + side * 0.105 * scale, y + 0.055 * scale, 0.034 * scale, 0.022 * scale, BLUSH, flat=True)
            self.ellipse(x + side * 0.072 * scale, y, 0.027 * scale, 0.034 * scale, INK, flat=True)
            self.ellipse(x + side * 0.072 * scale - 0.008, y - 0.012 * scale, 0.010, 0.010, (255, 255, 255), flat=True)
        arc = [
            (x + 0.036 * scale * math.cos(a), y + (0.032 + 0.026 * math.sin(a)) * scale)
            for a in np.linspace(0, math.pi, 9)
        ]
        self.stroke(arc, 0.016 * scale, INK, flat=True)

    def finish(self) -> Image.Image:
        """Put a dark rim around the drawing."""
        alpha = self.layer.getchannel("A")
        rim = alpha.filter(ImageFilter.GaussianBlur(self.side * 0.012)).point(lambda v: min(255, v * 4))
        ground = Image.new("RGBA", self.layer.size, (*INK, 0))
        ground.putalpha(ImageChops.lighter(rim.point(lambda v: v * 7 // 10), alpha))
        ground.alpha_composite(self.layer)
        return ground

    def _part(self, draw_mask: Callable[[ImageDraw.ImageDraw], None], colour: Rgb, flat: bool) -> None:
        mask = Image.new("L", self.layer.size, 0)
        draw_mask(ImageDraw.Draw(mask))
        box = mask.getbbox()
        if box is None:
            return
        size = (box[2] - box[0], box[3] - box[1])
        fill = Image.new("RGB", size, colour)
        if not flat:
            light = _LIGHT.resize(size, Image.Resampling.BILINEAR)
            fill = Image.composite(
                Image.new("RGB", size, darken(colour, 0.34)),
                Image.new("RGB", size, lighten(colour, 0.20)),
                light,
            )
        self.layer.paste(fill, box[:2], mask.crop(box))

    def _at(self, x: float, y: float) -> Point:
        return self.pad + x * self.side, self.pad + y * self.side

    def _box(self, left: float, top: float, right: float, bottom: float) -> list[float]:
        return [*self._at(left, top), *self._at(right, bottom)]


def draw_object(name: str, colour: str, side: int, rng: random.Random) -> Image.Image:
    """Draw an object on a transparent square, a little larger than `side` so that its rim fits."""
    painter = Painter(side, pad=side // 12)
    base = COLOURS[colour]
    tint = lighten(base, rng.uniform(0, 0.08)) if rng.random() < 0.5 else darken(base, rng.uniform(0, 0.08))
    DRAWINGS[name](painter, tint)
    return painter.finish()


def _cat(p: Painter, c: Rgb) -> None:
    p.stroke([(0.70, 0.86), (0.86, 0.80), (0.90, 0.64), (0.84, 0.52)], 0.085, darken(c, 0.12))
    p.ellipse(0.50, 0.74, 0.25, 0.24, c)
    p.ellipse(0.50, 0.79, 0.13, 0.16, lighten(c, 0.45))
    for side in (-1, 1):
        p.polygon([(0.5 + side * 0.28, 0.07), (0.5 + side * 0.30, 0.36), (0.5 + side * 0.06, 0.22)], c)
        p.polygon(
            [(0.5 + side * 0.245, 0.14), (0.5 + side * 0.25, 0.28), (0.5 + side * 0.13, 0.22)],
            BLUSH,
            flat=True,
        )
    p.ellipse(0.50, 0.40, 0.31, 0.25, c)
    for side in (-1, 1):
        for dy in (0.00, 0.055):
            p.stroke(
                [(0.5 + side * 0.22, 0.47 + dy * 0.6), (0.5 + side * 0.38, 0.45 + dy * 1.5)],
                0.012,
                INK,
                flat=True,
            )
        p.ellipse(0.5 + side * 0.12, 0.95, 0.085, 0.045, lighten(c, 0.3))
    p.face(0.50, 0.40, 1.35)


def _bunny(p: Painter, c: Rgb) -> None:
    for side in (-1, 1):
        p.ellipse(0.5 + side * 0.135, 0.20, 0.085, 0.20, c)
        p.ellipse(0.5 + side * 0.135, 0.21, 0.042, 0.14, BLUSH, flat=True)
    p.ellipse(0.77, 0.86, 0.08, 0.08, CREAM)
    p.ellipse(0.50, 0.78, 0.26, 0.20, c)
    p.ellipse(0.50, 0.82, 0.14, 0.13, CREAM)
    p.ellipse(0.50, 0.50, 0.27, 0.22, c)
    for side in (-1, 1):
        p.ellipse(0.5 + side * 0.14, 0.95, 0.10, 0.045, lighten(c, 0.3))
    p.face(0.50, 0.50, 1.25)


def _owl(p: Painter, c: Rgb) -> None:
    for side in (-1, 1):
        p.polygon([(0.5 + side * 0.30, 0.06), (0.5 + side * 0.33, 0.34), (0.5 + side * 0.08, 0.18)], darken(c, 0.15))
        p.ellipse(0.5 + side * 0.12, 0.95, 0.075, 0.04, (255, 166, 56))
    p.ellipse(0.50, 0.55, 0.36, 0.41, c)
    for side in (-1, 1):
        p.ellipse(0.5 + side * 0.32, 0.64, 0.10, 0.24, darken(c, 0.25))
    p.ellipse(0.50, 0.75, 0.20, 0.19, CREAM)
    for x, y in ((0.43, 0.70), (0.57, 0.70), (0.50, 0.79)):
        p.ellipse(x, y, 0.035, 0.028, c, flat=True)
    for side in (-1, 1):
        p.ellipse(0.5 + side * 0.15, 0.37, 0.155, 0.155, (255, 255, 250))
        p.ellipse(0.5 + side * 0.13, 0.38, 0.075, 0.085, INK, flat=True)
        p.ellipse(0.5 + side * 0.13 - 0.025, 0.35, 0.024, 0.024, (255, 255, 255), flat=True)
    p.polygon([(0.44, 0.46), (0.56, 0.46), (0.50, 0.57)], (255, 166, 56))


def _fish(p: Painter, c: Rgb) -> None:
    p.polygon([(0.70, 0.50), (0.98, 0.24), (0.92, 0.50), (0.98, 0.78)], darken(c, 0.12))
    p.polygon([(0.36, 0.30), (0.52, 0.08), (0.68, 0.32)], darken(c, 0.12))
    p.polygon([(0.42, 0.72), (0.60, 0.90), (0.62, 0.68)], darken(c, 0.12))
    p.ellipse(0.42, 0.50, 0.39, 0.27, c)
    p.ellipse(0.40, 0.60, 0.27, 0.14, lighten(c, 0.45))
    for x in (0.55, 0.68):
        p.ellipse(x, 0.50, 0.028, 0.17 - (x - 0.55) * 0.4, lighten(c, 0.55), flat=True)
    p.polygon([(0.44, 0.52), (0.60, 0.62), (0.44, 0.66)], darken(c, 0.2))
    p.ellipse(0.22, 0.43, 0.085, 0.085, (255, 255, 250))
    p.ellipse(0.20, 0.44, 0.048, 0.052, INK, flat=True)
    p.ellipse(0.185, 0.42, 0.017, 0.017, (255, 255, 255), flat=True)
    p.ellipse(0.20, 0.57, 0.045, 0.028, BLUSH, flat=True)
    p.stroke([(0.045, 0.54), (0.09, 0.565), (0.13, 0.56)], 0.020, INK, flat=True)


def _snail(p: Painter, c: Rgb) -> None:
    skin = (250, 214, 150)
    for x in (0.13, 0.27):
        p.stroke([(0.21, 0.60), (x, 0.33)], 0.045, skin)
        p.ellipse(x, 0.31, 0.045, 0.045, INK, flat=True)
        p.ellipse(x - 0.012, 0.298, 0.014, 0.014, (255, 255, 255), flat=True)
    p.box(0.08, 0.76, 0.96, 0.95, 0.095, skin)
    p.ellipse(0.21, 0.68, 0.14, 0.17, skin)
    p.ellipse(0.59, 0.52, 0.33, 0.35, c)
    spiral = [
        (0.60 + r * math.cos(a), 0.53 + r * math.sin(a))
        for a, r in zip(np.linspace(0, 4.3 * math.pi, 40), np.linspace(0.03, 0.29, 40), strict=True)
    ]
    p.stroke(spiral, 0.045, darken(c, 0.42), flat=True)
    p.stroke([(0.13, 0.70), (0.17, 0.735), (0.22, 0.72)], 0.020, INK, flat=True)
    p.ellipse(0.27, 0.70, 0.036, 0.024, BLUSH, flat=True)


def _mushroom(p: Painter, c: Rgb) -> None:
    p.box(0.32, 0.46, 0.68, 0.95, 0.14, CREAM)
    cap = [(0.5 + 0.45 * math.cos(a), 0.52 + 0.46 * math.sin(a)) for a in np.linspace(math.pi, 2 * math.pi, 30)]
    p.polygon([*cap, (0.93, 0.58), (0.80, 0.62), (0.5, 0.64), (0.20, 0.62), (0.07, 0.58)], c)
    for x, y, r in ((0.50, 0.22, 0.085), (0.25, 0.40, 0.07), (0.75, 0.40, 0.07), (0.50, 0.47, 0.055)):
        p.ellipse(x, y, r, r * 0.85, (255, 252, 240), flat=True)
    p.face(0.50, 0.75, 1.2)


def _cactus(p: Painter, c: Rgb) -> None:
    p.stroke([(0.36, 0.55), (0.14, 0.52), (0.14, 0.32)], 0.14, darken(c, 0.08))
    p.stroke([(0.64, 0.46), (0.86, 0.43), (0.86, 0.24)], 0.14, darken(c, 0.08))
    p.box(0.31, 0.08, 0.69, 0.80, 0.19, c)
    for x in (0.40, 0.60):
        p.stroke([(x, 0.20), (x, 0.30)], 0.018, lighten(c, 0.6), flat=True)
        p.stroke([(x, 0.58), (x, 0.66)], 0.018, lighten(c, 0.6), flat=True)
    for a in range(5):
        angle = a * math.tau / 5
        p.ellipse(
            0.5 + 0.065 * math.cos(angle),
            0.085 + 0.055 * math.sin(angle),
            0.045,
            0.045,
            (255, 120, 170),
            flat=True,
        )
    p.ellipse(0.5, 0.085, 0.035, 0.035, GOLD, flat=True)
    p.polygon([(0.27, 0.75), (0.73, 0.75), (0.67, 0.97), (0.33, 0.97)], (206, 112, 72))
    p.box(0.24, 0.71, 0.76, 0.80, 0.03, (222, 128, 84))
    p.face(0.50, 0.42, 1.2)


def _house(p: Painter, c: Rgb) -> None:
    p.box(0.66, 0.08, 0.78, 0.36, 0.02, (176, 96, 80))
    p.box(0.15, 0.42, 0.85, 0.95, 0.03, c)
    p.polygon([(0.02, 0.46), (0.50, 0.05), (0.98, 0.46)], darken(c, 0.38))
    p.polygon([(0.02, 0.46), (0.06, 0.425), (0.94, 0.425), (0.98, 0.46)], lighten(c, 0.5))
    p.box(0.41, 0.64, 0.59, 0.95, 0.08, (126, 76, 56))
    p.ellipse(0.55, 0.81, 0.016, 0.016, GOLD, flat=True)
    for x in (0.275, 0.725):
        p.box(x - 0.085, 0.54, x + 0.085, 0.72, 0.02, (255, 252, 240), flat=True)
        p.box(x - 0.065, 0.56, x + 0.065, 0.70, 0.01, (255, 222, 120), flat=True)
        p.stroke([(x, 0.56), (x, 0.70)], 0.016, (255, 252, 240), flat=True)
    p.ellipse(0.50, 0.29, 0.065, 0.065, (255, 222, 120), flat=True)


def _boat(p: Painter, c: Rgb) -> None:
    p.box(0.485, 0.06, 0.525, 0.75, 0.01, (128, 84, 60))
    p.polygon([(0.545, 0.10), (0.93, 0.62), (0.545, 0.66)], lighten(c, 0.15))
    p.polygon([(0.465, 0.16), (0.12, 0.62), (0.465, 0.66)], CREAM)
    p.polygon([(0.525, 0.03), (0.68, 0.075), (0.525, 0.12)], (255, 110, 104), flat=True)
    hull = [(0.04, 0.70), (0.96, 0.70), (0.90, 0.82), (0.80, 0.93), (0.22, 0.93), (0.10, 0.82)]
    p.polygon(hull, c)
    p.box(0.03, 0.68, 0.97, 0.745, 0.03, lighten(c, 0.45))
    p.face(0.50, 0.815, 1.0)


def _rocket(p: Painter, c: Rgb) -> None:
    p.polygon([(0.39, 0.82), (0.61, 0.82), (0.56, 0.92), (0.50, 1.00), (0.44, 0.92)], (255, 150, 50))
    p.polygon([(0.44, 0.82), (0.56, 0.82), (0.50, 0.94)], (255, 232, 120), flat=True)
    for side in (-1, 1):
        p.polygon(
            [
                (0.5 + side * 0.16, 0.52),
                (0.5 + side * 0.37, 0.74),
                (0.5 + side * 0.36, 0.90),
                (0.5 + side * 0.14, 0.78),
            ],
            darken(c, 0.35),
        )
    body = [(0.5 + 0.22 * math.sin(t * math.pi * 0.80 + 0.10), 0.02 + 0.80 * t) for t in np.linspace(0, 1, 24)]
    p.polygon([(0.50, 0.0), *body, *[(1.0 - x, y) for x, y in reversed(body)]], c)
    nose = [point for point in body if point[1] < 0.24]
    p.polygon([(0.50, 0.0), *nose, *[(1.0 - x, y) for x, y in reversed(nose)]], darken(c, 0.30))
    p.ellipse(0.50, 0.42, 0.155, 0.155, (255, 250, 236))
    p.ellipse(0.50, 0.42, 0.125, 0.125, (150, 216, 240), flat=True)
    p.face(0.50, 0.41, 0.85)
    p.box(0.35, 0.76, 0.65, 0.84, 0.03, (120, 116, 136))


def _balloon(p: Painter, c: Rgb) -> None:
    for x, end in ((0.30, 0.42), (0.70, 0.58)):
        p.stroke([(x, 0.58), (end, 0.82)], 0.014, (110, 84, 74), flat=True)
    skirt = [(0.36, 0.66), (0.64, 0.66), (0.58, 0.74), (0.42, 0.74)]
    p.polygon(skirt, darken(c, 0.3))
    p.ellipse(0.50, 0.38, 0.38, 0.37, c)
    p.ellipse(0.50, 0.38, 0.235, 0.368, lighten(c, 0.50))
    p.ellipse(0.50, 0.38, 0.105, 0.366, c)
    p.face(0.50, 0.40, 1.3)
    p.box(0.40, 0.81, 0.60, 0.97, 0.03, (176, 116, 66))
    p.box(0.385, 0.80, 0.615, 0.845, 0.02, (206, 150, 92))


def _teapot(p: Painter, c: Rgb) -> None:
    ring = [(0.80 + 0.135 * math.cos(a), 0.56 + 0.16 * math.sin(a)) for a in np.linspace(-math.pi / 2, math.pi / 2, 16)]
    p.stroke(ring, 0.065, darken(c, 0.15))
    p.polygon([(0.26, 0.52), (0.10, 0.36), (0.01, 0.33), (0.05, 0.46), (0.12, 0.60), (0.24, 0.76)], darken(c, 0.08))
    p.ellipse(0.50, 0.63, 0.36, 0.31, c)
    p.ellipse(0.50, 0.36, 0.23, 0.075, lighten(c, 0.35))
    p.ellipse(0.50, 0.345, 0.20, 0.075, c)
    p.ellipse(0.50, 0.245, 0.055, 0.055, GOLD)
    p.box(0.33, 0.91, 0.67, 0.96, 0.02, darken(c, 0.3))
    for x in (0.42, 0.58):
        p.stroke([(x, 0.17), (x + 0.02, 0.12), (x - 0.02, 0.07), (x, 0.02)], 0.020, (255, 255, 255), flat=True)
    p.face(0.50, 0.62, 1.5)


def _robot(p: Painter, c: Rgb) -> None:
    p.stroke([(0.50, 0.14), (0.50, 0.06)], 0.028, (120, 124, 142))
    p.ellipse(0.50, 0.05, 0.048, 0.048, (255, 84, 92))
    for side in (-1, 1):
        p.stroke(
            [(0.5 + side * 0.28, 0.66), (0.5 + side * 0.42, 0.74), (0.5 + side * 0.40, 0.86)],
            0.065,
            (150, 156, 174),
        )
        p.box(0.5 + side * 0.13 - 0.07, 0.86, 0.5 + side * 0.13 + 0.07, 0.97, 0.03, (120, 124, 142))
        p.box(0.5 + side * 0.37 - 0.04, 0.27, 0.5 + side * 0.37 + 0.04, 0.42, 0.03, (150, 156, 174))
    p.box(0.24, 0.56, 0.76, 0.89, 0.07, c)
    p.box(0.15, 0.13, 0.85, 0.56, 0.10, c)
    p.box(0.22, 0.20, 0.78, 0.49, 0.07, (44, 54, 84))
    for side in (-1, 1):
        p.ellipse(0.5 + side * 0.13, 0.32, 0.062, 0.062, (120, 246, 236), flat=True)
    p.stroke([(0.42, 0.415), (0.46, 0.435), (0.54, 0.435), (0.58, 0.415)], 0.022, (120, 246, 236), flat=True)
    p.box(0.37, 0.65, 0.63, 0.80, 0.03, (236, 236, 228), flat=True)
    for x, lamp in ((0.43, (255, 96, 96)), (0.50, GOLD), (0.57, (96, 214, 130))):
        p.ellipse(x, 0.725, 0.024, 0.024, lamp, flat=True)


DRAWINGS: dict[str, Callable[[Painter, Rgb], None]] = {
    "cat": _cat,
    "bunny": _bunny,
    "owl": _owl,
    "fish": _fish,
    "snail": _snail,
    "mushroom": _mushroom,
    "cactus": _cactus,
    "house": _house,
    "boat": _boat,
    "rocket": _rocket,
    "balloon": _balloon,
    "teapot": _teapot,
    "robot": _robot,
}
