"""Every error a user can meet, as one tree.

A message says what is wrong, which item it is about and what to do:
"4 of 112 keys match klein 9B; they fit klein 4B. Choose klein-base-4b."
`http_status` is what the HTTP API answers. Foreign exceptions are translated once, where the library is called.

    KleinLabError
    ├── InvalidInput          422  a field is missing, malformed or out of range
    │   └── InvalidStrengths  422  the strengths text cannot be read; knows the position
    ├── LoraError             422
    │   ├── LoraUnreadable         not a safetensors file, or a damaged one
    │   ├── LoraUnsupported        a real LoRA in a form that cannot be rendered faithfully
    │   └── LoraMismatch           a LoRA for another base model
    ├── NotFound              404  no such run, LoRA, weights or cell
    ├── Conflict              409  the name is taken, or the thing changed meanwhile
    ├── Unavailable           503  the weights cannot run here: not installed, no GPU, too little memory
    ├── RenderFailed          500  the model failed on this one request
    │   └── OutOfMemory       507
    ├── Cancelled             499  the caller stopped it
    └── StorageFailed         507  the disk is full or not writable
"""

from typing import ClassVar


class KleinLabError(Exception):
    """Root of the tree; `str(error)` is the whole sentence, remedy included."""

    http_status: ClassVar[int] = 500


class InvalidInput(KleinLabError):
    """A field of a request is missing, malformed or out of range."""

    http_status = 422


class InvalidStrengths(InvalidInput):
    """The strengths text cannot be read.

    `position` is the 0-based index of the first character that is wrong, `text` the whole input.
    """

    def __init__(self, message: str, *, text: str, position: int) -> None:
        super().__init__(message)
        self.text = text
        self.position = position


class LoraError(KleinLabError):
    """Something is wrong with a LoRA file."""

    http_status = 422


class LoraUnreadable(LoraError):
    """The file is not safetensors, or it is damaged."""


class LoraUnsupported(LoraError):
    """A real LoRA, in a form that cannot be rendered faithfully here."""


class LoraMismatch(LoraError):
    """The LoRA was made for another base model."""


class NotFound(KleinLabError):
    """There is no such run, LoRA, weights or cell."""

    http_status = 404


class Conflict(KleinLabError):
    """The name is taken, or the thing changed meanwhile."""

    http_status = 409


class Unavailable(KleinLabError):
    """The weights cannot run here; the message says why and what would make them run."""

    http_status = 503


class RenderFailed(KleinLabError):
    """The model failed on this one request."""


class OutOfMemory(RenderFailed):
    """The request does not fit into the device's memory, even alone."""

    http_status = 507


class Cancelled(KleinLabError):
    """The caller stopped the render."""

    http_status = 499


class StorageFailed(KleinLabError):
    """A file or row could not be written: the disk is full or not writable."""

    http_status = 507
