"""What the Comparison tab shows, as views: the filter bar, the log, one image, several side by side. No HTML.

The templates of the same names draw them. Columns, filters and measures come from `evaluation.report.columns`; nothing
here names one but where its look is its own (the stars of a rating).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pandas as pd

from evaluation.captions import ORIGINS
from evaluation.judge.answer import Answer
from evaluation.log import LogRow, Option, Page, write_key
from evaluation.log_search import list_filters
from evaluation.report.chart import ChartView, list_measures, view_chart
from evaluation.report.columns import Column, list_columns
from evaluation.report.grid_view import image_url
from evaluation.store.records import CellRecord
from evaluation.strengths import exact, format_strength
from lora_runtime.errors import InvalidInput
from lora_runtime.written import count_of

LEAST, MOST = 2, 8
"""How many images can stand side by side."""

MOST_RUNS: Final = 3
"""How many further runs of an image are named."""

LONGEST: Final = 300
"""Characters of a text that a row shows."""

EXPORTS: Final = (
    (".csv", "CSV", "for spreadsheets"),
    (".jsonl", "JSON lines", "one object a row"),
    (".parquet", "Parquet", "for pandas, DuckDB"),
    (".html", "Report", "one HTML file with the images; opens offline"),
)
"""Ending, name and use of each file that the log can be taken away in."""

SHARED: Final = ("strength", "lora", "prompt", "seed", "weights", "precision")
"""What the head of a comparison says where all images have it in common."""


@dataclass(frozen=True, kw_only=True)
class Pill:
    """A filter with its options."""

    name: str
    label: str
    chosen: str
    options: Sequence[Option]


@dataclass(frozen=True, kw_only=True)
class BarView:
    """The filters that have a choice, the limits of the strength, the groups, and whether a chart is shown."""

    pills: Sequence[Pill]
    low: str
    high: str
    clear: bool
    groups: Mapping[str, str]
    group: str
    chart: bool


@dataclass(frozen=True, kw_only=True)
class Head:
    """A column that rows are sorted by."""

    name: str
    words: str
    label: str
    order: str
    arrow: str


@dataclass(frozen=True, kw_only=True)
class CellText:
    """One value of a row; `kind` is its look, `stars` how many of five a rating has."""

    column: str
    text: str
    kind: str
    stars: int = 0


@dataclass(frozen=True, kw_only=True)
class RowView:
    """One row, with the address of its image ("" without one)."""

    id: str
    about: str
    image: str
    cells: Sequence[CellText]


@dataclass(frozen=True, kw_only=True)
class GroupView:
    """Rows under one heading."""

    key: str
    title: str
    facts: Sequence[str]
    rows: Sequence[RowView]


@dataclass(frozen=True, kw_only=True)
class RowsView:
    """The log, as found by the `words` of a search; `notice` is markup that stands on top.

    `empty` is "" or why there is no row: "filtered", "new".
    """

    words: str
    notice: str
    undo: str
    empty: str
    count: str
    all: str
    heads: Sequence[Head]
    groups: Sequence[GroupView]
    left: int
    selected: str
    exports: Sequence[tuple[str, str, str]] = EXPORTS
    chart: ChartView | None = None
    measures: Mapping[str, str] = field(default_factory=dict)
    answers: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True)
class PictureView:
    """One image with its prompt, or why there is none."""

    id: str
    title: str
    about: str
    image: str
    size: tuple[int, int]
    file: str
    prompt: str
    error: str


def view_bar(page: Page) -> BarView:
    """Return the filter bar of a page; a filter without a choice is left out."""
    view = page.view
    pills = [
        Pill(name=name, label=column.filter.label, chosen=view.chosen.get(name, ""), options=page.options[name])
        for name, column in list_filters().items()
        if column.filter and (len(page.options[name]) > 1 or name in view.chosen)
    ]
    groups = {name: f"Group by {column.group}" for name, column in list_columns("group").items()}
    low, high = (exact(limit) if limit is not None else "" for limit in (view.low, view.high))
    return BarView(
        pills=pills, low=low, high=high, clear=view.is_filtered, groups={"": "Not grouped", **groups},
        group=view.group, chart=view.chart,
    )  # fmt: skip


def view_log(page: Page, *, selected: str = "", deleted: int = 0, notice: str = "") -> RowsView:
    """Return the rows of a page. `deleted` is how many can be brought back."""
    every = count_of(page.total, "image")
    heads = list_columns("heading")
    return RowsView(
        words=page.view.text,
        notice=notice,
        undo=f"{count_of(deleted, 'image')} deleted." if deleted else "",
        empty="" if page.shown else "filtered" if page.total else "new",
        count=every if page.shown == page.total else f"{page.shown} of {every}",
        all="the row" if page.shown == 1 else f"all {page.shown} rows",
        heads=[_head(column, page) for column in heads.values()],
        groups=[
            GroupView(
                key=group.key, title=group.title, facts=group.facts, rows=[_row(row, heads) for row in group.rows]
            )
            for group in page.groups
        ],
        left=page.left,
        selected=selected,
    )


def view_log_chart(
    table: pd.DataFrame, answers: Sequence[Answer], measure: str, *, place: Callable[[str], str]
) -> tuple[ChartView, Mapping[str, str], Sequence[tuple[str, str]]]:
    """Return the chart of a table, what else can be drawn, and the answer to each LoRA.

    A measure that no row has gives way to the first that some have.
    """
    known = list_measures(table)
    name = measure if measure in known else next(iter(known), "ssim")
    measures = {each: list_columns("measure")[each].label for each in known}
    said = [(answer.label, answer.sentence) for answer in answers]
    return view_chart(table, name, place=place, answers=answers), measures, said


def view_picture(record: CellRecord) -> PictureView:
    """Return one image large."""
    request = record.cell.request
    width = max(request.width, 512)
    return PictureView(
        id=write_key(record),
        title=f"Strength {format_strength(request.strength)}, seed {request.seed}",
        about=_about(record),
        image=image_url(record.image) if record.image else "",
        size=(width, width * request.height // request.width),
        file=f"{record.run_id}-{record.cell.position}.png",
        prompt=request.prompt,
        error=record.error or "",
    )


def list_picture_facts(record: CellRecord, runs: Sequence[str] = ()) -> Sequence[tuple[str, str]]:
    """Return all that made an image but its prompt, what was measured of it, and the `runs` that show it too."""
    facts = [(name, value) for name, value in _settings(record).items() if name != "Prompt"]
    scores = [
        (column.label, column.say(value))
        for name, column in list_columns("measure").items()
        if name not in ("rating", "seconds") and (value := column.value(record)) is not None
    ]
    took = [("Took", f"{record.seconds:.2f} s")] if record.seconds is not None else []
    cost = [("Cost", f"{record.cost:g} credits")] if record.cost is not None else []
    made = ("Made in", f"{ORIGINS[record.origin]} · {record.run_id}")
    more = f" and {len(runs) - MOST_RUNS} more" if len(runs) > MOST_RUNS else ""
    also = [("Also in", ", ".join(runs[:MOST_RUNS]) + more)] if runs else []
    return [*facts, *scores, *took, *cost, made, *also]


def view_side_by_side(records: Sequence[CellRecord]) -> dict[str, object]:
    """Return what the viewer shows of several images, each with the settings that differ.

    Raises:
        InvalidInput: Too few, too many, or one without an image.
    """
    if not LEAST <= len(records) <= MOST:
        raise InvalidInput(f"Pick {LEAST} to {MOST} rows to compare; these are {len(records)}.")
    if any(record.image is None for record in records):
        raise InvalidInput("One of the picked rows has no image, as it failed. Pick others.")
    settings = [_settings(record) for record in records]
    names = list(dict.fromkeys(name for own in settings for name in own))
    differ = [name for name in names if len({own.get(name) for own in settings}) > 1]
    shared = [
        f"{column.setting.lower()} {settings[0][column.setting]}"
        if name in ("strength", "seed")
        else settings[0][column.setting]
        for name, column in list_columns("setting").items()
        if name in SHARED and column.setting not in differ
    ]
    items = [
        _item(record, index, own, differ) for index, (record, own) in enumerate(zip(records, settings, strict=True))
    ]
    return {"items": items, "title": f"{len(records)} images side by side", "where": " · ".join(shared)}


def _item(record: CellRecord, index: int, settings: Mapping[str, str], differ: Sequence[str]) -> dict[str, object]:
    request = record.cell.request
    facts = [(name, settings.get(name, "none")) for name in differ]
    for name, column in list_columns("measure").items():
        if column.heading and (value := column.value(record)) is not None:
            facts.append((column.heading if name == "rating" else column.label, column.say(value)))
    if record.note:
        facts.append(("Note", record.note))
    return {
        "id": write_key(record),
        "src": image_url(record.image or Path()),
        "alt": f"Image {index + 1}: {_about(record)}",
        "label": f"Strength {format_strength(request.strength)}, seed {request.seed}",
        "title": f"Strength {format_strength(request.strength)}",
        "where": request.prompt,
        "facts": facts,
        "row": 0,
        "column": index,
        "shape": f"{request.width}/{request.height}",
    }


def _settings(record: CellRecord) -> dict[str, str]:
    """What decides the pixels of an image, in words; what it does not have is left out."""
    found = ((column, column.value(record)) for column in list_columns("setting").values())
    return {column.setting: column.say(value) for column, value in found if value is not None or column.name == "lora"}


def _head(column: Column, page: Page) -> Head:
    order, arrow = "none", ""
    if page.view.sort == column.name:
        order, arrow = ("descending", "↓") if page.view.descending else ("ascending", "↑")
    return Head(name=column.name, words=column.heading, label=column.label, order=order, arrow=arrow)


def _row(row: LogRow, heads: Mapping[str, Column]) -> RowView:
    strength, seed = (row.say(list_columns()[name]) for name in ("strength", "seed"))
    return RowView(
        id=row.id,
        about=f"strength {strength}, seed {seed}",
        image=image_url(row.image) if row.image else "",
        cells=[_cell(row, column) for column in heads.values()],
    )


def _cell(row: LogRow, column: Column) -> CellText:
    value = row.values[column.name]
    kind = "wide" if column.wide else "lora" if column.name == "lora" else "text" if column.kind == "text" else "number"
    stars = value if column.name == "rating" and isinstance(value, int) else 0
    return CellText(column=column.name, text=row.say(column)[:LONGEST], kind=kind, stars=stars)


def _about(record: CellRecord) -> str:
    request = record.cell.request
    return f"Strength {format_strength(request.strength)}, seed {request.seed}: {request.prompt}"
