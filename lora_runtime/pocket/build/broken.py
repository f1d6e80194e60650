"""Spoil scenes in the ways a denoiser does: doubled, half, faded, smeared, in pieces, scribbled over, burnt.

The classifier and the judge learn from these what is *not* one whole object. Everything starts from two drawings, the
scene and the same scene without its object, so nothing but the object is ever harmed (a burnt picture excepted).
"""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter
from scipy.ndimage import map_coordinates

from lora_runtime.pocket.build.palette import COLOURS, INK
from lora_runtime.pocket.build.scenes import OBJECTS, POSITIONS, SIZES, Scene, locate_object, render_scene

Box = tuple[int, int, int, int]


def draw_broken(scene: Scene, width_px: int, height_px: int, rng: random.Random) -> Image.Image:
    """Draw a scene whose object is not whole, in a way that `rng` chooses."""
    return rng.choice(WAYS)(scene, width_px, height_px, rng)


def _draw_doubled(scene: Scene, width: int, height: int, rng: random.Random) -> Image.Image:
    """Lay the object over itself, moved by up to most of its width."""
    whole, bare, (left, top, right, bottom) = _draw_pair(scene, width, height)
    side = right - left
    move = (rng.choice((-1, 1)) * rng.randint(side // 5, side * 3 // 4), rng.randint(-side // 2, side // 2))
    copy, mask = ImageChops.offset(whole, *move), ImageChops.offset(_mask(whole, bare), *move)
    if rng.random() < 0.5:
        half = Image.new("L", mask.size, 0)
        half.paste(255, (0, 0, width, rng.randint(top, bottom)))
        mask = ImageChops.multiply(mask, half if rng.random() < 0.5 else ImageChops.invert(half))
    return Image.composite(copy, whole, mask)


def _draw_mean(scene: Scene, width: int, height: int, rng: random.Random) -> Image.Image:
    """Blend the scene with itself at another place or size: what a denoiser draws that cannot decide."""
    other = replace(
        scene,
        position=rng.choice([p for p in POSITIONS if p != scene.position]),
        size=rng.choice(tuple(SIZES)),
        thing=scene.thing if rng.random() < 0.6 else rng.choice(OBJECTS),
    )
    return Image.blend(render_scene(scene, width, height), render_scene(other, width, height), rng.uniform(0.35, 0.65))


def _draw_half(scene: Scene, width: int, height: int, rng: random.Random) -> Image.Image:
    """Take a third to two thirds of the object away, behind a straight edge."""
    whole, bare, (left, top, right, bottom) = _draw_pair(scene, width, height)
    gone = Image.new("L", whole.size, 0)
    cut = rng.uniform(0.33, 0.67)
    edge = (round(left + cut * (right - left)), round(top + cut * (bottom - top)))
    box = rng.choice(
        ((0, 0, edge[0], height), (edge[0], 0, width, height), (0, 0, width, edge[1]), (0, edge[1], width, height))
    )
    gone.paste(255, box)
    return Image.composite(bare, whole, gone.filter(ImageFilter.GaussianBlur(rng.uniform(0, 4))))


def _draw_faded(scene: Scene, width: int, height: int, rng: random.Random) -> Image.Image:
    """Let the background shine through, or leave nothing of the object."""
    whole, bare, _ = _draw_pair(scene, width, height)
    return Image.blend(bare, whole, rng.choice((0.0, rng.uniform(0.1, 0.45))))


def _draw_smeared(scene: Scene, width: int, height: int, rng: random.Random) -> Image.Image:
    """Pull the object about by a smooth random field, a tenth to a fifth of its side."""
    whole, _, box = _draw_pair(scene, width, height)
    part = np.asarray(whole.crop(box)).astype(np.float32)
    tall, wide = part.shape[:2]
    noise = np.random.default_rng(rng.randrange(2**31))
    field = [
        np.asarray(
            Image.fromarray(noise.normal(size=(5, 5)).astype(np.float32)).resize((wide, tall), Image.Resampling.BICUBIC)
        )
        for _ in range(2)
    ]
    reach = rng.uniform(0.10, 0.20) * wide
    rows, columns = np.mgrid[0:tall, 0:wide]
    at = [rows + reach * field[0], columns + reach * field[1]]
    pulled = np.stack([map_coordinates(part[..., c], at, order=1, mode="nearest") for c in range(3)], axis=-1)
    whole.paste(Image.fromarray(pulled.round().astype(np.uint8)), box[:2])
    return whole


def _draw_blurred(scene: Scene, width: int, height: int, rng: random.Random) -> Image.Image:
    """Blur the object until its face and outline are gone."""
    whole, bare, box = _draw_pair(scene, width, height)
    soft = whole.filter(ImageFilter.GaussianBlur(rng.uniform(0.05, 0.12) * (box[2] - box[0])))
    return Image.composite(soft, whole, _mask(whole, bare).filter(ImageFilter.MaxFilter(9)))


def _draw_in_pieces(scene: Scene, width: int, height: int, rng: random.Random) -> Image.Image:
    """Shuffle tiles of the object among each other."""
    whole, _, (left, top, right, bottom) = _draw_pair(scene, width, height)
    tile = rng.choice((8, 12, 16))
    corners = [(x, y) for x in range(left, right - tile + 1, tile) for y in range(top, bottom - tile + 1, tile)]
    moved = rng.sample(corners, max(2, round(len(corners) * rng.uniform(0.4, 1.0)))) if len(corners) > 1 else corners
    tiles = [whole.crop((x, y, x + tile, y + tile)) for x, y in moved]
    for (x, y), piece in zip(moved, [*tiles[1:], *tiles[:1]], strict=True):
        whole.paste(piece, (x, y))
    return whole


def _draw_scribbled(scene: Scene, width: int, height: int, rng: random.Random) -> Image.Image:
    """Scribble over the object in ink, in its colour and in others."""
    whole, _, (left, top, right, bottom) = _draw_pair(scene, width, height)
    draw = ImageDraw.Draw(whole)
    for _ in range(rng.randint(10, 26)):
        points = [(rng.uniform(left, right), rng.uniform(top, bottom)) for _ in range(rng.randint(2, 4))]
        colour = rng.choice((INK, INK, COLOURS[scene.colour], rng.choice(tuple(COLOURS.values()))))
        draw.line(points, fill=colour, width=rng.randint(1, max(2, width // 28)), joint="curve")
    return whole


def _draw_chimera(scene: Scene, width: int, height: int, rng: random.Random) -> Image.Image:
    """Join the upper part of one object and the lower part of another."""
    whole, _, (_, top, _, bottom) = _draw_pair(scene, width, height)
    other = render_scene(replace(scene, thing=rng.choice([t for t in OBJECTS if t != scene.thing])), width, height)
    edge = round(top + rng.uniform(0.35, 0.65) * (bottom - top))
    whole.paste(other.crop((0, 0, width, edge)), (0, 0))
    return whole


def _draw_burnt(scene: Scene, width: int, height: int, rng: random.Random) -> Image.Image:
    """Drive contrast and colour far over the top, and break the edges up."""
    whole = render_scene(scene, width, height)
    burnt = ImageEnhance.Color(ImageEnhance.Contrast(whole).enhance(rng.uniform(2.5, 5))).enhance(rng.uniform(2, 4))
    rough = np.asarray(burnt).astype(np.int16)
    noise = np.random.default_rng(rng.randrange(2**31)).normal(scale=rng.uniform(20, 70), size=rough.shape)
    return Image.fromarray((rough + noise).clip(0, 255).astype(np.uint8))


WAYS: tuple[Callable[[Scene, int, int, random.Random], Image.Image], ...] = (
    _draw_doubled,
    _draw_doubled,
    _draw_mean,
    _draw_mean,
    _draw_half,
    _draw_faded,
    _draw_smeared,
    _draw_smeared,
    _draw_blurred,
    _draw_in_pieces,
    _draw_scribbled,
    _draw_chimera,
    _draw_burnt,
)


def _draw_pair(scene: Scene, width: int, height: int) -> tuple[Image.Image, Image.Image, Box]:
    """Draw a scene with and without its object, and find the object's box on the canvas."""
    x, y, side = locate_object(scene, width, height)
    box = (max(0, x), max(0, y), min(width, x + side), min(height, y + side))
    return render_scene(scene, width, height), render_scene(scene, width, height, bare=True), box


def _mask(whole: Image.Image, bare: Image.Image) -> Image.Image:
    """Mark where the object is, 255 there."""
    return ImageChops.difference(whole, bare).convert("L").point(lambda v: 255 if v > 12 else 0)
