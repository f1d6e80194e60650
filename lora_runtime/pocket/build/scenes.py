"""Draw the pocket klein's world: small procedural scenes, and say them in words.

A scene is one object in one colour, at one of three sizes and five positions, in front of one of eight places.
What a caption does not say is medium and in the middle; colour and place it leaves open. A small denoiser that is asked
for every size and position at once draws the mean of them all: owls with three eyes.
Every picture is a pure function of a `Scene` (its seed included) and a size in pixels, drawn three times too large
and averaged down, so edges are anti-aliased. Objects live in `objects.py`, backgrounds in `backgrounds.py`, looks in
`looks.py`; this file composes them and writes captions. Lengths inside a drawing are fractions of its own square; u
is the shorter side of the canvas.
"""

import random
import re
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import product

from PIL import Image, ImageDraw, ImageFilter

from lora_runtime.pocket.build import backgrounds, objects
from lora_runtime.pocket.build.palette import COLOURS
from lora_runtime.pocket.build.words import FORMS

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
    "medium": ("medium",),
    "large": ("large", "big", "huge"),
}

SUPERSAMPLING = 3


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that decides a picture but its size in pixels. `seed` sets what is small: tint, hills, clouds, flowers."""

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


def sample_scenes(
    seed: int, count: int, *, held_out: bool = False, thing: str | None = None, plain: bool = False
) -> Iterator[Scene]:
    """Yield scenes from one side of the split; half of them, with `plain` all, are medium and in the middle.

    `thing` fixes the object (the subject is never held out).
    """
    rng = random.Random(seed)
    triples = list_combinations(held_out=held_out)
    for _ in range(count):
        drawn, colour, background = rng.choice(triples)
        medium, middle = (plain or rng.random() < 0.7 for _ in range(2))
        yield Scene(
            thing=thing or drawn,
            colour=colour,
            background=background,
            size="medium" if medium else rng.choice(("small", "large")),
            position="center" if middle else rng.choice(("left", "right", "top", "bottom")),
            seed=rng.randrange(2**31),
        )


def choose_said(scene: Scene, rng: random.Random) -> frozenset[str]:
    """Choose what a caption says: colour and place at will; size and position where they are not the usual ones."""
    said = set()
    if rng.random() < 0.5:
        said |= {"colour", "background"}
    else:
        said |= {part for part in ("colour", "background") if rng.random() < 0.5}
    if scene.size != "medium" or rng.random() < 0.2:
        said.add("size")
    if scene.position != "center" or rng.random() < 0.2:
        said.add("position")
    return frozenset(said)


def caption_scene(scene: Scene, rng: random.Random, said: Collection[str], *, name: str | None = None) -> str:
    """Say a scene's object and the parts in `said`, in any order; `name` replaces the object's word, "" leaves it out.

    said: of "size", "colour", "background", "position".
    """
    thing = scene.thing if name is None else name
    colour = scene.colour if "colour" in said else ""
    size = rng.choice(_SIZE_WORDS[scene.size]) if "size" in said else ""
    place = rng.choice(_PLACE_PHRASES[scene.background]) if "background" in said else ""
    position = rng.choice(_POSITION_PHRASES[scene.position]) if "position" in said else ""
    article = rng.choice(("a", "a", "a", "the", ""))
    if colour and thing and rng.random() < 0.15:
        parts = [f"{article} {size} {thing}", place, position, f"the {thing} is {colour}"]
    else:
        parts = [f"{article} {size} {colour} {thing}", place, position]
        rng.shuffle(parts)
    words = rng.choice((" ", " ", ", ")).join(" ".join(part.split()) for part in parts if part.strip())
    return re.sub(r"\ba (?=[aeiou])", "an ", words)


def list_words() -> list[str]:
    """List every word the tokenizers keep apart, sorted; the trigger is not among them."""
    return sorted(FORMS)


def render_scene(scene: Scene, width_px: int = 128, height_px: int = 128, *, bare: bool = False) -> Image.Image:
    """Draw a scene: background, shadow, object; `bare` leaves the object out. Always the same pixels."""
    rng = random.Random(scene.seed)
    width, height = width_px * SUPERSAMPLING, height_px * SUPERSAMPLING
    canvas = backgrounds.DRAWINGS[scene.background](width, height, rng).convert("RGB")
    if not bare:
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
