"""Axes -> spec -> ordered cells, each with an identity.

A `SweepSpec` is data: what to vary and what to hold. `plan` turns it into cells row by row: strength runs along the
columns, one other axis (LoRA, prompt, seed or precision) down the rows. `identity` hashes what decides a cell's
pixels, so plan, store, resume and two sweeps that share a cell all agree on which image it is.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar, get_args

from evaluation.strengths import exact, format_strength, parse_strengths
from lora_runtime.backends.base import Backend
from lora_runtime.catalogue import find_weights
from lora_runtime.errors import InvalidInput
from lora_runtime.lora.library import is_elsewhere
from lora_runtime.requests import (
    check_guidance,
    check_prompt,
    check_references,
    check_size,
    check_steps,
    default_size,
    find_status,
    resolve_lora,
    resolve_seed,
)
from lora_runtime.values import LoraRef, Precision, Reference, RenderRequest

IDENTITY_VERSION: Final = 1
"""Goes up when the recipe of `identity` changes, or when the same request starts to mean other pixels."""

MAX_CELLS: Final = 400

ASKS_AT_ZERO: Final = frozenset({"remote"})
"""Backends that are really asked for a LoRA at strength 0; elsewhere strength 0 is the base image by construction."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where an image is rendered and on what: a backend, a precision, and the digest of the exact checkpoint there."""

    backend: str
    precision: Precision
    digest: str


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """What a sweep varies and what it holds; all resolved, so that the same spec always plans the same cells.

    At most one of `loras`, `prompts`, `seeds` and `targets` has more than one value: it makes the rows. Without
    `loras` it is the base model alone, whose one strength is 0.
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
    references: tuple[Reference, ...] = ()
    further_targets: tuple[Target, ...] = ()

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every target; the first is the spec's own backend, precision and digest."""
        return (Target(backend=self.backend, precision=self.precision, digest=self.digest), *self.further_targets)


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
PRECISION: Final = Axis[Target](
    name="precision",
    values=lambda spec: spec.targets,
    apply=lambda request, target: replace(request, precision=target.precision),
    label=lambda target: target.precision if target.backend == "local" else f"{target.precision} · {target.backend}",
)
STRENGTH: Final = Axis[Decimal](
    name="strength",
    values=lambda spec: spec.strengths,
    apply=lambda request, strength: replace(request, strength=strength),
    label=_strength_label,
)

AXES: Final[Mapping[str, Axis[Any]]] = MappingProxyType(
    {axis.name: axis for axis in (LORA, PROMPT, SEED, PRECISION, STRENGTH)}
)
"""Every axis by name. Strength makes the columns; any other one can make the rows."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of a sweep.

    `request` keeps the sweep's LoRA at strength 0 too; `identity` and `rendered_request` drop it there. `reference` is
    the identity of the base image (strength 0) that the cell is compared with; both are rendered on `target`.
    """

    position: int
    row: int
    column: int
    row_label: str
    column_label: str
    target: Target
    request: RenderRequest
    identity: str
    reference: str


