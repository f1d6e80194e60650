"""The Sweep tab: a form, and the grid it fills. Layout and wiring; `fields.py` and `run.py` act."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import gradio as gr

from evaluation.store import Store
from evaluation.strengths import parse_strengths
from evaluation.tabs import markup
from evaluation.tabs.fields import FieldHandlers
from evaluation.tabs.form import EXAMPLES, PRECISIONS, ROWS, list_places
from evaluation.tabs.parts import SweepParts, Updates, Values
from evaluation.tabs.run import WAITING_VERDICT, RunHandlers
from lora_runtime.backends.base import Backend
from lora_runtime.catalogue import WEIGHTS, find_weights
from lora_runtime.shelf import Shelf
from lora_runtime.visitors import Visitors

VISITORS: Final = 16
"""How many sweeps may be under way at once. The engine batches them; each holds one of the server's 40 threads."""

SAVE_FILE: Final = """(file) => {
  if (!file) return;
  const link = document.createElement("a");
  link.href = file.url; link.download = file.orig_name || "klein-lora-lab"; link.click();
}"""
"""Hand a prepared file to the browser's downloads."""

_HERE = Path(__file__).parent
_QUIET: Final = {"api_visibility": "private", "show_progress": "hidden"}
_DEFAULT = find_weights("pocket")


@dataclass(frozen=True, kw_only=True)
class SweepTab:
    """What the rest of the app needs of this tab."""

    parts: SweepParts
    fields: FieldHandlers
    runs: RunHandlers


def build_sweep_tab(backends: Mapping[str, Backend], store: Store, shelf: Shelf, visitors: Visitors) -> SweepTab:
    """Lay the tab out inside the current `gr.Blocks` and wire its events; several backends are offered as a choice."""
    found: dict[str, Any] = {}
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320, elem_id="sweep-form"):
            examples = _lay_out_form(found, tuple(backends))
        with gr.Column(scale=9, min_width=320, elem_id="sweep-result"):
            _lay_out_result(found)
    found["run_id"] = gr.State(None)
    parts = SweepParts(**{part.name: found[part.name] for part in fields(SweepParts)})
    tab = SweepTab(
        parts=parts,
        fields=FieldHandlers(backends, store, shelf, visitors, parts),
        runs=RunHandlers(backends, store, shelf, visitors, parts),
    )
    _wire_form(tab, examples)
    _wire_runs(tab)
    return tab


def _lay_out_form(found: dict[str, Any], backends: Sequence[str]) -> list[gr.Button]:
    example = EXAMPLES[0]
    with gr.Row(elem_classes="chips"):
        buttons = [gr.Button(item.label, size="sm", variant="secondary") for item in EXAMPLES]
    found["lora"] = gr.Dropdown([example.lora], value=example.lora, label="LoRA", elem_id="lora", filterable=False)
    found["lora_hint"] = gr.HTML(apply_default_css=False)
    found["insert_trigger"] = gr.Button("Insert the trigger phrase", size="sm", visible=False)
    found["prompt"] = gr.Textbox(example.prompt, label="Prompt", lines=2, max_lines=6, elem_id="prompt")
    found["strengths"] = gr.Textbox(
        example.strengths,
        label="Strengths",
        info="A list or ranges: 0, 0.5, 1 · 0-1.2 [7] · 0.7-0.9 (+0.05)",
        elem_id="strengths",
    )
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


