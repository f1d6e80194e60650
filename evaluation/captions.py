"""A spec, a request, a run in words: the one way wherever they stand, on the page, in files and in the terminal.

What differs is told apart: LoRAs of one name that are different files have the digits of their own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final

from evaluation.axes import TARGET, SweepSpec, Training
from evaluation.grid import name_lora
from evaluation.store.records import CellRecord
from evaluation.strengths import format_strength
from lora_runtime.catalogue import find_weights
from lora_runtime.lora.names import tell_apart
from lora_runtime.values import LoraRef, RenderRequest
from lora_runtime.written import count_of

ORIGINS: Final = MappingProxyType({"sweep": "Sweep", "playground": "Playground", "api": "API"})
STATES: Final = MappingProxyType({"done": "done", "failed": "failed", "pending": "waiting"})


def shorten(text: str, length: int) -> str:
    """Return `text`, cut to `length` characters with an ellipsis where it is longer."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def title_spec(spec: SweepSpec) -> str:
    """Return what heads a sweep: its prompt, or how many there are."""
    return spec.prompts[0] if len(spec.prompts) == 1 else f"{len(spec.prompts)} prompts"


def list_facts(spec: SweepSpec) -> tuple[str, ...]:
    """Return what the caption of a sweep says beside its prompt."""
    seeds = f"{len(spec.seeds)} seeds" if len(spec.seeds) > 1 else f"seed {spec.seeds[0]}"
    loras = f"{len(spec.loras)} LoRAs" if len(spec.loras) > 1 else f"LoRA {name_lora(spec)}"
    if spec.training:
        loras = name_training(spec.training)
    size = _size(spec)
    if len({target.weights for target in spec.targets}) > 1:
        return (seeds, loras, f"{len(spec.targets)} weights", size)
    precisions = ", ".join(TARGET.label(spec, target) for target in spec.targets)
    return (seeds, loras, f"{find_weights(spec.weights).label} · {precisions}", size, count_of(spec.steps, "step"))


def narrow_spec(spec: SweepSpec, records: Iterable[CellRecord]) -> SweepSpec:
    """Return `spec` with what these of its cells have alone: of several LoRAs, seeds, prompts and targets, theirs."""
    cells = [record.cell for record in records]
    files = {cell.request.lora.sha256 for cell in cells if cell.request.lora}
    seeds, prompts = ({getattr(cell.request, name) for cell in cells} for name in ("seed", "prompt"))
    targets = {cell.target for cell in cells}
    return replace(
        spec,
        loras=tuple(lora for lora in spec.loras if lora.sha256 in files),
        seeds=tuple(seed for seed in spec.seeds if seed in seeds),
        # A trigger changes the prompts that a cell has.
        prompts=spec.prompts if spec.triggers else tuple(prompt for prompt in spec.prompts if prompt in prompts),
        targets=tuple(target for target in spec.targets if target in targets),
    )


def name_training(training: Training) -> str:
    """Return what a training run is called where one LoRA would be: "my-style (6 checkpoints)"."""
    return count_checkpoints(training.name, len(training.stages))


def count_checkpoints(name: str, count: int) -> str:
    """Return the name of a training run with how many checkpoints it has."""
    return f"{name} ({count_of(count, 'checkpoint')})"


def list_settings(spec: SweepSpec, called: Mapping[LoraRef, str]) -> tuple[tuple[str, str], ...]:
    """Return all that a sweep held and varied, by name; `called` are the names of its LoRAs."""
    guidance = f", guidance {spec.guidance:g}" if spec.guidance != 1 else ""
    prompts = spec.prompts if len(spec.prompts) > 1 else ()
    return (
        (
            "LoRA",
            name_training(spec.training) if spec.training else _join(called[each] for each in spec.loras) or "none",
        ),
        ("Seed", _join(str(seed) for seed in spec.seeds)),
        ("Weights", _join(find_weights(target.weights).label for target in spec.targets)),
        ("Precision", _join(target.precision for target in spec.targets)),
        ("Rendered by", _join(target.backend for target in spec.targets)),
        ("Size", _size(spec)),
        ("Steps", f"{spec.steps}{guidance}"),
        *((f"Prompt {number}", prompt) for number, prompt in enumerate(prompts, start=1)),
    )


def list_request_facts(request: RenderRequest) -> tuple[str, ...]:
    """Return what the caption of one image says beside its prompt."""
    images = len(request.references)
    return (
        f"seed {request.seed}",
        *((request.lora.name, f"strength {format_strength(request.strength)}") if request.lora else ("base model",)),
        f"{find_weights(request.weights).label} · {request.precision}",
        _size(request),
        count_of(request.steps, "step"),
        *((count_of(images, "reference image"),) if images else ()),
    )


def name_run(created: datetime, lora: str | None, prompt: str) -> str:
    """Return what a run is called in a list: when it was started (UTC), its LoRA and its prompt."""
    return f"{created:%d %b %H:%M} UTC · {lora or 'none'} · {shorten(prompt, 48)}"


def call_loras(specs: Iterable[SweepSpec]) -> Mapping[LoraRef, str]:
    """Return what to call each LoRA of several sweeps: its name, with the digits of its file where others have it."""
    found = tuple(dict.fromkeys(lora for spec in specs for lora in spec.loras))
    return {lora: told.name for lora, told in zip(found, tell_apart(found), strict=True)}


def call_files(names: Mapping[str, str]) -> Mapping[str, str]:
    """Return what to call LoRA files, by SHA-256: their names, with digits of the file where several have one."""
    found = [LoraRef(name=name, path=Path(), sha256=sha256) for sha256, name in names.items()]
    return {told.sha256: told.name for told in tell_apart(found)}


def tell_records_apart(records: Sequence[CellRecord]) -> tuple[CellRecord, ...]:
    """Return `records`; where LoRAs of one name are different files, each is named with the digits of its own."""
    found = tuple(dict.fromkeys(lora for record in records if (lora := record.cell.request.lora) is not None))
    apart = {before: after for before, after in zip(found, tell_apart(found), strict=True) if before.name != after.name}
    return tuple(_rename(record, apart) for record in records) if apart else tuple(records)


def _rename(record: CellRecord, apart: Mapping[LoraRef, LoraRef]) -> CellRecord:
    request = record.cell.request
    if request.lora is None or request.lora not in apart:
        return record
    return replace(record, cell=replace(record.cell, request=replace(request, lora=apart[request.lora])))


def _size(of: SweepSpec | RenderRequest) -> str:
    return f"{of.width} × {of.height} px"


def _join(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))
