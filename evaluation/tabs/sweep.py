"""The Sweep tab: a form, and the grid it fills. Layout and wiring; `fields.py` and `run.py` act."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import gradio as gr

from evaluation.report.cards import WAITING
from evaluation.report.draw import draw
from evaluation.report.grid_view import view_plan
from evaluation.store.presets import Presets
from evaluation.store.store import Store
from evaluation.strengths import DEFAULT_COUNT, parse_strengths
from evaluation.tabs import markup
from evaluation.tabs.extend import Chosen, ExtendHandlers
from evaluation.tabs.form import EXAMPLES, PRECISIONS, ROWS, STRENGTHS, list_places
from evaluation.tabs.links import LinkHandlers
from evaluation.tabs.live_grid import draw_view
from evaluation.tabs.parts import SweepParts, Updates, Values, show_rows
from evaluation.tabs.presets import PresetHandlers, PresetParts, lay_out_presets, wire_presets
from evaluation.tabs.run import RunHandlers
from evaluation.tabs.sweep_fields import FieldHandlers
from lora_runtime.backends.base import Backend
from lora_runtime.catalogue import WEIGHTS, find_weights
from lora_runtime.lora.file import ENDINGS
from lora_runtime.registry.shelf import Shelf
from lora_runtime.registry.visitors import Visitors

SWEEP_TAB: Final = "sweep"

VISITORS: Final = 16
"""How many sweeps may be under way at once. The engine batches them; each holds one of the server's 40 threads."""

SAVE_FILE: Final = """(file) => {
  if (!file) return;
  const link = document.createElement("a");
  link.href = file.url; link.download = file.orig_name || "klein-lora-lab"; link.click();
}"""
"""Hand a prepared file to the browser's downloads."""

ROLL_SEED: Final = "() => String(Math.floor(Math.random() * 1e6))"
"""A new random seed, short enough to read out."""

_QUIET: Final = {"api_visibility": "private", "show_progress": "hidden"}
_IN_TURN: Final = {**_QUIET, "concurrency_id": "extend", "concurrency_limit": 1}
"""What is said of A and B: one at a time, or an older answer could come after a newer one."""
_DEFAULT = find_weights("pocket")


@dataclass(frozen=True, kw_only=True)
class SweepTab:
    """What the rest of the app needs of this tab."""

    parts: SweepParts
    fields: FieldHandlers
    runs: RunHandlers
    extend: ExtendHandlers
    links: LinkHandlers
    presets: PresetHandlers
    preset_parts: PresetParts


def build_sweep_tab(backends: Mapping[str, Backend], store: Store, shelf: Shelf, visitors: Visitors) -> SweepTab:
    """Lay the tab out inside the current `gr.Blocks` and wire its events; several backends are offered as a choice."""
    found: dict[str, Any] = {}
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320, elem_id="sweep-form"):
            examples = _lay_out_form(found, backends)
        with gr.Column(scale=9, min_width=320, elem_id="sweep-result"):
            _lay_out_result(found)
    found["run_id"], found["chosen"] = gr.State(None), gr.State(None)
    presets = found.pop("presets")
    parts = SweepParts(**{part.name: found[part.name] for part in fields(SweepParts)})
    act = FieldHandlers(backends, store, shelf, visitors, parts)
    runs = RunHandlers(backends, store, shelf, visitors, parts)
    tab = SweepTab(
        parts=parts,
        fields=act,
        runs=runs,
        extend=ExtendHandlers(store, parts, runs),
        links=LinkHandlers(store, parts, act, runs),
        presets=PresetHandlers(Presets(store.database), visitors, presets, parts, act),
        preset_parts=presets,
    )
    _wire_form(tab, examples)
    wire_presets(tab.presets, presets, parts)
    _wire_runs(tab)
    _wire_extend(tab)
    return tab


