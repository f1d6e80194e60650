"""The Finetunes tab, BFL's Dashboard: add, look at, edit, share, delete. Layout and wiring; `finetunes_*.py` act.

The list is one table in two parts, with the panel of the opened row between them: it reads as one table whose row has
opened, and the fields in the panel stay Gradio's own.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gradio as gr

from evaluation.tabs import finetunes_markup as markup
from evaluation.tabs.finetunes_dialog import FIRST_BASE, DialogHandlers
from evaluation.tabs.finetunes_form import BASE_HINT, BASES, NAME_HINT, PRECISIONS, TRIGGER_HINT, make_sweep_form
from evaluation.tabs.finetunes_list import ListHandlers
from evaluation.tabs.finetunes_panel import PanelHandlers
from evaluation.tabs.finetunes_parts import DialogParts, FormParts, ListParts, PanelParts, Updates, Values, read_text
from evaluation.tabs.playground import PLAYGROUND_TAB, PlaygroundTab
from evaluation.tabs.sweep import SWEEP_TAB, SweepTab
from lora_runtime.errors import KleinLabError
from lora_runtime.registry.visitors import Visitors
from lora_runtime.server.service import Service

FINETUNES_TAB: Final = "finetunes"
STYLE_SHEET: Final = Path(__file__).parent / "web" / "finetunes.css"

_SCRIPT: Final = (Path(__file__).parent / "web" / "finetunes.js").read_text(encoding="utf-8")
_DIALOG_SCRIPT: Final = (Path(__file__).parent / "web" / "finetunes_dialog.js").read_text(encoding="utf-8")
_FOCUS_NAME: Final = """() => {
  if (document.activeElement === document.body) document.querySelector("#dialog-name :is(input, textarea)")?.focus();
}"""
"""The button that took the file has gone, and the focus with it."""
_QUIET: Final = {"api_visibility": "private", "show_progress": "hidden"}
_EACH: Final = {"trigger_mode": "multiple", **_QUIET}


@dataclass(frozen=True, kw_only=True)
class FinetunesTab:
    """What the rest of the app needs of this tab: its parts, and the handlers behind them."""

    list: ListHandlers
    panel: PanelHandlers
    dialog: DialogHandlers


def build_finetunes_tab(
    service: Service, visitors: Visitors, sweep: SweepTab, playground: PlaygroundTab, tabs: gr.Tabs, tab: gr.Tab
) -> FinetunesTab:
    """Lay the tab out inside the current `gr.Blocks` and wire its events."""
    with gr.Column(elem_id="finetunes"):
        found = _lay_out_head()
        with gr.Column(elem_id="finetunes-list"):
            found["table"] = _html(elem_id="finetunes-table", js_on_load=_SCRIPT)
            panel_parts = _lay_out_panel()
            found["rest"] = _html(js_on_load=_SCRIPT)
        found["deleted"] = _html(js_on_load=_SCRIPT)
        found["selected"] = gr.Textbox("", visible="hidden", label="Row", interactive=False)
        dialog_parts, cancel = _lay_out_dialog()
    parts = ListParts(**found)
    panel = PanelHandlers(service, visitors, panel_parts)
    handlers = FinetunesTab(
        list=ListHandlers(service, visitors, parts, panel), panel=panel, dialog=DialogHandlers(service, dialog_parts)
    )
    _wire_list(parts, handlers, tab)
    _wire_rows(parts, handlers, sweep, playground, tabs)
    _wire_panel(parts, handlers)
    _wire_sharing(parts, handlers)
    _wire_dialog(parts, handlers, cancel)
    return handlers


def _html(value: str = "", **options: Any) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, **options)


def _lay_out_head() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with gr.Row(elem_classes="finetunes-head"):
        found["shown"] = gr.Radio(
            ["All", "Owned", "Shared"], value="All", label="Show", container=False, elem_id="finetunes-shown", scale=0,
            min_width=260,
        )  # fmt: skip
        found["search"] = gr.Textbox(
            label="Search finetunes", placeholder="Search", container=False, visible=False, elem_id="finetunes-search",
            max_lines=1, min_width=160,
        )  # fmt: skip
        gr.Button("+ Add Finetune", variant="primary", scale=0, min_width=160, size="md", elem_id="add-finetune")
    with gr.Row(elem_classes="finetunes-who"):
        found["you"] = _html(js_on_load=_SCRIPT)
        found["organization"] = gr.Dropdown(
            [], label="Act for", visible=False, filterable=False, min_width=180, scale=0,
            elem_id="finetunes-organization",
        )  # fmt: skip
    found["note"] = _html(js_on_load=_SCRIPT, elem_id="finetunes-note")
    return found


def _lay_out_panel() -> PanelParts:
    with gr.Column(visible=False, elem_id=markup.PANEL_ID) as panel:
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=300, elem_classes="example"):
                language = gr.Radio(
                    [("curl", "curl"), ("Python", "python")], value="curl", label="API Example",
                    elem_classes="segments", elem_id="finetune-language",
                )  # fmt: skip
                example = _html(js_on_load=_SCRIPT, elem_id="finetune-example")
            with gr.Column(scale=5, min_width=300):
                heading = _html()
                owned = _lay_out_owned()
        report = _html(elem_id="finetune-report")
    return PanelParts(panel=panel, heading=heading, language=language, example=example, report=report, **owned)


def _lay_out_owned() -> dict[str, Any]:
    """What only the owner of a finetune sees."""
    found: dict[str, Any] = {}
    with gr.Column(elem_classes="owned") as found["owned"]:
        found["form"] = _lay_out_form("finetune")
        with gr.Row(elem_classes="save"):
            found["save"] = gr.Button("Save changes", size="md", min_width=140, scale=0, elem_id="finetune-save")
            found["saved"] = _html(elem_id="finetune-saved")
        with gr.Row(elem_classes="share", equal_height=True):
            found["share_to"] = gr.Textbox(
                label="Share with another Organization", placeholder="Organization ID", elem_id="share-to",
                min_width=180, max_lines=1, scale=3,
            )  # fmt: skip
            found["grant"] = gr.Button("+ Grant", min_width=90, scale=1, size="md", elem_id="grant")
        found["shared"] = _html(elem_id="finetune-shared")
        found["grants"] = _html(js_on_load=_SCRIPT, elem_id="finetune-grants")
    return found


def _lay_out_form(key: str) -> FormParts:
    with gr.Row():
        base = gr.Dropdown(
            BASES, value=FIRST_BASE, label="Base Model", filterable=False, scale=3, min_width=190, elem_id=f"{key}-base"
        )
        precision = gr.Dropdown(
            PRECISIONS, value="", label="Precision", filterable=False, scale=1, min_width=110,
            elem_id=f"{key}-precision", interactive=False,
        )  # fmt: skip
    base_hint = _html(BASE_HINT, elem_classes="field-hint")
    trigger = gr.Textbox(
        label="Trigger Phrase", placeholder="e.g. TOK, sks, ohwx", max_lines=1, elem_id=f"{key}-trigger"
    )
    trigger_hint = _html(TRIGGER_HINT, elem_classes="field-hint")
    return FormParts(base=base, base_hint=base_hint, precision=precision, trigger=trigger, trigger_hint=trigger_hint)


def _lay_out_dialog() -> tuple[DialogParts, gr.Button]:
    with gr.Column(elem_id=markup.DIALOG_ID), gr.Column(elem_classes="dialog-card"):
        head = _html(markup.draw_dialog_head(), js_on_load=_DIALOG_SCRIPT)
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                file = gr.File(label="Checkpoint File", type="filepath", height=150, elem_id="dialog-file")
                file_hint = _html(elem_id="dialog-file-hint")
                name = gr.Textbox(label="Name", placeholder="my-lora", max_lines=1, elem_id="dialog-name")
                name_hint = _html(NAME_HINT, elem_classes="field-hint", elem_id="dialog-name-hint")
                form = _lay_out_form("dialog")
            with gr.Column(scale=1, min_width=300):
                report = _html(markup.draw_no_report(), elem_id="dialog-report")
        error = _html(elem_id="dialog-error")
        with gr.Row(elem_classes="dialog-foot"):
            cancel = gr.Button("Cancel", min_width=100, scale=0, size="md", elem_id="dialog-cancel")
            upload = gr.Button(
                "Upload Finetune", variant="primary", interactive=False, min_width=180, scale=0, size="md",
                elem_id="dialog-upload",
            )  # fmt: skip
    return DialogParts(
        head=head, file=file, file_hint=file_hint, name=name, name_hint=name_hint, form=form, report=report,
        error=error, upload=upload,
    ), cancel  # fmt: skip


def _wire_list(parts: ListParts, tab: FinetunesTab, selected: gr.Tab) -> None:
    act, panel = tab.list, tab.panel.parts
    inputs = {*parts.view(), panel.language}
    everything = {*parts.drawn(), *panel.drawn()}
    selected.select(act.refresh, inputs, everything, api_name="finetunes_refresh", **_QUIET)
    drawn = parts.drawn() | {panel.panel}
    gr.on([parts.shown.input, parts.search.change], act.draw, inputs, drawn, api_name="finetunes_filter", **_EACH)

    def switch(values: Values, request: gr.Request) -> Updates:
        return {**act.draw(values, request, selected=""), parts.note: ""}

    parts.organization.input(switch, inputs, drawn, api_name="finetunes_organization", **_QUIET)


def _wire_rows(parts: ListParts, tab: FinetunesTab, sweep: SweepTab, playground: PlaygroundTab, tabs: gr.Tabs) -> None:
    """The buttons of the rows; two of them go to another tab, its form filled in."""
    act, panel = tab.list, tab.panel.parts

    def go(values: Values, finetune_id: str, request: gr.Request, kind: str) -> Updates:
        try:
            finetune = act.find(act.organization(values, request), finetune_id)
            name, own_id = act.name_for(act.visitor(request), finetune)
        except KleinLabError as error:
            return {parts.note: markup.draw_note(str(error))}
        if kind == "playground":
            return {tabs: gr.update(selected=PLAYGROUND_TAB), **playground.choose(own_id)}
        return {
            tabs: gr.update(selected=SWEEP_TAB),
            **sweep.fill(sweep.parts.page.find_caller(request), make_sweep_form(finetune, name)),
        }

    def click(values: Values, event: gr.EventData, request: gr.Request) -> Updates:
        kind, finetune_id = _read_click(event)
        match kind:
            case "open":
                return act.open(values, finetune_id, request)
            case "delete":
                return act.delete(values, finetune_id, request)
            case "restore":
                return act.restore(values, finetune_id, request)
            case "sweep" | "playground":
                return go(values, finetune_id, request, kind)
        return _nothing(parts.note)

    inputs = {*parts.view(), panel.language}
    listed = {*parts.drawn(), *panel.drawn()}
    elsewhere = {tabs, *sweep.targets, *playground.targets()}
    for part, name, outputs in (
        (parts.table, "finetunes_table", listed | elsewhere), (parts.rest, "finetunes_rest", listed | elsewhere),
        (parts.note, "finetunes_note", listed), (parts.deleted, "finetunes_deleted", listed),
    ):  # fmt: skip
        part.click(click, inputs, outputs, api_name=name, **_QUIET)


def _guard(
    tab: FinetunesTab, parts: ListParts, work: Callable[[str, str, Values], Updates], where: gr.HTML
) -> Callable[[Values, gr.Request], Updates]:
    """An event on the opened finetune; what goes wrong is said in `where`."""

    def run(values: Values, request: gr.Request) -> Updates:
        try:
            return work(tab.list.organization(values, request), read_text(values, parts.selected), values)
        except KleinLabError as error:
            return {where: markup.draw_hint(str(error), kind="bad")}

    return run


def _wire_panel(parts: ListParts, tab: FinetunesTab) -> None:
    act, panel, listed = tab.panel, tab.panel.parts, tab.list
    inputs = {*parts.view(), panel.language, *panel.form.fields()}
    everything = {*parts.drawn(), *panel.drawn()}
    checks = {panel.form.base_hint, panel.form.trigger_hint, panel.form.precision}
    check = _guard(tab, parts, act.check, panel.form.base_hint)
    gr.on(
        [panel.form.precision.input, panel.form.trigger.blur], check, inputs, checks, api_name="finetune_check", **_EACH
    )
    choose_base = _guard(tab, parts, act.choose_base, panel.form.base_hint)
    panel.form.base.input(choose_base, inputs, checks, api_name="finetune_base", **_QUIET)

    def show_example(values: Values, request: gr.Request) -> Updates:
        organization = listed.organization(values, request)
        try:
            found = listed.find(organization, read_text(values, parts.selected))
        except KleinLabError as error:
            return {panel.example: markup.draw_hint(str(error), kind="bad")}
        return act.show_example(organization, found, values, request)

    panel.language.input(show_example, inputs, {panel.example}, api_name="finetune_example", **_QUIET)

    def save(values: Values, request: gr.Request) -> Updates:
        organization, finetune_id = listed.organization(values, request), read_text(values, parts.selected)
        try:
            said = act.save(organization, finetune_id, values)
        except KleinLabError as error:
            return {**check(values, request), panel.saved: markup.draw_hint(f"Not saved. {error}", kind="bad")}
        return {**listed.show(values, finetune_id, request), panel.saved: markup.draw_hint(said, kind="good")}

    panel.save.click(save, inputs, everything, api_name="finetune_save", **_QUIET)


def _wire_sharing(parts: ListParts, tab: FinetunesTab) -> None:
    act, panel = tab.panel, tab.panel.parts
    inputs = {*parts.view(), panel.share_to}
    shown = {panel.grants, panel.share_to, panel.shared}

    def grant(organization: str, finetune_id: str, values: Values) -> Updates:
        finetune, told = act.grant(organization, finetune_id, read_text(values, panel.share_to).strip())
        return {panel.grants: markup.draw_grants(finetune), panel.share_to: "", panel.shared: told}

    gr.on(
        [panel.grant.click, panel.share_to.submit], _guard(tab, parts, grant, panel.shared), inputs, shown,
        api_name="finetune_grant", **_QUIET,
    )  # fmt: skip

    def revoke(values: Values, event: gr.EventData, request: gr.Request) -> Updates:
        kind, to = _read_click(event)

        def work(organization: str, finetune_id: str, _values: Values) -> Updates:
            told = markup.draw_hint(f"{to} cannot use it any more.", kind="good")
            return {panel.grants: markup.draw_grants(act.revoke(organization, finetune_id, to)), panel.shared: told}

        revoked = _guard(tab, parts, work, panel.shared)
        return revoked(values, request) if kind == "revoke" else _nothing(panel.shared)

    panel.grants.click(revoke, inputs, shown, api_name="finetune_revoke", **_QUIET)


def _wire_dialog(parts: ListParts, tab: FinetunesTab, cancel: gr.Button) -> None:
    act, dialog, listed = tab.dialog, tab.dialog.parts, tab.list
    inputs = {*parts.view(), tab.panel.parts.language, *dialog.fields()}
    drawn = dialog.drawn()

    def take(values: Values, request: gr.Request) -> Iterator[Updates]:
        yield from act.take(listed.organization(values, request), values)

    def check(values: Values, request: gr.Request) -> Updates:
        return act.check(listed.organization(values, request), values)

    def choose_base(values: Values, request: gr.Request) -> Updates:
        return act.choose_base(listed.organization(values, request), values)

    def upload(values: Values, request: gr.Request) -> Iterator[Updates]:
        yield {dialog.upload: gr.update(value="Uploading …", interactive=False), dialog.error: ""}
        try:
            added = act.add(listed.organization(values, request), values)
        except KleinLabError as error:
            yield {
                dialog.error: markup.draw_problem(str(error)),
                dialog.upload: gr.update(value="Upload Finetune", interactive=True),
            }
            return
        note = f"{added.name} was added. Its API example is below."
        yield {
            **act.reset(close=True),
            **listed.show({**values, parts.shown: "All", parts.search: ""}, added.id, request, note=note),
            parts.search: "" if read_text(values, parts.search) else gr.update(),
        }

    dialog.file.upload(take, inputs, drawn, api_name="dialog_take", **_QUIET).then(
        None, None, None, js=_FOCUS_NAME, api_visibility="private"
    )
    dialog.file.clear(act.clear_file, None, drawn, api_name="dialog_clear", **_QUIET)
    gr.on(
        [dialog.name.change, dialog.form.trigger.change, dialog.form.precision.input], check, inputs, drawn,
        api_name="dialog_check", **_EACH,
    )  # fmt: skip
    dialog.form.base.input(choose_base, inputs, drawn, api_name="dialog_base", **_QUIET)
    dialog.upload.click(
        upload,
        inputs,
        {*drawn, dialog.head, *parts.drawn(), *tab.panel.parts.drawn()},
        api_name="dialog_upload",
        **_QUIET,
    )
    gr.on([dialog.head.click, cancel.click], act.reset, None, {*drawn, dialog.head}, api_name="dialog_cancel", **_QUIET)


def _nothing(part: gr.components.Component) -> Updates:
    """An answer that changes nothing; Gradio does not take an empty one."""
    return {part: gr.update()}


def _read_click(event: gr.EventData) -> tuple[str, str]:
    """What was clicked, and for which finetune or organization."""
    data = event._data if isinstance(event._data, Mapping) else {}
    return str(data.get("kind", "")), str(data.get("value", ""))
