"""Every error a user can meet, as one tree.

A message says what is wrong, which item it is about and what to do:
"4 of 112 keys match klein 9B; they fit klein 4B. Choose klein-base-4b."
`http_status` is what the HTTP API answers. Foreign exceptions are translated once, where the library is called.

    KleinLabError
    ├── InvalidInput          422  a field is missing, malformed or out of range
    │   ├── InvalidStrengths  422  the strengths text cannot be read; knows the position
    │   └── WrongEndpoint     400  a finetune asked for on the endpoint of another base or precision
    ├── LoraError             422
    │   ├── LoraUnreadable         not a safetensors file, or a damaged one
    │   ├── LoraUnsupported        a real LoRA in a form that cannot be rendered faithfully
    │   ├── LoraNotFetched         it could not be downloaded: gated, too large, no network
    │   └── LoraMismatch           a LoRA for another base model
    ├── NotFound              404  no such run, LoRA, weights or cell
    ├── Conflict              409  the name is taken, or the thing changed meanwhile
    ├── Unavailable           503  the weights cannot run here: not installed, no GPU, too little memory
    ├── NotAuthorized         403  the key is missing, wrong, revoked, or may not do this
    ├── OutOfCredits          402  the organization that asks has no credits left
    ├── TooManyTasks          429  as many tasks are active as are allowed; knows when to try again
    ├── RenderFailed          500  the model failed on this one request
    │   ├── OutOfMemory       507
    │   ├── Moderated         422  the request or the image was flagged; knows the reasons
    │   └── RemoteFailed      502  the server that was asked failed, broke off or could not be reached
    ├── Cancelled             499  the caller stopped it
    └── StorageFailed         507  the disk is full or not writable
"""

from typing import ClassVar, Literal


class KleinLabError(Exception):
    """Root of the tree; `str(error)` is the whole sentence, remedy included."""

    http_status: ClassVar[int] = 500


class InvalidInput(KleinLabError):
    """A field of a request is missing, malformed or out of range; the message begins with its label and a colon."""

    http_status = 422

    @property
    def label(self) -> str:
        """The label of the field that is wrong, empty when it is about no single one."""
        label, colon, _ = str(self).partition(": ")
        return label if colon else ""


class InvalidStrengths(InvalidInput):
    """The strengths text cannot be read.

    `position` is the 0-based index of the first character that is wrong, `text` the whole input.
    """

    def __init__(self, message: str, *, text: str, position: int) -> None:
        super().__init__(message)
        self.text = text
        self.position = position

    @property
    def label(self) -> str:
        """The one field that takes strengths."""
        return "Strengths"


class WrongEndpoint(InvalidInput):
    """A finetune was asked for on the endpoint of another base or precision; the message names the right one."""

    http_status = 400


class LoraError(KleinLabError):
    """Something is wrong with a LoRA file."""

    http_status = 422


class LoraUnreadable(LoraError):
    """The file is not safetensors, or it is damaged."""


class LoraUnsupported(LoraError):
    """A real LoRA, in a form that cannot be rendered faithfully here."""


class LoraNotFetched(LoraError):
    """The LoRA could not be downloaded: it is gated, too large, or nobody answers."""


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


class NotAuthorized(KleinLabError):
    """The key is missing, wrong, revoked, or may not do this."""

    http_status = 403


class OutOfCredits(KleinLabError):
    """The organization that asks has no credits left."""

    http_status = 402


class TooManyTasks(KleinLabError):
    """As many tasks are active as are allowed, or requests come too fast.

    `retry_after_s` is how long the server asks to wait, when it says.
    """

    http_status = 429

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RenderFailed(KleinLabError):
    """The model failed on this one request."""


class OutOfMemory(RenderFailed):
    """The request does not fit into the device's memory, even alone."""

    http_status = 507


class Moderated(RenderFailed):
    """The request was flagged before it was rendered, or the image (`stage` is `content`) afterwards.

    `reasons` are the server's words, such as "Derivative Works Filter".
    """

    http_status = 422

    def __init__(self, message: str, *, stage: Literal["request", "content"], reasons: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.stage = stage
        self.reasons = reasons


class RemoteFailed(RenderFailed):
    """The server that was asked failed, broke off, answered nonsense or could not be reached."""

    http_status = 502


class Cancelled(KleinLabError):
    """The caller stopped the render."""

    http_status = 499


class StorageFailed(KleinLabError):
    """A file or row could not be written: the disk is full or not writable."""

    http_status = 507
