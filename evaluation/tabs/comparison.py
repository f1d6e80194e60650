"""The Comparison tab: every image ever rendered, to filter, sort, look at, rate and take away as CSV."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import gradio as gr

from evaluation.report import cells_csv
from evaluation.store import CellRecord, Store
from evaluation.tabs import markup
from evaluation.tabs.form import fill_form
from evaluation.tabs.log import (
    PAGE_ROWS,
    LogView,
    draw_count,
    draw_detail,
    draw_log,
    find_record,
    list_rendered,
    record_id,
    select_records,
)
from evaluation.tabs.parts import Updates, Values
from evaluation.tabs.sweep import SAVE_FILE, SweepTab
from lora_runtime.errors import KleinLabError
from lora_runtime.visitors import Visitors

SWEEP_TAB: Final = "sweep"
COMPARISON_TAB: Final = "comparison"

_ALL: Final = ("All", "")
_RATINGS: Final = [("Any rating", 0), *((f"{'★' * stars} or better", stars) for stars in range(1, 6))]
_QUIET: Final = {"api_visibility": "private", "show_progress": "hidden"}
_CLICKS: Final = """
element.addEventListener("click", (event) => {
  const head = event.target.closest("[data-sort]");
  const row = event.target.closest("tr[data-id]");
  if (head) trigger("click", { kind: "sort", value: head.dataset.sort });
  else if (row) trigger("click", { kind: "open", value: row.dataset.id });
});
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparisonParts:
    """Filters, the table, and the one image that is looked at. `selected` is kept by the page, so that an event says
    which row it is about even when another was chosen meanwhile."""

    text: gr.Textbox
    lora: gr.Dropdown
    weights: gr.Dropdown
    run: gr.Dropdown
    rating_filter: gr.Dropdown
    count: gr.HTML
    table: gr.HTML
    more: gr.Button
    csv: gr.Button
    csv_file: gr.DownloadButton
    panel: gr.Column
    detail: gr.HTML
    rating: gr.Radio
    note: gr.Textbox
    saved: gr.HTML
    again: gr.Button
    selected: gr.Textbox
    order: gr.State
    shown: gr.State

    def view(self) -> set[gr.components.Component]:
        """The components a `LogView` is read from, with the selection and the page length."""
        return {
            self.text, self.lora, self.weights, self.run, self.rating_filter, self.order, self.shown, self.selected
        }  # fmt: skip


