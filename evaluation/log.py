"""What of the log is shown: one query that filters, searches, sorts, groups, counts and pages. No HTML.

A filter offers only what occurs: the options of one are those of the rows that all the other filters let through, with
how many rows each would show, so no choice leads to an empty page. Nothing is planned and no image is read here; a row
is what the columns of `evaluation.report.columns` say, and a record is asked for when one row is looked at.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pandas as pd
from sqlalchemy import ColumnElement, Label, Row, Select, and_, case, func, null, nulls_last, or_, select, true, tuple_
from sqlalchemy.orm import Session

from evaluation.captions import call_files, name_run
from evaluation.report.columns import NONE, Column, Filter, Sql, Value, list_columns, read_table
from evaluation.store.read import select_log
from evaluation.store.records import CellKey, CellRecord
from evaluation.store.rows import RatingRow, RunCellRow, RunRow
from evaluation.store.store import Store
from evaluation.strengths import exact
from lora_runtime.errors import InvalidInput, NotFound
from lora_runtime.written import count_of, quote, read_decimal

PAGE_ROWS: Final = 60
"""How many rows are drawn before "Show more"."""

MAX_OPTIONS: Final = 200
"""How many options a filter lists, the most frequent first; of runs, the newest."""

BATCH: Final = 500
"""Rows that one statement names."""

_NEWEST: Final = (RunRow.created.desc(), RunRow.id, RunCellRow.position)


@dataclass(frozen=True, kw_only=True)
class LogView:
    """What of the log is shown and how. `chosen` has an option for each filter that is set; a limit of None is none."""

    text: str = ""
    chosen: Mapping[str, str] = field(default_factory=dict)
    low: Decimal | None = None
    high: Decimal | None = None
    group: str = ""
    sort: str = "created"
    descending: bool = True
    rows: int = PAGE_ROWS
    chart: bool = False
    measure: str = "clip"

    @property
    def is_filtered(self) -> bool:
        """Whether any filter is set."""
        return bool(self.text.strip() or self.chosen or self.low is not None or self.high is not None)


@dataclass(frozen=True, kw_only=True)
class Option:
    """A choice of a filter, in words, and how many rows it would show."""

    value: str
    words: str
    count: int


@dataclass(frozen=True, kw_only=True)
class LogRow:
    """One row: its id, and its values by column. `image` is None where the cell has none."""

    id: str
    values: Mapping[str, Value]
    image: Path | None

    def say(self, column: Column) -> str:
        """Return what a column shows of it."""
        return column.say(self.values[column.name])


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows under one heading, with their count and means in words; `key` is empty when nothing is grouped."""

    key: str
    title: str
    facts: Sequence[str]
    rows: Sequence[LogRow]


@dataclass(frozen=True, kw_only=True)
class Page:
    """The log as a view shows it: `shown` of `total` rows pass its filters, and the first of them are in `groups`."""

    view: LogView
    total: int
    shown: int
    groups: Sequence[Group]
    options: Mapping[str, Sequence[Option]]

    @property
    def left(self) -> int:
        """How many rows "Show more" has left."""
        return self.shown - sum(len(group.rows) for group in self.groups)


def read_page(store: Store, view: LogView, *, organization: str | None, total: int) -> Page:
    """Return what `view` shows of the log; a chart draws no rows, so it gets none. `total`: how many rows there are."""
    with store.database.session() as session:
        shown, options = _count(session, view, organization)
        found = [] if view.chart else session.execute(_select_keys(view, organization).limit(view.rows)).all()
        keys = [(run_id, position) for run_id, position, _ in found]
        rows = [_read_row(store, row, options["lora"]) for row in _read_rows(session, keys)]
        facts = _summarize(session, view, organization, list(dict.fromkeys(group for *_, group in found)))
    titles = {option.value: option.words for option in options.get(view.group, ())}
    groups: dict[str, list[LogRow]] = {}
    for row, (*_, value) in zip(rows, found, strict=True):
        groups.setdefault(_key(value) if view.group else "", []).append(row)
    return Page(
        view=view,
        total=max(total, shown),
        shown=shown,
        groups=[
            Group(key=key, title=_title(key, view.group, titles), facts=facts.get(key, ()), rows=own)
            for key, own in groups.items()
        ],
        options=options,
    )