def make_spec(
    backend: Backend | Mapping[str, Backend],
    *,
    weights: str = "pocket",
    loras: Sequence[str] | Sequence[LoraRef],
    prompts: Sequence[str],
    strengths: str,
    seeds: Sequence[int | None] = (None,),
    precision: Precision | Sequence[Precision] | None = None,
    width: int | None = None,
    height: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    references: Sequence[Reference] = (),
    base_column: bool = True,
) -> SweepSpec:
    """Check what a person asked for and fill in the rest, as `lora_runtime.requests` does for one image.

    What is given twice counts once. Several backends (by name) or precisions make rows; a precision of None is the
    backend's default. `base_column` adds strength 0 as the first column unless the strengths have it. Without `loras`
    the base model alone is rendered, at strength 0.

    Raises:
        InvalidInput: One field is missing, malformed or out of range; `InvalidStrengths` for the strengths.
        NotFound: No such weights or LoRA.
        LoraError: A LoRA cannot be read, or is for another base.
        Unavailable: The weights cannot run on a backend; the message says why.
    """
    record = find_weights(weights)
    backends = name_backends(backend)
    values = parse_strengths(strengths)
    if base_column and Decimal(0) not in values:
        values = (Decimal(0), *values)
    for name, given in (("Prompt", prompts), ("Seed", seeds)):
        if not given:
            raise InvalidInput(f"{name}: give at least one.")
    if not loras and values != (Decimal(0),):
        raise InvalidInput("LoRA: give at least one. Without a LoRA the base model has one strength, 0.")
    asked = (precision,) if precision is None or isinstance(precision, str) else precision
    width, height = default_size(width, height, references, record)
    spec = SweepSpec(
        backend=next(iter(backends)),
        weights=record.name,
        loras=_distinct(resolve_lora(lora, record.name) for lora in loras),
        prompts=_distinct(check_prompt(prompt) for prompt in prompts),
        seeds=_distinct(resolve_seed(seed) for seed in seeds),
        strengths=values,
        width=check_size("Width", width, record),
        height=check_size("Height", height, record),
        steps=check_steps(steps, record),
        guidance=check_guidance(guidance, record),
        references=check_references(references),
        # Last, as the backend may take seconds to start before it can answer.
        precision=(first := (targets := _find_targets(backends, record.name, asked))[0]).precision,
        digest=first.digest,
        further_targets=targets[1:],
    )
    _require_files(spec)
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
        remote = any(target.backend != spec.backend for target in spec.targets)
        names = " and ".join(
            "several backends" if axis is PRECISION and remote else f"several {axis.name}s" for axis in several
        )
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
        lora=spec.loras[0] if spec.loras else None,
        references=spec.references,
    )
    cells: list[Cell] = []
    for row, row_value in enumerate(rows.values(spec)):
        in_row = rows.apply(first, row_value)
        target = row_value if rows is PRECISION else spec.targets[0]
        at_zero = STRENGTH.apply(in_row, Decimal(0))
        reference = identity(at_zero, backend=target.backend, digest=target.digest)
        for column, strength in enumerate(spec.strengths):
            request = STRENGTH.apply(in_row, strength)
            cells.append(
                Cell(
                    position=len(cells),
                    row=row,
                    column=column,
                    row_label=rows.label(row_value),
                    column_label=STRENGTH.label(strength),
                    target=target,
                    request=request,
                    identity=identity(request, backend=target.backend, digest=target.digest),
                    reference=reference,
                )
            )
    return tuple(cells)


def identity(request: RenderRequest, *, backend: str, digest: str) -> str:
    """Return the hex SHA-256 of what decides the pixels of `request`.

    The LoRA counts by its content, the strength by its value (0.7 is 0.70). At strength 0 the LoRA does not count: it
    is the base image, the same for every LoRA; but not where that is for the server to show (`ASKS_AT_ZERO`). Device,
    batch and versions are provenance, not identity.
    """
    request = rendered_request(request, backend=backend)
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
        "references": [reference.sha256 for reference in request.references],
    }
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def rendered_request(request: RenderRequest, *, backend: str = "local") -> RenderRequest:
    """Return what `backend` is really asked for: the base image when the LoRA has no strength, but for ASKS_AT_ZERO."""
    asked = request.lora is not None and (request.strength or backend in ASKS_AT_ZERO)
    return request if asked else base_request(request)


def base_request(request: RenderRequest) -> RenderRequest:
    """Return `request` without its LoRA."""
    return replace(request, lora=None, strength=Decimal(0))


def name_lora(spec: SweepSpec) -> str:
    """Return the name of the spec's first LoRA, or "none"."""
    return spec.loras[0].name if spec.loras else "none"


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """Read precisions such as "bf16" or "bf16, fp8"; an empty text is none, the backend's default.

    Raises:
        InvalidInput: One of them is unknown.
    """
    known: dict[str, Precision] = {name: name for name in get_args(Precision)}
    written = [part.strip().lower() for part in text.split(",") if part.strip()]
    for name in written:
        if name not in known:
            raise InvalidInput(f"Precision: {name!r} is none of {', '.join(known)}. Write one, or several as bf16,fp8.")
    return _distinct(known[name] for name in written)


def name_backends(backend: Backend | Mapping[str, Backend]) -> Mapping[str, Backend]:
    """Return backends by name; one may be given alone.

    Raises:
        InvalidInput: There is none.
    """
    backends = backend if isinstance(backend, Mapping) else {backend.name: backend}
    if not backends:
        raise InvalidInput("Backend: give at least one.")
    return backends


def _find_targets(
    backends: Mapping[str, Backend], weights: str, precisions: Sequence[Precision | None]
) -> tuple[Target, ...]:
    """The targets of each backend; no precision means its default one."""
    found = []
    for name, backend in backends.items():
        for precision in precisions or (None,):
            status = find_status(backend, weights, precision)
            found.append(Target(backend=name, precision=status.precision, digest=status.digest))
    return _distinct(found)


def _require_files(spec: SweepSpec) -> None:
    """A finetune whose file is only at the server cannot be rendered here."""
    here = [target.backend for target in spec.targets if target.backend not in ASKS_AT_ZERO]
    for lora in spec.loras:
        if here and is_elsewhere(lora):
            raise InvalidInput(
                f"LoRA: the file of {lora.name} is not on this machine, so the {here[0]} backend cannot render it. "
                "Choose the remote backend alone, or give the file."
            )


def _distinct(values: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))