class ComparisonHandlers:
    """Events of the tab. Every one reads the store again, so what other visitors rendered is there too."""

    def __init__(self, store: Store, visitors: Visitors, parts: ComparisonParts) -> None:
        self._store = store
        self._visitors = visitors
        self._parts = parts

    def refresh(self, values: Values, request: gr.Request) -> Updates:
        """Draw the table, and offer the LoRAs, weights and runs that occur."""
        parts = self._parts
        records = self._list(request)
        found = {
            parts.lora: [record.cell.request.lora.name for record in records if record.cell.request.lora],
            parts.weights: [record.cell.request.weights for record in records],
            parts.run: [record.run_id for record in records],
        }
        choices: Updates = {
            part: gr.update(choices=[_ALL, *((name, name) for name in dict.fromkeys(names))])
            for part, names in found.items()
        }
        return {**choices, **self.draw(values, request)}

    def draw(self, values: Values, request: gr.Request) -> Updates:
        """Draw the table of the filters."""
        parts = self._parts
        everything = self._list(request)
        view, shown = self._view(values), int(values[parts.shown])
        records = select_records(everything, view)
        selected = str(values[parts.selected] or "")
        return {
            parts.table: draw_log(records, view, selected=selected, shown=shown, empty=not everything),
            parts.count: draw_count(min(shown, len(records)), len(records), len(everything)),
            parts.more: gr.update(visible=shown < len(records)),
            parts.csv: gr.update(interactive=bool(records)),
        }

    def show_more(self, values: Values, request: gr.Request) -> Updates:
        """Draw another page of rows below the others."""
        parts = self._parts
        shown = int(values[parts.shown]) + PAGE_ROWS
        return {parts.shown: shown, **self.draw({**values, parts.shown: shown}, request)}

    def click(self, values: Values, kind: str, value: str, request: gr.Request) -> Updates:
        """Sort by a heading, or open a row."""
        parts = self._parts
        if kind == "sort":
            view = self._view(values)
            order = (value, not view.descending if view.sort == value else False)
            return {parts.order: order, **self.draw({**values, parts.order: order}, request)}
        try:
            record = find_record(self._store, value)
        except KleinLabError as error:
            return {parts.count: markup.draw_error(error)}
        return {
            parts.panel: gr.update(visible=True),
            parts.selected: record_id(record),
            parts.detail: draw_detail(record),
            parts.rating: record.rating or 0,
            parts.note: record.note,
            parts.saved: "",
            **self.draw({**values, parts.selected: record_id(record)}, request),
        }

    def save(
        self, values: Values, request: gr.Request, *, rating: int | None = None, note: str | None = None
    ) -> Updates:
        """Keep the rating (0 takes it away) or the note of the selected row at once; the other stays as it is kept."""
        parts = self._parts
        try:
            record = find_record(self._store, str(values[parts.selected]))
            stars = record.rating if rating is None else rating or None
            if (stars, record.note if note is None else note) == (record.rating, record.note):
                return {}
            self._store.rate(record.run_id, record.cell.position, stars, record.note if note is None else note)
        except KleinLabError as error:
            return {parts.saved: markup.draw_error(error)}
        return {parts.saved: markup.draw_hint("Saved.", kind="good"), **self.draw(values, request)}

    def export(self, values: Values, request: gr.Request) -> str:
        """Return the rows of the filters as a CSV file in Gradio's cache."""
        records = select_records(self._list(request), self._view(values))
        return str(
            gr.processing_utils.save_bytes_to_cache(
                cells_csv(records).encode(), "klein-lora-lab.csv", self._parts.csv_file.GRADIO_CACHE
            )
        )

    def _list(self, request: gr.Request) -> list[CellRecord]:
        return list_rendered(self._store, self._visitors.organization(request.session_hash))

    def _view(self, values: Values) -> LogView:
        parts = self._parts
        sort, descending = values[parts.order]
        return LogView(
            text=str(values[parts.text] or ""),
            lora=values[parts.lora] or None,
            weights=values[parts.weights] or None,
            run=values[parts.run] or None,
            rating=int(values[parts.rating_filter] or 0),
            sort=str(sort),
            descending=bool(descending),
        )


def build_comparison_tab(store: Store, visitors: Visitors, sweep: SweepTab, tabs: gr.Tabs, tab: gr.Tab) -> None:
    """Lay the tab out inside the current `gr.Blocks` and wire its events."""
    found: dict[str, Any] = {}
    _lay_out_filters(found)
    with gr.Row(equal_height=False):
        with gr.Column(scale=7, min_width=320):
            found["count"] = gr.HTML(apply_default_css=False)
            found["table"] = gr.HTML(apply_default_css=False, js_on_load=_CLICKS, elem_id="log")
            found["more"] = gr.Button("Show more", size="sm", visible=False)
        with gr.Column(scale=3, min_width=300, visible=False, elem_id="log-panel") as found["panel"]:
            _lay_out_detail(found)
    found["csv_file"] = gr.DownloadButton(visible="hidden")
    found["selected"] = gr.Textbox("", visible="hidden", label="Row", interactive=False)
    found["order"] = gr.State((LogView().sort, LogView().descending))
    found["shown"] = gr.State(PAGE_ROWS)
    parts = ComparisonParts(**{part.name: found[part.name] for part in fields(ComparisonParts)})
    act = ComparisonHandlers(store, visitors, parts)
    _wire_log(parts, act, tab)
    _wire_detail(parts, act, store, sweep, tabs)


