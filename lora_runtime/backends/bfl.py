"""The BFL API in our words: what a request becomes on the wire, and what its answers mean.

Nothing here touches the network; `remote.py` does. Every answer is checked before it is believed, and what the other
side says in words is shortened and made printable before it becomes part of an error.

Source: api.bfl.ai/openapi.json (April 2026) and docs.bfl.ai; statuses and bodies beyond them as observed in use.
"""

import base64
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Final

from PIL import Image
from pydantic import BaseModel, JsonValue, ValidationError

from lora_runtime.backends.bfl_words import (
    FINETUNE_ID,
    FINETUNE_STRENGTH,
    IMAGE_FIELDS,
    MAX_STRENGTH,
    MIN_STRENGTH,
    REASONS,
    Status,
)
from lora_runtime.catalogue import Endpoint, choose_endpoint, find_weights
from lora_runtime.errors import (
    InvalidInput,
    KleinLabError,
    Moderated,
    NotAuthorized,
    NotFound,
    OutOfCredits,
    RemoteFailed,
    TooManyTasks,
    Unavailable,
)
from lora_runtime.references import FORMATS, MAX_REFERENCES
from lora_runtime.values import RenderRequest

REGIONS: Final[Mapping[str, str]] = MappingProxyType(
    {"global": "https://api.bfl.ai", "eu": "https://api.eu.bfl.ai", "us": "https://api.us.bfl.ai"}
)
"""The BFL API by region. Source: docs.bfl.ai/api_integration/integration_guidelines"""

