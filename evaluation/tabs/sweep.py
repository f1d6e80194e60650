"""The Sweep tab: a form, and the grid it fills. Layout and wiring; `sweep_fields`, `sweep_run`, `sweep_extend` act."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import gradio as gr

from evaluation.report.cards import WAITING
from evaluation.report.draw import draw, part
from evaluation.report.grid_view import list_measures, view_plan
from evaluation.store.store import Store
from evaluation.strengths import parse_strengths
from evaluation.tabs.export_run import lay_out_take_away
from evaluation.tabs.likeness_fields import lay_out_likeness, wire_likeness
from evaluation.tabs.live_grid import draw_view
from evaluation.tabs.page import Caller, Component, Page, Parts, read_script
from evaluation.tabs.prompt_set_fields import lay_out_prompt_sets, wire_prompt_sets
from evaluation.tabs.sweep_extend import SweepExtend
from evaluation.tabs.sweep_fields import FormAndPreset, PresetFields, SweepFields
from evaluation.tabs.sweep_form import EXAMPLES, ROWS, STRENGTHS, RunOnPage, SweepForm, SweepPage, list_places
from evaluation.tabs.sweep_run import SweepRuns
from evaluation.tabs.sweep_view import draw_outcome
from evaluation.under_way import UnderWay
from lora_runtime.backends.base import Backend
from lora_runtime.lora.file import ENDINGS
from lora_runtime.registry.shelf import Shelf
from lora_runtime.registry.training_runs import TrainingRuns
from lora_runtime.storage.blobs import Blobs

SWEEP_TAB: Final = "sweep"

ROLL_SEED: Final = "() => String(Math.floor(Math.random() * 1e6))"
"""A new random seed, short enough to read out."""

ABOUT: Final = ("lora_hint", "insert_trigger", "every", "last")
"""What is said of the chosen LoRA."""

BUTTONS: Final = ("run", "stop", "resume", "download", "animation", "add", "refine", "sure")
LIVE: Final = ("status", "verdict", "grid", *BUTTONS)
"""What changes while a run is under way."""

CUT_OFF: Final = ("cut_off", "cut_off_hint", "resume_cut_off")

HINTS: Final = "hints"
"""The lane of what is said of the form and of the run: a late answer must not cover a newer one."""

LOOK_EVERY_S: Final = 5
"""How often a page looks whether the training run that it shows has grown."""

GROWN: Final = ("look", "grown", "grown_hint", "sweep_new", "due")
EXTENDS: Final = ("add", "refine", "extend_hint")
PRESETS: Final = ("preset", "preset_name", "preset_delete", "preset_hint", "preset_undo", "preset_undone")
DEFAULTS: Final = ("weights_hint", "width", "height", "steps", "guidance")
"""What follows from the weights."""


@dataclass(frozen=True, kw_only=True)
class SweepTab:
    """What the rest of the app needs of this tab."""

    parts: Parts
    fields: SweepFields
    runs: SweepRuns
    extend: SweepExtend

    @property
    def targets(self) -> list[Component]:
        """What `fill` changes."""
        return [self.parts[name] for name in SweepForm.boxes()]

    def fill(self, caller: Caller, form: SweepForm) -> dict[Component, Any]:
        """Return what puts a form on this tab: "Sweep again with these settings"."""
        return self.parts.changes(self.fields.fill(caller, form))


def build_sweep_tab(
    page: Page,
    backends: Mapping[str, Backend],
    store: Store,
    shelf: Shelf,
    training_runs: TrainingRuns,
    under_way: UnderWay,
    tab: gr.Tab,
) -> SweepTab:
    """Lay the tab out inside the current `gr.Blocks` and wire its events; several backends are offered as a choice."""
    parts = Parts(page, problem="status")
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320, elem_id="sweep-form"):
            chips = _lay_out_form(parts, backends)
        with gr.Column(scale=9, min_width=320, elem_id="sweep-result"):
            _lay_out_result(parts)
    for name in ("run_id", "chosen", "preset_undone"):
        parts[name] = gr.State(None)
    fields = SweepFields(backends, store, shelf, training_runs)
    runs = SweepRuns(backends, store, shelf, fields, under_way)
    extend = SweepExtend(runs, fields, store, under_way)
    page.when_closed.append(runs.forget)
    _wire_form(parts, fields, chips)
    _wire_presets(parts, fields)
    wire_prompt_sets(parts, fields)
    wire_likeness(parts, Blobs(page.settings.home / "blobs"))
    _wire_runs(parts, runs, extend)
    parts.on(
        tab.select, fields.refresh, reads=SweepForm,
        draws=("lora", "more_loras", "earlier", *ABOUT), api_name="sweep_refresh",
    )  # fmt: skip
    return SweepTab(parts=parts, fields=fields, runs=runs, extend=extend)


def wire_load(tab: SweepTab, entered: gr.events.Dependency) -> None:
    """When a visitor has entered: fill the lists, open a link; then say what the weights can, which takes seconds.

    What is said of the form is asked for by events of its own, as a person may have typed meanwhile.
    """
    parts, fields, runs = tab.parts, tab.fields, tab.runs
    lists = ("earlier", "preset", "preset_delete", "prompt_set")
    opened = (*SweepForm.boxes(), *LIVE, "run_id", "chosen", *lists, *CUT_OFF)
    shown = parts.on(entered.then, runs.load, draws=opened, api_name="sweep_load")
    _follow(parts, runs, tab.extend, shown)
    parts.on(shown.then, fields.echo, reads=SweepPage, draws=("echo", "grid"), lane=HINTS, api_name="load_echo")
    parts.on(shown.then, fields.describe_lora, reads=SweepForm, draws=ABOUT, lane=HINTS, api_name="load_described")
    told = parts.on(shown.then, fields.load_weights, draws=("weights", "more_weights"))
    parts.on(told.then, fields.echo, reads=SweepPage, draws=("echo", "grid"), lane=HINTS, api_name="load_speed")


def lay_out_viewer() -> None:
    """Lay out the dialog that shows any picture in full; outside the tabs, as one that is not shown would hide it."""
    gr.HTML(
        draw("viewer-dialog.html"),
        js_on_load="\n".join(map(read_script, ("zoom.js", "viewer.js"))),
        apply_default_css=False,
    )


def _lay_out_form(parts: Parts, backends: Mapping[str, Backend]) -> dict[str, gr.Button]:
    """Lay the form out; return the buttons that fill it in: examples by label, strengths by name."""
    example = EXAMPLES[0]
    with gr.Row(elem_classes="chips"):
        chips = {item.label: gr.Button(item.label, size="sm", variant="secondary") for item in EXAMPLES}
    SweepForm.lay_out(parts, "lora", choices=[example.lora], value=example.lora)
    parts.html("lora_hint")
    with gr.Row():
        SweepForm.lay_out(parts, "every", "last", visible=False)
    parts["insert_trigger"] = gr.Button("Insert the trigger phrase", size="sm", visible=False)
    SweepForm.lay_out(parts, "prompt", value=example.prompt)
    SweepForm.lay_out(parts, "strengths", value=example.strengths)
    with gr.Row(elem_classes=["chips", "quiet"]):
        chips |= {name: gr.Button(name, size="sm", variant="secondary") for name in STRENGTHS}
    parts.html("echo", elem_classes="echo")
    with gr.Row():
        SweepForm.lay_out(parts, "seed", value=example.seed)
        parts["dice"] = gr.Button("Random", scale=1, min_width=90, size="md", elem_id="dice")
    with gr.Row():
        parts["run"] = gr.Button("Run sweep", variant="primary", size="lg", scale=3, min_width=160, elem_id="run")
        parts["stop"] = gr.Button("Stop", size="lg", scale=1, min_width=90, interactive=False, elem_id="stop")
    _lay_out_more(parts, backends)
    return chips


def _lay_out_more(parts: Parts, backends: Mapping[str, Backend]) -> None:
    places = list_places(backends)
    with gr.Accordion("More rows", open=False):
        rows = [(label, name) for name, label in ROWS.items() if name != "backend" or len(backends) > 1]
        SweepForm.lay_out(parts, "further_prompts")
        lay_out_prompt_sets(parts)
        SweepForm.lay_out(parts, "further_seeds")
        SweepForm.lay_out(parts, "rows", choices=rows)
        SweepForm.lay_out(parts, "more_loras", "more_weights", "more_precisions")
        named = [(label, name) for (label, _), name in zip(places, backends, strict=True)]
        SweepForm.lay_out(parts, "more_backends", choices=named)
    with gr.Accordion("Judge by pictures of the look", open=False):
        lay_out_likeness(parts)
    with gr.Accordion("Upload a LoRA or a training run", open=False, elem_id="upload-box"):
        parts["upload"] = gr.UploadButton(
            "Upload .safetensors files", file_types=list(ENDINGS), file_count="multiple", type="filepath", size="sm",
            elem_id="upload",
        )  # fmt: skip
        text = (
            "Several at once are the checkpoints of one training; each is checked and kept. They can be dropped here."
        )
        parts.html("upload_hint", part("hint", text=text))
    with gr.Accordion("Advanced", open=False):
        SweepForm.lay_out(parts, "weights")
        parts.html("weights_hint")
        SweepForm.lay_out(parts, "backends", choices=places, visible=len(backends) > 1)
        SweepForm.lay_out(parts, "precision")
        with gr.Row():
            SweepForm.lay_out(parts, "width", "height")
        with gr.Row():
            SweepForm.lay_out(parts, "steps", "guidance")
    with gr.Accordion("Presets", open=False):
        _lay_out_presets(parts)
    with gr.Accordion("Open an earlier sweep", open=False):
        parts["earlier"] = gr.Dropdown(
            [], value=None, label="Earlier sweeps", info="Unfinished ones can be continued.", elem_id="earlier"
        )


def _lay_out_presets(parts: Parts) -> None:
    parts["preset"] = gr.Dropdown([], value=None, label="Use a preset", elem_id="preset", filterable=False)
    with gr.Row():
        parts["preset_name"] = gr.Textbox(
            label="Save the form as", placeholder="a name", scale=3, min_width=150,
            elem_id="preset-name",
        )  # fmt: skip
        parts["save_preset"] = gr.Button("Save", scale=1, min_width=80, size="md", elem_classes="beside-field")
    parts.html("preset_hint", part("hint", text="A preset keeps every field of this form under a name."))
    with gr.Row():
        parts["preset_delete"] = gr.Button("Delete the preset", size="sm", interactive=False, min_width=120)
        parts["preset_undo"] = gr.Button("Undo", size="sm", visible=False, min_width=80)


def _lay_out_result(parts: Parts) -> None:
    size = int(parts["width"].value)
    with gr.Row(visible=False, elem_classes="run-bar", elem_id="cut-off") as parts["cut_off"]:
        parts.html("cut_off_hint", elem_classes="run-links", min_width=200)
        parts["resume_cut_off"] = gr.Button("Continue", size="sm", min_width=160, scale=0)
        parts["leave_cut_off"] = gr.Button("Leave them", size="sm", min_width=110, scale=0)
    parts.html("status", part("message", text="Ready."), elem_id="sweep-status")
    parts.html("verdict", draw_outcome(WAITING), elem_id="sweep-verdict", min_height=72)
    parts.live(
        "grid",
        draw_view(view_plan(parse_strengths(EXAMPLES[0].strengths), 1, (size, size))).value(),
        scripts=("zoom.js", "grid.js", "grid-look.js", "grid-keys.js", "grid-page.js", "drop.js"),
        html_template=draw("grid-tools.html", scores=list_measures()),
        elem_id="sweep-grid",
    )
    lay_out_take_away(parts)
    with gr.Column(elem_classes="after-run"):
        _lay_out_grown(parts)
        with gr.Row(elem_classes="run-bar"):
            parts["sure"] = gr.Button("Make sure", size="sm", interactive=False, min_width=140, scale=0, elem_id="sure")
            parts["vote"] = gr.Button("Vote blind", size="sm", min_width=110, scale=0, elem_id="vote-blind")
            parts.html("sure_hint", elem_id="sure-hint", elem_classes="run-links", min_width=200)
        with gr.Row(elem_classes="run-bar"):
            parts["resume"] = gr.Button("Continue", size="sm", interactive=False, min_width=140, elem_id="resume")
            parts.html("links", draw("run-bar.html"), elem_classes="run-links", min_width=200)
            for name, words in (("download", "Download the labelled grid"), ("animation", "Download the animation")):
                parts[name] = gr.Button(words, size="sm", interactive=False, min_width=210, scale=0, elem_id=name)
        with gr.Row(elem_classes="run-bar"):
            parts["add_values"] = gr.Textbox(
                label="Add values", show_label=False, container=False, placeholder="Add values: 0.85, 0.95",
                scale=3, min_width=170, elem_id="add-values",
            )  # fmt: skip
            parts["add"] = gr.Button("Add", size="sm", interactive=False, min_width=100, scale=1, elem_id="add")
            parts["refine"] = gr.Button(
                "Refine", size="sm", interactive=False, min_width=240, scale=2, elem_id="refine"
            )
        parts.html("extend_hint", elem_id="extend-hint")
    parts["download_file"] = gr.DownloadButton(visible="hidden")
    parts.html("compare", draw("compare.html"))


def _lay_out_grown(parts: Parts) -> None:
    """What is new in the folder of a training that goes on."""
    with gr.Row(visible=False, elem_classes="run-bar", elem_id="grown") as parts["grown"]:
        parts["sweep_new"] = gr.Button("Sweep new checkpoints", size="sm", interactive=False, min_width=170, scale=0)
        parts["watch"] = gr.Checkbox(label="as they appear", container=False, min_width=150, scale=0)
        parts.html("grown_hint", elem_classes="run-links", min_width=200)
    parts["due"] = gr.State("")
    parts["look"] = gr.Timer(LOOK_EVERY_S, active=False)


def _wire_form(parts: Parts, act: SweepFields, chips: Mapping[str, gr.Button]) -> None:
    hints: dict[str, Any] = {"reads": SweepForm, "lane": HINTS}
    told = [name for name in SweepForm.boxes() if name not in ("prompt", "seed", "guidance")]
    parts.on([parts[name].change for name in told], act.echo, reads=SweepPage, draws=("echo", "grid"), lane=HINTS)
    about = ("lora", "prompt", "further_prompts", "rows", "more_loras", "every", "last")
    parts.on([parts[name].change for name in about], act.describe_lora, draws=ABOUT, **hints)
    followed = ("weights", *DEFAULTS)
    parts.on(parts.lora.input, act.follow_lora, draws=followed, problem="upload_hint", **hints)
    parts.on(parts.insert_trigger.click, act.insert_trigger, reads=SweepForm, draws=("prompt", "further_prompts"))
    parts.on([parts.weights.input, parts.backends.input], act.choose_weights, draws=DEFAULTS, **hints)
    parts.dice.click(None, None, parts.seed, js=ROLL_SEED, api_visibility="private")
    more = [name for name in SweepForm.boxes() if name.startswith("more_")]
    parts.on(parts.rows.change, act.choose_rows, reads=("rows",), draws=more)
    uploaded = parts.on(
        parts.upload.upload, act.upload, reads=("upload",), draws=("lora", "more_loras"), problem="upload_hint"
    )
    parts.on(uploaded.then, act.follow_lora, draws=followed, problem="upload_hint", **hints)
    # In the page alone: a click on Run that follows at once must find them.
    filled = [
        parts[name] for name in ("lora", "prompt", "strengths", "seed", "rows", "further_prompts", "further_seeds")
    ]
    for example in EXAMPLES:
        values = [example.lora, example.prompt, example.strengths, example.seed, "none", "", ""]
        set_in_page = {"js": _set_values(values), "api_visibility": "private"}
        shown = chips[example.label].click(None, None, filled, **set_in_page)
        parts.on(shown.then, act.follow_lora, draws=followed, problem="upload_hint", **hints)
    for name, strengths in STRENGTHS.items():
        chips[name].click(None, None, parts.strengths, js=_set_values(strengths), api_visibility="private")


def _set_values(values: list[str] | str) -> str:
    """JavaScript that puts fixed values into the outputs of an event."""
    return f"() => {json.dumps(values)}"


def _wire_presets(parts: Parts, act: SweepFields) -> None:
    told: dict[str, Any] = {"draws": PRESETS, "problem": "preset_hint"}
    filled = {**told, "draws": (*SweepForm.boxes(), *PRESETS)}
    parts.on(parts.preset.input, act.use_preset, reads=PresetFields, **filled)
    parts.on([parts.save_preset.click, parts.preset_name.submit], act.save_preset, reads=FormAndPreset, **told)
    parts.on(parts.preset_delete.click, act.delete_preset, reads=PresetFields, **told)
    parts.on(parts.preset_undo.click, act.undo_preset, reads=PresetFields, **told)


def _wire_runs(parts: Parts, act: SweepRuns, extend: SweepExtend) -> None:
    started = ("status", "run", "run_id", "chosen", "add_values", *CUT_OFF)
    usable = {"run": gr.update(interactive=True, value="Run sweep")}
    for trigger, handler, reads in (
        (parts.run.click, act.run, SweepPage),
        (parts.resume.click, act.resume, RunOnPage),
        (parts.resume_cut_off.click, act.resume_cut_off, ()),
        ([parts.add.click, parts.add_values.submit], extend.add, RunOnPage),
        (parts.refine.click, extend.refine, RunOnPage),
        (parts.sure.click, extend.make_sure, RunOnPage),
        (parts.sweep_new.click, extend.sweep_new, RunOnPage),
        (parts.due.change, extend.sweep_due, RunOnPage),
    ):
        shown = "" if handler == extend.sweep_due else "sweep-status"  # nobody asked for it just now
        event = parts.on(trigger, handler, reads=reads, draws=started, failed=usable, goes_to=shown)
        _follow(parts, act, extend, event)
    opened = (*LIVE, "run_id", "chosen", *SweepForm.boxes())
    _follow(parts, act, extend, parts.on(parts.earlier.input, act.open, reads=("earlier",), draws=opened))
    looked = [parts.look.tick, parts.watch.change]
    parts.on(looked, extend.look, reads=RunOnPage, draws=GROWN, lane=HINTS, api_name="look")
    parts.on(parts.stop.click, act.stop, reads=RunOnPage, draws=())
    parts.on(parts.leave_cut_off.click, act.leave_cut_off, draws=CUT_OFF)
    for name, make in (("download", act.download), ("animation", act.download_animation)):
        parts.save(parts.on(parts[name].click, make, reads=RunOnPage, draws=("download_file",)), "download_file")
    # grid.js says which cells are A and B, what a cell is rated, and which run Back and Forward lead to.
    parts.on(parts.grid.select, extend.choose, reads=RunOnPage, draws=("chosen", *EXTENDS), lane=HINTS)
    parts.on(parts.grid.submit, act.rate, reads=RunOnPage, draws=("grid", "verdict"), lane=HINTS)
    _follow(parts, act, extend, parts.on(parts.grid.input, act.go_back, draws=opened))
    parts.on(parts.add_values.change, extend.describe, reads=RunOnPage, draws=EXTENDS, lane=HINTS, api_name="count_new")


def _follow(parts: Parts, act: SweepRuns, extend: SweepExtend, event: gr.events.Dependency) -> None:
    """After an event that may have the page look at another run: show that live, then say how it can go on."""
    name = event["api_name"]
    followed = parts.on(event.then, act.follow, draws=LIVE, api_name=f"follow_{name}")
    noted = ("earlier", "echo", "grid", "extend_hint", "sure_hint", *GROWN, *BUTTONS)
    parts.on(followed.then, extend.note, reads=SweepPage, draws=noted, lane=HINTS, api_name=f"noted_{name}")
