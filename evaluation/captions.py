"""How rows of several sweeps are called, so that what differs is told apart wherever they stand side by side."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final

from evaluation.axes import SweepSpec
from evaluation.store.records import CellRecord
from lora_runtime.lora.names import tell_apart
from lora_runtime.values import LoraRef


ORIGINS: Final = MappingProxyType({"sweep": "Sweep", "playground": "Playground", "api": "API"})
STATES: Final = MappingProxyType({"done": "done", "failed": "failed", "pending": "waiting"})


def shorten(text: str, length: int) -> str:
    """Return `text`, cut to `length` characters with an ellipsis where it is longer."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def call_loras(specs: Iterable[SweepSpec]) -> Mapping[LoraRef, str]:
    """Return what to call each LoRA of several sweeps: its name, with the digits of its file where others have it."""
    found = tuple(dict.fromkeys(lora for spec in specs for lora in spec.loras))
    return {lora: told.name for lora, told in zip(found, tell_apart(found), strict=True)}


def call_files(names: Mapping[str, str]) -> Mapping[str, str]:
    """Return what to call LoRA files, by their SHA-256: `names`, with digits of the file where several have one name."""
    found = [LoraRef(name=name, path=Path(), sha256=sha256) for sha256, name in names.items()]
    return {told.sha256: told.name for told in tell_apart(found)}


def name_run(created: datetime, lora: str | None, prompt: str) -> str:
    """Return what a run is called in a list: when it was started (UTC), its LoRA and its prompt."""
    return f"{created:%d %b %H:%M} · {lora or 'none'} · {shorten(prompt, 40)}"


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
