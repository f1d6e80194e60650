"""Eight places, each a function of a canvas and a random generator.

All follow one plan: a vertical gradient for the sky, one light (sun, moon, glow), one or two soft bands of ground,
and a few small things that name the place. Colours are chosen so that the average alone nearly tells the place.
"""

import math
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from lora_runtime.pocket.build.palette import Rgb, darken, lighten, mix

Drawing = Callable[[int, int, random.Random], Image.Image]


def _gradient(width: int, height: int, *stops: Rgb) -> Image.Image:
    """Fill a canvas from top to bottom through equally spaced colours."""
    at = np.linspace(0.0, len(stops) - 1.0, height)
    column = np.stack([np.interp(at, range(len(stops)), [stop[c] for stop in stops]) for c in range(3)], axis=-1)
    return Image.fromarray(np.broadcast_to(column[:, None], (height, width, 3)).round().astype(np.uint8).copy())


def _hill(
    image: Image.Image, rng: random.Random, top: float, swing: float, colour: Rgb, *, waves: float = 1.2
) -> list[float]:
    """Draw one wavy band of ground from `top` (fraction of the height) down, shaded darker below; return its edge."""
    width, height = image.size
    phase = rng.uniform(0, math.tau)
    steps = 40
    edge = [
        (top + swing * math.sin(phase + waves * math.tau * i / steps)) * height * (1 + rng.uniform(-0.002, 0.002))
        for i in range(steps + 1)
    ]
    mask = Image.new("L", image.size, 0)
    points = [(width * i / steps, y) for i, y in enumerate(edge)]
    ImageDraw.Draw(mask).polygon([*points, (width, height), (0, height)], fill=255)
    first = int(max(0.0, min(edge)))
    band = _gradient(width, max(2, height - first), lighten(colour, 0.12), darken(colour, 0.14))
    image.paste(band, (0, first), mask.crop((0, first, width, height)))
    return edge


def _disc(image: Image.Image, x: float, y: float, radius: float, colour: Rgb, glow: float = 0.0) -> None:
    """Draw a light; `glow` > 0 adds a soft halo of that many radii."""
    if glow:
        size = int(2 * radius * (1 + glow))
        grid = np.hypot(*np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size)))
        halo = Image.fromarray((np.clip(1 - grid, 0, 1) ** 1.5 * 150).astype(np.uint8))
        image.paste(Image.new("RGB", halo.size, colour), (int(x - size / 2), int(y - size / 2)), halo)
    ImageDraw.Draw(image).ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def _cloud(image: Image.Image, x: float, y: float, size: float, colour: Rgb) -> None:
    draw = ImageDraw.Draw(image)
    for dx, dy, radius in ((-0.5, 0.06, 0.26), (0.0, -0.08, 0.38), (0.45, 0.05, 0.28)):
        cx, cy, r = x + dx * size, y + dy * size, radius * size
        draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=colour)
    draw.rounded_rectangle([x - 0.76 * size, y, x + 0.73 * size, y + 0.31 * size], radius=0.15 * size, fill=colour)


def _dots(
    image: Image.Image,
    rng: random.Random,
    count: int,
    radius: float,
    top: float,
    bottom: float,
    *colours: Rgb,
) -> None:
    draw = ImageDraw.Draw(image)
    width, height = image.size
    for _ in range(count):
        x, y = rng.uniform(0, width), rng.uniform(top, bottom) * height
        r = radius * rng.uniform(0.7, 1.3)
        draw.ellipse([x - r, y - r, x + r, y + r], fill=rng.choice(colours))


def _count(image: Image.Image, per_square: int) -> int:
    """Scale a number of small things with the canvas' aspect, so long canvases are not empty."""
    return round(per_square * max(image.size) / min(image.size))


