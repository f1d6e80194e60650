"""The log of all rendered cells as the Comparison tab sees it: filter and sort to records, records to HTML.

A row is known by its id `run/position`, which stays with it through every filter and sort. As in `markup.py`, every
text is escaped and no template is used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from types import MappingProxyType
from typing import Final

from evaluation.metrics import METRICS
from evaluation.store import CellRecord, Store
from evaluation.strengths import format_strength
from evaluation.table import COLUMNS, filter_equal, filter_rated, filter_text, make_table, sort_table
from evaluation.tabs.markup import image_url
from lora_runtime.errors import NotFound

RUNS: Final = 500
"""How many runs the log looks back."""

PAGE_ROWS: Final = 60
"""How many rows are drawn before "Show more"."""

_HEADINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "strength": "Strength",
        "lora": "LoRA",
        "prompt": "Prompt",
        "seed": "Seed",
        "weights": "Weights",
        "ssim": "SSIM",
        "rating": "Rating",
        "note": "Note",
        "created": "Rendered",
        "run": "Run",
    }
)
"""Sortable columns of the page, by their names in `evaluation.table.COLUMNS`."""


@dataclass(frozen=True, kw_only=True)
class LogView:
    """What of the log is shown, and in which order. An empty text or None means all."""

    text: str = ""
    lora: str | None = None
    weights: str | None = None
    run: str | None = None
    rating: int = 0
    sort: str = "created"
    descending: bool = True


def list_rendered(store: Store, organization: str) -> list[CellRecord]:
    """Return every cell of an organization that was tried, newest run first."""
    history = store.history(RUNS, organization=organization)
    return [record for _, records in history for record in records if record.state != "pending"]


def select_records(records: Sequence[CellRecord], view: LogView) -> list[CellRecord]:
    """Return the records of a view, in its order."""
    by_id = {(record.run_id, record.cell.position): record for record in records}
    table = filter_text(make_table(records), view.text)
    for column, value in (("lora", view.lora), ("weights", view.weights), ("run", view.run)):
        if value is not None:
            table = filter_equal(table, column, [value])
    if view.rating:
        table = filter_rated(table, view.rating)
    sort = view.sort if view.sort in _HEADINGS else "created"
    table = sort_table(table, sort, descending=view.descending)
    return [by_id[run, position] for run, position in zip(table["run"], table["position"], strict=True)]


def record_id(record: CellRecord) -> str:
    """Return the id of a row."""
    return f"{record.run_id}/{record.cell.position}"


def find_record(store: Store, row_id: str) -> CellRecord:
    """Return the record of a row id.

    Raises:
        NotFound: There is no such row.
    """
    run_id, _, position = row_id.rpartition("/")
    for record in store.cells(run_id):
        if str(record.cell.position) == position:
            return record
    raise NotFound(f"There is no row {row_id!r}. Reload the page.")


def draw_log(records: Sequence[CellRecord], view: LogView, *, selected: str, shown: int, empty: bool) -> str:
    """Return the rows as a table, or what to do when there are none; `empty` when the whole log is."""
    if not records:
        words = (
            "<b>Nothing rendered yet</b>Run a sweep on the Sweep tab: every image lands here and stays."
            if empty
            else "<b>No row matches</b>Clear a filter or search for fewer words."
        )
        return f'<div class="empty" role="status">{words}</div>'
    heads = "".join(_heading(name, label, view) for name, label in _HEADINGS.items())
    rows = "".join(_row(record, selected=selected) for record in records[:shown])
    return (
        '<div class="log-scroll"><table class="log"><thead><tr><th scope="col">Image</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def draw_count(shown: int, matching: int, total: int) -> str:
    """Return how much of the log is on the page."""
    found = f"{matching} of {total} images" if matching != total else f"{total} images"
    more = f", the first {shown} shown" if shown < matching else ""
    return f'<p class="hint" role="status" aria-live="polite">{found}{more}</p>' if total else ""


def draw_detail(record: CellRecord) -> str:
    """Return one image large, with all that made it."""
    request = record.cell.request
    facts = [
        ("Strength", format_strength(request.strength)),
        ("LoRA", request.lora.name if request.lora else "none"),
        ("Seed", str(request.seed)),
        ("Weights", f"{request.weights} · {request.precision}"),
        ("Size", f"{request.width} × {request.height} px"),
        ("Steps", f"{request.steps} · guidance {request.guidance:g}"),
        *((metric.label, f"{record.scores[name]:.4f}") for name, metric in METRICS.items() if name in record.scores),
        ("Run", f"{record.run_id} · cell {record.cell.position}"),
    ]
    if record.error:
        facts.append(("Failed", record.error))
    rows = "".join(f"<dt>{escape(name)}</dt><dd><bdi>{escape(value)}</bdi></dd>" for name, value in facts)
    picture = ""
    if record.image is not None:
        url = escape(image_url(record.image))
        about = f"Strength {format_strength(request.strength)}, seed {request.seed}: {request.prompt}"
        picture = (
            f'<img src="{url}" alt="{escape(about)}" width="{request.width}" height="{request.height}">'
            f'<p class="hint"><a href="{url}" download="{escape(record.run_id)}-{record.cell.position}.png">'
            "Save this PNG</a>: lossless, its settings inside.</p>"
        )
    return (
        f'<article class="detail">{picture}<p class="prompt"><bdi>{escape(request.prompt)}</bdi></p>'
        f"<dl>{rows}</dl></article>"
    )


def _heading(name: str, label: str, view: LogView) -> str:
    order, arrow = "none", ""
    if view.sort == name:
        order, arrow = ("descending", "↓") if view.descending else ("ascending", "↑")
    return (
        f'<th scope="col" aria-sort="{order}"><button type="button" data-sort="{name}" data-arrow="{arrow}" '
        f'title="Sort by {COLUMNS[name].label}">{label}</button></th>'
    )


def _row(record: CellRecord, *, selected: str) -> str:
    request = record.cell.request
    row_id = record_id(record)
    strength = format_strength(request.strength)
    lora = request.lora.name if request.lora else ""
    picture = (
        f'<img src="{escape(image_url(record.image))}" alt="" loading="lazy">' if record.image is not None else "✕"
    )
    ssim = f"{record.scores['ssim']:.3f}" if "ssim" in record.scores else "–"
    rendered = f"{record.created:%d %b %H:%M}" if record.created else "failed"
    stars = (
        f'<span class="stars" aria-label="{record.rating} of 5">{"★" * record.rating}</span>' if record.rating else "–"
    )
    return (
        f'<tr data-id="{escape(row_id)}" aria-selected="{"true" if row_id == selected else "false"}">'
        f'<td><button type="button" class="thumb" aria-label="Show strength {strength}, seed {request.seed}, large">'
        f"{picture}</button></td>"
        f'<td class="number">{strength}</td><td class="lora"><bdi>{escape(lora)}</bdi></td>'
        f'<td class="wide">{_clamped(request.prompt)}</td><td class="number">{request.seed}</td>'
        f'<td>{escape(request.weights)}</td><td class="number">{ssim}</td><td>{stars}</td>'
        f'<td class="wide">{_clamped(record.note)}</td><td class="number">{rendered}</td>'
        f'<td class="number">{escape(record.run_id)}</td></tr>'
    )


def _clamped(text: str) -> str:
    return f"<span><bdi>{escape(text[:300])}</bdi></span>"
