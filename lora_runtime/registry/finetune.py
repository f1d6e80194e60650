"""One finetune: what is known of it, and what its fields may hold by the rules of BFL's Dashboard.

A rule returns the value as it is kept, or says in one sentence what to write instead; the page shows that at the field.
"""

import re
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from typing import Final, get_args

from lora_runtime.catalogue import ENDPOINTS, Endpoint, find_weights
from lora_runtime.errors import InvalidInput
from lora_runtime.lora.library import path_of
from lora_runtime.registry.accounts import OFFICIAL
from lora_runtime.values import LoraRef, Precision
from lora_runtime.written import quote, read_decimal

NAME_RULE: Final = "Lowercase letters, digits, hyphens, and underscores only"
"""The Dashboard's sentence."""

_NAME = re.compile(r"[a-z0-9_-]{1,64}")


RECOMMENDED: Final = (Decimal(0), Decimal(2))
"""What a program may ask the API for, 0 left out."""


class Source(StrEnum):
    """Whose a finetune is, seen from one organization; the Dashboard's words."""

    OWNED = "Owned"
    OFFICIAL = "Official"
    THIRD_PARTY = "Third party"


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """A finetune as one organization sees it.

    `id` is how that organization calls it. A precision of None is the base's own. `blob` is the key of its file, None
    for a bundled one. `recommended_strength` is what examples and the Playground begin with. Only the owner sees
    `granted_to`. Times are seconds since 1970; `deleted` is None until it was.
    """

    id: str
    owner: str
    name: str
    source: Source
    weights: str
    precision: Precision | None
    trigger_phrase: str | None
    lora: LoraRef
    size_bytes: int
    created: float
    updated: float
    blob: str | None
    recommended_strength: Decimal | None = None
    granted_to: tuple[str, ...] = ()
    deleted: float | None = None

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint that renders it."""
        return find_endpoint(self.weights, self.precision)

    @property
    def full_name(self) -> str:
        """What everybody but its owner calls it."""
        return f"{self.owner}/{self.name}"


def make_official(ref: LoraRef, weights: str) -> Finetune:
    """Return a bundled LoRA on one of the weights that it fits."""
    name = ref.name if weights == "pocket" else f"{ref.name}-base"
    shown = f"{OFFICIAL}/{name}"
    status = path_of(ref).stat()
    return Finetune(
        id=shown,
        owner=OFFICIAL,
        name=name,
        source=Source.OFFICIAL,
        weights=weights,
        precision=None,
        trigger_phrase=ref.trigger_phrase,
        lora=replace(ref, name=shown),
        size_bytes=status.st_size,
        created=status.st_mtime,
        updated=status.st_mtime,
        blob=None,
    )


def find_endpoint(weights: str, precision: Precision | None) -> Endpoint:
    """Return the `-finetuned` endpoint of `weights` at `precision`."""
    return next(
        record
        for record in ENDPOINTS.values()
        if record.finetuned and (record.weights, record.precision) == (weights, precision)
    )


def list_precisions(weights: str) -> tuple[Precision | None, ...]:
    """Return the precisions of the `-finetuned` endpoints of `weights`, the default first; None is the base's own."""
    return tuple(record.precision for record in ENDPOINTS.values() if record.finetuned and record.weights == weights)


def read_precision(text: str | None) -> Precision | None:
    """Return what a row says as one of the known words."""
    known: tuple[Precision, ...] = get_args(Precision)
    return next((precision for precision in known if precision == text), None)


def check_base(weights: str, precision: str | None) -> tuple[str, Precision | None]:
    """Return base and precision when there is an endpoint for them; the base may carry BFL's `flux-2-` in front.

    Raises:
        NotFound: There are no such weights.
        InvalidInput: They are not offered at this precision.
    """
    name = find_weights(weights.removeprefix("flux-2-")).name
    offered = list_precisions(name)
    if precision is None:
        return name, offered[0]
    wanted = precision.lower()
    for known in offered:
        if known == wanted:
            return name, known
    choices = " or ".join(known for known in offered if known)
    remedy = f"choose {choices}. BF16 is only for klein-9b-kv" if choices else "leave the precision out: it has its own"
    raise InvalidInput(f"Precision {quote(precision)} is not offered for {name}: {remedy}.")


def check_name(name: str) -> str:
    """Return `name` when a finetune can have it; the Dashboard's rule."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"Name: {quote(name)} is none. {NAME_RULE}, at most 64 of them.")
    if name == OFFICIAL:
        raise InvalidInput(f"Name: {OFFICIAL!r} is whose the bundled finetunes are. Choose another.")
    return name


def check_recommended(text: str) -> Decimal | None:
    """Return the recommended strength, None for an empty one."""
    if not text.strip():
        return None
    low, high = RECOMMENDED
    strength = read_decimal("Recommended strength", text, remedy="Write one such as 0.75.")
    if not low < strength <= high:
        raise InvalidInput(
            f"Recommended strength: {text.strip()} is not above {low} and at most {high}, which the API takes. "
            "Export the LoRA at its strength, and recommend 1."
        )
    return strength
