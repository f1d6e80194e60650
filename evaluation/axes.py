"""What a sweep varies and what it holds, as data: the spec, and one record for each thing that can vary.

A further axis is one record here: where its values stand in a spec, what each does to a request, how it is called.
Strength makes the columns of a grid. Its rows are scenes (prompts times seeds), for each value of the one other axis.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

from pydantic import TypeAdapter

from evaluation.strengths import format_strength
from evaluation.trigger import Trigger
from lora_runtime.catalogue import find_weights
from lora_runtime.errors import InvalidInput
from lora_runtime.registry.local import find_moved
from lora_runtime.values import LoraRef, Precision, Reference, RenderRequest

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where an image is rendered and on what: the weights with their recipe, and the digest of the checkpoint there.

    `server` is the address of the server that renders it, None where this code does; see `Backend.server`.
    """

    backend: str
    weights: str
    precision: Precision
    digest: str
    steps: int
    guidance: float
    server: str | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A checkpoint of a training run. `sha256` is that of its LoRA; empty where it does not fit: `problem` says why."""

    label: str
    sha256: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Training:
    """That the LoRAs of a spec are the checkpoints of one training: its name, and its stages in their order.

    `every` and `last` are how they were chosen among all that there were.
    """

    name: str
    stages: tuple[Stage, ...]
    every: int | None = None
    last: int | None = None

    def label(self, lora: LoraRef) -> str:
        """Return what a checkpoint is called: what differs, such as "1500"."""
        return next((stage.label for stage in self.stages if stage.sha256 == lora.sha256), lora.name)


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """What a sweep varies and what it holds; all resolved, so that the same spec always plans the same cells.

    At most one of `targets`, `loras` and `triggers` has more than one value; `prompts` and `seeds` multiply.
    Without `loras` it is the base model alone, whose one strength is 0. No `triggers`: prompts stay as written.
    With a `training`, the `loras` are those of its checkpoints that fit, in their order.
    """

    targets: tuple[Target, ...]
    loras: tuple[LoraRef, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    strengths: tuple[Decimal, ...]
    width: int
    height: int
    references: tuple[Reference, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    training: Training | None = None

    @property
    def target(self) -> Target:
        """The target of the first row, and of every row when there is one target."""
        return self.targets[0]

    @property
    def weights(self) -> str:
        """The weights of the first row."""
        return self.target.weights

    @property
    def steps(self) -> int:
        """The steps of the first row."""
        return self.target.steps

    @property
    def guidance(self) -> float:
        """The guidance of the first row."""
        return self.target.guidance


@dataclass(frozen=True, kw_only=True)
class Axis(Generic[T]):
    """One thing a sweep can vary: where its values are, what they change in a request, how a spec calls each."""

    name: str
    values: Callable[[SweepSpec], tuple[T, ...]]
    apply: Callable[[RenderRequest, T], RenderRequest]
    label: Callable[[SweepSpec, T], str]


def _strength_label(_spec: SweepSpec, strength: Decimal) -> str:
    return f"strength {format_strength(strength)}" if strength else "strength 0 (base)"


def _target_label(spec: SweepSpec, target: Target) -> str:
    """The precision; beside it what else tells the target from the others, or from a plain local one."""
    backends = {each.backend for each in spec.targets}
    words = [target.precision, target.backend] if target.server or len(backends) > 1 else [target.precision]
    if len({each.weights for each in spec.targets}) == 1:
        return " · ".join(words)
    return " · ".join([find_weights(target.weights).label, *words, f"{target.steps} steps"])


def _set_target(request: RenderRequest, target: Target) -> RenderRequest:
    return replace(
        request,
        weights=target.weights,
        precision=target.precision,
        steps=target.steps,
        guidance=target.guidance,
    )


LORA: Final = Axis[LoraRef](
    name="lora",
    values=lambda spec: () if spec.training else spec.loras,
    apply=lambda request, lora: replace(request, lora=lora),
    label=lambda _, lora: lora.name,
)
CHECKPOINT: Final = Axis[LoraRef](
    name="checkpoint",
    values=lambda spec: spec.loras if spec.training else (),
    apply=LORA.apply,
    label=lambda spec, lora: spec.training.label(lora) if spec.training else lora.name,
)
PROMPT: Final = Axis[str](
    name="prompt",
    values=lambda spec: spec.prompts,
    apply=lambda request, prompt: replace(request, prompt=prompt),
    label=lambda _, prompt: prompt,
)
SEED: Final = Axis[int](
    name="seed",
    values=lambda spec: spec.seeds,
    apply=lambda request, seed: replace(request, seed=seed),
    label=lambda _, seed: f"seed {seed}",
)
TRIGGER: Final = Axis[Trigger](
    name="trigger",
    values=lambda spec: spec.triggers,
    apply=lambda request, trigger: replace(request, prompt=trigger.apply(request.prompt)),
    label=lambda _, trigger: f"{'with' if trigger.there else 'without'} the trigger phrase “{trigger.phrase}”",
)
TARGET: Final = Axis[Target](name="target", values=lambda spec: spec.targets, apply=_set_target, label=_target_label)
STRENGTH: Final = Axis[Decimal](
    name="strength",
    values=lambda spec: spec.strengths,
    apply=lambda request, strength: replace(request, strength=strength),
    label=_strength_label,
)

AXES: Final[Mapping[str, Axis[Any]]] = MappingProxyType(
    {axis.name: axis for axis in (LORA, CHECKPOINT, PROMPT, SEED, TRIGGER, TARGET, STRENGTH)}
)
"""Every axis by name."""

COMPARED: Final = (LORA, CHECKPOINT, TRIGGER, TARGET)
"""The axes of which a sweep has one beside the scenes."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a grid: a scene, at one value of the axis."""

    label: str
    target: Target
    changes: tuple[tuple[Axis[Any], Any], ...]

    def apply(self, request: RenderRequest) -> RenderRequest:
        """Return `request` as this row asks for it."""
        for axis, value in self.changes:
            request = axis.apply(request, value)
        return request


