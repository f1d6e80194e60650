"""The Comparison tab: every image ever rendered, to filter, group, compare, rate and take away. Layout and wiring.

`comparison_run.py` acts, `evaluation/log.py` chooses the rows, `comparison_form.py` says what is shown of them, the
templates `log`, `log-bar` and `picture` draw it, and `comparison.js` keeps the picks.
"""

from pathlib import Path
from typing import Final

import gradio as gr

from evaluation.log_search import LogView
from evaluation.store.store import Store
from evaluation.tabs.comparison_run import DRAWS, READS, SHOWS, ComparisonRun, Values
from evaluation.tabs.page import Caller, Changes, Page, Parts, Said
from evaluation.tabs.playground import PLAYGROUND_TAB, PlaygroundTab
from evaluation.tabs.sweep import SWEEP_TAB, SweepTab
from evaluation.tabs.sweep_form import fill_form

COMPARISON_TAB: Final = "comparison"
COMPARISON_SHEET: Final = Path(__file__).parent / "web" / "comparison.css"

_LANE: Final = "log"
"""Every stroke and click is an event of its own, in the order of its page: the last word stays."""


def build_comparison_tab(
    page: Page, store: Store, sweep: SweepTab, playground: PlaygroundTab, tabs: gr.Tabs, tab: gr.Tab
) -> None:
    """Lay the tab out inside the current `gr.Blocks` and wire its events."""
    parts = Parts(page=page, problem="saved")
    _lay_out(parts)
    run = ComparisonRun(store=store)
    _wire_log(parts, run, tabs, tab)
    _wire_sending(parts, run, sweep, playground, tabs)


def _lay_out(parts: Parts) -> None:
    scripts = ("comparison.js",)
    with gr.Row(elem_id="log-search-row"):
        parts["text"] = gr.Textbox(
            label="Search", placeholder="Search prompts, notes, LoRAs", elem_id="log-search", min_width=200,
            show_label=False, container=False,
        )  # fmt: skip
        parts.live("bar", scripts=scripts, elem_id="log-bar", scale=4, min_width=320)
    with gr.Row(equal_height=False):
        with gr.Column(scale=7, min_width=320):
            parts.live("table", scripts=scripts, elem_id="log")
        with gr.Column(scale=3, min_width=300, visible=False, elem_id="log-panel") as panel:
            parts["panel"] = panel
            parts.live("detail", scripts=scripts, elem_id="log-detail")
            parts.live("rating", scripts=scripts, elem_id="log-rating")
            parts["note"] = gr.Textbox(
                label="Note", lines=2, max_lines=6, elem_id="note", placeholder="Saved as you write"
            )
            parts.html("saved")
            parts.html("facts")
            with gr.Row():
                parts["again"] = gr.Button(
                    "Sweep again with these settings", variant="primary", elem_id="again", min_width=140, scale=3
                )
                parts["play"] = gr.Button("Open in Playground", elem_id="log-play", min_width=140, scale=2)
    parts.live("dialog", scripts=scripts, elem_id="log-dialog")
    parts["file"] = gr.DownloadButton(visible="hidden")
    # The page keeps it, so that an event says which row it is about even when another was chosen meanwhile.
    parts["selected"] = gr.Textbox("", visible="hidden", label="Row", interactive=False)
    parts["view"] = gr.State(LogView())
    parts["deleted"] = gr.State(())
    parts["mark"] = gr.State(None)


def _wire_log(parts: Parts, run: ComparisonRun, tabs: gr.Tabs, tab: gr.Tab) -> None:
    everything = [*DRAWS, *SHOWS]

    def act(caller: Caller, values: Values, said: Said) -> Changes:
        return {tabs: gr.update(selected=SWEEP_TAB)} if said.act == "start" else run.act(caller, values, said)

    def on(trigger: object, handler: object, *draws: object, name: str, more: tuple[str, ...] = ()) -> None:
        parts.on(trigger, handler, reads=(*READS, *more), draws=[*everything, *draws], lane=_LANE, api_name=name)  # type: ignore[arg-type]

    on([tab.select, parts.text.change], run.refresh, name="log_refresh")
    on(parts.table.tick, run.follow, name="log_follow")
    on([parts.bar.click, parts.table.click, parts.detail.click], act, tabs, name="log_act")
    on(parts.rating.select, run.rate, name="rate")
    # "change", as a textbox sends "input" before its new value; opening a row changes it too, which saves nothing.
    on(parts.note.change, run.write_note, name="note", more=("note",))
    taken = parts.on(parts.table.download, run.export, reads=READS, draws=["file", *DRAWS], api_name="log_export")
    parts.save(taken, "file")


def _wire_sending(parts: Parts, run: ComparisonRun, sweep: SweepTab, playground: PlaygroundTab, tabs: gr.Tabs) -> None:
    def again(caller: Caller, values: Values, said: Said) -> Changes:
        spec = run.store.run(run.find(caller, values).run_id).spec
        return {
            tabs: gr.update(selected=SWEEP_TAB),
            **sweep.fill(caller, fill_form(spec)),
        }

    def play(caller: Caller, values: Values, said: Said) -> Changes:
        cell = run.find(caller, values).cell
        return {tabs: gr.update(selected=PLAYGROUND_TAB), **playground.fill(cell.request, backend=cell.target.backend)}

    parts.on(parts.again.click, again, reads=READS, draws=[tabs, *sweep.targets], api_name="sweep_again")
    parts.on(parts.play.click, play, reads=READS, draws=[tabs, *playground.targets()], api_name="open_in_playground")