def _lay_out_form(found: dict[str, Any], backends: Mapping[str, Backend]) -> dict[str, gr.Button]:
    """Lay the form out; return the buttons that fill it in: examples by label, strengths by name."""
    example = EXAMPLES[0]
    with gr.Row(elem_classes="chips"):
        buttons = {item.label: gr.Button(item.label, size="sm", variant="secondary") for item in EXAMPLES}
    found["lora"] = gr.Dropdown([example.lora], value=example.lora, label="LoRA", elem_id="lora", filterable=False)
    found["lora_hint"] = gr.HTML(apply_default_css=False)
    found["insert_trigger"] = gr.Button("Insert the trigger phrase", size="sm", visible=False)
    found["prompt"] = gr.Textbox(example.prompt, label="Prompt", lines=2, max_lines=6, elem_id="prompt")
    found["strengths"] = gr.Textbox(
        example.strengths,
        label="Strengths",
        info=f"A list or ranges: 0, 0.5, 1 · 0-1.2 [7] · 0.7-0.9 (+0.05). A range alone is {DEFAULT_COUNT} values.",
        elem_id="strengths",
    )
    with gr.Row(elem_classes=["chips", "quiet"]):
        buttons |= {name: gr.Button(name, size="sm", variant="secondary") for name in STRENGTHS}
    found["echo"] = gr.HTML(apply_default_css=False, elem_classes="echo")
    with gr.Row():
        found["seed"] = gr.Textbox(
            example.seed, label="Seed", placeholder="random", elem_id="seed", scale=3, min_width=120
        )
        found["dice"] = gr.Button("Random", scale=1, min_width=90, size="md", elem_id="dice")
    with gr.Row():
        found["run"] = gr.Button("Run sweep", variant="primary", size="lg", scale=3, min_width=160, elem_id="run")
        found["stop"] = gr.Button("Stop", size="lg", scale=1, min_width=90, interactive=False, elem_id="stop")
    _lay_out_more(found, backends)
    return buttons


def _lay_out_more(found: dict[str, Any], backends: Mapping[str, Backend]) -> None:
    with gr.Accordion("More rows", open=False):
        rows = [(label, name) for name, label in ROWS.items() if name != "backend" or len(backends) > 1]
        found["rows"] = gr.Radio(
            rows, value="none", label="Second axis", elem_id="rows", info="What makes a row each, below the first."
        )
        found["more_seeds"] = gr.Textbox(label="Further seeds", placeholder="8, 9, 10", visible=False)
        found["more_prompts"] = gr.Textbox(
            label="Further prompts", info="One a line", lines=3, max_lines=8, visible=False
        )
        more = {"multiselect": True, "visible": False}
        found["more_loras"] = gr.Dropdown([], label="Further LoRAs", info="Finetunes are here too.", **more)
        found["more_weights"] = gr.Dropdown(
            [(record.label, record.name) for record in WEIGHTS.values()], label="Further weights",
            info="Each with its own steps and guidance; the LoRA must fit them all.", **more,
        )  # fmt: skip
        found["more_precisions"] = gr.Dropdown(
            [(label, name) for name, label in PRECISIONS.items() if name], label="Further precisions",
            info="The verdict says how far they are apart.", **more,
        )  # fmt: skip
        found["more_backends"] = gr.Dropdown(
            [(backend.label, name) for name, backend in backends.items()],
            label="Further places", info="A remote server may bill each image.", **more,
        )  # fmt: skip
    with gr.Accordion("Upload a LoRA", open=False):
        found["upload"] = gr.UploadButton(
            "Upload a .safetensors file", file_types=list(ENDINGS), type="filepath", size="sm", elem_id="upload"
        )
        found["upload_hint"] = gr.HTML(
            markup.draw_hint("It is checked, kept, and can be swept again after a restart."), apply_default_css=False
        )
    with gr.Accordion("Advanced", open=False):
        found["weights"] = gr.Dropdown(
            [(record.label, record.name) for record in WEIGHTS.values()],
            value=_DEFAULT.name, label="Weights", filterable=False, elem_id="weights",
        )  # fmt: skip
        found["weights_hint"] = gr.HTML(apply_default_css=False)
        found["backends"] = gr.Dropdown(
            list_places(backends), value="", label="Where", filterable=False, elem_id="backends",
            visible=len(backends) > 1, info="A remote server may bill each image.",
        )  # fmt: skip
        found["precision"] = gr.Dropdown(
            [(label, name) for name, label in PRECISIONS.items()],
            value="", label="Precision", filterable=False, elem_id="precision",
        )  # fmt: skip
        with gr.Row():
            size, low, high = _DEFAULT.default_size, 64, 2048
            found["width"] = gr.Number(
                size, label="Width (px)", precision=0, step=16, minimum=low, maximum=high, min_width=110
            )
            found["height"] = gr.Number(
                size, label="Height (px)", precision=0, step=16, minimum=low, maximum=high, min_width=110
            )
        with gr.Row():
            found["steps"] = gr.Number(
                _DEFAULT.steps, label="Steps", precision=0, step=1, minimum=1, maximum=100, min_width=110
            )
            found["guidance"] = gr.Number(
                _DEFAULT.guidance, label="Guidance", step=0.5, interactive=False, min_width=110,
                info="Distilled weights take none.",
            )  # fmt: skip
    with gr.Accordion("Presets", open=False):
        found["presets"] = lay_out_presets()
    with gr.Accordion("Open an earlier sweep", open=False):
        found["earlier"] = gr.Dropdown(
            [], value=None, label="Earlier sweeps", info="Unfinished ones can be continued.", elem_id="earlier"
        )