def row_axis(spec: SweepSpec) -> Axis[Any]:
    """Return the axis that tells the rows apart first: the one beside the scenes, else the prompt, else the seed.

    Raises:
        InvalidInput: More than one axis beside strength and scenes has several values.
    """
    several = [axis for axis in COMPARED if len(axis.values(spec)) > 1]
    if len(several) > 1:
        names = " and ".join(f"several {_plural(axis, spec)}" for axis in several)
        raise InvalidInput(f"A sweep has one axis beside strength and scenes, but there are {names}. Keep one of them.")
    return several[0] if several else PROMPT if len(spec.prompts) > 1 else SEED


def list_rows(spec: SweepSpec) -> tuple[Row, ...]:
    """Return the rows of a sweep: every scene at each value of its axis, the seeds of a prompt together.

    Raises:
        InvalidInput: As `row_axis`.
    """
    axis = row_axis(spec)
    # The trigger is put into the prompt, so the prompt has to be there first.
    order = (PROMPT, SEED, axis) if axis in COMPARED else (PROMPT, SEED)
    named = [each for each in (*order[2:], PROMPT, SEED) if len(each.values(spec)) > 1] or [SEED]
    return tuple(
        Row(
            label=" · ".join(each.label(spec, values[each.name]) for each in named),
            target=values.get(TARGET.name, spec.target),
            changes=tuple((each, values[each.name]) for each in order),
        )
        for values in _list_values(spec, (*order[2:], PROMPT, SEED))
    )


def list_scenes(spec: SweepSpec) -> tuple[str, ...]:
    """Return what tells the scenes of a sweep apart, in their order; one scene needs no words."""
    named = [axis for axis in (PROMPT, SEED) if len(axis.values(spec)) > 1]
    return tuple(
        " · ".join(axis.label(spec, values[axis.name]) for axis in named)
        for values in _list_values(spec, (PROMPT, SEED))
    )


def write_spec(spec: SweepSpec) -> str:
    """Return `spec` as JSON for `read_spec`."""
    return _specs().dump_json(spec).decode()


def read_spec(text: str) -> SweepSpec:
    """Read a spec that was kept: also one from before each target had its own weights, steps and guidance, or a server.

    A LoRA is where its file is now.
    """
    kept = json.loads(text)
    if "targets" not in kept:
        names = ("backend", "weights", "precision", "digest", "steps", "guidance")
        first = {name: kept.pop(name) for name in names}
        kept["targets"] = [first, *({**first, **further} for further in kept.pop("further_targets", ()))]
    for target in kept["targets"]:
        target.setdefault("server", _find_server(target))
    for lora in kept["loras"]:
        lora["path"] = _find_place(lora)
    return _specs().validate_python(kept)


def _find_server(target: Mapping[str, Any]) -> str | None:
    """The server of a target from when the digest alone said it, as remote:ADDRESS:ENDPOINT."""
    if target["backend"] != "remote":
        return None
    digest: str = target["digest"]
    return digest.removeprefix("remote:").rpartition(":")[0] or digest


def _find_place(lora: Mapping[str, Any]) -> str | None:
    """Where the file of a kept LoRA is; a finetune elsewhere was once written as a path of its own kind."""
    path = lora["path"]
    if path is None or path == f"finetune:{lora.get('finetune_id')}":
        return None
    return str(find_moved(Path(path), lora["sha256"]))


def _list_values(spec: SweepSpec, axes: Sequence[Axis[Any]]) -> Iterator[dict[str, Any]]:
    names = [axis.name for axis in axes]
    for values in product(*(axis.values(spec) for axis in axes)):
        yield dict(zip(names, values, strict=True))


def _plural(axis: Axis[Any], spec: SweepSpec) -> str:
    if axis is not TARGET:
        return "LoRAs" if axis is LORA else f"{axis.name}s"
    kinds = {
        "weights": {target.weights for target in spec.targets},
        "backends": {target.backend for target in spec.targets},
    }
    return next((kind for kind, values in kinds.items() if len(values) > 1), "precisions")


@lru_cache(maxsize=1)
def _specs() -> TypeAdapter[SweepSpec]:
    return TypeAdapter(SweepSpec)
