"""The Playground: one model, one prompt, one image at a time. Layout and wiring; the `playground_*` modules act."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import gradio as gr

from evaluation.report.draw import draw
from evaluation.store.store import Store
from evaluation.tabs import markup
from evaluation.tabs.form import PRECISIONS
from evaluation.tabs.playground_fields import PlayFields, draw_picker, draw_strip
from evaluation.tabs.playground_form import FORMATS, RATIOS, SLIDER, Models, sweep_form
from evaluation.tabs.playground_parts import PlayParts, Updates, Values
from evaluation.tabs.playground_run import GENERATE, PlayRuns
from evaluation.tabs.playground_show import PlayShow
from evaluation.tabs.sweep import SWEEP_TAB, VISITORS, SweepTab
from lora_runtime.backends.base import Backend
from lora_runtime.errors import KleinLabError
from lora_runtime.references import MAX_REFERENCES
from lora_runtime.registry.shelf import Shelf
from lora_runtime.registry.visitors import Visitors
from lora_runtime.server.service import Service
from lora_runtime.storage.blobs import Blobs
from lora_runtime.values import RenderRequest

PLAYGROUND_TAB: Final = "playground"
PLAYGROUND_SHEET: Final = Path(__file__).parent / "web" / "playground.css"

_SCRIPT: Final = Path(__file__).parent / "web" / "playground.js"
_PROMPT: Final = "a red cat in the snow"
_QUIET: Final = {"api_visibility": "private", "show_progress": "hidden"}
_WRITE: Final = "(value) => value.toFixed(2)"


@dataclass(frozen=True, kw_only=True)
class PlaygroundTab:
    """What the rest of the app needs of this tab: `fill` and `choose` give updates of `targets()`."""

    parts: PlayParts
    fields: PlayFields
    runs: PlayRuns
    show: PlayShow

    def fill(self, request: RenderRequest, *, backend: str) -> Updates:
        """Put a whole image's settings on the page, with its seed."""
        return self.fields.fill(request, backend=backend)

    def choose(self, finetune_id: str) -> Updates:
        """Choose a finetune, with the defaults of its base."""
        return self.fields.choose(finetune_id)

    def targets(self) -> set[gr.components.Component]:
        """The components that `fill` and `choose` update: the outputs of whoever calls them."""
        return self.parts.fields()


def build_playground_tab(
    service: Service,
    backends: Mapping[str, Backend],
    store: Store,
    shelf: Shelf,
    visitors: Visitors,
    sweep: SweepTab,
    tabs: gr.Tabs,
) -> PlaygroundTab:
    """Lay the tab out inside the current `gr.Blocks` and wire its events."""
    found: dict[str, Any] = {}
    script = _SCRIPT.read_text(encoding="utf-8")
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320, elem_id="play-form"):
            _lay_out_form(found, backends, script)
        with gr.Column(scale=7, min_width=320, elem_id="play-result"):
            _lay_out_result(found, script)
    found["references"] = gr.State([])
    parts = PlayParts(**{part.name: found[part.name] for part in fields(PlayParts)})
    chosen = service.settings
    models = Models(backends, shelf, weights=chosen.weights)
    show = PlayShow(store, service, models, visitors, parts)
    tab = PlaygroundTab(
        parts=parts,
        fields=PlayFields(backends, store, models, visitors, parts),
        runs=PlayRuns(backends, store, models, show, parts, blobs=Blobs(chosen.home / "blobs")),
        show=show,
    )
    _wire_form(tab, tabs)
    _wire_values(tab)
    _wire_runs(tab)
    _wire_picture(tab, sweep, tabs)
    return tab


