"""The Comparison tab: every image ever rendered, to filter, group, compare, rate and take away. Layout and wiring.

`log_events.py` acts, `log_view.py` chooses the rows, `log.py` and `log_detail.py` draw them, `comparison.js` passes on
what a person does in them.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import gradio as gr

from evaluation.log import LogView
from evaluation.store.store import Store
from evaluation.tabs.log_events import ComparisonEvents, ComparisonParts, Updates, Values
from evaluation.tabs.page import SAVE_FILE
from evaluation.tabs.playground import PLAYGROUND_TAB, PlaygroundTab
from evaluation.tabs.sweep import SWEEP_TAB, SweepTab
from evaluation.tabs.sweep_form import fill_form
from lora_runtime.registry.visitors import Visitors

COMPARISON_TAB: Final = "comparison"
COMPARISON_SHEET: Final = Path(__file__).parent / "web" / "comparison.css"

_QUIET: Final = {"api_visibility": "private", "show_progress": "hidden"}
_IN_TURN: Final = {"trigger_mode": "multiple", "concurrency_id": "log", "concurrency_limit": 1, **_QUIET}
"""Every stroke and click is an event of its own, one after the other: each finds what the one before it left, and the
last word stays."""

_SCRIPT: Final = Path(__file__).parent / "web" / "comparison.js"
_SAVED: Final = f"(file) => {{ ({SAVE_FILE})(file); document.dispatchEvent(new Event('klein-exported')); }}"


def build_comparison_tab(
    store: Store, visitors: Visitors, sweep: SweepTab, playground: PlaygroundTab, tabs: gr.Tabs, tab: gr.Tab
) -> None:
    """Lay the tab out inside the current `gr.Blocks` and wire its events."""
    found: dict[str, Any] = {}
    script = _SCRIPT.read_text(encoding="utf-8")
    with gr.Row(elem_id="log-search-row"):
        found["text"] = gr.Textbox(
            label="Search",
            placeholder="Search prompts, notes, LoRAs",
            elem_id="log-search",
            min_width=200,
            show_label=False,
            container=False,
        )
        found["bar"] = gr.HTML(apply_default_css=False, elem_id="log-bar", js_on_load=script, scale=4, min_width=320)
    with gr.Row(equal_height=False):
        with gr.Column(scale=7, min_width=320):
            found["table"] = gr.HTML(apply_default_css=False, js_on_load=script, elem_id="log")
        with gr.Column(scale=3, min_width=300, visible=False, elem_id="log-panel") as found["panel"]:
            _lay_out_detail(found, script)
    found["dialog"] = gr.HTML(apply_default_css=False, js_on_load=script, elem_id="log-dialog")
    found["file"] = gr.DownloadButton(visible="hidden")
    found["selected"] = gr.Textbox("", visible="hidden", label="Row", interactive=False)
    found["view"] = gr.State(LogView())
    found["deleted"] = gr.State(())
    found["mark"] = gr.State(None)
    parts = ComparisonParts(**{part.name: found[part.name] for part in fields(ComparisonParts)})
    events = ComparisonEvents(store, visitors, parts)
    _wire_log(parts, events, tabs, tab)
    _wire_detail(parts, events)
    _wire_sending(parts, events, store, sweep, playground, tabs)


def _lay_out_detail(found: dict[str, Any], script: str) -> None:
    found["detail"] = gr.HTML(apply_default_css=False, js_on_load=script, elem_id="log-detail")
    found["rating"] = gr.HTML(apply_default_css=False, js_on_load=script, elem_id="log-rating")
    found["note"] = gr.Textbox(label="Note", lines=2, max_lines=6, elem_id="note", placeholder="Saved as you write")
    found["saved"] = gr.HTML(apply_default_css=False)
    found["facts"] = gr.HTML(apply_default_css=False)
    with gr.Row():
        found["again"] = gr.Button(
            "Sweep again with these settings", variant="primary", elem_id="again", min_width=140, scale=3
        )
        found["play"] = gr.Button("Open in Playground", elem_id="log-play", min_width=140, scale=2)


def _wire_log(parts: ComparisonParts, events: ComparisonEvents, tabs: gr.Tabs, tab: gr.Tab) -> None:
    reads, draws = parts.reads(), parts.draws()

    def bar(values: Values, event: gr.EventData, request: gr.Request) -> Updates:
        return events.filter(values, request, _said(event))

    def act(values: Values, event: gr.EventData, request: gr.Request) -> Updates:
        said = _said(event)
        if said.get("act") == "start":
            return {tabs: gr.update(selected=SWEEP_TAB)}
        return events.act(values, request, said)

    def export(values: Values, event: gr.EventData, request: gr.Request) -> Updates:
        said = _said(event)
        return events.export(
            values, request, str(said.get("ending", "")), [str(each) for each in said.get("ids") or ()]
        )

    tab.select(events.refresh, reads, draws, api_name="log_refresh", **_IN_TURN)
    parts.table.tick(events.follow, reads, draws, api_name="log_follow", **{**_IN_TURN, "trigger_mode": "once"})
    parts.text.change(events.refresh, reads, draws, api_name="log_search", **_IN_TURN)
    parts.bar.click(bar, reads, draws, api_name="log_filter", **_IN_TURN)
    parts.table.click(act, reads, {*draws, *parts.shows(), tabs}, api_name="log_act", **_IN_TURN)
    parts.table.download(export, reads, {parts.file, parts.table}, api_name="log_export", **_QUIET).then(
        None, parts.file, None, js=_SAVED, api_visibility="private"
    )


def _wire_detail(parts: ComparisonParts, events: ComparisonEvents) -> None:
    def rate(values: Values, event: gr.EventData, request: gr.Request) -> Updates:
        said = _said(event)
        stars = str(said.get("stars", ""))
        if stars not in ("0", "1", "2", "3", "4", "5"):
            return events.nothing()
        return events.save(values, request, str(said.get("id", "")), rating=int(stars))

    def note(values: Values, request: gr.Request) -> Updates:
        if not values[parts.selected]:
            return events.nothing()
        return events.save(values, request, str(values[parts.selected]), note=str(values[parts.note] or ""))

    drawn = {*parts.draws(), parts.saved}
    parts.rating.select(rate, parts.reads(), drawn, api_name="rate", **_IN_TURN)
    # "change", as a textbox sends "input" before its new value; opening a row changes it too, which saves nothing.
    parts.note.change(note, {*parts.reads(), parts.note}, drawn, api_name="note", **_IN_TURN)
    parts.detail.click(events.close, parts.reads(), {*parts.draws(), *parts.shows()}, api_name="log_close", **_IN_TURN)


def _wire_sending(
    parts: ComparisonParts,
    events: ComparisonEvents,
    store: Store,
    sweep: SweepTab,
    playground: PlaygroundTab,
    tabs: gr.Tabs,
) -> None:
    def again(row_id: str, request: gr.Request) -> Updates:
        run = store.run(events.find(row_id, request).run_id)
        return {
            tabs: gr.update(selected=SWEEP_TAB),
            **sweep.fill(sweep.parts.page.find_caller(request), fill_form(run.spec)),
        }

    def play(row_id: str, request: gr.Request) -> Updates:
        cell = events.find(row_id, request).cell
        return {tabs: gr.update(selected=PLAYGROUND_TAB), **playground.fill(cell.request, backend=cell.target.backend)}

    parts.again.click(again, parts.selected, {tabs, *sweep.targets}, api_name="sweep_again", **_QUIET)
    parts.play.click(play, parts.selected, {tabs, *playground.targets()}, api_name="open_in_playground", **_QUIET)


def _said(event: gr.EventData) -> Mapping[str, Any]:
    """What the page says an event is about; it may say anything."""
    said = event._data
    return said if isinstance(said, dict) else {}
