"""Axes -> spec -> ordered cells, each with an identity.

`make_spec` checks what a person asked for and resolves it into a `SweepSpec` (`axes.py`); `plan` turns that into cells
row by row: strength runs along the columns, scenes at each value of one other axis down the rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final, TypeVar, get_args

from evaluation.axes import STRENGTH, Stage, SweepSpec, Target, Training, list_rows, row_axis
from evaluation.identity import identity
from evaluation.strengths import parse_strengths, unite_strengths
from evaluation.trigger import Trigger
from lora_runtime.backends.base import Backend
from lora_runtime.catalogue import Weights, find_weights
from lora_runtime.errors import InvalidInput, KleinLabError
from lora_runtime.lora.library import is_elsewhere
from lora_runtime.lora.names import name_by_folder, tell_apart
from lora_runtime.lora.training import TrainingRun
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
from lora_runtime.written import quote

__all__ = [
    "MAX_CELLS",
    "Cell",
    "SweepSpec",
    "Target",
    "extend_spec",
    "extend_training",
    "make_spec",
    "name_backends",
    "name_lora",
    "parse_precisions",
    "plan",
    "row_axis",
]

MAX_CELLS: Final = 400

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of a sweep.

    `request` keeps the sweep's LoRA at strength 0 too; `identity` and `rendered_request` drop it there. `base` is
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
    base: str


def make_spec(
    backend: Backend | Mapping[str, Backend],
    *,
    weights: str | Sequence[str] = "pocket",
    loras: Sequence[str | LoraRef] = (),
    training: TrainingRun | None = None,
    prompts: Sequence[str],
    strengths: str,
    seeds: Sequence[int | None] = (None,),
    precision: Precision | Sequence[Precision | None] | None = None,
    width: int | None = None,
    height: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    references: Sequence[Reference] = (),
    compare_trigger: bool = False,
    base_column: bool = True,
) -> SweepSpec:
    """Check what a person asked for and fill in the rest, as `lora_runtime.requests` does for one image.

    What is given twice counts once. Several weights, backends (by name) or precisions make rows; a precision of None is
    the backend's default. `steps` and `guidance` are those of the first weights, others keep their own recipe.
    `compare_trigger` makes a row with the LoRA's trigger phrase and one without. `base_column` adds strength 0 as the
    first column unless the strengths have it. The checkpoints of a `training` are its LoRAs; one that does not fit is a
    stage that says why. Without any the base model alone is rendered, at strength 0.

    Raises:
        InvalidInput: One field is missing, malformed or out of range; `InvalidStrengths` for the strengths.
        NotFound: No such weights or LoRA.
        LoraError: A LoRA cannot be read, or is for another base.
        Unavailable: The weights cannot run on a backend; the message says why.
    """
    records = _distinct(find_weights(name) for name in ([weights] if isinstance(weights, str) else weights))
    backends = name_backends(backend)
    values = parse_strengths(strengths)
    if base_column and Decimal(0) not in values:
        values = (Decimal(0), *values)
    for name, given in (("Weights", records), ("Prompt", prompts), ("Seed", seeds)):
        if not given:
            raise InvalidInput(f"{name}: give at least one.")
    if not loras and training is None and values != (Decimal(0),):
        raise InvalidInput("LoRA: give at least one. Without a LoRA the base model has one strength, 0.")
    if loras and training is not None:
        raise InvalidInput(f"LoRA: the training run {training.name} is swept alone. Leave the other LoRAs out.")
    first = records[0]
    found, stages = _read_training(training, records) if training else (_resolve_loras(loras, first), None)
    asked = _distinct(check_prompt(prompt) for prompt in prompts)
    width, height = default_size(width, height, references, first)
    # A size and a LoRA must suit every row: what the first weights take, others may refuse.
    sizes = [(check_size("Width", width, record), check_size("Height", height, record)) for record in records]
    for record in records[1:]:
        for lora in found:
            resolve_lora(lora, record.name)
    recipe = (check_steps(steps, first), check_guidance(guidance, first))
    precisions = (precision,) if precision is None or isinstance(precision, str) else precision
    spec = SweepSpec(
        loras=found,
        prompts=asked,
        seeds=_distinct(resolve_seed(seed) for seed in seeds),
        strengths=values,
        width=sizes[0][0],
        height=sizes[0][1],
        references=check_references(references),
        triggers=_find_triggers(found, asked) if compare_trigger else (),
        training=stages,
        # Last, as a backend may take seconds to start before it can answer.
        targets=_find_targets(backends, records, precisions, recipe),
    )
    _require_files(spec)
    return _require_few(spec)


def plan(spec: SweepSpec) -> tuple[Cell, ...]:
    """Return the cells of `spec`, row by row; the same spec gives the same cells."""
    first = RenderRequest(
        weights=spec.target.weights,
        precision=spec.target.precision,
        prompt=spec.prompts[0],
        seed=spec.seeds[0],
        width=spec.width,
        height=spec.height,
        steps=spec.target.steps,
        guidance=spec.target.guidance,
        lora=spec.loras[0] if spec.loras else None,
        references=spec.references,
    )
    cells: list[Cell] = []
    for number, row in enumerate(list_rows(spec)):
        in_row, target = row.apply(first), row.target
        at_zero = STRENGTH.apply(in_row, Decimal(0))
        base = identity(at_zero, target)
        for column, strength in enumerate(spec.strengths):
            request = STRENGTH.apply(in_row, strength)
            cells.append(
                Cell(
                    position=len(cells),
                    row=number,
                    column=column,
                    row_label=row.label,
                    column_label=STRENGTH.label(spec, strength),
                    target=target,
                    request=request,
                    identity=identity(request, target),
                    base=base,
                )
            )
    return tuple(cells)


def extend_spec(spec: SweepSpec, strengths: Iterable[Decimal]) -> SweepSpec:
    """Return `spec` with more strengths; the cells it had keep their identity, so that only new ones are rendered.

    Raises:
        InvalidStrengths: They are too many together.
        InvalidInput: The cells are too many, or there is no LoRA whose strength could vary.
    """
    if not spec.loras:
        raise InvalidInput("LoRA: there is none in this sweep, so its one strength is 0. Choose a LoRA and run it.")
    return _require_few(replace(spec, strengths=unite_strengths(spec.strengths, strengths)))


def extend_training(spec: SweepSpec, training: TrainingRun) -> SweepSpec:
    """Return `spec` with the checkpoints that its training run has now, chosen as those that it had.

    Only new ones are rendered.

    Raises:
        InvalidInput: The cells are too many, or no checkpoint fits.
    """
    weights = _distinct(find_weights(target.weights) for target in spec.targets)
    chosen = training.select(every=spec.training.every, last=spec.training.last) if spec.training else training
    loras, stages = _read_training(chosen, weights)
    return _require_few(replace(spec, loras=loras, training=stages))


def name_lora(spec: SweepSpec) -> str:
    """Return the name of the spec's training run or first LoRA, or "none"."""
    return spec.training.name if spec.training else spec.loras[0].name if spec.loras else "none"


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """Read precisions such as "bf16" or "bf16, fp8"; an empty text is none, the backend's default.

    Raises:
        InvalidInput: One of them is unknown.
    """
    known: dict[str, Precision] = {name: name for name in get_args(Precision)}
    written = [part.strip().lower() for part in text.split(",") if part.strip()]
    for name in written:
        if name not in known:
            raise InvalidInput(
                f"Precision: {quote(name)} is none of {', '.join(known)}. Write one, or several as bf16,fp8."
            )
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


