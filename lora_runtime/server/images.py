"""Images on the wire: input images as base64, data URI or URL; results as jpeg, png or webp."""

import base64
import binascii
import io
import re
from typing import Final

from PIL import Image

from lora_runtime.errors import InvalidInput
from lora_runtime.png import encode_png, request_metadata
from lora_runtime.references import MAX_BYTES, check_image, measure_reference
from lora_runtime.registry.accounts import MEGAPIXEL
from lora_runtime.server.outbound import Outbound
from lora_runtime.server.tasks import REFERENCE_SUFFIX
from lora_runtime.storage.blobs import Blobs
from lora_runtime.values import Reference, RenderRequest

MAX_BILLED_PX: Final = 4 * MEGAPIXEL
"""Larger input images are shrunk to this, and cost no more. Source: BFL's image editing page."""

_QUALITY: Final = 95
_DATA_URI = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+=-]+)*;base64,", re.IGNORECASE)
_DIGEST_CHARACTERS: Final = 64


def read_input_image(text: str, field: str, outbound: Outbound) -> bytes:
    """Return the bytes of a whole PNG, JPEG or WebP file, within the limits of `references.py`.

    Raises:
        InvalidInput: It is none, or cannot be fetched.
    """
    if text.startswith(("http://", "https://")):
        data = outbound.fetch(text, max_bytes=MAX_BYTES, content_type="image/")
    else:
        data = decode_image(text)
    check_image(data, field)
    return data


def keep_reference(data: bytes, blobs: Blobs) -> Reference:
    """Keep a checked image until its task has ended."""
    key = blobs.put(data, suffix=REFERENCE_SUFFIX)
    return Reference(sha256=key[:_DIGEST_CHARACTERS], path=blobs.path(key))


def count_billed_px(reference: Reference) -> int:
    """The pixels of a reference that are paid for."""
    width, height = measure_reference(reference)
    return min(width * height, MAX_BILLED_PX)


def encode_result(image: Image.Image, output_format: str, request: RenderRequest) -> bytes:
    """Return `image` in `output_format`; a png carries what makes it again."""
    if output_format == "png":
        return encode_png(image, request_metadata(request))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format=output_format, quality=_QUALITY)
    return buffer.getvalue()


def decode_image(text: str) -> bytes:
    """Return the bytes that stand in a text as base64 or a data URI.

    Raises:
        InvalidInput: It is neither, or too long.
    """
    header = _DATA_URI.match(text)
    encoded = "".join((text[header.end() :] if header else text).split())
    if len(encoded) * 3 // 4 > MAX_BYTES + 2:
        raise InvalidInput(f"The image has more than {MAX_BYTES // 10**6} MB, which is the limit.")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("This is neither base64, nor a base64 data URI, nor an http or https URL.") from error
