"""From what a person asked for to a `RenderRequest`: checked field by field, the rest filled in.

Playground, sweep, HTTP API and command line all come through here, so a field has one rule and one error everywhere.
Sizes, steps and guidance default to the catalogue's, precision and digest to what the backend says it can run.
"""

import math
import secrets
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from lora_runtime.backends.base import Backend, require_available
from lora_runtime.catalogue import Weights, find_weights
from lora_runtime.errors import InvalidInput, Unavailable
from lora_runtime.lora.check import require_fit
from lora_runtime.lora.library import is_elsewhere, refer_to, report_of
from lora_runtime.references import MAX_REFERENCES, MULTIPLE, measure_reference
from lora_runtime.registry.local import fetch_lora
from lora_runtime.settings import settings
from lora_runtime.strength import check_strength
from lora_runtime.values import LoraRef, ModelStatus, Precision, Reference, RenderRequest

MAX_PROMPT: Final = 10_000
SEED_BITS: Final = 32
"""What a CPU generator of torch takes of a seed: the latents of 2^32 + 7 are those of 7."""
LAST_SEED: Final = 2**SEED_BITS - 1
MAX_STEPS: Final = 100
GUIDANCE: Final = (1.0, 20.0)


def make_request(
    status: ModelStatus,
    *,
    prompt: str,
    lora: str | LoraRef | None = None,
    strength: Decimal = Decimal(1),
    seed: int | None = None,
    width: int | None = None,
    height: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    references: Sequence[Reference] = (),
) -> RenderRequest:
    """Check what was asked for of what can run (`find_status`) and fill in the rest.

    A seed of None or -1 becomes a random one. Without a width and height the picture takes the first reference's size,
    or the weights' default.

    Raises:
        InvalidInput: One field is missing, malformed or out of range.
        NotFound: No such LoRA.
        LoraError: The LoRA cannot be read, or is for another base.
    """
    record = find_weights(status.weights)
    width, height = default_size(width, height, references, record)
    return RenderRequest(
        weights=record.name,
        precision=status.precision,
        prompt=check_prompt(prompt),
        seed=resolve_seed(seed),
        width=check_size("Width", width, record),
        height=check_size("Height", height, record),
        steps=check_steps(steps, record),
        guidance=check_guidance(guidance, record),
        lora=None if lora is None else resolve_lora(lora, record.name),
        strength=check_strength(strength) if lora is not None else Decimal(0),
        references=check_references(references),
    )


def find_status(backend: Backend, weights: str = "pocket", precision: Precision | None = None) -> ModelStatus:
    """Return what the backend says of weights that it can run, at its default precision when none is given.

    Raises:
        NotFound: There are no such weights.
        Unavailable, InvalidInput: They cannot run there, or not at this precision; the message says why.
    """
    return require_available(backend.status(find_weights(weights).name, precision))


def choose_weights(backend: Backend, lora: LoraRef | None) -> str:
    """Return the weights that are meant when nobody names any: some that the LoRA fits and that run here.

    Raises:
        NotFound, LoraError: The LoRA's file has gone or cannot be read.
    """
    preferred = settings().weights
    if lora is None or is_elsewhere(lora):
        return preferred
    return min(report_of(lora).fits, key=lambda name: (not _runs(backend, name), name != preferred))


def _runs(backend: Backend, weights: str) -> bool:
    try:
        return backend.status(weights, None).available
    except Unavailable:
        return False


def resolve_lora(lora: str | LoraRef, weights: str) -> LoraRef:
    """Return the LoRA, which must have been made for `weights`.

    `finetune:ID` is a finetune that only the server of the remote backend has, and checks.
    """
    if isinstance(lora, str):
        kind, _, finetune_id = lora.partition(":")
        lora = refer_to(finetune_id) if kind == "finetune" else fetch_lora(lora)
    if not is_elsewhere(lora):
        require_fit(report_of(lora), weights)
    return lora