def _lay_out_filters(found: dict[str, Any]) -> None:
    with gr.Row(elem_id="log-filters"):
        found["text"] = gr.Textbox(label="Search", placeholder="red cat", scale=3, min_width=160, elem_id="log-search")
        found["lora"] = gr.Dropdown([_ALL], value="", label="LoRA", scale=2, min_width=120)
        found["weights"] = gr.Dropdown([_ALL], value="", label="Weights", scale=2, min_width=120)
        found["run"] = gr.Dropdown([_ALL], value="", label="Run", scale=2, min_width=130)
        found["rating_filter"] = gr.Dropdown(_RATINGS, value=0, label="Rating", scale=2, min_width=130)
        found["csv"] = gr.Button("Download CSV", scale=1, min_width=130, size="md", interactive=False, elem_id="csv")


def _lay_out_detail(found: dict[str, Any]) -> None:
    found["detail"] = gr.HTML(apply_default_css=False, elem_id="log-detail")
    found["rating"] = gr.Radio(
        [("none", 0), *((str(stars), stars) for stars in range(1, 6))], value=0, label="Rating", elem_id="rating"
    )
    found["note"] = gr.Textbox(label="Note", lines=2, max_lines=6, elem_id="note", placeholder="Saved as you write")
    found["saved"] = gr.HTML(apply_default_css=False)
    found["again"] = gr.Button("Sweep again with these settings", variant="primary", elem_id="again")


def _wire_log(parts: ComparisonParts, act: ComparisonHandlers, tab: gr.Tab) -> None:
    view = parts.view()
    drawn = {parts.table, parts.count, parts.more, parts.csv}
    tab.select(act.refresh, view, {*drawn, parts.lora, parts.weights, parts.run}, api_name="log_refresh", **_QUIET)
    gr.on(
        [parts.text.change, parts.lora.input, parts.weights.input, parts.run.input, parts.rating_filter.input],
        act.draw, view, drawn, api_name="log_filter", trigger_mode="multiple", **_QUIET,
    )  # fmt: skip
    parts.more.click(act.show_more, view, {*drawn, parts.shown}, api_name="log_more", **_QUIET)

    def click(values: Values, event: gr.EventData, request: gr.Request) -> Updates:
        data: Mapping[str, Any] = event._data or {}
        return act.click(values, str(data.get("kind", "")), str(data.get("value", "")), request)

    panel = {parts.panel, parts.selected, parts.detail, parts.rating, parts.note, parts.saved, parts.order}
    parts.table.click(click, view, {*drawn, *panel}, api_name="log_click", **_QUIET)
    parts.csv.click(act.export, view, parts.csv_file, api_name="log_csv", **_QUIET).then(
        None, parts.csv_file, None, js=SAVE_FILE, api_visibility="private"
    )


def _wire_detail(parts: ComparisonParts, act: ComparisonHandlers, store: Store, sweep: SweepTab, tabs: gr.Tabs) -> None:
    def rate(values: Values, request: gr.Request) -> Updates:
        return act.save(values, request, rating=int(values[parts.rating] or 0))

    def note(values: Values, request: gr.Request) -> Updates:
        return act.save(values, request, note=str(values[parts.note] or ""))

    # Every stroke is an event of its own and they run one after the other, so the last word is what stays.
    drawn = {parts.saved, parts.table, parts.count, parts.more, parts.csv}
    each = {"trigger_mode": "multiple", "concurrency_id": "rate", "concurrency_limit": 1, **_QUIET}
    parts.rating.input(rate, {*parts.view(), parts.rating}, drawn, api_name="rate", **each)
    # "change", as a textbox sends "input" before its new value; opening a row changes it too, which saves nothing.
    parts.note.change(note, {*parts.view(), parts.note}, drawn, api_name="note", **each)

    def again(row_id: str) -> Updates:
        run = store.run(find_record(store, row_id).run_id)
        return {tabs: gr.Tabs(selected=SWEEP_TAB), **sweep.fields.fill(fill_form(run.spec))}

    parts.again.click(again, parts.selected, {tabs, *sweep.parts.fields()}, api_name="sweep_again", **_QUIET)
