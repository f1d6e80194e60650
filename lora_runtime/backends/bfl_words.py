"""The words of the BFL API that both sides speak: `bfl.py` as a client, `server/` as a server.

Source: api.bfl.ai/openapi.json (April 2026); the bounds of a strength from the FLUX.1 `-finetuned` inputs there.
"""

from enum import StrEnum
from typing import Final, Literal, TypeAlias, get_args

from lora_runtime.references import MAX_REFERENCES

OutputFormat: TypeAlias = Literal["jpeg", "png", "webp"]
OUTPUT_FORMATS: Final[tuple[OutputFormat, ...]] = get_args(OutputFormat)
DEFAULT_FORMAT: Final[OutputFormat] = "jpeg"

IMAGE_FIELDS: Final = ("input_image", *(f"input_image_{number}" for number in range(2, MAX_REFERENCES + 1)))
"""The fields of reference images, in their order."""

FINETUNE_ID: Final = "finetune_id"
FINETUNE_STRENGTH: Final = "finetune_strength"
MIN_STRENGTH: Final = 0
MAX_STRENGTH: Final = 2

REASONS: Final = "Moderation Reasons"
"""Where the details of a flagged task say why."""


class Status(StrEnum):
    """The documented statuses of a task, in BFL's spelling."""

    PENDING = "Pending"
    READY = "Ready"
    ERROR = "Error"
    REQUEST_MODERATED = "Request Moderated"
    CONTENT_MODERATED = "Content Moderated"
    NOT_FOUND = "Task not found"
