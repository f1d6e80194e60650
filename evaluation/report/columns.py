"""What is known of a cell, one record a column: its words, where a record and where the log's query has it, its uses.

A new column is one record here: the page sorts by it and shows it, filters, groups and charts by it where the record
says so, programs and the command line tell it, and every table that leaves the lab has it. A table is a DataFrame: of
records (`make_table`), or of what the log's query found (`read_table`). Rows are looked up by `run` and `position`.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

import pandas as pd
from sqlalchemy import ColumnElement, SQLColumnExpression, String, and_, bindparam, case, func, or_, select

from evaluation.captions import ORIGINS, STATES, shorten
from evaluation.judge.metrics import METRICS, PROMPT_FIT, Score
from evaluation.store.records import CellRecord
from evaluation.store.rows import CellRow, RatingRow, RunCellRow, RunRow, ScoreRow
from evaluation.strengths import format_strength
from lora_runtime.catalogue import WEIGHTS, find_weights
from lora_runtime.errors import NotFound
from lora_runtime.judges import name_judge

Kind: TypeAlias = Literal["text", "number", "whole", "date"]
Value: TypeAlias = str | int | float | None
Sql: TypeAlias = SQLColumnExpression[Any]

NONE: Final = "none"
"""The option of a filter that rows without a value answer to."""

TYPES: Final = MappingProxyType({"text": "string", "number": "Float64", "whole": "Int64", "date": "string"})
"""The pandas type of each kind, the same however few rows there are."""


def _one(value: Value) -> tuple[str, ...]:
    return (NONE if value is None else str(value),)


@dataclass(frozen=True, kw_only=True)
class Filter:
    """How a column is filtered: the options that a value answers to, words, order."""

    label: str
    options: Callable[[Value], tuple[str, ...]] = _one
    words: Callable[[str], str] = str
    order: Callable[[str], str | float] = str.lower
    none: str = NONE

    def say(self, option: str) -> str:
        """Return an option in words; the page may have sent one that is none."""
        if option == NONE:
            return self.none
        try:
            return self.words(option)
        except (KeyError, ValueError, NotFound):
            return option


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a chart draws a column: the ends of its axis when they are fixed, and the digits of its numbers."""

    digits: int
    ends: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column. Dates are ISO 8601 in UTC; a column without `sql` is a caption's alone, in no table.

    `key` is what tells its values apart in the query, where that is not `sql` itself. `heading` shows it among the
    rows of the page, `wide` with room for a text; `setting` names it in the captions of an image, `group` among what
    rows are grouped by; `told` columns are in the JSON that programs and the command line get.
    """

    name: str
    label: str
    kind: Kind
    value: Callable[[CellRecord], Value]
    sql: Sql | None = None
    key: Sql | None = None
    words: Callable[[Any], str] = str
    missing: str = "–"
    heading: str = ""
    wide: bool = False
    filter: Filter | None = None
    group: str = ""
    setting: str = ""
    measure: Measure | None = None
    told: bool = False

    def say(self, value: Value) -> str:
        """Return a value in words."""
        return self.missing if value is None or value == "" else self.words(value)


def _date(value: Any) -> Value:
    """A time as it is written; any other value stays as it is."""
    return value.replace(tzinfo=UTC).isoformat(timespec="seconds") if isinstance(value, datetime) else value


def _request(name: str) -> Callable[[CellRecord], Value]:
    return lambda record: getattr(record.cell.request, name)


def _lora(name: str) -> Callable[[CellRecord], Value]:
    return lambda record: getattr(record.cell.request.lora, name, None)


def _score(score: Score, **more: Any) -> Column:
    """The column of a score; an image has one value of each, as its base image and its judge follow from what it is."""
    digits = 3 if score.name == "ssim" else 1
    value = select(func.max(ScoreRow.value)).where(
        ScoreRow.identity == RunCellRow.identity, ScoreRow.metric == score.name, _of_judge()
    )
    return Column(
        name=score.name,
        label=score.label,
        kind="number",
        value=lambda record: record.scores.get(score.name),
        sql=value.correlate(RunCellRow).scalar_subquery(),
        words=lambda value: f"{value:.{digits}f}",
        measure=Measure(digits=digits),
        **more,
    )


def _of_judge() -> ColumnElement[bool]:
    """Scores of the judge that is asked now, or of none; which one that is, is looked up when a query runs."""
    asked = (
        and_(
            RunCellRow.weights == name,
            ScoreRow.judge == bindparam(None, type_=String, unique=True, callable_=partial(name_judge, name)),
        )
        for name in WEIGHTS
    )
    return or_(ScoreRow.judge == "", *asked)


def _stars(option: str) -> str:
    return "★★★★★" if option == "5" else f"{'★' * int(option)} or more"


_LIST: Final = (
    Column(
        name="run", label="Run", kind="text", value=lambda record: record.run_id, sql=RunCellRow.run_id, group="run",
        filter=Filter(label="Run"), told=True,
    ),
    Column(
        name="position", label="Cell", kind="whole", value=lambda record: record.cell.position,
        sql=RunCellRow.position, told=True,
    ),
    Column(
        name="strength", label="Strength", kind="number", value=lambda record: float(record.cell.request.strength),
        sql=RunCellRow.strength, words=lambda value: format_strength(Decimal(str(value))), heading="Strength",
        setting="Strength", group="strength", told=True,
    ),
    Column(
        name="lora", label="LoRA", kind="text", value=_lora("name"), sql=RunCellRow.lora, key=RunCellRow.lora_sha256,
        missing="none", heading="LoRA", setting="LoRA", filter=Filter(label="LoRA"), group="LoRA", told=True,
    ),
    Column(
        name="prompt", label="Prompt", kind="text", value=_request("prompt"), sql=RunCellRow.prompt, heading="Prompt",
        wide=True, setting="Prompt", group="prompt", told=True,
        filter=Filter(label="Prompt", words=lambda text: shorten(text, 60)),
    ),
    Column(
        name="seed", label="Seed", kind="whole", value=_request("seed"), sql=RunCellRow.seed, heading="Seed",
        setting="Seed", filter=Filter(label="Seed", order=float), group="seed", told=True,
    ),
    Column(
        name="weights", label="Weights", kind="text", value=_request("weights"), sql=RunCellRow.weights,
        words=lambda name: find_weights(name).label, heading="Weights", setting="Weights", told=True,
        filter=Filter(label="Weights", words=lambda name: find_weights(name).label),
    ),
    Column(
        name="precision", label="Precision", kind="text", value=_request("precision"), sql=RunCellRow.precision,
        setting="Precision", filter=Filter(label="Precision", words=str.upper), told=True,
    ),
    Column(
        name="backend", label="Backend", kind="text", value=lambda record: record.cell.target.backend,
        sql=RunCellRow.backend, setting="Where", filter=Filter(label="Where"), told=True,
    ),
    Column(
        name="engine", label="Engine", kind="text", value=lambda record: record.provenance.get("engine"),
        sql=CellRow.provenance["engine"].as_string(), missing="this process", setting="Engine", told=True,
    ),
    Column(
        name="size", label="Size", kind="text", setting="Size",
        value=lambda record: f"{record.cell.request.width} × {record.cell.request.height} px",
    ),
    Column(name="width", label="Width", kind="whole", value=_request("width"), sql=RunCellRow.width),
    Column(name="height", label="Height", kind="whole", value=_request("height"), sql=RunCellRow.height),
    Column(
        name="steps", label="Steps", kind="whole", value=_request("steps"), sql=RunCellRow.steps, setting="Steps"
    ),
    Column(
        name="guidance", label="Guidance", kind="number", value=_request("guidance"), sql=RunCellRow.guidance,
        words=lambda value: f"{value:g}", setting="Guidance",
    ),
    Column(
        name="references", label="References", kind="whole", setting="References",
        value=lambda record: len(record.cell.request.references) or None,
    ),
    Column(
        name="origin", label="Made by", kind="text", value=lambda record: record.origin, sql=RunRow.origin,
        words=ORIGINS.__getitem__, filter=Filter(label="Made in", words=ORIGINS.__getitem__),
    ),
    Column(
        name="state", label="State", kind="text", value=lambda record: record.state,
        sql=case((CellRow.identity.is_not(None), "done"), else_="failed"), words=STATES.__getitem__,
        filter=Filter(label="State", words=STATES.__getitem__),
    ),
    _score(PROMPT_FIT, heading="Fit"),
    *(_score(metric, heading="SSIM" if metric.name == "ssim" else "") for metric in METRICS.values()),
    Column(
        name="rating", label="Rating", kind="whole", value=lambda record: record.rating, sql=RatingRow.rating,
        words=lambda stars: "★" * stars, heading="Rating", measure=Measure(digits=1, ends=(1, 5)),
        filter=Filter(
            label="Rating", words=_stars,
            # A row of four stars is also one of "three or more".
            options=lambda stars: tuple(str(each) for each in range(1, int(stars or 0) + 1)) or (NONE,),
            order=lambda option: -int(option), none="not rated",
        ),
    ),
    Column(
        name="note", label="Note", kind="text", value=lambda record: record.note,
        sql=func.coalesce(RatingRow.note, ""), missing="", heading="Note", wide=True,
    ),
    Column(
        name="seconds", label="Seconds an image", kind="number", value=lambda record: record.seconds,
        sql=CellRow.seconds, measure=Measure(digits=2), told=True,
    ),
    Column(
        name="cost", label="Cost (credits)", kind="number", value=lambda record: record.cost,
        sql=CellRow.cost, told=True,
    ),
    Column(
        name="request_id", label="Request", kind="text", value=lambda record: record.request_id,
        sql=CellRow.request_id, told=True,
    ),
    Column(
        name="created", label="Rendered", kind="date", value=lambda record: _date(record.created), sql=CellRow.created,
        words=lambda moment: f"{datetime.fromisoformat(moment):%d %b %H:%M}", missing="failed", heading="Rendered",
    ),
    Column(
        name="error", label="Error", kind="text", value=lambda record: record.error,
        sql=case((CellRow.identity.is_(None), RunCellRow.error)), told=True,
    ),
    Column(
        name="lora_sha256", label="LoRA SHA-256", kind="text", value=_lora("sha256"), sql=RunCellRow.lora_sha256
    ),
    Column(
        name="identity", label="Identity", kind="text", value=lambda record: record.cell.identity,
        sql=RunCellRow.identity,
    ),
    Column(
        name="image", label="Image", kind="text", value=lambda record: str(record.image) if record.image else None,
        sql=CellRow.blob,
    ),
)  # fmt: skip


COLUMNS: Final[Mapping[str, Column]] = MappingProxyType({column.name: column for column in _LIST})
"""Every column by name, in the order they are shown."""

Use: TypeAlias = Literal["heading", "filter", "group", "setting", "measure", "told"]


def list_columns(use: Use | None = None) -> Mapping[str, Column]:
    """Return the columns of one use by name; without one, those of a table."""
    if use is None:
        return {name: column for name, column in COLUMNS.items() if column.sql is not None}
    return {name: column for name, column in COLUMNS.items() if getattr(column, use)}


def make_table(records: Iterable[CellRecord]) -> pd.DataFrame:
    """Return one row a record; what is not known is missing."""
    every = tuple(records)
    return _frame({name: [column.value(each) for each in every] for name, column in list_columns().items()})


def read_table(rows: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """Return the same of what a query of each column's `sql` found."""
    values = list(zip(*rows, strict=True)) if rows else [()] * len(list_columns())
    return _frame(dict(zip(list_columns(), values, strict=True)))


def list_rows(table: pd.DataFrame) -> list[dict[str, Value]]:
    """Return each row of a table as plain values; what is missing is None."""
    plain = table.astype(object)
    return [
        {str(name): value for name, value in row.items()} for row in plain.where(table.notna(), None).to_dict("records")
    ]


def show_record(record: CellRecord) -> dict[str, Value]:
    """Return what programs and the command line are told of a cell."""
    return {name: column.value(record) for name, column in list_columns("told").items()}


def write_jsonl(table: pd.DataFrame) -> str:
    """Return one JSON object a line; what is missing is null."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in list_rows(table))


def _frame(values: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    plain = {name: pd.Series([_date(each) for each in found], dtype=object) for name, found in values.items()}
    return pd.DataFrame(plain).astype({name: TYPES[COLUMNS[name].kind] for name in values})