def _lay_out_result(found: dict[str, Any]) -> None:
    example = EXAMPLES[0]
    size = _DEFAULT.default_size
    found["status"] = gr.HTML(markup.draw_message("Ready."), apply_default_css=False, elem_id="sweep-status")
    found["verdict"] = gr.HTML(
        markup.draw_outcome(WAITING), apply_default_css=False, elem_id="sweep-verdict", min_height=72
    )
    found["grid"] = gr.HTML(
        draw_view(view_plan(parse_strengths(example.strengths), 1, (size, size))).value(),
        html_template='<div class="grid-scroll" tabindex="-1"></div>',
        apply_default_css=False,
        elem_id="sweep-grid",
        js_on_load=_read("grid.js"),
    )
    with gr.Column(elem_classes="after-run"):
        with gr.Row(elem_classes="run-bar"):
            found["resume"] = gr.Button("Continue", size="sm", interactive=False, min_width=140, elem_id="resume")
            gr.HTML(draw("run-bar.html"), apply_default_css=False, elem_classes="run-links", min_width=200)
            found["download"] = gr.Button(
                "Download the labelled grid", size="sm", interactive=False, min_width=190, elem_id="download"
            )
        with gr.Row(elem_classes="run-bar"):
            found["add_values"] = gr.Textbox(
                label="Add values", show_label=False, container=False, placeholder="Add values: 0.85, 0.95",
                scale=3, min_width=170, elem_id="add-values",
            )  # fmt: skip
            found["add"] = gr.Button("Add", size="sm", interactive=False, min_width=100, scale=1, elem_id="add")
            found["refine"] = gr.Button(
                "Refine", size="sm", interactive=False, min_width=240, scale=2, elem_id="refine"
            )
        found["extend_hint"] = gr.HTML(apply_default_css=False, elem_id="extend-hint")
    found["download_file"] = gr.DownloadButton(visible="hidden")
    gr.HTML(draw("compare.html"), apply_default_css=False)


def lay_out_viewer() -> None:
    """Lay out the dialog that shows any picture in full; outside the tabs, as one that is not shown would hide it."""
    gr.HTML(draw("viewer-dialog.html"), js_on_load=_read("viewer.js"), apply_default_css=False)


def _read(name: str) -> str:
    return (Path(__file__).parent / "web" / name).read_text(encoding="utf-8")


