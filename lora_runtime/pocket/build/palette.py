"""The colours every drawing shares, and the arithmetic on them.

Ten object colours, far enough apart that a person and a small network both tell them from each other under light and
shade, and a few fixed accents (ink, cream, blush) that hold the pictures together. A colour is 8-bit RGB.
"""

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (222, 50, 54),
    "orange": (250, 140, 36),
    "yellow": (252, 214, 58),
    "green": (78, 172, 66),
    "teal": (38, 190, 182),
    "blue": (52, 96, 226),
    "purple": (134, 72, 200),
    "pink": (250, 138, 190),
    "brown": (134, 84, 52),
    "white": (248, 246, 240),
}

INK: Rgb = (46, 36, 58)
CREAM: Rgb = (255, 243, 220)
BLUSH: Rgb = (255, 128, 134)
GOLD: Rgb = (255, 206, 92)


def mix(first: Rgb, second: Rgb, share: float) -> Rgb:
    """Blend two colours; `share` in [0, 1] is how much of the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def lighten(colour: Rgb, share: float) -> Rgb:
    """Move towards a warm white."""
    return mix(colour, (255, 252, 244), share)


def darken(colour: Rgb, share: float) -> Rgb:
    """Move towards a deeper, slightly violet shade of the same hue; full shade keeps about half the light."""
    red, green, blue = colour
    return mix(colour, (round(red * 0.60), round(green * 0.48), round(blue * 0.60)), min(1.0, share * 1.25))
