"""What of the log is shown: filters that offer only what occurs, groups, order. Records in, records out; no HTML.

A filter names the options that a record answers to, so one rule serves all: a record is shown when each chosen option
is among its own. The options of a filter are those of the records that all the other filters let through, so no choice
leads to an empty page.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import groupby
from statistics import mean
from types import MappingProxyType
from typing import Final

from evaluation.captions import shorten
from evaluation.report.columns import COLUMNS
from evaluation.store.records import CellKey, CellRecord
from evaluation.store.store import Store
from evaluation.strengths import exact
from lora_runtime.catalogue import find_weights
from lora_runtime.errors import InvalidInput, NotFound
from lora_runtime.written import quote, read_decimal

PAGE_ROWS: Final = 60
"""How many rows are drawn before "Show more"."""

MAX_OPTIONS: Final = 200
"""How many options a filter lists, the most frequent first."""

NO_RATING: Final = "none"
NO_LORA: Final = "none"

ORIGINS: Final = MappingProxyType({"sweep": "Sweep", "playground": "Playground", "api": "API"})
STATES: Final = MappingProxyType({"done": "done", "failed": "failed", "pending": "waiting"})


@dataclass(frozen=True, kw_only=True)
class Filter:
    """One filter: its words, the options a record answers to, how an option is called, and their order."""

    label: str
    options: Callable[[CellRecord], tuple[str, ...]]
    words: Callable[[str], str] = str
    order: Callable[[str], str | float] = str.lower


def _lora(record: CellRecord) -> tuple[str, ...]:
    lora = record.cell.request.lora
    return (lora.name if lora else NO_LORA,)


def _rating(record: CellRecord) -> tuple[str, ...]:
    """A row of four stars is also one of "three or more"."""
    return tuple(str(stars) for stars in range(1, record.rating + 1)) if record.rating else (NO_RATING,)


def _rating_words(option: str) -> str:
    if option == NO_RATING:
        return "not rated"
    return "★★★★★" if option == "5" else f"{'★' * int(option)} or more"


FILTERS: Final[Mapping[str, Filter]] = MappingProxyType(
    {
        "lora": Filter(label="LoRA", options=_lora),
        "prompt": Filter(
            label="Prompt", options=lambda record: (record.cell.request.prompt,), words=lambda text: shorten(text, 60)
        ),
        "seed": Filter(label="Seed", options=lambda record: (str(record.cell.request.seed),), order=float),
        "rating": Filter(
            label="Rating",
            options=_rating,
            words=_rating_words,
            order=lambda option: 9 if option == NO_RATING else -int(option),
        ),
        "weights": Filter(
            label="Weights",
            options=lambda record: (record.cell.request.weights,),
            words=lambda name: find_weights(name).label,
        ),
        "precision": Filter(
            label="Precision", options=lambda record: (record.cell.request.precision,), words=str.upper
        ),
        "backend": Filter(label="Where", options=lambda record: (record.cell.target.backend,)),
        "origin": Filter(label="Made in", options=lambda record: (record.origin,), words=ORIGINS.__getitem__),
        "state": Filter(label="State", options=lambda record: (record.state,), words=STATES.__getitem__),
        "run": Filter(label="Run", options=lambda record: (record.run_id,)),
    }
)
"""Every filter by name, in the order they are shown. A new one is one record here."""

GROUPS: Final[Mapping[str, str]] = MappingProxyType(
    {"": "nothing", "lora": "LoRA", "run": "run", "prompt": "prompt", "seed": "seed", "strength": "strength"}
)
"""What rows can be grouped by, with its words."""


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
class Group:
    """Rows under one heading; `key` is empty when nothing is grouped."""

    key: str
    title: str
    records: tuple[CellRecord, ...]


@dataclass(frozen=True, kw_only=True)
class Page:
    """The log as a view shows it. `options` are those of each filter, with how many rows each would show."""

    view: LogView
    total: int
    records: tuple[CellRecord, ...]
    groups: tuple[Group, ...]
    options: Mapping[str, tuple[tuple[str, int], ...]]
    run_titles: Mapping[str, str]


def make_page(records: Sequence[CellRecord], view: LogView) -> Page:
    """Return what `view` shows of `records`, which are newest first."""
    kept: list[CellRecord] = []
    counts: dict[str, Counter[str]] = {name: Counter() for name in FILTERS}
    words = view.text.lower().split()
    for record in records:
        if not _is_within(record, view) or (words and not _has_words(record, words)):
            continue
        failed = [name for name, option in view.chosen.items() if option not in FILTERS[name].options(record)]
        if not failed:
            kept.append(record)
        for name in FILTERS if not failed else failed if len(failed) == 1 else ():
            counts[name].update(FILTERS[name].options(record))
    ordered = _sort(kept, view)
    titles = _name_runs(records)
    return Page(
        view=view,
        total=len(records),
        records=tuple(ordered),
        groups=_group(ordered, view, titles),
        options={name: _list_options(name, counts[name], view.chosen.get(name)) for name in FILTERS},
        run_titles=titles,
    )


def read_view(view: LogView, asked: Mapping[str, object]) -> LogView:
    """Return `view` with what the filter bar says; the page may send anything, so the unknown is left out."""
    chosen = {name: str(asked[name]) for name in FILTERS if asked.get(name) not in (None, "")}
    group, measure = str(asked.get("group") or ""), str(asked.get("measure") or view.measure)
    return replace(
        view,
        chosen=chosen,
        low=_read_strength(asked.get("low")),
        high=_read_strength(asked.get("high")),
        group=group if group in GROUPS else "",
        measure=measure,
        rows=PAGE_ROWS,
    )


def sort_view(view: LogView, column: str) -> LogView:
    """Return `view` sorted by a column; a second time turns the order around."""
    if column not in COLUMNS:
        return view
    return replace(view, sort=column, descending=not view.descending if view.sort == column else False)


def find_record(store: Store, row_id: str) -> CellRecord:
    """Return the record of a row id, `run/position`.

    Raises:
        NotFound: There is no such row.
    """
    for record in store.cells(read_key(row_id)[0]):
        if record.key == read_key(row_id):
            return record
    raise NotFound(f"There is no row {quote(row_id)}. Reload the page.")


def read_key(row_id: str) -> CellKey:
    """Read the id of a row.

    Raises:
        NotFound: It is none.
    """
    run_id, _, position = row_id.rpartition("/")
    if not run_id or not position.isdecimal():
        raise NotFound(f"There is no row {quote(row_id)}. Reload the page.")
    return run_id, int(position)


def write_key(record: CellRecord) -> str:
    """Return the id of a record's row."""
    return f"{record.run_id}/{record.cell.position}"


