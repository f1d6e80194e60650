"""Reference images: what a file must be, and how it is cut to the model's grid.

The limits are the BFL API's: PNG, JPEG or WebP, at most 20 MB and 20 megapixels. The model reads at most one megapixel
of a reference (the pocket: its largest picture); a larger one is shrunk, then cropped from the middle to multiples of
16 px, exactly as `Flux2KleinPipeline` does.
Source: docs.bfl.ai/flux_2/flux2_image_editing; diffusers/pipelines/flux2/image_processor.py.
"""

import hashlib
import io
import math
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps, UnidentifiedImageError

from lora_runtime.catalogue import Weights
from lora_runtime.errors import InvalidInput
from lora_runtime.values import Reference

MAX_REFERENCES: Final = 4
MAX_BYTES: Final = 20_000_000
MAX_PIXELS: Final = 20_000_000
MIN_SIDE_PX: Final = 64
MAX_ASPECT: Final = 8
FORMATS: Final = ("PNG", "JPEG", "WEBP")
MODEL_AREA_PX: Final = 1024 * 1024
MULTIPLE: Final = 16
_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 mean width and height are swapped


def read_reference(path: Path) -> Reference:
    """Check an image file and hash it.

    Raises:
        InvalidInput: It is no image, of another format, damaged, too large, too small or too narrow.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidInput(f"Image: {path.name} has more than {MAX_BYTES // 10**6} MB. Save it smaller.")
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"Image: {path} cannot be read: {error.strerror or error}.") from error
    check_image(data, path.name)
    return Reference(sha256=hashlib.sha256(data).hexdigest(), path=path)


def check_image(data: bytes, name: str) -> None:
    """Check the bytes of an image file, called `name` in messages, down to the last pixel.

    Raises:
        InvalidInput: As `read_reference`.
    """
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"Image: {name} has more than {MAX_BYTES // 10**6} MB. Save it smaller.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InvalidInput(
                    f"Image: {name} has {width} x {height} px; at most {MAX_PIXELS // 10**6} megapixels are allowed."
                )
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidInput(f"Image: {name} is no whole {', '.join(FORMATS)} file. Save it again as PNG.") from error
    if min(width, height) < MIN_SIDE_PX:
        raise InvalidInput(f"Image: {name} has {width} x {height} px; each side needs {MIN_SIDE_PX} px at least.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InvalidInput(
            f"Image: {name} has {width} x {height} px; no side may be over {MAX_ASPECT} times the other. Crop it."
        )


def image_suffix(data: bytes) -> str:
    """Return how the name of a checked image file should end, whatever it was called."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return f".{(image.format or FORMATS[0]).lower()}"


def measure_reference(reference: Reference) -> tuple[int, int]:
    """Return the width and height of a reference in pixels, the right way up. Reads the header only."""
    with Image.open(reference.path, formats=FORMATS) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(_ORIENTATION, 1) >= 5 else (width, height)


def fit_reference(size: tuple[int, int], weights: Weights) -> tuple[int, int]:
    """Return what the model reads of a reference of `size`: within its area and aspect, in multiples of 16 px."""
    width, height = (side // MULTIPLE * MULTIPLE for side in shrink_size(size, weights))
    return min(width, MAX_ASPECT * height), min(height, MAX_ASPECT * width)


def shrink_size(size: tuple[int, int], weights: Weights) -> tuple[int, int]:
    """Return the size at which the model reads a picture of `size`, before it is cropped."""
    width, height = size
    area = min(MODEL_AREA_PX, weights.sizes[1] ** 2)
    if width * height <= area:
        return size
    scale = math.sqrt(area / (width * height))
    return int(width * scale), int(height * scale)


def load_reference(reference: Reference, weights: Weights) -> Image.Image:
    """Return the pixels that the model reads: RGB, the right way up, shrunk and cropped.

    Raises:
        InvalidInput: The file has gone or changed since it was checked.
    """
    try:
        data = reference.path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"Image: {reference.path} has gone. Choose it again.") from error
    if hashlib.sha256(data).hexdigest() != reference.sha256:
        raise InvalidInput(f"Image: {reference.path} changed after it was chosen. Choose it again.")
    with Image.open(io.BytesIO(data), formats=FORMATS) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    shrunk = shrink_size(image.size, weights)
    if shrunk != image.size:
        image = image.resize(shrunk, Image.Resampling.LANCZOS)
    width, height = fit_reference(image.size, weights)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
