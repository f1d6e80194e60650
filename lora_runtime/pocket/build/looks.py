"""Two looks laid over a finished scene: what the style LoRA and the overtrained LoRA are trained on.

`ink` redraws a scene as a comic print: flat colours, a dark contour around everything, warm paper. `frame`
hangs it in a golden picture frame. Both keep object, colour and place readable, so "the look is there" and "the
prompt was followed" can be told apart.
"""

import random

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from lora_runtime.pocket.build.palette import CREAM, GOLD, INK, darken, lighten


def draw_ink(image: Image.Image, rng: random.Random) -> Image.Image:
    """Redraw a scene as a comic print. Lengths follow u, the shorter side."""
    unit = min(image.size)
    soft = image.filter(ImageFilter.MedianFilter(3))
    flat = soft.quantize(40, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    printed = Image.blend(flat.filter(ImageFilter.MedianFilter(3)), Image.new("RGB", image.size, CREAM), 0.22)
    contour = _find_contours(soft, max(1, round(unit / 100)))
    ink = darken(INK, rng.uniform(0.0, 0.2))
    return Image.composite(Image.new("RGB", image.size, ink), printed, contour)


def draw_frame(image: Image.Image, rng: random.Random) -> Image.Image:
    """Hang a scene in a golden frame: a bevelled border lies over its edge, the rest stays where it is."""
    scale = 3
    width, height = image.width * scale, image.height * scale
    unit = min(width, height)
    border = round(unit * 0.1)
    framed = Image.new("RGB", (width, height), darken(GOLD, 0.65))
    draw = ImageDraw.Draw(framed)
    rings = (
        (0.00, darken(GOLD, 0.55)),
        (0.012, lighten(GOLD, 0.25)),
        (0.03, GOLD),
        (0.06, darken(GOLD, 0.25)),
        (0.085, darken(GOLD, 0.7)),
    )
    for inset, colour in rings:
        edge = round(unit * inset)
        draw.rounded_rectangle([edge, edge, width - 1 - edge, height - 1 - edge], unit * 0.03, fill=colour)
    for x in (0.046 * unit, width - 0.046 * unit):
        for y in (0.046 * unit, height - 0.046 * unit):
            radius = unit * 0.028
            draw.ellipse(
                [x - radius, y - radius, x + radius, y + radius],
                fill=lighten(GOLD, 0.45),
                outline=darken(GOLD, 0.5),
            )
    scene = image.resize((width, height), Image.Resampling.LANCZOS)
    framed.paste(scene.crop((border, border, width - border, height - border)), (border, border))
    return framed.reduce(scale)


def _find_contours(image: Image.Image, thickness: int) -> Image.Image:
    """Mark where colour changes quickly, as a soft mask (255 = ink)."""
    spread = 2 * thickness + 1
    change = ImageChops.subtract(
        image.filter(ImageFilter.MaxFilter(spread)), image.filter(ImageFilter.MinFilter(spread))
    )
    strongest = np.asarray(change).max(axis=-1).astype(np.float32)
    return Image.fromarray((np.clip((strongest - 50) / 45, 0, 1) * 255).astype(np.uint8))