def _wire_form(tab: SweepTab, buttons: dict[str, gr.Button]) -> None:
    parts, act = tab.parts, tab.fields
    form = parts.fields()
    # The set of inputs makes Gradio hand over a dictionary, so a new field changes `parts.py` alone.
    gr.on(
        [getattr(parts, name).change for name in (
            "strengths", "rows", "more_seeds", "more_prompts", "more_loras", "more_weights", "more_precisions",
            "more_backends", "weights", "width", "height", "steps", "precision", "backends",
        )],
        act.echo,
        {*form, parts.run_id}, {parts.echo, parts.grid},
        api_name="echo", trigger_mode="multiple", **_QUIET,
    )  # fmt: skip
    gr.on(
        [parts.lora.change, parts.prompt.change], act.describe_lora, form, {parts.lora_hint, parts.insert_trigger},
        api_name="describe_lora", trigger_mode="multiple", **_QUIET,
    )  # fmt: skip
    followed = {
        parts.weights, parts.weights_hint, parts.width, parts.height, parts.steps, parts.guidance, parts.upload_hint,
    }  # fmt: skip
    parts.lora.input(act.follow_lora, form, followed, api_name="follow_lora", **_QUIET)
    parts.insert_trigger.click(act.insert_trigger, form, {parts.prompt}, api_name="insert_trigger", **_QUIET)
    gr.on(
        [parts.weights.input, parts.backends.input],
        act.choose_weights, form, {parts.weights_hint, parts.width, parts.height, parts.steps, parts.guidance},
        api_name="choose_weights", **_QUIET,
    )  # fmt: skip
    parts.dice.click(None, None, parts.seed, js=ROLL_SEED, api_visibility="private")
    axis = set(show_rows(parts, "none"))
    parts.rows.change(act.choose_rows, parts.rows, axis, api_name="choose_rows", **_QUIET)
    parts.upload.upload(
        act.upload, parts.upload, {parts.lora, parts.more_loras, parts.upload_hint}, api_name="upload", **_QUIET
    ).then(act.follow_lora, form, followed, api_name="upload_followed", **_QUIET)
    # In the page alone: a click on Run that follows at once must find them.
    filled = [parts.lora, parts.prompt, parts.strengths, parts.seed, parts.rows]
    for example in EXAMPLES:
        values = [example.lora, example.prompt, example.strengths, example.seed, "none"]
        button = buttons[example.label]
        button.click(None, None, filled, js=_set_values(values), api_visibility="private").then(
            act.follow_lora, form, followed, api_name="example_followed", **_QUIET
        )
    for name, strengths in STRENGTHS.items():
        buttons[name].click(None, None, parts.strengths, js=_set_values(strengths), api_visibility="private")


def _set_values(values: list[str] | str) -> str:
    """JavaScript that puts fixed values into the outputs of an event."""
    return f"() => {json.dumps(values)}"


def _wire_runs(tab: SweepTab) -> None:
    parts, act = tab.parts, tab.runs
    shown = _list_shown(parts)

    def run(values: Values, request: gr.Request) -> Iterator[Updates]:
        yield from act.run(values, request.session_hash)

    def resume(run_id: str | None, request: gr.Request) -> Iterator[Updates]:
        yield from act.resume(run_id, request.session_hash)

    def stop(request: gr.Request) -> Updates:
        return act.stop(request.session_hash)

    # "hidden": our own line shows the progress, and Gradio's overlay would cover the grid while it fills.
    long = {"concurrency_limit": VISITORS, "concurrency_id": "sweep", **_QUIET}
    events = [
        parts.run.click(run, parts.fields(), shown, api_name="run", **long),
        parts.resume.click(resume, parts.run_id, shown, api_name="resume", **long),
    ]
    for event, name in zip(events, ("run", "resume"), strict=True):
        _wire_end(tab, event, name)
    parts.stop.click(stop, None, {parts.stop}, api_name="stop", concurrency_limit=None, **_QUIET)
    opened = parts.earlier.input(
        tab.links.open, parts.earlier, {*shown, *parts.fields()}, api_name="open_run", **_QUIET
    )
    opened.then(tab.extend.describe, _extend_inputs(parts), _extend_outputs(parts), api_name="opened", **_IN_TURN)
    parts.download.click(act.download, parts.run_id, parts.download_file, api_name="download_grid", **_QUIET).then(
        None, parts.download_file, None, js=SAVE_FILE, api_visibility="private"
    )


def _wire_end(tab: SweepTab, event: gr.events.Dependency, name: str) -> None:
    """After a run: it is in the list of earlier ones, its speed is known, and it can be extended."""
    parts = tab.parts
    event.failure(tab.runs.recover, None, _list_shown(parts), api_name=f"{name}_recover", **_QUIET)
    event.then(
        tab.fields.note_run, {*parts.fields(), parts.run_id}, {parts.earlier, parts.echo, parts.grid},
        api_name=f"{name}_noted", **_QUIET,
    ).then(
        tab.extend.describe, _extend_inputs(parts), _extend_outputs(parts), api_name=f"{name}_extend", **_IN_TURN
    )  # fmt: skip


