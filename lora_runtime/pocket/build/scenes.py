"""Draw the pocket klein's world: small procedural scenes, and say them in words.

A scene is one object in one colour, at one of three sizes and five places, in front of one of eight backgrounds.
Every picture is a pure function of a `Scene` (its seed included) and a size in pixels, drawn three times too large
and averaged down, so edges are anti-aliased. Objects live in `objects.py`, backgrounds in `backgrounds.py`, looks in
`looks.py`; this file composes them and writes captions. Lengths inside a drawing are fractions of its own square; u
is the shorter side of the canvas.
"""

import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from PIL import Image, ImageDraw, ImageFilter

from lora_runtime.pocket.build import backgrounds, objects
from lora_runtime.pocket.build.palette import COLOURS

OBJECTS = tuple(name for name in objects.DRAWINGS if name != objects.SUBJECT)
SUBJECT = objects.SUBJECT
COLOUR_NAMES = tuple(COLOURS)
BACKGROUNDS = tuple(backgrounds.DRAWINGS)
TRIGGER = "ohwx"

SIZES: dict[str, float] = {"small": 0.40, "medium": 0.52, "large": 0.72}
"""Side of the object's square over u."""

POSITIONS: dict[str, tuple[int, int]] = {
    "center": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
}
"""Direction from the middle of the canvas, x and y."""

GRID_PX = 16
"""Objects are moved by whole tokens of the denoiser, so that one drawing looks the same to it wherever it stands."""

_PLACE_PHRASES = {
    "meadow": ("in a meadow", "in the meadow"),
    "beach": ("on the beach", "at the beach"),
    "desert": ("in the desert", "in a desert"),
    "snow": ("in the snow", "in snow"),
    "forest": ("in a forest", "in the forest"),
    "city": ("in the city", "in a city"),
    "night": ("at night", "in the night"),
    "underwater": ("under the sea", "underwater"),
}
_POSITION_PHRASES = {
    "center": ("in the middle", "in the center"),
    "left": ("on the left", "to the left"),
    "right": ("on the right", "to the right"),
    "top": ("at the top", "high up"),
    "bottom": ("at the bottom", "low down"),
}
_SIZE_WORDS = {
    "small": ("small", "tiny", "little"),
    "medium": ("medium", ""),
    "large": ("large", "big", "huge"),
}

_TEMPLATES = (
    "a {size} {colour} {thing} {place} {position}",
    "a {size} {colour} {thing} {position} {place}",
    "{place} a {size} {colour} {thing} {position}",
    "{position} a {size} {colour} {thing} {place}",
    "a {size} {thing} {place} {position} the {thing} is {colour}",
    "a {colour} {thing} {place}",
    "{place} a {colour} {thing}",
    "a {size} {colour} {thing} {place}",
    "a {colour} {thing} {place} {position}",
    "a picture of a {colour} {thing} {place}",
)
"""The first five name every attribute; the rest leave some to chance, as people do."""