def read_keys(store: Store, view: LogView, *, organization: str | None = None) -> tuple[CellKey, ...]:
    """Return which cells the filters of `view` let through, in its order."""
    with store.database.session() as session:
        return tuple((run_id, position) for run_id, position, _ in session.execute(_select_keys(view, organization)))


def read_log_table(store: Store, keys: Sequence[CellKey]) -> pd.DataFrame:
    """Return cells of the log as a table. An image is the name of its file; LoRAs of one name are told apart."""
    with store.database.session() as session:
        table = read_table(_read_rows(session, keys))
    known = table[["lora_sha256", "lora"]].dropna().drop_duplicates("lora_sha256")
    table["lora"] = table["lora_sha256"].map(call_files(dict(known.itertuples(index=False)))).astype("string")
    return table


def list_filters() -> Mapping[str, Column]:
    """Return the columns that filter, in the order they are shown; runs come last."""
    found = list_columns("filter")
    return dict(sorted(found.items(), key=lambda named: named[0] == "run"))


def read_view(view: LogView, asked: Mapping[str, object]) -> LogView:
    """Return `view` with what the filter bar says; the page may send anything, so the unknown is left out."""
    group = str(asked.get("group") or "")
    return replace(
        view,
        chosen={name: str(asked[name]) for name in list_filters() if asked.get(name) not in (None, "")},
        low=_read_strength(asked.get("low")),
        high=_read_strength(asked.get("high")),
        group=group if group in list_columns("group") else "",
        measure=str(asked.get("measure") or view.measure),
        rows=PAGE_ROWS,
    )


def sort_view(view: LogView, column: str) -> LogView:
    """Return `view` sorted by a column; a second time turns the order around."""
    if column not in list_columns():
        return view
    descending = not view.descending if view.sort == column else False
    return replace(view, sort=column, descending=descending, rows=PAGE_ROWS)


def find_record(store: Store, row_id: str, *, organization: str | None = None) -> CellRecord:
    """Return the record of a row id, `run/position`.

    Raises:
        NotFound: There is no such row, or it is somebody else's.
    """
    for record in store.records([read_key(row_id)]):
        if organization in (None, record.organization):
            return record
    raise NotFound(f"There is no row {quote(row_id)}. Reload the page.")


def read_key(row_id: str) -> CellKey:
    """Read the id of a row.

    Raises:
        NotFound: It is none.
    """
    run_id, _, position = row_id.rpartition("/")
    if not run_id or not position.isdecimal() or len(position) > 9:
        raise NotFound(f"There is no row {quote(row_id)}. Reload the page.")
    return run_id, int(position)


def write_key(record: CellRecord) -> str:
    """Return the id of a record's row."""
    return f"{record.run_id}/{record.cell.position}"


def _count(session: Session, view: LogView, organization: str | None) -> tuple[int, Mapping[str, Sequence[Option]]]:
    """How many rows pass every filter, and the options of each filter.

    One pass over the rows that the search finds: rows that no filter tells apart are counted by the database.
    """
    filters = list_filters()
    # By its label, as PostgreSQL takes one expression with a parameter for two.
    columns: list[Label[Any]] = [_tell(column).label(f"key {name}") for name, column in filters.items()]
    query = select_log(*columns, RunCellRow.lora, func.count(), organization=organization).where(_passes(view))
    counts: dict[str, Counter[Value]] = {name: Counter() for name in filters}
    loras: dict[Value, str] = {}
    shown = 0
    for *values, lora, count in session.execute(query.group_by(*(column.name for column in columns), RunCellRow.lora)):
        found = dict(zip(filters, values, strict=True))
        loras.setdefault(found["lora"], lora)
        missed = [name for name in view.chosen if name in filters and not _answers(filters[name], found[name], view)]
        shown += 0 if missed else count
        for name in filters if not missed else missed if len(missed) == 1 else ():
            counts[name][found[name]] += count
    options = {name: _list_options(column, counts[name], view) for name, column in filters.items()}
    called = call_files({str(sha256): name for sha256, name in loras.items() if sha256})
    named = [replace(option, words=called.get(option.value, option.words)) for option in options["lora"]]
    options["lora"] = sorted(named, key=lambda option: (option.value == NONE, option.words.lower()))
    options["run"] = _name_runs(session, {option.value: option for option in options["run"]}, organization)
    return shown, options


