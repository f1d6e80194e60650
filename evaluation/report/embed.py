"""Images as data URIs, re-encoded so that a report of many stays small enough to send.

All images share one budget; each gets the largest side whose file fits its share. Small images, such as
the pocket klein's, come out nearly as they were.
"""

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from PIL import Image

BUDGET_BYTES: Final = 10_000_000
"""For all images of a report; base64 makes a third more of it."""

LARGEST_BYTES: Final = 220_000
"""For one image, where there are few."""

SIDES: Final = (1024, 896, 768, 640, 512, 448, 384, 320, 256, 192, 128)
"""Longest sides in pixels that are tried, from best to smallest."""

QUALITY: Final = 82
"""Of WebP."""

BYTES_PER_PIXEL: Final = 0.16
"""What a detailed picture takes at that quality: where to begin, so that most are encoded once."""


def embed_images(paths: Iterable[Path], *, budget_bytes: int = BUDGET_BYTES) -> dict[Path, str]:
    """Return a data URI for each image; the same file is encoded once."""
    distinct = list(dict.fromkeys(paths))
    share = min(LARGEST_BYTES, budget_bytes // max(len(distinct), 1))
    return {path: _embed(path, share) for path in distinct}


def _embed(path: Path, share: int) -> str:
    with Image.open(path) as file:
        image = file.convert("RGB")
    data = b""
    for side in SIDES:
        if side**2 * BYTES_PER_PIXEL > share and side != SIDES[-1] and max(image.size) > side:
            continue
        data = _encode(image, side)
        if len(data) <= share:
            break
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def _encode(image: Image.Image, side: int) -> bytes:
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=QUALITY, method=3)
    return buffer.getvalue()
