"""The HTML of the Comparison tab's filters and rows; `log_detail.py` draws one image, and several side by side.

As in `markup.py`, every text is escaped and no template is used. What a person can do is a `data-act` that
`comparison.js` hands to the server: sort, open, filter, pick, compare, delete.
"""

from collections.abc import Callable, Sequence
from html import escape
from types import MappingProxyType
from typing import Final

from evaluation.judge.answer import Answer
from evaluation.log import FILTERS, GROUPS, NO_LORA, Group, LogView, Page, summarize, write_key
from evaluation.report.chart import MEASURES, draw_chart, list_measures
from evaluation.report.columns import COLUMNS
from evaluation.store.records import CellRecord
from evaluation.strengths import exact, format_strength
from evaluation.tabs.markup import image_url

_HEADINGS: Final = MappingProxyType(
    {
        "strength": "Strength",
        "lora": "LoRA",
        "prompt": "Prompt",
        "seed": "Seed",
        "weights": "Weights",
        "clip": "Fit",
        "ssim": "SSIM",
        "rating": "Rating",
        "note": "Note",
        "created": "Rendered",
    }
)
"""Sortable columns of the page, by their names in `evaluation.report.columns.COLUMNS`."""

_EXPORTS: Final = MappingProxyType(
    {
        ".csv": ("CSV", "for spreadsheets"),
        ".jsonl": ("JSON lines", "one object a row"),
        ".parquet": ("Parquet", "for pandas, DuckDB"),
        ".html": ("Report", "one HTML file with the images; opens offline"),
    }
)


def draw_bar(page: Page) -> str:
    """Return the filters, what to group by, and whether rows or a chart are shown."""
    view = page.view
    several = [name for name in FILTERS if len(page.options[name]) > 1 or name in view.chosen]
    pills = "".join(_draw_filter(name, page) for name in several)
    clear = '<button type="button" class="quiet" data-act="clear">Clear filters</button>' if view.is_filtered else ""
    groups = "".join(
        _option(name, f"Group by {words}" if name else "Not grouped", view.group) for name, words in GROUPS.items()
    )
    views = "".join(
        f'<button type="button" data-act="view" data-value="{value}" data-key="view-{value}" '
        f'aria-pressed="{"true" if pressed else "false"}">{words}</button>'
        for value, words, pressed in (("rows", "Rows", not view.chart), ("chart", "Chart", view.chart))
    )
    return (
        f'<div class="filters" role="group" aria-label="Filters">{pills}{_draw_strengths(view)}{clear}</div>'
        '<div class="arrange">'
        f'<label class="pill plain"><select name="group" data-key="group" aria-label="Group rows">{groups}</select>'
        "</label>"
        f'<div class="switch" role="group" aria-label="Show as">{views}</div></div>'
    )


def draw_log(
    page: Page, *, selected: str = "", deleted: int = 0, notice: str = "", answers: Sequence[Answer] = ()
) -> str:
    """Return the count, what can be done with rows, and the rows or their chart; else what to do when there are none.

    `deleted` is how many rows can be brought back; `notice` is markup, shown on top.
    """
    undo = ""
    if deleted:
        words = "1 image deleted." if deleted == 1 else f"{deleted} images deleted."
        undo = (
            f'<div class="undo" role="status"><span>{words}</span>'
            '<button type="button" data-act="undo" data-key="undo">Undo</button></div>'
        )
    if not page.records:
        return f"{notice}{undo}{_draw_empty(page)}"
    body = _draw_chart(page, answers) if page.view.chart else _draw_rows(page, selected)
    return f"{notice}{undo}{_draw_tools(page)}{body}"


def _draw_filter(name: str, page: Page) -> str:
    known = FILTERS[name]
    chosen = page.view.chosen.get(name, "")
    words: Callable[[str], str] = (lambda key: page.run_titles.get(key, key)) if name == "run" else known.words
    options = "".join(
        f'<option value="{escape(option)}"{" selected" if option == chosen else ""}>{escape(words(option))} ({count})'
        "</option>"
        for option, count in page.options[name]
    )
    return (
        f'<label class="pill{" set" if chosen else ""}"><span>{known.label}</span>'
        f'<select name="{name}" data-key="filter-{name}"><option value="">all</option>{options}</select></label>'
    )


def _draw_strengths(view: LogView) -> str:
    limits = (("low", "from", view.low), ("high", "to", view.high))
    kind = "pill" if view.low is None and view.high is None else "pill set"
    fields = "".join(
        f'<input type="text" inputmode="decimal" name="{name}" data-key="filter-{name}" size="4" placeholder="{words}" '
        f'aria-label="Strength {words}" value="{exact(value) if value is not None else ""}">'
        for name, words, value in limits
    )
    return f'<div class="{kind}" role="group" aria-label="Strength"><span>Strength</span>{fields}</div>'


def _draw_tools(page: Page) -> str:
    """The count, what to take away, and what to do with picked rows; `comparison.js` keeps the picks."""
    shown, total = len(page.records), page.total
    images = "image" if total == 1 else "images"
    count = f"{total} {images}" if shown == total else f"{shown} of {total} {images}"
    exports = "".join(
        f'<li><button type="button" data-export="{ending}"><b>{name}</b><span>{words}</span></button></li>'
        for ending, (name, words) in _EXPORTS.items()
    )
    return (
        f'<div class="tools"><p class="count" role="status" aria-live="polite">{count}</p>'
        '<div class="picks" role="group" aria-label="Picked rows" hidden><b data-picked></b>'
        '<button type="button" class="main" data-act="compare" data-key="compare">Compare side by side</button>'
        '<button type="button" data-act="delete" data-key="delete">Delete</button>'
        '<button type="button" class="quiet" data-act="unpick" data-key="unpick">Clear picks</button></div>'
        f'<details class="menu"><summary data-key="export">Take away</summary><div><p class="hint" data-what '
        f'data-all="all {shown} rows">all {shown} rows</p><ul>{exports}</ul></div></details></div>'
    )


