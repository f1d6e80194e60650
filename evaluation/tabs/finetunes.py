"""The Finetunes tab, BFL's Dashboard: add, look at, edit, share, delete. Layout and wiring.

The list is one table in two parts, with the panel of the opened row between them: it reads as one table whose row has
opened, and the fields in the panel stay Gradio's own. `finetunes_run.py` and `finetunes_add.py` act.
"""

from pathlib import Path
from typing import Final

import gradio as gr

from evaluation.report.draw import part
from evaluation.tabs.export_run import DRAWN, lay_out_export
from evaluation.tabs.fields import Form
from evaluation.tabs.finetunes_add import UPLOAD, AddEvents, draw_refused
from evaluation.tabs.finetunes_form import (
    BASE_HINT,
    NAME_HINT,
    RECOMMENDED_HINT,
    TRIGGER_HINT,
    AddForm,
    EditForm,
    ExportForm,
    ListForm,
)
from evaluation.tabs.finetunes_run import FinetunesEvents, draw_note
from evaluation.tabs.page import Caller, Changes, Page, Parts
from evaluation.tabs.playground import PLAYGROUND_TAB, PlaygroundTab
from evaluation.tabs.sweep import SWEEP_TAB, SweepTab
from evaluation.tabs.sweep_form import SweepForm
from lora_runtime.registry.training_runs import TrainingRuns
from lora_runtime.server.service import Service

FINETUNES_TAB: Final = "finetunes"
STYLE_SHEET: Final = Path(__file__).parent / "web" / "finetunes.css"

_FOCUS_NAME: Final = """() => {
  if (document.activeElement === document.body) document.querySelector("#dialog-name :is(input, textarea)")?.focus();
}"""
"""The button that took the file has gone, and the focus with it."""

_LIST: Final = (
    "you", "organization", "shown", "search", "note", "table", "rest", "deleted", "selected", "unfolded",
    "panel",
)  # fmt: skip
_OPENED: Final = (
    "heading", "example", "owned", "base", "base_hint", "precision", "trigger", "trigger_hint", "recommended",
    "recommended_hint", "saved", "share_to",
    "grants", "shared", "report", "export_hint",
)  # fmt: skip
_CHECKED: Final = ("base_hint", "trigger_hint", "recommended_hint", "precision")
_DIALOG: Final = (
    "file", "file_hint", "name", "name_hint", "new_base", "new_base_hint", "new_precision", "new_trigger",
    "new_trigger_hint", "new_report", "error", "upload",
)  # fmt: skip


def build_finetunes_tab(
    page: Page,
    service: Service,
    training_runs: TrainingRuns,
    sweep: SweepTab,
    playground: PlaygroundTab,
    tabs: gr.Tabs,
    tab: gr.Tab,
) -> None:
    """Lay the tab out inside the current `gr.Blocks` and wire its events."""

    def go_sweep(form: SweepForm, caller: Caller) -> Changes:
        return {tabs: gr.update(selected=SWEEP_TAB), **sweep.fill(caller, form)}

    def go_play(finetune_id: str, _: Caller) -> Changes:
        return {tabs: gr.update(selected=PLAYGROUND_TAB), **playground.choose(finetune_id)}

    parts = Parts(page, problem="note", tell=lambda error: draw_note(str(error)))
    with gr.Column(elem_id="finetunes"):
        _lay_out_head(parts)
        with gr.Column(elem_id="finetunes-list"):
            parts.live("table", elem_id="finetunes-table")
            _lay_out_panel(parts)
            parts.live("rest")
        parts.live("deleted")
        ListForm.lay_out(parts, "selected", "unfolded")
        _lay_out_dialog(parts)
    events = FinetunesEvents(service, training_runs, apart=page.visitors.apart, sweep=go_sweep, play=go_play)
    _wire_list(parts, events, tab, (tabs, *sweep.targets, *playground.targets()))
    _wire_panel(parts, events)
    _wire_export(parts, events)
    _wire_dialog(parts, AddEvents(service, events))


def _lay_out_head(parts: Parts) -> None:
    with gr.Row(elem_classes="finetunes-head"):
        ListForm.lay_out(parts, "shown", elem_id="finetunes-shown")
        ListForm.lay_out(parts, "search", elem_id="finetunes-search")
        gr.Button("+ Add Finetune", variant="primary", scale=0, min_width=160, size="md", elem_id="add-finetune")
    with gr.Row(elem_classes="finetunes-who"):
        parts.live("you")
        ListForm.lay_out(parts, "organization", elem_id="finetunes-organization")
    parts.live("note", elem_id="finetunes-note")


def _lay_out_panel(parts: Parts) -> None:
    with gr.Column(visible=False, elem_id="finetune-panel") as parts["panel"]:
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=300, elem_classes="example"):
                ListForm.lay_out(parts, "language", elem_classes="segments", elem_id="finetune-language")
                parts.live("example", elem_id="finetune-example")
            with gr.Column(scale=5, min_width=300):
                parts.html("heading")
                with gr.Column(elem_classes="owned") as parts["owned"]:
                    _lay_out_fields(parts, EditForm, "", "finetune")
                    EditForm.lay_out(parts, "recommended", elem_id="finetune-recommended")
                    _lay_out_hint(parts, "recommended_hint", RECOMMENDED_HINT)
                    _lay_out_sharing(parts)
        with gr.Row(elem_classes="run-bar"):
            ExportForm.lay_out(parts, "export_strength", elem_id="finetune-export-strength")
            lay_out_export(parts, "finetune")
        parts["export_file"] = gr.DownloadButton(visible="hidden")
        parts.html("export_hint", elem_id="finetune-export-hint")
        parts.html("report", elem_id="finetune-report")