def _meadow(width: int, height: int, rng: random.Random) -> Image.Image:
    image, u = _gradient(width, height, (150, 212, 250), (226, 244, 250)), min(width, height)
    _cloud(image, width * rng.uniform(0.15, 0.3), height * 0.14, u * 0.13, (255, 255, 255))
    _cloud(image, width * rng.uniform(0.7, 0.85), height * 0.22, u * 0.10, (250, 253, 255))
    _hill(image, rng, 0.52, 0.05, (160, 216, 112))
    _hill(image, rng, 0.66, 0.03, (126, 196, 84))
    _dots(image, rng, _count(image, 12), u * 0.014, 0.74, 0.97, (255, 255, 255), (255, 222, 90), (255, 160, 190))
    return image


def _beach(width: int, height: int, rng: random.Random) -> Image.Image:
    image, u = _gradient(width, height, (178, 230, 252), (240, 250, 248)), min(width, height)
    _disc(image, width * rng.uniform(0.78, 0.86), height * 0.15, u * 0.07, (255, 226, 110), 1.2)
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, height * 0.40, width, height], fill=(58, 186, 214))
    for band in (0.46, 0.53):
        offset = rng.uniform(0, 0.3)
        for k in range(-1, _count(image, 3) + 1):
            x = (k * 0.4 + offset) * u
            draw.rounded_rectangle(
                [x, height * band, x + u * 0.15, height * band + u * 0.012], u * 0.006, fill=(176, 232, 240)
            )
    _hill(image, rng, 0.615, 0.015, (250, 250, 244))
    _hill(image, rng, 0.635, 0.015, (246, 218, 158))
    _dots(image, rng, _count(image, 8), u * 0.010, 0.75, 0.97, (228, 190, 124), (255, 238, 200))
    return image


def _desert(width: int, height: int, rng: random.Random) -> Image.Image:
    image, u = _gradient(width, height, (255, 176, 108), (255, 226, 170)), min(width, height)
    _disc(image, width * rng.uniform(0.2, 0.3), height * 0.2, u * 0.10, (255, 246, 206), 0.9)
    _hill(image, rng, 0.50, 0.06, (226, 140, 82), waves=0.8)
    _hill(image, rng, 0.64, 0.05, (240, 166, 92), waves=0.7)
    _hill(image, rng, 0.84, 0.03, (218, 138, 74), waves=0.9)
    return image


def _snow(width: int, height: int, rng: random.Random) -> Image.Image:
    image, u = _gradient(width, height, (158, 184, 222), (214, 226, 242)), min(width, height)
    draw = ImageDraw.Draw(image)
    for x in (rng.uniform(0.06, 0.14), rng.uniform(0.86, 0.94)):
        for k in range(3):
            y, half = height * 0.34 + k * u * 0.08, u * (0.06 + 0.02 * k)
            draw.polygon(
                [
                    (x * width, y - u * 0.07),
                    (x * width - half, y + u * 0.08),
                    (x * width + half, y + u * 0.08),
                ],
                fill=(96, 140, 150),
            )
    _hill(image, rng, 0.56, 0.04, (230, 238, 248))
    _hill(image, rng, 0.72, 0.03, (246, 249, 254))
    _dots(image, rng, _count(image, 26), u * 0.011, 0.0, 0.95, (255, 255, 255))
    return image


def _forest(width: int, height: int, rng: random.Random) -> Image.Image:
    image, u = _gradient(width, height, (74, 130, 96), (128, 172, 112)), min(width, height)
    draw = ImageDraw.Draw(image)
    for row, (trunk, leaf) in enumerate((((70, 88, 66), (48, 108, 78)), ((92, 66, 50), (34, 84, 60)))):
        for k in range(_count(image, 4) + 1):
            x = (k + 0.5 * row + rng.uniform(-0.12, 0.12)) * u * 0.27
            base = height * (0.60 + 0.08 * row)
            draw.rectangle([x - u * 0.022, base - u * 0.3, x + u * 0.022, base + u * 0.06], fill=trunk)
            for level in range(3):
                y, half = base - u * (0.16 + 0.14 * level), u * (0.14 - 0.025 * level)
                draw.polygon(
                    [(x, y - u * 0.2), (x - half, y), (x + half, y)],
                    fill=mix(leaf, (120, 180, 110), 0.12 * level),
                )
    _hill(image, rng, 0.68, 0.025, (66, 112, 62))
    _dots(image, rng, _count(image, 7), u * 0.014, 0.78, 0.97, (214, 92, 74), (236, 214, 150), (98, 146, 78))
    return image