LONGEST_WORDS: Final = 400
"""Characters of the other side's own words that an error repeats."""


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """The API took a request. `cost` is in credits, the sizes are megapixels."""

    task_id: str
    polling_url: str
    cost: float | None
    input_mp: float | None
    output_mp: float | None


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """The task is under way; `progress` is 0 to 1 where the API says."""

    status: str
    progress: float | None


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The image is at `sample`, for ten minutes. `seconds` is how long it took there."""

    sample: str
    prompt: str | None
    seed: int | None
    seconds: float | None
    cost: float | None


class Malformed(RemoteFailed):
    """An answer cannot be read; the next one may be."""


class _Submit(BaseModel):
    id: str
    polling_url: str
    cost: JsonValue = None
    input_mp: JsonValue = None
    output_mp: JsonValue = None


class _Poll(BaseModel):
    id: str
    status: str
    result: JsonValue = None
    progress: JsonValue = None
    details: JsonValue = None
    cost: JsonValue = None


class _Result(BaseModel):
    sample: str
    prompt: JsonValue = None
    seed: JsonValue = None
    duration: JsonValue = None


def find_endpoint(request: RenderRequest) -> Endpoint:
    """Return where `request` is sent: with a LoRA to a `-finetuned` endpoint, at strength 0 too.

    Raises:
        Unavailable: The API has no such endpoint.
    """
    finetuned = request.lora is not None
    endpoint = choose_endpoint(request.weights, request.precision, finetuned=finetuned)
    if endpoint is not None:
        return endpoint
    what = "with" if finetuned else "without"
    raise Unavailable(
        f"The BFL API does not render {request.weights} in {request.precision} {what} a LoRA. "
        "Choose other weights or another precision, or render on this machine."
    )


def list_fields(request: RenderRequest, finetune_id: str | None) -> dict[str, str | int | float]:
    """Return the body that asks for `request`, but for its reference images.

    Raises:
        InvalidInput: The API cannot render what is asked for, so it would render something else.
    """
    weights = find_weights(request.weights)
    if (request.steps, request.guidance) != (weights.steps, weights.guidance):
        raise InvalidInput(
            f"Steps and guidance: the BFL API renders {weights.name} in {weights.steps} steps with guidance "
            f"{weights.guidance:g} only, not in {request.steps} with {request.guidance:g}. Leave them at the default."
        )
    if len(request.references) > MAX_REFERENCES:
        raise InvalidInput(f"Reference images: {len(request.references)} are too many; use at most {MAX_REFERENCES}.")
    fields: dict[str, str | int | float] = {
        "prompt": request.prompt,
        "seed": request.seed,
        "width": request.width,
        "height": request.height,
        "output_format": "png",
    }
    if finetune_id is not None:
        if not MIN_STRENGTH <= request.strength <= MAX_STRENGTH:
            raise InvalidInput(
                f"Strength: {request.strength} is not from {MIN_STRENGTH} to {MAX_STRENGTH}, as the BFL API needs it."
            )
        fields |= {FINETUNE_ID: finetune_id, FINETUNE_STRENGTH: float(request.strength)}
    return fields


def make_body(request: RenderRequest, finetune_id: str | None) -> bytes:
    """Return the JSON that asks for `request`; reads its reference images from disk.

    Raises:
        InvalidInput: As `list_fields`.
        NotFound: A reference image has gone.
    """
    body = list_fields(request, finetune_id)
    for number, (key, reference) in enumerate(zip(IMAGE_FIELDS, request.references, strict=False), start=1):
        try:
            body[key] = base64.b64encode(reference.path.read_bytes()).decode()
        except OSError as error:
            raise NotFound(f"Reference image {number} cannot be read: {error}. Choose it again.") from error
    return json.dumps(body).encode()


def read_submitted(body: bytes) -> Submitted:
    """Read the answer to a request that was taken.

    Raises:
        Malformed: It does not say where to ask for the result.
    """
    try:
        said = _Submit.model_validate_json(body)
    except ValidationError as error:
        raise Malformed(
            f"The answer to the request has no id and polling_url: {read_words(body)}. "
            "The task may exist and be billed all the same."
        ) from error
    return Submitted(
        task_id=plain(said.id),
        polling_url=said.polling_url,
        cost=_number(said.cost),
        input_mp=_number(said.input_mp),
        output_mp=_number(said.output_mp),
    )


def read_poll(status: int, body: bytes) -> Waiting | Ready:
    """Read what the API says of a task, whatever the HTTP status.

    Raises:
        Moderated: The request or the image was flagged.
        Malformed: The answer cannot be read.
        RemoteFailed: The task ended without an image, or is not known.
    """
    if status == 202:
        return Waiting(status=Status.PENDING, progress=None)
    try:
        said = _Poll.model_validate_json(body)
    except ValidationError as error:
        raise Malformed(f"The answer about the task cannot be read: {read_words(body)}.") from error
    task, reasons = plain(said.id), _reasons(said.details)
    because = f": {', '.join(reasons)}" if reasons else " (no reason was given)"
    match said.status:
        case Status.READY:
            return _read_ready(said, body)
        case Status.REQUEST_MODERATED:
            raise Moderated(
                f"The request was flagged before it was rendered{because}. Change the prompt or the reference images.",
                stage="request",
                reasons=reasons,
            )
        case Status.CONTENT_MODERATED:
            raise Moderated(
                f"The image was flagged after it was rendered{because}. Change the prompt or the seed.",
                stage="content",
                reasons=reasons,
            )
        case Status.ERROR | "Failed":
            raise RemoteFailed(f"Task {task} failed there: {read_words(body)}.")
        case Status.NOT_FOUND:
            raise RemoteFailed(f"Task {task} is not known there: it expired or was lost. Render it again.")
    # Pending, Reasoning, Generating, and whatever else they may call it one day.
    progress = _number(said.progress)
    return Waiting(status=plain(said.status), progress=None if progress is None else min(max(progress, 0.0), 1.0))


def read_finetunes(body: bytes) -> list[str]:
    """Return the ids that `my_finetunes` lists; items that are no plain ids are left out."""
    said = _json(body)
    found = said.get("finetunes") if isinstance(said, dict) else None
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


def read_details(body: bytes) -> tuple[str, str] | None:
    """Return the digest of a finetune's file and the name of its endpoint, where `finetune_details` says them.

    A server of this lab does; BFL's does not.
    """
    said = _json(body)
    details = said.get("finetune_details") if isinstance(said, dict) else None
    if not isinstance(details, dict):
        return None
    sha256, endpoint = details.get("sha256"), details.get("endpoint")
    return (sha256, endpoint) if isinstance(sha256, str) and isinstance(endpoint, str) else None


def read_error(status: int, body: bytes, *, retry_after: str | None = None, where: str) -> KleinLabError:
    """Return the error that an answer other than 200 is. `where` is the server, for the message."""
    words = read_words(body)
    said = f"{where} says {status}: {words}."
    match status:
        case 400 | 409 | 413 | 422:
            return InvalidInput(f"{where} refuses the request ({status}): {words}.")
        case 401 | 403:
            return NotAuthorized(f"{said} Check the API key (BFL_API_KEY) and what it may do.")
        case 402:
            return OutOfCredits(f"{said} Add credits, or render on this machine.")
        case 404:
            return NotFound(said)
        case 429:
            return TooManyTasks(
                f"{said} Too many tasks are active there. Wait until some have ended.",
                retry_after_s=read_retry_after(retry_after, body),
            )
    if 300 <= status < 400:
        return RemoteFailed(f"{where} answers with a redirect ({status}), which is not followed. Check the base URL.")
    return RemoteFailed(said)


def read_retry_after(header: str | None, body: bytes = b"") -> float | None:
    """Return the seconds that an answer asks to wait: the header (seconds or a date), or the body's `retry_after`."""
    text = (header or "").strip()
    if re.fullmatch(r"\d{1,6}(\.\d+)?", text):
        return float(text)
    if text:
        try:
            until = parsedate_to_datetime(text)
        except ValueError:
            return None
        until = until if until.tzinfo else until.replace(tzinfo=UTC)
        return max((until - datetime.now(UTC)).total_seconds(), 0.0)
    said = _json(body)
    seconds = _number(said.get("retry_after")) if isinstance(said, dict) else None
    return max(seconds, 0.0) if seconds is not None else None