def wire_playground(tab: PlaygroundTab, page: gr.Blocks, entered: gr.events.Dependency, selected: gr.Tab) -> None:
    """Fill the lists when a visitor has entered or comes back to the tab; stop their image when the page is closed."""
    parts, act = tab.parts, tab.fields
    described = _described(parts)

    def load_picture(values: Values, request: gr.Request) -> Updates:
        return tab.show.load(str(values[parts.output_format]), tab.show.caller(request))

    def close(request: gr.Request) -> None:
        tab.runs.forget(request.session_hash)

    entered.then(
        act.load, parts.inputs(), {*described, *tab.targets()}, api_name="play_load", **_QUIET
    ).then(
        load_picture, {parts.output_format}, {parts.picture, parts.history, parts.selected, parts.status},
        api_name="play_earlier", **_QUIET,
    ).then(
        act.learn, parts.inputs(), described, api_name="play_learn", **_QUIET
    )  # fmt: skip
    selected.select(act.describe, parts.inputs(), {*described, *tab.targets()}, api_name="play_selected", **_QUIET)
    page.unload(close)


def _described(parts: PlayParts) -> set[gr.components.Component]:
    """What belongs to the chosen model."""
    return {
        parts.picker, parts.route, parts.trigger, parts.strength, parts.slider, parts.reset, parts.steps,
        parts.guidance, parts.aspect, parts.remote_id,
    }  # fmt: skip


def _lay_out_form(found: dict[str, Any], backends: Mapping[str, Backend], script: str) -> None:
    found["model"] = gr.Textbox("", visible="hidden", label="Model key", interactive=False)
    found["picker"] = gr.HTML(
        draw_picker((), None, {}), apply_default_css=False, js_on_load=script, elem_id="play-picker"
    )
    found["where"] = gr.Radio(
        [(backend.label, name) for name, backend in backends.items()], value=next(iter(backends)), label="Where",
        visible=len(backends) > 1, elem_id="play-where",
    )  # fmt: skip
    found["remote_id"] = gr.Textbox(
        label="Finetune id there", placeholder="found by its file", visible=False, elem_id="play-remote-id",
        info="What the remote server calls the finetune; a server of this lab finds it by its file.",
    )  # fmt: skip
    found["route"] = gr.HTML(apply_default_css=False, elem_id="play-route", min_height=24)
    found["prompt"] = gr.Textbox(_PROMPT, label="Prompt", lines=3, max_lines=8, elem_id="play-prompt")
    found["trigger"] = gr.HTML(apply_default_css=False, js_on_load=script, elem_id="play-trigger")
    low, high = SLIDER
    with gr.Row(elem_id="play-strength-row"):
        found["slider"] = gr.Slider(
            low, high, value=1.0, step=0.05, label="Strength", buttons=[], elem_id="play-slider", scale=5, min_width=150
        )
        found["strength"] = gr.Textbox(
            "1.00", label="Exact", elem_id="play-strength", scale=2, min_width=96, max_lines=1
        )
        found["reset"] = gr.Button("Reset", scale=0, min_width=76, size="md", elem_id="play-reset")
    with gr.Row(elem_id="play-seed-row"):
        found["seed"] = gr.Textbox(
            "", label="Seed", placeholder="a new one for each image", elem_id="play-seed", scale=1, min_width=150,
            max_lines=1,
        )  # fmt: skip
        found["last"] = gr.Button("Keep last", scale=0, min_width=100, size="md", elem_id="play-last")
        found["dice"] = gr.Button("Random", scale=0, min_width=90, size="md", elem_id="play-dice")
    with gr.Row():
        found["run"] = gr.Button(GENERATE, variant="primary", size="lg", scale=3, min_width=160, elem_id="play-run")
        found["stop"] = gr.Button("Stop", size="lg", scale=1, min_width=90, interactive=False, elem_id="play-stop")
    _lay_out_more(found, script)