def _answers(column: Column, value: Value, view: LogView) -> bool:
    return column.filter is None or view.chosen[column.name] in column.filter.options(value)


def _list_options(column: Column, counts: Counter[Value], view: LogView) -> Sequence[Option]:
    """The options of a filter from how often each value occurs, in their order; the chosen one is always there."""
    known = column.filter
    if known is None:
        return ()
    found: Counter[str] = Counter()
    for value, count in counts.items():
        for option in known.options(value):
            found[option] += count
    shown = dict(found if column.name == "run" else found.most_common(MAX_OPTIONS))
    if column.name in view.chosen:
        shown.setdefault(view.chosen[column.name], found[view.chosen[column.name]])
    return [
        Option(value=option, words=known.say(option), count=shown[option])
        for option in sorted(shown, key=lambda each: (each == NONE, _place(known, each)))
    ]


def _name_runs(session: Session, options: Mapping[str, Option], organization: str | None) -> Sequence[Option]:
    """The options of the newest runs, each called by when it was started, its LoRA and its prompt.

    Those that are called alike have their ids too.
    """
    first = select(RunRow.id, RunRow.created, RunCellRow.lora, RunCellRow.prompt).join(RunCellRow)
    query = first.where(RunCellRow.position == 0).order_by(RunRow.created.desc(), RunRow.id)
    if organization is not None:
        query = query.where(RunRow.organization == organization)
    rest = dict(options)
    named: list[Option] = []
    with session.execute(query.execution_options(yield_per=MAX_OPTIONS)) as found:
        for run_id, created, lora, prompt in found:
            if len(named) == MAX_OPTIONS or not rest:
                break
            if run_id in rest:
                named.append(replace(rest.pop(run_id), words=name_run(created, lora, prompt)))
    often = Counter(option.words for option in named)
    named = [
        replace(option, words=f"{option.words} · {option.value}") if often[option.words] > 1 else option
        for option in named
    ]
    return [*named, *(option for option in rest.values() if option.count == 0)]


def _tell(column: Column) -> Sql:
    """What tells the values of a column apart."""
    found = column.sql if column.key is None else column.key
    if found is None:
        raise ValueError(f"{column.name} is in no table")
    return found


def _passes(view: LogView) -> ColumnElement[bool]:
    """Whether a row has every word of the search and its strength is within the limits."""
    wanted: list[ColumnElement[bool]] = []
    for word in view.text.lower().split():
        wanted.append(
            or_(
                RunCellRow.words.contains(word, autoescape=True),
                and_(RatingRow.note.is_not(None), func.lower(RatingRow.note).contains(word, autoescape=True)),
                and_(RunCellRow.error.is_not(None), func.lower(RunCellRow.error).contains(word, autoescape=True)),
            )
        )
    if view.low is not None:
        wanted.append(RunCellRow.strength >= float(view.low))
    if view.high is not None:
        wanted.append(RunCellRow.strength <= float(view.high))
    return and_(true(), *wanted)


def _select_keys(view: LogView, organization: str | None) -> Select[Any]:
    """Which cells pass the filters, in order: run, position, and what they are grouped by."""
    group = _tell(list_columns("group")[view.group]) if view.group else null()
    query = select_log(RunCellRow.run_id, RunCellRow.position, group, organization=organization)
    return _order(_filter(query, view), view)


def _filter(query: Select[Any], view: LogView) -> Select[Any]:
    chosen = [column for name, column in list_filters().items() if name in view.chosen]
    options = (each.filter.where(_tell(each), view.chosen[each.name]) for each in chosen if each.filter)
    return query.where(_passes(view), *options)


