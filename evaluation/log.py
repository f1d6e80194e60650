"""What of the log is shown: the page of rows that a search found, its filters with their counts, its groups. No HTML.

A filter offers only what occurs: the options of one are those of the images that all the other filters let through,
with how many each would show, so no choice leads to an empty page. Nothing is planned and no image is read here; a row
is what the columns of `evaluation.report.columns` say, and a record is asked for when one row is looked at.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, Final

import pandas as pd
from sqlalchemy import Row, select, tuple_
from sqlalchemy.orm import Session

from evaluation.captions import call_files, name_run
from evaluation.log_search import LogView, Search, list_filters
from evaluation.report.columns import NONE, Column, Filter, Value, list_columns, read_table
from evaluation.store.planned import Whole
from evaluation.store.read import select_log
from evaluation.store.records import CellKey, CellRecord
from evaluation.store.rows import RunCellRow, RunRow
from evaluation.store.store import Store
from evaluation.strengths import exact
from lora_runtime.errors import NotFound
from lora_runtime.registry.accounts import LOCAL
from lora_runtime.written import count_of, quote

MAX_OPTIONS: Final = 200
"""How many options a filter lists, the most frequent first; of runs, the newest."""

BATCH: Final = 500
"""Rows that one statement names."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """A choice of a filter, in words, and how many images it would show."""

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
    """The log as a view shows it: `shown` of `total` images pass its filters.

    They stand in `rows` rows, as an image has one in each group; the first of them are in `groups`.
    """

    view: LogView
    total: int
    shown: int
    rows: int
    groups: Sequence[Group]
    options: Mapping[str, Sequence[Option]]

    @property
    def left(self) -> int:
        """How many rows "Show more" has left."""
        return self.rows - sum(len(group.rows) for group in self.groups)


def read_page(store: Store, view: LogView, *, organization: str = LOCAL) -> Page:
    """Return what `view` shows of the log; a chart draws no rows, so it gets none."""
    with store.database.session() as session:
        search = _search(store, session, view, organization)
        options = _list_every_option(search)
        places = search.list_rows()
        first = () if view.chart else places[: view.rows].tolist()
        found = _read_rows(session, [search.keys[place] for place in first])
        facts = _summarize(search, places, dict.fromkeys(search.group.at(place) for place in first))
    called = {option.value: option.words for option in options["lora"]}
    groups: dict[str, list[LogRow]] = {}
    for place in first:
        if search.keys[place] in found:
            row = _read_row(store, found[search.keys[place]], called)
            groups.setdefault(_key(search.group.at(place)) if view.group else "", []).append(row)
    titles = {option.value: option.words for option in options.get(view.group, ())}
    return Page(
        view=view,
        total=search.count_images(search.known.there),
        shown=search.count_images(search.shown),
        rows=len(places),
        groups=[
            Group(key=key, title=_title(key, view.group, titles), facts=facts.get(key, ()), rows=own)
            for key, own in groups.items()
        ],
        options=options,
    )


def read_keys(store: Store, view: LogView, *, organization: str = LOCAL, every: bool = False) -> tuple[CellKey, ...]:
    """Return which cells the filters of `view` let through, in its order: one an image, or `every` one."""
    with store.database.session() as session:
        search = _search(store, session, view, organization)
        return tuple(search.keys[place] for place in (search.list_cells() if every else search.list_images()))


def read_behind(
    store: Store, view: LogView, rows: Sequence[CellKey], *, organization: str = LOCAL
) -> tuple[Sequence[CellKey], ...]:
    """Return the cells that each of these rows of `view` stands for; a row that has left the log is left out."""
    with store.database.session() as session:
        search = _search(store, session, view, organization)
        return tuple(cells for row in rows if (cells := search.list_behind(row)))


def read_log_table(store: Store, keys: Sequence[CellKey]) -> pd.DataFrame:
    """Return cells of the log as a table. An image is the name of its file; LoRAs of one name are told apart."""
    with store.database.session() as session:
        found = _read_rows(session, keys)
    table = read_table([found[key] for key in keys if key in found])
    known = table[["lora_sha256", "lora"]].dropna().drop_duplicates("lora_sha256")
    table["lora"] = table["lora_sha256"].map(call_files(dict(known.itertuples(index=False)))).astype("string")
    return table


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


def _search(store: Store, session: Session, view: LogView, organization: str) -> Search:
    known = store.plans.read(session, organization)
    return Search(known=known, view=view)


def _list_every_option(search: Search) -> Mapping[str, Sequence[Option]]:
    """The options of each filter; LoRAs of one name are told apart."""
    options = {
        name: _list_options(column, search.count(column), search.view) for name, column in list_filters().items()
    }
    called = call_files(search.name_loras())
    named = [replace(option, words=called.get(option.value, option.words)) for option in options["lora"]]
    options["lora"] = sorted(named, key=lambda option: (option.value == NONE, option.words.lower()))
    runs = {option.value: option for option in options["run"]}
    options["run"] = _name_runs(search.known.session, runs, search.known.organization)
    return options


def _list_options(column: Column, counts: Mapping[Value, int], view: LogView) -> Sequence[Option]:
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


def _name_runs(session: Session, options: Mapping[str, Option], organization: str) -> Sequence[Option]:
    """The options of the newest runs, each called by when it was started, its LoRA and its prompt.

    Those that are called alike have their ids too.
    """
    first = select(RunRow.id, RunRow.created, RunCellRow.lora, RunCellRow.prompt).join(RunCellRow)
    query = first.where(RunCellRow.position == 0, RunRow.organization == organization)
    query = query.order_by(RunRow.created.desc(), RunRow.id)
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


def _read_rows(session: Session, keys: Sequence[CellKey]) -> dict[CellKey, Row[Any]]:
    """The columns of cells, but for those that have left the log meanwhile."""
    query = select_log(*(column.sql for column in list_columns().values()))
    found: dict[CellKey, Row[Any]] = {}
    for start in range(0, len(keys), BATCH):
        some = keys[start : start + BATCH]
        # SQLite finds the runs by its index, but looks for a pair in every row.
        of_runs = RunCellRow.run_id.in_({run_id for run_id, _ in some})
        these = query.where(of_runs, tuple_(RunCellRow.run_id, RunCellRow.position).in_(some))
        found |= {(row.run_id, row.position): row for row in session.execute(these)}
    return found


def _summarize(search: Search, rows: Whole, groups: Iterable[Value]) -> Mapping[str, Sequence[str]]:
    """The count and the means of each group, in words; at strength 0 nothing is compared."""
    if not search.view.group:
        return {}
    planned, rating = search.known.planned, search.known.rating
    scores = [column for column in list_columns("measure").values() if column.heading and column.name != "rating"]
    acts = planned.find("strength").ask(bool)
    own = {value: rows[search.group.codes[rows] == search.group.values.index(value)] for value in groups}
    compared = {value: [planned.image.at(place) for place in cells[acts[cells]]] for value, cells in own.items()}
    images = list({each for some in compared.values() for each in some})
    found = search.ask(scores, images)
    facts = {}
    for value, cells in own.items():
        said = [count_of(len(cells), "image")]
        for column in scores:
            values = map(found[column.name].get, compared[value])
            known = [each for each in values if each is not None]
            said += [f"{column.heading} {column.words(fmean(known))}"] if known else []
        stars = [star for place in cells if (star := rating.at(place)) is not None]
        said += [f"★ {fmean(stars):.1f} ({len(stars)} rated)"] if stars else []
        facts[_key(value)] = said
    return facts


def _read_row(store: Store, row: Row[Any], called: Mapping[str, str]) -> LogRow:
    values = dict(zip(list_columns(), row, strict=True))
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