def _lay_out_more(found: dict[str, Any], script: str) -> None:
    with gr.Accordion("Size and format", open=False):
        found["aspect"] = gr.Dropdown(
            [*RATIOS, "custom"], value="1:1", label="Shape", filterable=False, elem_id="play-aspect"
        )
        with gr.Row():
            found["width"] = gr.Number(None, label="Width (px)", precision=0, step=16, min_width=110)
            found["height"] = gr.Number(None, label="Height (px)", precision=0, step=16, min_width=110)
        found["output_format"] = gr.Radio(
            [(name.upper(), name) for name in FORMATS], value="png", label="Download as", elem_id="play-format",
            info="PNG is lossless and carries the settings inside.",
        )  # fmt: skip
    with gr.Accordion("Reference images", open=False):
        found["strip"] = gr.HTML(draw_strip(()), apply_default_css=False, js_on_load=script, elem_id="play-references")
        found["upload"] = gr.UploadButton(
            f"Add images (up to {MAX_REFERENCES})", file_types=[".png", ".jpg", ".jpeg", ".webp"],
            file_count="multiple", type="filepath", size="sm", elem_id="play-upload",
        )  # fmt: skip
    with gr.Accordion("Advanced", open=False):
        with gr.Row():
            found["steps"] = gr.Number(None, label="Steps", precision=0, step=1, interactive=False, min_width=110)
            found["guidance"] = gr.Number(None, label="Guidance", step=0.5, interactive=False, min_width=110)
        found["precision"] = gr.Dropdown(
            [("The endpoint's own", ""), *((label, name) for name, label in PRECISIONS.items() if name.isalnum())],
            value="", label="Precision", filterable=False, elem_id="play-precision",
        )  # fmt: skip


def _lay_out_result(found: dict[str, Any], script: str) -> None:
    found["status"] = gr.HTML(markup.draw_message("Ready."), apply_default_css=False, elem_id="play-status")
    found["picture"] = gr.HTML(
        draw("play-picture.html", picture=None), apply_default_css=False, js_on_load=script, elem_id="play-picture"
    )
    found["history"] = gr.HTML(apply_default_css=False, js_on_load=script, elem_id="play-history")
    found["selected"] = gr.Textbox("", visible="hidden", label="Image", interactive=False)


def _wire_form(tab: PlaygroundTab, tabs: gr.Tabs) -> None:
    parts, act = tab.parts, tab.fields
    form, described = parts.inputs(), _described(parts)
    redrawn = {*described, *parts.fields()}

    def pick(values: Values, request: gr.Request, event: gr.EventData) -> Updates:
        return act.pick(values, _said(event, "value"), request)

    def arrange(values: Values, request: gr.Request, event: gr.EventData) -> Updates:
        index = _said(event, "id")
        return act.arrange_references(values, _said(event, "act"), int(index) if index.isdecimal() else -1, request)

    def add(values: Values, request: gr.Request) -> Updates:
        return act.add_references(values[parts.upload], values, request)

    parts.picker.click(pick, form, redrawn, api_name="play_pick", **_QUIET)
    parts.picker.expand(lambda: gr.Tabs(selected="finetunes"), None, tabs, api_name="play_manage", **_QUIET)
    gr.on(
        [parts.model.change, parts.where.input, parts.precision.input, parts.remote_id.change],
        act.describe, form, redrawn, api_name="play_describe", trigger_mode="always_last", **_QUIET,
    )  # fmt: skip
    parts.prompt.change(
        act.check_prompt, form, {parts.trigger}, api_name="play_prompt", trigger_mode="always_last", **_QUIET
    )
    parts.trigger.click(act.insert_trigger, form, {parts.prompt, parts.trigger}, api_name="play_insert", **_QUIET)
    images = {parts.references, parts.strip, parts.upload, parts.aspect, parts.width, parts.height}
    parts.upload.upload(add, {*form, parts.upload}, images, api_name="play_add_images", **_QUIET)
    parts.strip.click(arrange, form, images, api_name="play_arrange_images", **_QUIET)