def check_prompt(prompt: str) -> str:
    """A prompt has at least one word and is text."""
    if not prompt.strip():
        raise InvalidInput("Prompt: write at least one word.")
    if len(prompt) > MAX_PROMPT:
        raise InvalidInput(f"Prompt: {len(prompt)} characters are too many; at most {MAX_PROMPT} are allowed.")
    if not is_text(prompt):
        raise InvalidInput("Prompt: it holds characters that are no text (NUL or half a surrogate). Remove them.")
    return prompt


def is_text(text: str) -> bool:
    """Whether files and tables can hold it: no NUL, and no half of a surrogate pair, which JSON can spell."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def resolve_seed(seed: int | None) -> int:
    """A seed from 0 to 2^32 - 1; None or -1 becomes a random one."""
    if seed is None or seed == -1:
        return secrets.randbelow(2**SEED_BITS)
    if 0 <= seed <= LAST_SEED:
        return seed
    same = f" Only {SEED_BITS} bits act: it would give the image of seed {fold_seed(seed)}." if seed > 0 else ""
    raise InvalidInput(f"Seed: {_digits(seed)} is not from 0 to {LAST_SEED} (or -1 for a random one).{same}")


def fold_seed(seed: int | None) -> int | None:
    """Return the seed that acts for one from the wire, where BFL sets no bounds; None and -1 stay a random one."""
    return seed if seed is None or seed == -1 else seed % 2**SEED_BITS


def _digits(number: int) -> str:
    """A number as an error repeats it; Python refuses to write out the longest."""
    return str(number) if number.bit_length() <= 128 else f"a number of {number.bit_length()} bits"


def check_references(references: Sequence[Reference]) -> tuple[Reference, ...]:
    """At most four references; each was checked when its file was read."""
    if len(references) > MAX_REFERENCES:
        raise InvalidInput(f"Images: {len(references)} references are too many; at most {MAX_REFERENCES} are allowed.")
    return tuple(references)


def default_size(
    width: int | None, height: int | None, references: Sequence[Reference], weights: Weights
) -> tuple[int | None, int | None]:
    """Return the size asked for; when none is, the first reference's, shrunk into the range of the weights."""
    if width is not None or height is not None or not references:
        return width, height
    low, high = weights.sizes
    size = measure_reference(references[0])
    scale = min(1.0, high / max(size))
    across, down = (max(low, int(side * scale) // MULTIPLE * MULTIPLE) for side in size)
    return across, down


def check_size(name: str, size: int | None, weights: Weights) -> int:
    """A side in pixels: a multiple of 16 within the range of the weights."""
    low, high = weights.sizes
    if size is None:
        return weights.default_size
    if size % MULTIPLE == 0 and low <= size <= high:
        return size
    nearest = min(max(round(size / MULTIPLE) * MULTIPLE, low), high)
    raise InvalidInput(
        f"{name}: {size} px must be a multiple of {MULTIPLE} from {low} to {high} for {weights.name}. "
        f"The nearest is {nearest}."
    )


def check_steps(steps: int | None, weights: Weights) -> int:
    """Denoising steps; the recipe's own when none are given."""
    if steps is None:
        return weights.steps
    if not 1 <= steps <= MAX_STEPS:
        raise InvalidInput(f"Steps: {steps} must be from 1 to {MAX_STEPS}.")
    return steps


def check_guidance(guidance: float | None, weights: Weights) -> float:
    """Guidance scale; distilled weights take none, and saying otherwise would be a lie."""
    if guidance is None:
        return weights.guidance
    low, high = GUIDANCE
    if not math.isfinite(guidance) or not low <= guidance <= high:
        raise InvalidInput(f"Guidance: {guidance} must be from {low:g} to {high:g}.")
    if weights.distilled and guidance != weights.guidance:
        raise InvalidInput(
            f"Guidance: {weights.name} is distilled and takes none; {guidance:g} would change nothing. "
            f"Leave it at {weights.guidance:g}, or choose base weights."
        )
    return float(guidance)