def read_image(data: bytes, request: RenderRequest) -> Image.Image:
    """Return the picture, which must have the size that was asked for.

    Raises:
        RemoteFailed: It is no PNG, JPEG or WebP image, damaged, or has another size.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.size != (request.width, request.height):
                raise RemoteFailed(
                    f"The image is {image.width} x {image.height} px, but {request.width} x {request.height} px were "
                    "asked for."
                )
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RemoteFailed(f"What was delivered is no image ({len(data)} bytes): {plain(str(error))}.") from error


def read_words(body: bytes) -> str:
    """Return what an answer says in words: `detail` (a string or FastAPI's list), `details`, `error`, `message`."""
    said = _json(body)
    if isinstance(said, dict):
        parts = [_say(said[key]) for key in ("detail", "details", "error", "message") if said.get(key)]
        text = "; ".join(dict.fromkeys(part for part in parts if part))
    else:
        text = ""
    return plain(text or body[: 4 * LONGEST_WORDS].decode(errors="replace") or "nothing").rstrip(".")


def plain(text: str) -> str:
    """Return text of the other side in one printable line of bounded length."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if len(line) <= LONGEST_WORDS else f"{line[: LONGEST_WORDS - 1]}…"


def _read_ready(said: _Poll, body: bytes) -> Ready:
    try:
        result = _Result.model_validate(said.result)
    except ValidationError as error:
        raise Malformed(f"The task is Ready, but its result has no sample: {read_words(body)}.") from error
    return Ready(
        sample=result.sample,
        prompt=result.prompt if isinstance(result.prompt, str) else None,
        seed=result.seed if isinstance(result.seed, int) else None,
        seconds=_number(result.duration),
        cost=_number(said.cost),
    )


def _reasons(details: JsonValue) -> tuple[str, ...]:
    """The words under `REASONS`."""
    found = details.get(REASONS) if isinstance(details, dict) else None
    return tuple(plain(reason) for reason in found if isinstance(reason, str)) if isinstance(found, list) else ()


def _say(value: JsonValue) -> str:
    """FastAPI's list of faults, or any other JSON, as words."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(item, dict) and "msg" in item for item in value):
        return "; ".join(_say_fault(item) for item in value if isinstance(item, dict))
    if isinstance(value, dict) and len(value) == 1:
        return _say(next(iter(value.values())))
    return json.dumps(value, ensure_ascii=False)


def _say_fault(fault: dict[str, JsonValue]) -> str:
    place = fault.get("loc")
    names = [str(name) for name in place if name != "body"] if isinstance(place, list) else []
    return f"{'.'.join(names)}: {fault['msg']}" if names else str(fault["msg"])


def _json(body: bytes) -> JsonValue:
    try:
        said: JsonValue = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return said


def _number(value: JsonValue) -> float | None:
    """A finite number, or None; True is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = float(value)
    return number if number - number == 0 else None
