"""Reference images that were uploaded, kept as long as the runs that were made with them: uploads go after a day."""

import hashlib
from typing import Final

from lora_runtime.errors import InvalidInput
from lora_runtime.references import check_image, image_suffix
from lora_runtime.storage.blobs import Blobs
from lora_runtime.values import Reference

REFERENCE: Final = ".reference"
"""How the blob of a kept reference image goes on after its digest, before the ending of its format."""


def keep_reference(blobs: Blobs, reference: Reference) -> Reference:
    """Keep the file of a reference.

    Raises:
        InvalidInput: It has gone, or is no whole picture.
    """
    try:
        data = reference.path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"Image: {reference.path.name} has gone. Choose it again.") from error
    return keep_picture(blobs, data, reference.path.name)


def keep_picture(blobs: Blobs, data: bytes, name: str) -> Reference:
    """Keep the bytes of an image file, called `name` in messages.

    Raises:
        InvalidInput: They are no whole picture.
    """
    check_image(data, name)
    key = blobs.put(data, suffix=f"{REFERENCE}{image_suffix(data)}")
    return Reference(sha256=hashlib.sha256(data).hexdigest(), path=blobs.path(key))