def _draw_rows(page: Page, selected: str) -> str:
    heads = "".join(_draw_heading(name, label, page.view) for name, label in _HEADINGS.items())
    left = page.view.rows
    bodies = ""
    for group in page.groups:
        drawn = group.records[: max(left, 0)]
        left -= len(drawn)
        if drawn:
            bodies += _draw_group(group, drawn, selected)
    more = ""
    if left <= 0 and page.view.rows < len(page.records):
        rest = len(page.records) - page.view.rows
        more = f'<button type="button" class="more" data-act="more" data-key="more">Show more ({rest} left)</button>'
    return (
        '<div class="log-scroll"><table class="log"><caption class="unseen">Every image that was rendered</caption>'
        '<thead><tr><th scope="col" class="pick"><input type="checkbox" data-pick-all data-key="all" '
        f'aria-label="Pick all rows shown"></th><th scope="col">Image</th>{heads}</tr></thead>{bodies}</table></div>'
        f"{more}"
    )


def _draw_group(group: Group, drawn: tuple[CellRecord, ...], selected: str) -> str:
    rows = "".join(_draw_row(record, selected=selected) for record in drawn)
    if not group.title:
        return f"<tbody>{rows}</tbody>"
    facts = " · ".join(summarize(group.records))
    key = escape(group.key)
    return (
        f'<tbody class="heading"><tr><th scope="rowgroup" colspan="{len(_HEADINGS) + 2}"><button type="button" '
        f'data-fold="{key}" data-key="fold-{key}" aria-expanded="true"><bdi>{escape(group.title)}</bdi>'
        f'<span>{facts}</span></button></th></tr></tbody><tbody data-group="{key}">{rows}</tbody>'
    )


def _draw_heading(name: str, label: str, view: LogView) -> str:
    order, arrow = "none", ""
    if view.sort == name:
        order, arrow = ("descending", "↓") if view.descending else ("ascending", "↑")
    return (
        f'<th scope="col" aria-sort="{order}"><button type="button" data-act="sort" data-value="{name}" '
        f'data-key="sort-{name}" data-arrow="{arrow}" title="Sort by {COLUMNS[name].label}">{label}</button></th>'
    )


def _draw_row(record: CellRecord, *, selected: str) -> str:
    request = record.cell.request
    key = escape(write_key(record))
    about = f"strength {format_strength(request.strength)}, seed {request.seed}"
    lora = request.lora.name if request.lora else NO_LORA
    picture = f'<img src="{escape(image_url(record.image))}" alt="" loading="lazy">' if record.image else "✕"
    fit, ssim = (
        f"{record.scores[name]:.{digits}f}" if name in record.scores else "–"
        for name, digits in (("clip", 1), ("ssim", 3))
    )
    rendered = f"{record.created:%d %b %H:%M}" if record.created else record.state
    stars = (
        f'<span class="stars" role="img" aria-label="{record.rating} of 5">{"★" * record.rating}</span>'
        if record.rating
        else "–"
    )
    return (
        f'<tr data-id="{key}" aria-selected="{"true" if write_key(record) == selected else "false"}">'
        f'<td class="pick"><input type="checkbox" data-pick data-key="pick-{key}" aria-label="Pick {about}"></td>'
        f'<td><button type="button" class="thumb" data-key="open-{key}" aria-label="Show {about}, large">{picture}'
        f'</button></td><td class="number">{format_strength(request.strength)}</td>'
        f'<td class="lora"><bdi>{escape(lora)}</bdi></td><td class="wide">{_clamped(request.prompt)}</td>'
        f'<td class="number">{request.seed}</td><td>{escape(request.weights)}</td>'
        f'<td class="number">{fit}</td><td class="number">{ssim}</td><td>{stars}</td>'
        f'<td class="wide">{_clamped(record.note)}</td><td class="number">{rendered}</td></tr>'
    )


def _draw_chart(page: Page, answers: Sequence[Answer]) -> str:
    names = list_measures(page.records)
    measure = page.view.measure if page.view.measure in names else next(iter(names), "ssim")
    options = "".join(_option(name, MEASURES[name].label, measure) for name in names)
    items = "".join(
        f"<li><b><bdi>{escape(found.label)}</bdi></b> <span>{escape(found.sentence)}</span></li>" for found in answers
    )
    said = f'<div class="advice"><h3>Which strength?</h3><ul>{items}</ul></div>' if items else ""
    return (
        '<div class="chart-panel"><label class="pill plain"><span>Score</span>'
        f'<select name="measure" data-key="measure">{options}</select></label>'
        f"{draw_chart(page.records, measure, image_url=image_url, answers=answers)}{said}</div>"
    )


def _draw_empty(page: Page) -> str:
    if page.total:
        return (
            '<div class="empty" role="status"><b>No row matches</b>Search for fewer words, or '
            '<button type="button" data-act="clear" data-key="clear-empty">clear all filters</button>.</div>'
        )
    return (
        '<div class="empty" role="status"><b>Nothing rendered yet</b>Every image of a sweep or of the Playground lands '
        'here and stays: to compare, rate and take away. <button type="button" data-act="start" data-key="start">'
        "Run a first sweep</button></div>"
    )


def _option(value: str, words: str, chosen: str) -> str:
    return f'<option value="{escape(value)}"{" selected" if value == chosen else ""}>{escape(words)}</option>'


def _clamped(text: str) -> str:
    return f"<span><bdi>{escape(text[:300])}</bdi></span>"