def summarize(records: Sequence[CellRecord]) -> list[str]:
    """Return the count and the means of a group, in words."""
    said = [f"{len(records)} image{'' if len(records) == 1 else 's'}"]
    for name, words, digits in (("clip", "prompt fit", 1), ("ssim", "SSIM", 2)):
        scored = [record.scores[name] for record in records if name in record.scores and record.cell.request.strength]
        if scored:
            said.append(f"{words} {mean(scored):.{digits}f}")
    rated = [record.rating for record in records if record.rating is not None]
    if rated:
        said.append(f"★ {mean(rated):.1f} ({len(rated)} rated)")
    return said


def _is_within(record: CellRecord, view: LogView) -> bool:
    strength = record.cell.request.strength
    return (view.low is None or strength >= view.low) and (view.high is None or strength <= view.high)


def _has_words(record: CellRecord, words: Sequence[str]) -> bool:
    request = record.cell.request
    lora = request.lora.name if request.lora else ""
    places = (request.prompt, lora, record.note, record.run_id, request.weights, request.precision, record.error or "")
    text = "\n".join(places).lower()
    return all(word in text for word in words)


def _sort(records: Sequence[CellRecord], view: LogView) -> list[CellRecord]:
    """In the order of a column; equal rows keep theirs, and rows without a value come last."""
    if view.sort == "created" and view.descending:
        return list(records)  # as they come: the newest run first, its cells in order
    value = COLUMNS[view.sort].value
    known = [(found, record) for record in records if (found := value(record)) is not None]
    unknown = [record for record in records if value(record) is None]
    number = COLUMNS[view.sort].kind in ("number", "whole")
    known.sort(key=lambda pair: pair[0] if number else str(pair[0]).lower(), reverse=view.descending)
    return [record for _, record in known] + unknown


def _group(records: Sequence[CellRecord], view: LogView, titles: Mapping[str, str]) -> tuple[Group, ...]:
    if not view.group:
        return (Group(key="", title="", records=tuple(records)),) if records else ()
    found: dict[str, list[CellRecord]] = {}
    for record in records:
        found.setdefault(_group_key(record, view.group), []).append(record)
    keys = sorted(found, key=Decimal) if view.group in ("strength", "seed") else list(found)
    return tuple(Group(key=key, title=_group_title(key, view.group, titles), records=tuple(found[key])) for key in keys)


def _group_key(record: CellRecord, group: str) -> str:
    if group == "strength":
        return exact(record.cell.request.strength)
    return FILTERS[group].options(record)[0]


def _group_title(key: str, group: str, titles: Mapping[str, str]) -> str:
    if group == "run":
        return titles.get(key, key)
    if group == "strength":
        return f"Strength {key}" if Decimal(key) else "Strength 0 · base"
    return f"Seed {key}" if group == "seed" else FILTERS[group].words(key)


def _name_runs(records: Sequence[CellRecord]) -> dict[str, str]:
    """What each run is called: when it was, its LoRA and its prompt."""
    titles = {}
    for run_id, same in groupby(records, key=lambda record: record.run_id):
        own = list(same)
        when = min((record.created for record in own if record.created), default=None)
        prompt = shorten(own[0].cell.request.prompt, 40)
        titles[run_id] = " · ".join([*([f"{when:%d %b %H:%M}"] if when else []), _lora(own[0])[0], prompt])
    return titles


def _list_options(name: str, counts: Counter[str], chosen: str | None) -> tuple[tuple[str, int], ...]:
    options = dict(counts.most_common(MAX_OPTIONS))
    if chosen is not None:
        options.setdefault(chosen, counts[chosen])
    if name == "run":
        return tuple((option, counts[option]) for option in counts if option in options) or tuple(options.items())
    return tuple((option, options[option]) for option in sorted(options, key=FILTERS[name].order))


def _read_strength(written: object) -> Decimal | None:
    try:
        return read_decimal("Strength", written)
    except InvalidInput:
        return None