def _lay_out_more(found: dict[str, Any], backends: Sequence[str]) -> None:
    with gr.Accordion("More rows", open=False):
        found["rows"] = gr.Radio(
            [(label, name) for name, label in ROWS.items()], value="none", label="Second axis", elem_id="rows"
        )
        found["more_seeds"] = gr.Textbox(label="Further seeds", placeholder="8, 9, 10", visible=False)
        found["more_prompts"] = gr.Textbox(
            label="Further prompts", info="One a line", lines=3, max_lines=8, visible=False
        )
        found["more_loras"] = gr.Dropdown([], label="Further LoRAs", multiselect=True, visible=False)
    with gr.Accordion("Upload a LoRA", open=False):
        found["upload"] = gr.UploadButton(
            "Upload a .safetensors file", file_types=[".safetensors"], type="filepath", size="sm", elem_id="upload"
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
            visible=len(backends) > 1, info="Two side by side make two rows. A remote server may bill each image.",
        )  # fmt: skip
        found["precision"] = gr.Dropdown(
            [(label, name) for name, label in PRECISIONS.items()],
            value="", label="Precision", filterable=False, elem_id="precision",
            info="Two side by side make two rows; the verdict says how far they are apart.",
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
    with gr.Accordion("Open an earlier sweep", open=False):
        found["earlier"] = gr.Dropdown(
            [], value=None, label="Earlier sweeps", info="Unfinished ones can be continued.", elem_id="earlier"
        )


def _lay_out_result(found: dict[str, Any]) -> None:
    example = EXAMPLES[0]
    size = _DEFAULT.default_size
    found["status"] = gr.HTML(markup.draw_message("Ready."), apply_default_css=False, elem_id="sweep-status")
    found["verdict"] = gr.HTML(
        markup.draw_verdict(WAITING_VERDICT), apply_default_css=False, elem_id="sweep-verdict", min_height=72
    )
    found["grid"] = gr.HTML(
        markup.draw_plan(parse_strengths(example.strengths), 1, (size, size)),
        apply_default_css=False,
        elem_id=markup.GRID_ID,
        js_on_load=(_HERE / "grid.js").read_text(encoding="utf-8"),
    )
    with gr.Row():
        found["resume"] = gr.Button("Continue", size="sm", interactive=False, min_width=150, elem_id="resume")
        found["download"] = gr.Button(
            "Download the labelled grid", size="sm", interactive=False, min_width=200, elem_id="download"
        )
    found["download_file"] = gr.DownloadButton(visible="hidden")
    gr.HTML((_HERE / "compare.html").read_text(encoding="utf-8"), apply_default_css=False)


def _wire_form(tab: SweepTab, examples: list[gr.Button]) -> None:
    parts, act = tab.parts, tab.fields
    form = parts.fields()
    # The set of inputs makes Gradio hand over a dictionary, so a new field changes `parts.py` alone.
    gr.on(
        [getattr(parts, name).change for name in (
            "strengths", "rows", "more_seeds", "more_prompts", "more_loras", "weights", "width", "height", "steps",
            "precision", "backends",
        )],
        act.echo,
        {*form, parts.run_id}, {parts.echo, parts.grid},
        api_name="echo", trigger_mode="multiple", **_QUIET,
    )  # fmt: skip
    gr.on(
        [parts.lora.change, parts.prompt.change], act.describe_lora, form, {parts.lora_hint, parts.insert_trigger},
        api_name="describe_lora", trigger_mode="multiple", **_QUIET,
    )  # fmt: skip
    parts.insert_trigger.click(act.insert_trigger, form, {parts.prompt}, api_name="insert_trigger", **_QUIET)
    gr.on(
        [parts.weights.input, parts.backends.input],
        act.choose_weights, form, {parts.weights_hint, parts.width, parts.height, parts.steps, parts.guidance},
        api_name="choose_weights", **_QUIET,
    )  # fmt: skip
    parts.dice.click(act.roll_seed, None, parts.seed, api_name="roll_seed", **_QUIET)
    axis = {parts.more_seeds, parts.more_prompts, parts.more_loras}
    parts.rows.change(act.choose_rows, parts.rows, axis, api_name="choose_rows", **_QUIET)
    parts.upload.upload(
        act.upload, parts.upload, {parts.lora, parts.more_loras, parts.upload_hint}, api_name="upload", **_QUIET
    )
    for index, button in enumerate(examples):
        button.click(_make_example(act, index), None, form, api_name=f"example_{index + 1}", **_QUIET)


def _make_example(act: FieldHandlers, index: int) -> Callable[[gr.Request], Updates]:
    """A function with the annotation by which Gradio knows to pass the request; a `partial` has none."""

    def use_example(request: gr.Request) -> Updates:
        return act.use_example(index, request)

    return use_example


def _wire_runs(tab: SweepTab) -> None:
    parts, act = tab.parts, tab.runs
    shown = {
        parts.status, parts.verdict, parts.grid, parts.run_id, parts.run, parts.stop, parts.resume, parts.download
    }  # fmt: skip

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
        event.failure(act.recover, None, shown, api_name=f"{name}_recover", **_QUIET)
        event.then(
            tab.fields.note_run, {*parts.fields(), parts.run_id}, {parts.earlier, parts.echo, parts.grid},
            api_name=f"{name}_noted", **_QUIET,
        )  # fmt: skip
    parts.stop.click(stop, None, {parts.stop}, api_name="stop", concurrency_limit=None, **_QUIET)
    parts.earlier.input(act.open, parts.earlier, shown, api_name="open_run", **_QUIET)
    parts.download.click(act.download, parts.run_id, parts.download_file, api_name="download_grid", **_QUIET).then(
        None, parts.download_file, None, js=SAVE_FILE, api_visibility="private"
    )


def wire_page(tab: SweepTab, page: gr.Blocks, entered: gr.events.Dependency, selected: gr.Tab) -> None:
    """Fill the lists when a visitor has entered or comes back to the tab; stop their sweep when the page is closed."""
    parts, act = tab.parts, tab.fields
    inputs = {*parts.fields(), parts.run_id}
    lists = {parts.lora, parts.more_loras, parts.earlier, parts.lora_hint, parts.insert_trigger}
    selected.select(act.refresh, parts.fields(), lists, api_name="sweep_refresh", **_QUIET)
    entered.then(
        act.load, None, {parts.lora, parts.more_loras, parts.earlier}, api_name="load", **_QUIET
    ).then(
        act.describe, inputs, {parts.echo, parts.grid, parts.lora_hint, parts.insert_trigger},
        api_name="load_described", **_QUIET,
    ).then(
        act.load_weights, None, {parts.weights}, api_name="load_weights", **_QUIET
    ).then(
        # The first answer about weights takes seconds; a person may have typed meanwhile.
        act.echo, inputs, {parts.echo, parts.grid}, api_name="load_speed", **_QUIET,
    )  # fmt: skip

    def close(request: gr.Request) -> None:
        tab.runs.forget(request.session_hash)

    page.unload(close)