def _wire_values(tab: PlaygroundTab) -> None:
    """Fields that go together: slider and box, seed and its buttons, shape and sides."""
    parts, act = tab.parts, tab.fields
    form = parts.inputs()
    parts.slider.input(None, parts.slider, parts.strength, js=_WRITE, api_visibility="private")
    # "change", as a textbox sends "input" before its new value.
    parts.strength.change(
        act.choose_strength, parts.strength, {parts.slider}, api_name="play_strength", trigger_mode="always_last",
        **_QUIET,
    )  # fmt: skip
    parts.reset.click(None, None, [parts.strength, parts.slider], js="() => ['1.00', 1]", api_visibility="private")
    parts.dice.click(None, None, parts.seed, js="() => ''", api_visibility="private")
    parts.last.click(act.reuse_seed, None, {parts.seed, parts.status}, api_name="play_last", **_QUIET)
    parts.aspect.input(
        act.choose_shape, form, {parts.width, parts.height, parts.route}, api_name="play_shape", **_QUIET
    )
    gr.on(
        [parts.width.input, parts.height.input], act.name_shape, form, {parts.aspect, parts.route},
        api_name="play_sides", trigger_mode="always_last", **_QUIET,
    )  # fmt: skip


def _wire_runs(tab: PlaygroundTab) -> None:
    parts, act = tab.parts, tab.runs
    inputs = {*parts.inputs(), parts.selected}
    shown = {parts.status, parts.picture, parts.history, parts.selected, parts.run, parts.stop}

    def run(values: Values, request: gr.Request) -> Iterator[Updates]:
        yield from act.run(values, request)

    def retry(values: Values, request: gr.Request) -> Iterator[Updates]:
        yield from act.retry(values, request)

    def compare(values: Values, request: gr.Request) -> Iterator[Updates]:
        yield from act.compare(values, request)

    long = {"concurrency_limit": VISITORS, "concurrency_id": "play", "trigger_mode": "once", **_QUIET}
    events = {
        "play_run": parts.run.click(run, inputs, shown, api_name="play_run", **long),
        "play_retry": parts.picture.retry(retry, inputs, shown, api_name="play_retry", **long),
        "play_compare": parts.picture.play(compare, inputs, shown, api_name="play_compare", **long),
    }
    for name, event in events.items():
        event.failure(act.recover, None, {parts.run, parts.stop}, api_name=f"{name}_recover", **_QUIET)
    parts.stop.click(act.stop, None, {parts.stop}, api_name="play_stop", concurrency_limit=None, **_QUIET)


def _wire_picture(tab: PlaygroundTab, sweep: SweepTab, tabs: gr.Tabs) -> None:
    parts, show = tab.parts, tab.show
    seen = {parts.picture, parts.history, parts.selected, parts.status}

    def choose(values: Values, request: gr.Request, event: gr.EventData) -> Updates:
        return show.show(_said(event, "id"), str(values[parts.output_format]), show.caller(request))

    def again(values: Values, request: gr.Request) -> Updates:
        selected = str(values[parts.selected] or "")
        if not selected:
            return {parts.status: gr.skip()}
        return show.show(selected, str(values[parts.output_format]), show.caller(request))

    def use(run_id: str) -> Updates:
        try:
            _, record = show.find(run_id)
        except KleinLabError as error:
            return {parts.status: markup.draw_error(error)}
        return {
            parts.status: markup.draw_message("The form has the settings of this image."),
            **tab.fill(record.cell.request, backend=record.cell.target.backend),
        }

    def sweep_this(run_id: str, request: gr.Request) -> Updates:
        try:
            _, record = show.find(run_id)
            form = sweep_form(
                record.cell.request,
                backend=record.cell.target.backend,
                lora=show.name_lora(record.cell.request, show.caller(request)),
            )
        except KleinLabError as error:
            return {parts.status: markup.draw_error(error)}
        return {tabs: gr.update(selected=SWEEP_TAB), **sweep.fields.fill(form, request)}

    chosen = {parts.selected, parts.output_format}
    parts.history.click(choose, chosen, seen, api_name="play_show", **_QUIET)
    gr.on([parts.output_format.input, parts.picture.clear], again, chosen, seen, api_name="play_again", **_QUIET)
    parts.picture.edit(use, parts.selected, {parts.status, *tab.targets()}, api_name="play_use", **_QUIET)
    parts.picture.select(
        sweep_this, parts.selected, {tabs, parts.status, *sweep.parts.fields()}, api_name="play_sweep", **_QUIET
    )


def _said(event: gr.EventData, name: str) -> str:
    data: Mapping[str, Any] = event._data or {}
    return str(data.get(name, ""))