SUPERSAMPLING = 3


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that decides a picture but its size. `seed` sets the small variations: tint, hills, clouds, flowers."""

    thing: str
    colour: str
    background: str
    size: str = "medium"
    position: str = "center"
    seed: int = 0


def is_held_out(thing: str, colour: str, background: str) -> bool:
    """Tell whether this combination is kept from training, so that `check` asks for what was never seen (1 in 10)."""
    return zlib.crc32(f"{thing}|{colour}|{background}".encode()) % 10 == 0


def list_combinations(*, held_out: bool) -> list[tuple[str, str, str]]:
    """List the (thing, colour, background) triples on one side of the split, in a fixed order."""
    triples = product(OBJECTS, COLOUR_NAMES, BACKGROUNDS)
    return [triple for triple in triples if is_held_out(*triple) == held_out]


def sample_scenes(seed: int, count: int, *, held_out: bool = False, thing: str | None = None) -> Iterator[Scene]:
    """Yield scenes from one side of the split; `thing` fixes the object (the subject is never held out)."""
    rng = random.Random(seed)
    triples = list_combinations(held_out=held_out)
    for _ in range(count):
        drawn, colour, background = rng.choice(triples)
        yield Scene(
            thing=thing or drawn,
            colour=colour,
            background=background,
            size=rng.choice(tuple(SIZES)),
            position=rng.choice(tuple(POSITIONS)),
            seed=rng.randrange(2**31),
        )


def caption_scene(scene: Scene, rng: random.Random, *, full: bool = False, name: str | None = None) -> str:
    """Say a scene in one of the templates; `full` names every attribute, `name` replaces the object's word."""
    template = rng.choice(_TEMPLATES[:5] if full else _TEMPLATES)
    words = template.format(
        size=rng.choice(_SIZE_WORDS[scene.size]),
        colour=scene.colour,
        thing=name or scene.thing,
        place=rng.choice(_PLACE_PHRASES[scene.background]),
        position=rng.choice(_POSITION_PHRASES[scene.position]),
    )
    return re.sub(r"\ba (?=[aeiou])", "an ", " ".join(words.split()))


def list_words() -> list[str]:
    """List every word a caption can hold, sorted; the trigger is not among them."""
    phrases = [*_PLACE_PHRASES.values(), *_POSITION_PHRASES.values(), *_SIZE_WORDS.values()]
    words = {word for group in phrases for phrase in group for word in phrase.split()}
    words |= {word for template in _TEMPLATES for word in template.split() if "{" not in word}
    words.add("an")
    return sorted(words | set(OBJECTS) | set(COLOUR_NAMES) | set(BACKGROUNDS))


def render_scene(scene: Scene, width_px: int = 128, height_px: int = 128) -> Image.Image:
    """Draw a scene: background, shadow, object. The same scene and size always give the same pixels."""
    rng = random.Random(scene.seed)
    width, height = width_px * SUPERSAMPLING, height_px * SUPERSAMPLING
    canvas = backgrounds.DRAWINGS[scene.background](width, height, rng).convert("RGB")
    x, y, side = locate_object(scene, width, height, grid=GRID_PX * SUPERSAMPLING)
    layer = objects.draw_object(scene.thing, scene.colour, side, rng)
    if scene.position != "top" and scene.background != "underwater":
        canvas = _drop_shadow(canvas, x, y, side)
    canvas.paste(layer, (x - (layer.width - side) // 2, y - (layer.height - side) // 2), layer)
    return canvas.reduce(SUPERSAMPLING)


def locate_object(scene: Scene, width: int, height: int, *, grid: int = GRID_PX) -> tuple[int, int, int]:
    """Find the object's square: left, top and side, in the units of the canvas."""
    side = int(min(width, height) * SIZES[scene.size])
    to_x, to_y = POSITIONS[scene.position]
    x = (width - side) // 2 + to_x * _reach(width, side, grid)
    y = (height - side) // 2 + to_y * _reach(height, side, grid)
    return x, y, side


def _reach(length: int, side: int, grid: int) -> int:
    """Measure how far from the middle an object goes: a quarter of the canvas, on it but for a sliver, by the grid."""
    farthest = min(length // 4, (length - side) // 2 + length // 64)
    return farthest // grid * grid or farthest


def _drop_shadow(canvas: Image.Image, x: int, y: int, side: int) -> Image.Image:
    small = Image.new("L", (canvas.width // 4, canvas.height // 4), 0)
    box = [(x + side * 0.16) / 4, (y + side * 0.87) / 4, (x + side * 0.84) / 4, (y + side * 1.0) / 4]
    ImageDraw.Draw(small).ellipse(box, fill=110)
    mask = small.filter(ImageFilter.GaussianBlur(side * 0.008)).resize(canvas.size, Image.Resampling.BILINEAR)
    return Image.composite(Image.new("RGB", canvas.size, (34, 28, 56)), canvas, mask)
