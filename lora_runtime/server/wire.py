"""Bodies of the HTTP API, field for field as BFL's OpenAPI has them; unknown keys are ignored.

Source: `Flux2KleinInputs`, `AsyncResponse`, `ResultResponse` and their neighbours in api.bfl.ai/openapi.json (April
2026); `finetune_id` and `finetune_strength` from docs.bfl.ai/flux_2/flux2_lora_inference.
"""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from lora_runtime.backends.bfl_words import (
    DEFAULT_FORMAT,
    IMAGE_FIELDS,
    MAX_STRENGTH,
    MIN_STRENGTH,
    OutputFormat,
    Status,
)
from lora_runtime.errors import InvalidInput
from lora_runtime.references import MULTIPLE
from lora_runtime.requests import SEED_BITS, check_prompt, is_text
from lora_runtime.server.outbound import read_url

MIN_SIDE: Final = 64
MAX_SEED: Final = 2**63 - 1
MAX_SECRET: Final = 1024


class InvalidField(InvalidInput):
    """A field of a body does not fit; `field` is its name on the wire."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def _in_our_words(check: Callable[[str], object], kind: Literal["value_error", "url_parsing"]) -> AfterValidator:
    """Make one of our checks a validator: its sentence becomes the message of the field."""

    def validate(value: str) -> str:
        try:
            check(value)
        except InvalidInput as error:
            raise PydanticCustomError(kind, "{reason}", {"reason": str(error)}) from error
        return value

    return AfterValidator(validate)


def _check_side(side: int) -> int:
    if side and side < MIN_SIDE:
        raise PydanticCustomError("greater_than_equal", "Input should be greater than or equal to 64, or 0 for auto")
    return side


def _check_seed(seed: int) -> int:
    if not -1 <= seed <= MAX_SEED:
        kind: Literal["greater_than_equal", "less_than_equal"] = "less_than_equal" if seed > 0 else "greater_than_equal"
        raise PydanticCustomError(kind, f"Input should be from 0 to {MAX_SEED}, or -1 or null for a random one")
    return seed


def _check_secret(secret: str) -> None:
    if len(secret) > MAX_SECRET or not (secret.isascii() and secret.isprintable() and secret == secret.strip()):
        raise InvalidInput(
            f"It is sent as a header, which holds at most {MAX_SECRET} ASCII letters, digits, signs and inner spaces. "
            "Choose another."
        )


def _check_text(value: object) -> object:
    if isinstance(value, str) and not is_text(value):
        raise PydanticCustomError("string_unicode", "Input should be text: it holds a NUL or half a surrogate pair")
    return value


Text: TypeAlias = Annotated[str, BeforeValidator(_check_text)]
"""A text of a query."""

# The schema says what BFL's does, where 0 is the default although 64 is the minimum, and a seed has no bounds.
Pixels: TypeAlias = Annotated[
    int, AfterValidator(_check_side), WithJsonSchema({"type": "integer", "minimum": MIN_SIDE})
]
Seed: TypeAlias = Annotated[int, AfterValidator(_check_seed)]
Prompt: TypeAlias = Annotated[str, _in_our_words(check_prompt, "value_error")]
InputImage: TypeAlias = Annotated[str | None, Field(description="Base64, a data URI, or a URL.")]
WebhookUrl: TypeAlias = Annotated[
    str,
    Field(min_length=1, max_length=2083, json_schema_extra={"format": "uri"}),
    _in_our_words(read_url, "url_parsing"),
]
Secret: TypeAlias = Annotated[str, _in_our_words(_check_secret, "value_error")]


class Inputs(BaseModel):
    """A body. Whatever text it holds can be written down."""

    model_config = ConfigDict(extra="ignore")

    @field_validator("*", mode="before")
    @classmethod
    def _check_texts(cls, value: object) -> object:
        return _check_text(value)


class Flux2KleinInputs(Inputs):
    """What every klein endpoint takes."""

    prompt: Prompt = Field(description="Text prompt for image generation.", examples=["a red cat in the meadow"])
    input_image: InputImage = None
    input_image_2: InputImage = None
    input_image_3: InputImage = None
    input_image_4: InputImage = None
    seed: Seed | None = Field(
        default=None,
        description=f"null or -1 for a random one. {SEED_BITS} bits act, and the result names the seed that did.",
        examples=[42],
    )
    width: Pixels | None = Field(default=0, description="Pixels, rounded to a multiple of 16; 0 or null for auto.")
    height: Pixels | None = Field(default=0, description="Pixels, rounded to a multiple of 16; 0 or null for auto.")
    safety_tolerance: int = Field(default=2, ge=0, le=5, description="Accepted, and without effect: nothing moderates.")
    output_format: OutputFormat | None = DEFAULT_FORMAT
    webhook_url: WebhookUrl | None = Field(default=None, description="URL to receive webhook notifications")
    webhook_secret: Secret | None = Field(default=None, description="Sent as X-Webhook-Secret, and signs the body.")
    user: str | None = None

    @property
    def input_images(self) -> dict[str, str]:
        """The images that were given, by field, in order."""
        return {name: image for name in IMAGE_FIELDS if (image := getattr(self, name))}

    @property
    def strength(self) -> Decimal:
        """Without a finetune there is none."""
        return Decimal(0)


class Flux2KleinFinetunedInputs(Flux2KleinInputs):
    """What every klein `-finetuned` endpoint takes."""

    finetune_id: str = Field(
        min_length=1,
        max_length=200,
        description="Name of the LoRA to use. For LoRAs from other organizations, use 'org-id/lora-name'; "
        "an official one is also found by its name alone, unless you own one of that name.",
        examples=["official/style"],
    )
    finetune_strength: float = Field(
        default=1.0,
        ge=MIN_STRENGTH,
        le=MAX_STRENGTH,
        allow_inf_nan=False,
        description="0 is the base model, 1 the LoRA as it was trained.",
    )

    @property
    def strength(self) -> Decimal:
        """The strength with the digits that were written."""
        return Decimal(str(self.finetune_strength))


class AsyncResponse(BaseModel):
    """A task was accepted."""

    id: str
    polling_url: str
    cost: float | None = Field(default=None, description="Cost in credits for this request")
    input_mp: float | None = Field(default=None, description="Input megapixels (2 decimal places)")
    output_mp: float | None = Field(default=None, description="Output megapixels (2 decimal places)")


class AsyncWebhookResponse(BaseModel):
    """A task was accepted, and its end goes to the webhook."""

    id: str
    status: str
    webhook_url: str
    cost: float | None = Field(default=None, description="Cost in credits for this request")
    input_mp: float | None = Field(default=None, description="Input megapixels (2 decimal places)")
    output_mp: float | None = Field(default=None, description="Output megapixels (2 decimal places)")


class ImageResult(BaseModel):
    """A finished image. Times are seconds since 1970, `duration` seconds; `sample` is valid for 600 of them."""

    sample: str
    prompt: str
    seed: int
    start_time: float
    end_time: float
    duration: float


class ResultResponse(BaseModel):
    """How far a task is. All six keys are always there."""

    id: str = Field(description="Task id for retrieving result")
    status: Status
    result: ImageResult | None = None
    progress: float | None = None
    details: Mapping[str, object] | None = None
    preview: Mapping[str, object] | None = None


class CreditsResponse(BaseModel):
    """What is left."""

    credits: float = Field(description="User's current credit balance")


class MyFinetunesResponse(BaseModel):
    """What `finetune_id` may be."""

    finetunes: list[str]


class FinetuneDetailResponse(BaseModel):
    """What is known about a finetune."""

    finetune_details: Mapping[str, object]


class DeleteFinetuneInputs(Inputs):
    """Which finetune to delete."""

    finetune_id: str = Field(description="Name of the LoRA to delete.", examples=["my-finetune"])


class DeleteFinetuneResponse(BaseModel):
    """It was deleted."""

    status: str
    message: str
    deleted_finetune_id: str
    timestamp: str


def round_side(side: int) -> int:
    """The nearest multiple of 16 px; halves go up."""
    return (side + MULTIPLE // 2) // MULTIPLE * MULTIPLE
