"""Store -> DataFrame: one row a logged cell, one record a column.

A new column is one record here: the page sorts by it, and every table that leaves the lab has it. Rows are looked up by
`run` and `position`, which stay with a row however a frame is filtered and sorted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import pandas as pd

from evaluation.judge.metrics import SCORES
from evaluation.store.store import CellRecord, Store

Kind: TypeAlias = Literal["text", "number", "whole", "date"]
Value: TypeAlias = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: its key, its heading, what it holds, and where a record has it. Dates are ISO 8601 in UTC."""

    name: str
    label: str
    kind: Kind
    value: Callable[[CellRecord], Value]


def _text(name: str, label: str, value: Callable[[CellRecord], Value]) -> Column:
    return Column(name=name, label=label, kind="text", value=value)


def _number(name: str, label: str, value: Callable[[CellRecord], Value]) -> Column:
    return Column(name=name, label=label, kind="number", value=value)


def _whole(name: str, label: str, value: Callable[[CellRecord], Value]) -> Column:
    return Column(name=name, label=label, kind="whole", value=value)


def _score(metric: str) -> Callable[[CellRecord], Value]:
    return lambda record: record.scores.get(metric)


def _lora_name(record: CellRecord) -> Value:
    return record.cell.request.lora.name if record.cell.request.lora else None


def _lora_sha256(record: CellRecord) -> Value:
    return record.cell.request.lora.sha256 if record.cell.request.lora else None


def _created(record: CellRecord) -> Value:
    return record.created.isoformat(timespec="seconds") if record.created else None


COLUMNS: Final[Mapping[str, Column]] = MappingProxyType(
    {
        column.name: column
        for column in (
            _text("run", "Run", lambda record: record.run_id),
            _whole("position", "Cell", lambda record: record.cell.position),
            _text("lora", "LoRA", _lora_name),
            _number("strength", "Strength", lambda record: float(record.cell.request.strength)),
            _text("prompt", "Prompt", lambda record: record.cell.request.prompt),
            _whole("seed", "Seed", lambda record: record.cell.request.seed),
            _text("weights", "Weights", lambda record: record.cell.request.weights),
            _text("precision", "Precision", lambda record: record.cell.request.precision),
            _text("backend", "Backend", lambda record: record.cell.target.backend),
            _whole("width", "Width", lambda record: record.cell.request.width),
            _whole("height", "Height", lambda record: record.cell.request.height),
            _whole("steps", "Steps", lambda record: record.cell.request.steps),
            _number("guidance", "Guidance", lambda record: record.cell.request.guidance),
            _text("origin", "Made by", lambda record: record.origin),
            _text("state", "State", lambda record: record.state),
            *(_number(metric.name, metric.label, _score(metric.name)) for metric in SCORES.values()),
            _whole("rating", "Rating", lambda record: record.rating),
            _text("note", "Note", lambda record: record.note),
            _number("seconds", "Seconds", lambda record: record.seconds),
            _number("cost", "Cost (credits)", lambda record: record.cost),
            _text("request_id", "Request", lambda record: record.provenance.get("request_id")),
            Column(name="created", label="Rendered", kind="date", value=_created),
            _text("error", "Error", lambda record: record.error),
            _text("lora_sha256", "LoRA SHA-256", _lora_sha256),
            _text("identity", "Identity", lambda record: record.cell.identity),
            _text("image", "Image", lambda record: str(record.image) if record.image else None),
        )
    }
)
"""Every column by name, in the order they are shown."""


def load_table(store: Store, *, run_id: str | None = None, limit: int = 1000) -> pd.DataFrame:
    """Return the cells of one run, or of the newest `limit` runs, newest first.

    Raises:
        NotFound: There is no such run.
    """
    if run_id is not None:
        return make_table(store.cells(run_id))
    records = [record for _, records in store.history(limit) for record in records]
    return make_table([record for record in records if not record.deleted])


def make_table(records: Sequence[CellRecord]) -> pd.DataFrame:
    """Return one row a record with every column of `COLUMNS`; what is not known is None."""
    return pd.DataFrame(
        {
            name: pd.Series([column.value(record) for record in records], dtype=object)
            for name, column in COLUMNS.items()
        }
    )