def _resolve_loras(loras: Sequence[str | LoraRef], weights: Weights) -> tuple[LoraRef, ...]:
    return tell_apart(name_by_folder(_distinct(resolve_lora(lora, weights.name) for lora in loras)))


def _read_training(run: TrainingRun, records: Sequence[Weights]) -> tuple[tuple[LoraRef, ...], Training]:
    """The checkpoints that fit all weights, and all of them as stages."""
    loras: list[LoraRef] = []
    stages: list[Stage] = []
    for checkpoint in run.checkpoints:
        lora, problem = checkpoint.lora, checkpoint.problem
        if lora is not None:
            same = next((stage.label for stage in stages if stage.sha256 == lora.sha256), "")
            problem = f"It is the same LoRA as {same}." if same else _find_misfit(lora, records)
        if lora is None or problem:
            stages.append(Stage(label=checkpoint.label, problem=problem))
        else:
            loras.append(lora)
            stages.append(Stage(label=checkpoint.label, sha256=lora.sha256))
    if not loras:
        said = f" {stages[0].label}: {stages[0].problem}" if stages else ""
        raise InvalidInput(f"LoRA: the training run {run.name} has no checkpoint that can be rendered.{said}")
    return tuple(loras), Training(name=run.name, stages=tuple(stages), every=run.every, last=run.last)


def _find_misfit(lora: LoraRef, records: Sequence[Weights]) -> str:
    """Why a checkpoint does not fit one of the weights; empty when it fits all."""
    try:
        for record in records:
            resolve_lora(lora, record.name)
    except KleinLabError as error:
        return str(error)
    return ""


def _find_targets(
    backends: Mapping[str, Backend],
    records: Sequence[Weights],
    precisions: Sequence[Precision | None],
    recipe: tuple[int, float],
) -> tuple[Target, ...]:
    """The targets of all weights on each backend; no precision means its default one. `recipe` is of the first."""
    found = []
    for record in records:
        steps, guidance = recipe if record is records[0] else (record.steps, record.guidance)
        for name, backend in backends.items():
            for precision in precisions or (None,):
                status = find_status(backend, record.name, precision)
                found.append(
                    Target(
                        backend=name,
                        weights=record.name,
                        precision=status.precision,
                        digest=status.digest,
                        steps=steps,
                        guidance=guidance,
                        server=backend.server,
                    )
                )
    return _distinct(found)


def _find_triggers(loras: Sequence[LoraRef], prompts: Sequence[str]) -> tuple[Trigger, ...]:
    """With the trigger phrase and without it; the prompt needs other words too."""
    phrase = loras[0].trigger_phrase if loras else None
    if not phrase:
        name = f"{loras[0].name} has no trigger phrase" if loras else "there is no LoRA"
        raise InvalidInput(f"Trigger: {name}, so there is nothing to compare. Choose another second axis.")
    triggers = tuple(Trigger(phrase=phrase, there=there) for there in (True, False))
    if not all(trigger.apply(prompt).strip() for trigger in triggers for prompt in prompts):
        raise InvalidInput(f"Trigger: the prompt is only “{phrase}”. Write what else to draw.")
    return triggers


def _require_few(spec: SweepSpec) -> SweepSpec:
    count = len(list_rows(spec)) * len(spec.strengths)
    if count > MAX_CELLS:
        raise InvalidInput(
            f"The sweep has {count} cells; at most {MAX_CELLS} are allowed. Use fewer rows or strengths."
        )
    return spec


def _require_files(spec: SweepSpec) -> None:
    """A finetune whose file is only at the server cannot be rendered here."""
    here = [target.backend for target in spec.targets if not target.server]
    for lora in spec.loras:
        if here and is_elsewhere(lora):
            raise InvalidInput(
                f"LoRA: the file of {lora.name} is not on this machine, so the {here[0]} backend cannot render it. "
                "Choose the remote backend alone, or give the file."
            )


def _distinct(values: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))
