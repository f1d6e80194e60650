"""Axes -> spec -> ordered cells, each with an identity.

A `SweepSpec` is data: what to vary and what to hold. `plan` turns it into cells row by row: strength runs along the
columns, one other axis (LoRA, prompt or seed) down the rows. `identity` hashes what decides a cell's pixels, so plan,
store, resume and two sweeps that share a cell all agree on which image it is.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

from evaluation.strengths import exact, format_strength, parse_strengths
from lora_runtime.backends.base import Backend
from lora_runtime.catalogue import find_weights
from lora_runtime.errors import InvalidInput
from lora_runtime.requests import (
    check_guidance,
    check_prompt,
    check_size,
    check_steps,
    find_status,
    resolve_lora,
    resolve_seed,
)
from lora_runtime.values import LoraRef, Precision, RenderRequest

IDENTITY_VERSION: Final = 1
"""Goes up when the recipe of `identity` changes, or when the same request starts to mean other pixels."""

MAX_CELLS: Final = 400

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """What a sweep varies and what it holds; all resolved, so that the same spec always plans the same cells.

    At most one of `loras`, `prompts` and `seeds` has more than one value: it makes the rows.
    """

    backend: str
    weights: str
    digest: str
    precision: Precision
    loras: tuple[LoraRef, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    strengths: tuple[Decimal, ...]
    width: int
    height: int
    steps: int
    guidance: float


@dataclass(frozen=True, kw_only=True)
class Axis(Generic[T]):
    """One thing a sweep can vary: where its values are, what they change in a request, how they are called."""

    name: str
    values: Callable[[SweepSpec], tuple[T, ...]]
    apply: Callable[[RenderRequest, T], RenderRequest]
    label: Callable[[T], str]


def _strength_label(strength: Decimal) -> str:
    return f"strength {format_strength(strength)}" if strength else "strength 0 (base)"


LORA: Final = Axis[LoraRef](
    name="lora",
    values=lambda spec: spec.loras,
    apply=lambda request, lora: replace(request, lora=lora),
    label=lambda lora: lora.name,
)
PROMPT: Final = Axis[str](
    name="prompt",
    values=lambda spec: spec.prompts,
    apply=lambda request, prompt: replace(request, prompt=prompt),
    label=lambda prompt: prompt,
)
SEED: Final = Axis[int](
    name="seed",
    values=lambda spec: spec.seeds,
    apply=lambda request, seed: replace(request, seed=seed),
    label=lambda seed: f"seed {seed}",
)
STRENGTH: Final = Axis[Decimal](
    name="strength",
    values=lambda spec: spec.strengths,
    apply=lambda request, strength: replace(request, strength=strength),
    label=_strength_label,
)

AXES: Final[Mapping[str, Axis[Any]]] = MappingProxyType({axis.name: axis for axis in (LORA, PROMPT, SEED, STRENGTH)})
"""Every axis by name. Strength makes the columns; any other one can make the rows."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of a sweep.

    `request` keeps the sweep's LoRA at strength 0 too; `identity` and `rendered_request` drop it there. `reference` is
    the identity of the base image (strength 0) that the cell is compared with.
    """

    position: int
    row: int
    column: int
    row_label: str
    column_label: str
    request: RenderRequest
    identity: str
    reference: str


def make_spec(
    backend: Backend,
    *,
    weights: str = "pocket",
    loras: Sequence[str] | Sequence[LoraRef],
    prompts: Sequence[str],
    strengths: str,
    seeds: Sequence[int | None] = (None,),
    precision: Precision | None = None,
    width: int | None = None,
    height: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    base_column: bool = True,
) -> SweepSpec:
    """Check what a person asked for and fill in the rest, as `lora_runtime.requests` does for one image.

    What is given twice counts once. `base_column` adds strength 0 as the first column unless the strengths have it.

    Raises:
        InvalidInput: One field is missing, malformed or out of range; `InvalidStrengths` for the strengths.
        NotFound: No such weights or LoRA.
        LoraError: A LoRA cannot be read, or is for another base.
        Unavailable: The weights cannot run on this backend; the message says why.
    """
    record = find_weights(weights)
    values = parse_strengths(strengths)
    if base_column and Decimal(0) not in values:
        values = (Decimal(0), *values)
    for name, given in (("LoRA", loras), ("Prompt", prompts), ("Seed", seeds)):
        if not given:
            raise InvalidInput(f"{name}: give at least one.")
    spec = SweepSpec(
        backend=backend.name,
        weights=record.name,
        loras=_distinct(resolve_lora(lora, record.name) for lora in loras),
        prompts=_distinct(check_prompt(prompt) for prompt in prompts),
        seeds=_distinct(resolve_seed(seed) for seed in seeds),
        strengths=values,
        width=check_size("Width", width, record),
        height=check_size("Height", height, record),
        steps=check_steps(steps, record),
        guidance=check_guidance(guidance, record),
        # Last, as the backend may take seconds to start before it can answer.
        precision=(status := find_status(backend, record.name, precision)).precision,
        digest=status.digest,
    )
    count = len(row_axis(spec).values(spec)) * len(values)
    if count > MAX_CELLS:
        raise InvalidInput(
            f"The sweep has {count} cells; at most {MAX_CELLS} are allowed. Use fewer rows or strengths."
        )
    return spec


def row_axis(spec: SweepSpec) -> Axis[Any]:
    """Return the axis that makes the rows: the one with several values, else the seed.

    Raises:
        InvalidInput: More than one axis beside the strength has several values.
    """
    several = [axis for axis in AXES.values() if axis is not STRENGTH and len(axis.values(spec)) > 1]
    if len(several) > 1:
        names = " and ".join(f"several {axis.name}s" for axis in several)
        raise InvalidInput(f"A sweep has one axis beside the strength, but there are {names}. Keep one of them.")
    return several[0] if several else SEED


def plan(spec: SweepSpec) -> tuple[Cell, ...]:
    """Return the cells of `spec`, row by row; the same spec gives the same cells."""
    rows = row_axis(spec)
    first = RenderRequest(
        weights=spec.weights,
        precision=spec.precision,
        prompt=spec.prompts[0],
        seed=spec.seeds[0],
        width=spec.width,
        height=spec.height,
        steps=spec.steps,
        guidance=spec.guidance,
        lora=spec.loras[0],
    )
    cells: list[Cell] = []
    for row, row_value in enumerate(rows.values(spec)):
        in_row = rows.apply(first, row_value)
        reference = identity(base_request(in_row), backend=spec.backend, digest=spec.digest)
        for column, strength in enumerate(spec.strengths):
            request = STRENGTH.apply(in_row, strength)
            cells.append(
                Cell(
                    position=len(cells),
                    row=row,
                    column=column,
                    row_label=rows.label(row_value),
                    column_label=STRENGTH.label(strength),
                    request=request,
                    identity=identity(request, backend=spec.backend, digest=spec.digest),
                    reference=reference,
                )
            )
    return tuple(cells)


def identity(request: RenderRequest, *, backend: str, digest: str) -> str:
    """Return the hex SHA-256 of what decides the pixels of `request`.

    The LoRA counts by its content, the strength by its value (0.7 is 0.70). At strength 0 the LoRA does not count: it
    is the base image, the same for every LoRA. Device, batch and versions are provenance, not identity.
    """
    request = rendered_request(request)
    facts = {
        "version": IDENTITY_VERSION,
        "backend": backend,
        "weights": request.weights,
        "digest": digest,
        "precision": request.precision,
        "lora": request.lora.sha256 if request.lora else None,
        "strength": exact(request.strength),
        "prompt": request.prompt,
        "seed": request.seed,
        "width": request.width,
        "height": request.height,
        "steps": request.steps,
        "guidance": float(request.guidance),
        "references": [],
    }
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def rendered_request(request: RenderRequest) -> RenderRequest:
    """Return what is really rendered for `request`: the base image when its LoRA has no strength."""
    return request if request.lora and request.strength else base_request(request)


def base_request(request: RenderRequest) -> RenderRequest:
    """Return `request` without its LoRA."""
    return replace(request, lora=None, strength=Decimal(0))


def _distinct(values: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))