def _city(width: int, height: int, rng: random.Random) -> Image.Image:
    image, u = _gradient(width, height, (150, 130, 206), (250, 186, 190)), min(width, height)
    draw = ImageDraw.Draw(image)
    for row, colour in enumerate(((146, 124, 190), (94, 82, 146))):
        x = -u * rng.uniform(0.0, 0.1)
        while x < width:
            wide, tall = u * rng.uniform(0.13, 0.2), u * rng.uniform(0.25, 0.5) * (1 - 0.25 * row)
            top = height * 0.76 - tall
            draw.rectangle([x, top, x + wide, height * 0.8], fill=colour)
            if row:
                for wx in (0.28, 0.66):
                    for wy in range(int(tall / (u * 0.09))):
                        left, up = x + wx * wide - u * 0.016, top + u * (0.04 + 0.09 * wy)
                        if rng.random() < 0.7:
                            draw.rectangle([left, up, left + u * 0.034, up + u * 0.038], fill=(255, 220, 130))
            x += wide + u * 0.015
    draw.rectangle([0, height * 0.76, width, height], fill=(122, 118, 140))
    draw.rectangle([0, height * 0.76, width, height * 0.79], fill=(176, 170, 188))
    for k in range(_count(image, 4)):
        draw.rectangle(
            [u * (0.04 + 0.27 * k), height * 0.885, u * (0.18 + 0.27 * k), height * 0.905],
            fill=(244, 236, 214),
        )
    return image


def _night(width: int, height: int, rng: random.Random) -> Image.Image:
    image, u = _gradient(width, height, (20, 24, 66), (62, 66, 132)), min(width, height)
    _dots(image, rng, _count(image, 26), u * 0.008, 0.0, 0.62, (255, 248, 214), (206, 214, 255))
    x, y = width * rng.uniform(0.76, 0.86), height * 0.17
    _disc(image, x, y, u * 0.09, (255, 244, 196), 0.8)
    _disc(image, x + u * 0.04, y - u * 0.02, u * 0.075, (34, 38, 84))
    _hill(image, rng, 0.66, 0.04, (44, 50, 96))
    _hill(image, rng, 0.78, 0.025, (32, 36, 74))
    return image


def _underwater(width: int, height: int, rng: random.Random) -> Image.Image:
    image, u = _gradient(width, height, (70, 200, 226), (20, 110, 178), (12, 66, 130)), min(width, height)
    draw = ImageDraw.Draw(image)
    for k in range(_count(image, 4)):
        x = (0.08 + 0.28 * k + rng.uniform(-0.05, 0.05)) * u
        base, tall = height * 0.95, u * rng.uniform(0.16, 0.3)
        sway = rng.uniform(0, math.tau)
        points = [(x + u * 0.02 * math.sin(sway + 5 * t / 12), base - tall * t / 12) for t in range(13)]
        draw.line(points, fill=(46, 160, 116), width=max(2, int(u * 0.028)), joint="curve")
    _hill(image, rng, 0.88, 0.02, (196, 186, 148))
    for _ in range(_count(image, 9)):
        x, y, r = rng.uniform(0, width), rng.uniform(0.03, 0.8) * height, u * rng.uniform(0.012, 0.026)
        draw.ellipse([x - r, y - r, x + r, y + r], outline=(200, 240, 250), width=max(2, int(u * 0.007)))
    return image


DRAWINGS: dict[str, Drawing] = {
    "meadow": _meadow,
    "beach": _beach,
    "desert": _desert,
    "snow": _snow,
    "forest": _forest,
    "city": _city,
    "night": _night,
    "underwater": _underwater,
}