def _lay_out_sharing(parts: Parts) -> None:
    with gr.Row(elem_classes="save"):
        parts["save"] = gr.Button("Save changes", size="md", min_width=140, scale=0, elem_id="finetune-save")
        parts.html("saved", elem_id="finetune-saved")
    with gr.Row(elem_classes="share", equal_height=True):
        EditForm.lay_out(parts, "share_to", elem_id="share-to")
        parts["grant"] = gr.Button("+ Grant", min_width=90, scale=1, size="md", elem_id="grant")
    parts.html("shared", elem_id="finetune-shared")
    parts.live("grants", elem_id="finetune-grants")


def _lay_out_fields(parts: Parts, form: type[Form], prefix: str, key: str) -> None:
    """The fields of a finetune, each with a line below it; both the panel and the dialog have them."""
    with gr.Row():
        for name in ("base", "precision"):
            form.lay_out(parts, f"{prefix}{name}", elem_id=f"{key}-{name}")
    _lay_out_hint(parts, f"{prefix}base_hint", BASE_HINT)
    form.lay_out(parts, f"{prefix}trigger", elem_id=f"{key}-trigger")
    _lay_out_hint(parts, f"{prefix}trigger_hint", TRIGGER_HINT)


def _lay_out_hint(parts: Parts, name: str, text: str, elem_id: str | None = None) -> None:
    parts.html(name, part("hint", text=text), elem_classes="field-hint", elem_id=elem_id)


def _lay_out_dialog(parts: Parts) -> None:
    with gr.Column(elem_id="finetune-dialog"), gr.Column(elem_classes="dialog-card"):
        parts.live("head", part("dialog_head", "finetunes.html"), scripts=("finetunes.js",))
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                AddForm.lay_out(parts, "file", elem_id="dialog-file")
                parts.html("file_hint", elem_id="dialog-file-hint")
                AddForm.lay_out(parts, "name", elem_id="dialog-name")
                _lay_out_hint(parts, "name_hint", NAME_HINT, "dialog-name-hint")
                _lay_out_fields(parts, AddForm, "new_", "dialog")
            with gr.Column(scale=1, min_width=300):
                parts.html("new_report", part("no_report", "finetunes.html"), elem_id="dialog-report")
        parts.html("error", elem_id="dialog-error")
        with gr.Row(elem_classes="dialog-foot"):
            parts["cancel"] = gr.Button("Cancel", min_width=100, scale=0, size="md", elem_id="dialog-cancel")
            parts["upload"] = gr.Button(
                UPLOAD, variant="primary", interactive=False, min_width=180, scale=0, size="md",
                elem_id="dialog-upload",
            )  # fmt: skip


def _wire_list(parts: Parts, act: FinetunesEvents, tab: gr.Tab, elsewhere: tuple[gr.blocks.Block, ...]) -> None:
    drawn = (*_LIST, *_OPENED)
    parts.on(tab.select, act.refresh, reads=ListForm, draws=drawn, lane="finetunes")
    filters = [parts.shown.input, parts.search.change]
    parts.on(filters, act.filter, reads=ListForm, draws=_LIST, lane="finetunes")
    parts.on(parts.organization.input, act.switch, reads=ListForm, draws=_LIST, lane="finetunes")
    rows = [parts[name].click for name in ("table", "rest", "note", "deleted")]
    parts.on(rows, act.click, reads=ListForm, draws=(*drawn, *elsewhere), lane="finetunes")


def _wire_panel(parts: Parts, act: FinetunesEvents) -> None:
    changed = [parts.base.input, parts.precision.input, parts.trigger.blur, parts.recommended.blur]
    parts.on(changed, act.check, reads=EditForm, draws=_CHECKED, problem="base_hint", lane="panel")
    parts.on(parts.language.input, act.example, reads=ListForm, draws=("example",), problem="example", lane="panel")
    parts.on(parts["save"].click, act.save, reads=EditForm, draws=(*_LIST, *_OPENED), problem="saved", lane="panel")
    granted = [parts.grant.click, parts.share_to.submit]
    shared = ("grants", "share_to", "shared")
    parts.on(granted, act.grant, reads=EditForm, draws=shared, problem="shared", lane="panel")
    parts.on(parts.grants.click, act.revoke, reads=ListForm, draws=shared, problem="shared", lane="panel")


def _wire_export(parts: Parts, act: FinetunesEvents) -> None:
    exported = parts.on(
        parts.export.click, act.export, reads=ExportForm, draws=DRAWN, problem="export_hint",
        failed={"export": gr.update(interactive=True)}, api_name="export_finetune",
    )  # fmt: skip
    parts.save(exported, "export_file")


def _wire_dialog(parts: Parts, act: AddEvents) -> None:
    parts.on(parts.file.upload, act.take, reads=AddForm, draws=_DIALOG, problem="file_hint").then(
        None, None, None, js=_FOCUS_NAME, api_visibility="private"
    )
    parts.on(parts.file.clear, act.clear, reads=AddForm, draws=_DIALOG, problem="error")
    typed = [parts.name.change, parts.new_trigger.change, parts.new_precision.input, parts.new_base.input]
    parts.on(typed, act.check, reads=AddForm, draws=_DIALOG, problem="error", lane="dialog")
    parts.on(
        parts.upload.click, act.add, reads=AddForm, draws=(*_DIALOG, "head", *_LIST, *_OPENED), problem="error",
        tell=draw_refused, failed={"upload": gr.update(value=UPLOAD, interactive=True)},
    )  # fmt: skip
    left = [parts.head.click, parts.cancel.click]
    parts.on(left, act.reset, reads=AddForm, draws=(*_DIALOG, "head"), problem="error")