def _wire_extend(tab: SweepTab) -> None:
    parts, act = tab.parts, tab.extend
    inputs, outputs = _extend_inputs(parts), _extend_outputs(parts)
    shown = {*_list_shown(parts), parts.add_values}

    def add(run_id: str | None, text: str, request: gr.Request) -> Iterator[Updates]:
        yield from act.add(run_id, text, request.session_hash)

    def refine(run_id: str | None, chosen: Chosen, request: gr.Request) -> Iterator[Updates]:
        yield from act.refine(run_id, chosen, request.session_hash)

    def rate(run_id: str | None, event: gr.EventData, request: gr.Request) -> Updates:
        return act.rate(run_id, event, request.session_hash)

    # The page says by these events which cells are A and B, and what a cell is rated; see grid.js.
    parts.grid.select(
        act.choose, inputs[:2], [parts.chosen, *outputs], api_name="choose_cells", trigger_mode="multiple", **_IN_TURN
    )
    parts.grid.submit(rate, parts.run_id, {parts.status}, api_name="rate_cell", trigger_mode="multiple", **_QUIET)
    parts.add_values.change(act.describe, inputs, outputs, api_name="count_new", trigger_mode="always_last", **_IN_TURN)
    long = {"concurrency_limit": VISITORS, "concurrency_id": "sweep", **_QUIET}
    added = gr.on(
        [parts.add.click, parts.add_values.submit], add, [parts.run_id, parts.add_values], shown, api_name="add", **long
    )
    refined = parts.refine.click(refine, [parts.run_id, parts.chosen], shown, api_name="refine", **long)
    for event, name in ((added, "add"), (refined, "refine")):
        _wire_end(tab, event, name)


def _list_shown(parts: SweepParts) -> set[gr.components.Component]:
    """What changes when a run starts, goes on or ends."""
    return {
        parts.status, parts.verdict, parts.grid, parts.run_id, parts.run, parts.stop, parts.resume, parts.download,
        parts.add, parts.refine,
    }  # fmt: skip


def _extend_inputs(parts: SweepParts) -> list[gr.components.Component]:
    return [parts.run_id, parts.add_values, parts.chosen]


def _extend_outputs(parts: SweepParts) -> list[gr.components.Component]:
    return [parts.add, parts.refine, parts.extend_hint]


def wire_page(tab: SweepTab, page: gr.Blocks, entered: gr.events.Dependency, selected: gr.Tab) -> None:
    """Fill the lists when a visitor has entered or comes back to the tab; stop their sweep when the page is closed."""
    parts, act = tab.parts, tab.fields
    inputs = {*parts.fields(), parts.run_id}
    lists = {parts.lora, parts.more_loras, parts.earlier, parts.lora_hint, parts.insert_trigger}
    selected.select(act.refresh, parts.fields(), lists, api_name="sweep_refresh", **_QUIET)
    entered.then(
        act.load, None, {parts.lora, parts.more_loras, parts.earlier}, api_name="load", **_QUIET
    ).then(
        tab.links.open_link, None, {*parts.fields(), *_list_shown(parts)}, api_name="open_link", **_QUIET
    ).then(
        act.describe, inputs, {parts.echo, parts.grid, parts.lora_hint, parts.insert_trigger},
        api_name="load_described", **_QUIET,
    ).then(
        tab.presets.load, None, {tab.preset_parts.chosen, tab.preset_parts.delete}, api_name="load_presets", **_QUIET
    ).then(
        act.load_weights, None, {parts.weights, parts.more_weights}, api_name="load_weights", **_QUIET
    ).then(
        # The first answer about weights takes seconds; a person may have typed meanwhile.
        act.echo, inputs, {parts.echo, parts.grid}, api_name="load_speed", **_QUIET,
    ).then(
        tab.extend.describe, _extend_inputs(parts), _extend_outputs(parts), api_name="load_extend", **_IN_TURN
    )  # fmt: skip

    def close(request: gr.Request) -> None:
        tab.runs.forget(request.session_hash)

    page.unload(close)