def _read_rows(session: Session, keys: Sequence[CellKey]) -> list[Row[Any]]:
    """The columns of cells, in the order of `keys`."""
    found: dict[CellKey, Row[Any]] = {}
    for start in range(0, len(keys), BATCH):
        these = tuple_(RunCellRow.run_id, RunCellRow.position).in_(keys[start : start + BATCH])
        query = select_log(*(column.sql for column in list_columns().values()))
        found |= {(row.run_id, row.position): row for row in session.execute(query.where(these))}
    return [found[key] for key in keys if key in found]


def _order(query: Select[Any], view: LogView) -> Select[Any]:
    """Groups first: numbers in order, others by their newest row. Rows without a value come last, equal ones newest."""
    order: list[Sql] = []
    if view.group:
        column = list_columns("group")[view.group]
        key = _tell(column)
        if column.kind == "text":
            order.append(func.max(RunRow.created).over(partition_by=key).desc())
        order += [key.is_(None), key]
    if (view.sort, view.descending) != ("created", True):
        column = list_columns()[view.sort]
        value = func.lower(column.sql) if column.kind == "text" else column.sql
        if value is not None:
            order.append(nulls_last(value.desc() if view.descending else value.asc()))
    return query.order_by(*order, *_NEWEST)


def _summarize(
    session: Session, view: LogView, organization: str | None, keys: Sequence[Value]
) -> Mapping[str, Sequence[str]]:
    """The count and the means of each group, in words; at strength 0 nothing is compared. Equal images count once."""
    if not keys or not view.group:
        return {}
    scores = [column for column in list_columns("measure").values() if column.heading and column.name != "rating"]
    acts = RunCellRow.strength != 0
    key = _tell(list_columns("group")[view.group])
    # Each value is the same in every row of an image.
    values = [func.max(case((acts, column.sql))).label(f"score {column.name}") for column in scores]
    query = select_log(
        key.label("key of group"), func.max(RatingRow.rating).label("stars"), *values, organization=organization
    )
    some = or_(key.in_([each for each in keys if each is not None]), *([key.is_(None)] if None in keys else []))
    images = _filter(query, view).where(some).group_by("key of group", RunCellRow.identity).subquery()
    rated = (func.avg(images.c.stars), func.count(images.c.stars))
    means = [func.avg(images.c[value.name]) for value in values]
    facts = {}
    for value, count, stars, raters, *found in session.execute(
        select(images.c["key of group"], func.count(), *rated, *means).group_by(images.c["key of group"])
    ):
        said = [count_of(count, "image")]
        said += [
            f"{column.heading} {column.words(mean)}"
            for column, mean in zip(scores, found, strict=True)
            if mean is not None
        ]
        if raters:
            said.append(f"★ {stars:.1f} ({raters} rated)")
        facts[_key(value)] = said
    return facts


def _read_row(store: Store, row: Row[Any], loras: Sequence[Option]) -> LogRow:
    values = dict(zip(list_columns(), row, strict=True))
    called = {option.value: option.words for option in loras}
    values["lora"] = called.get(values["lora_sha256"], values["lora"])
    values["created"] = values["created"] and values["created"].isoformat()
    return LogRow(
        id=f"{values['run']}/{values['position']}",
        values=MappingProxyType(values),
        image=store.find_image(values["image"]),
    )


def _key(value: Value) -> str:
    """A group's value as the page names it."""
    if value is None:
        return NONE
    return exact(Decimal(str(value))) if isinstance(value, float) else str(value)


def _title(key: str, group: str, titles: Mapping[str, str]) -> str:
    if group == "strength":
        return f"Strength {key}" if Decimal(key) else "Strength 0 · base"
    return f"Seed {key}" if group == "seed" else titles.get(key, key)


def _place(known: Filter, option: str) -> str | float:
    """Where an option stands; what is none of the filter's comes first."""
    try:
        return known.order(option)
    except ValueError:
        return -math.inf


def _read_strength(written: object) -> Decimal | None:
    try:
        return read_decimal("Strength", written)
    except InvalidInput:
        return None
