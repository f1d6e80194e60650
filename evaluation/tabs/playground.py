"""The Playground: one model, one prompt, one image at a time. Layout and wiring; `playground_run.py` acts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gradio as gr

from evaluation.report.draw import draw, part
from evaluation.store.store import Store
from evaluation.tabs.page import Caller, Changes, Page, Parts, Said
from evaluation.tabs.playground_form import SLIDER, Choice, Models, PlayForm, slide_to, sweep_form
from evaluation.tabs.playground_run import GENERATE, PlayHandlers, draw_buttons
from evaluation.tabs.playground_view import draw_picker
from evaluation.tabs.sweep import SWEEP_TAB, SweepTab
from evaluation.tabs.sweep_form import PLACES
from lora_runtime.backends.base import Backend
from lora_runtime.references import MAX_REFERENCES
from lora_runtime.registry.shelf import Shelf
from lora_runtime.server.service import Service
from lora_runtime.values import RenderRequest

PLAYGROUND_TAB: Final = "playground"
PLAYGROUND_SHEET: Final = Path(__file__).parent / "web" / "playground.css"

_SCRIPTS: Final = ("playground.js",)
_MODEL: Final = (
    "picker", "route", "trigger", "strength", "slider", "reset", "steps", "guidance", "aspect", "remote_id",
)  # fmt: skip
"""What belongs to the chosen model."""

_FORM: Final = (*PlayForm.model_fields, "slider", "strip", "upload")
_IMAGES: Final = ("references", "strip", "upload", "aspect", "width", "height")
_SEEN: Final = ("picture", "history", "selected")


@dataclass(frozen=True, kw_only=True)
class PlaygroundTab:
    """What the rest of the app needs of this tab: `fill` and `choose` give updates of `targets()`."""

    parts: Parts
    act: PlayHandlers

    def fill(self, request: RenderRequest, *, backend: str) -> Changes:
        """Put a whole image's settings on the page, with its seed."""
        return self.parts.changes(self.act.fill(request, backend=backend))

    def choose(self, finetune_id: str) -> Changes:
        """Choose a finetune, with the defaults of its base."""
        picked = Choice(kind="finetune", finetune_id=finetune_id, picked=True)
        return self.parts.changes({"model": picked.dump()})

    def targets(self) -> set[Any]:
        """The components that `fill` and `choose` update: the outputs of whoever calls them."""
        return {self.parts[name] for name in _FORM}


def build_playground_tab(
    page: Page,
    service: Service,
    backends: Mapping[str, Backend],
    store: Store,
    shelf: Shelf,
    sweep: SweepTab,
    tabs: gr.Tabs,
) -> PlaygroundTab:
    """Lay the tab out inside the current `gr.Blocks` and wire its events."""
    parts = Parts(page=page, problem="status")
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320, elem_id="play-form"):
            _lay_out_form(parts, tuple(backends))
        with gr.Column(scale=7, min_width=320, elem_id="play-result"):
            parts.html("status", part("message", text="Ready."), elem_id="play-status")
            parts.live("picture", draw("play-picture.html", picture=None), scripts=_SCRIPTS, elem_id="play-picture")
            parts.live("history", scripts=_SCRIPTS, elem_id="play-history")
    PlayForm.lay_out(parts, "selected", "references")
    chosen = service.settings
    models = Models(backends, shelf, weights=chosen.weights, remote=chosen.remote)
    act = PlayHandlers(backends, store, service, models, apart=page.visitors.apart)
    page.when_closed.append(act.forget)
    _wire_form(parts, act, tabs)
    _wire_values(parts)
    _wire_runs(parts, act)
    _wire_picture(parts, act, sweep, tabs)
    return PlaygroundTab(parts=parts, act=act)


def wire_playground(tab: PlaygroundTab, entered: gr.events.Dependency, selected: gr.Tab) -> None:
    """Fill the lists when a visitor has entered or comes back to the tab."""
    parts, act = tab.parts, tab.act
    loaded = parts.on(entered.then, act.load, reads=PlayForm, draws=(*_FORM, *_MODEL, *_SEEN))
    parts.on(loaded.then, act.learn, reads=PlayForm, draws=_MODEL)
    parts.on(selected.select, act.describe, reads=PlayForm, draws=(*_FORM, *_MODEL))


def _lay_out_form(parts: Parts, backends: tuple[str, ...]) -> None:
    PlayForm.lay_out(parts, "model")
    parts.live("picker", draw_picker((), None, {}), scripts=_SCRIPTS, elem_id="play-picker")
    PlayForm.lay_out(
        parts, "where", choices=[(PLACES.get(name, name), name) for name in backends], value=backends[0],
        visible=len(backends) > 1,
    )  # fmt: skip
    PlayForm.lay_out(parts, "remote_id")
    parts.html("route", elem_id="play-route", min_height=24)
    PlayForm.lay_out(parts, "prompt")
    parts.live("trigger", elem_id="play-trigger")
    low, high = SLIDER
    with gr.Row(elem_id="play-strength-row"):
        parts["slider"] = gr.Slider(
            low, high, value=1.0, step=0.05, label="Strength", buttons=[], elem_id="play-slider", scale=5, min_width=150
        )
        PlayForm.lay_out(parts, "strength")
        parts["reset"] = gr.Button("Reset", scale=0, min_width=76, size="md", elem_id="play-reset")
    with gr.Row(elem_id="play-seed-row"):
        PlayForm.lay_out(parts, "seed")
        parts["last"] = gr.Button("Keep last", scale=0, min_width=100, size="md", elem_id="play-last")
        parts["dice"] = gr.Button("Random", scale=0, min_width=90, size="md", elem_id="play-dice")
    with gr.Row():
        parts["run"] = gr.Button(GENERATE, variant="primary", size="lg", scale=3, min_width=160, elem_id="play-run")
        parts["stop"] = gr.Button("Stop", size="lg", scale=1, min_width=90, interactive=False, elem_id="play-stop")
    with gr.Accordion("Size and format", open=False):
        PlayForm.lay_out(parts, "aspect")
        with gr.Row():
            PlayForm.lay_out(parts, "width", "height")
        PlayForm.lay_out(parts, "output_format")
    with gr.Accordion("Reference images", open=False):
        parts.live("strip", draw("play-strip.html", images=(), problem=""), elem_id="play-references")
        parts["upload"] = gr.UploadButton(
            f"Add images (up to {MAX_REFERENCES})", file_types=[".png", ".jpg", ".jpeg", ".webp"],
            file_count="multiple", type="filepath", size="sm", elem_id="play-upload",
        )  # fmt: skip
    with gr.Accordion("Advanced", open=False):
        with gr.Row():
            PlayForm.lay_out(parts, "steps", "guidance")
        PlayForm.lay_out(parts, "precision")


def _wire_form(parts: Parts, act: PlayHandlers, tabs: gr.Tabs) -> None:
    newest: dict[str, Any] = {"trigger_mode": "always_last"}
    named = [parts.model.change, parts.where.input, parts.precision.input, parts.remote_id.change]
    parts.on(parts.picker.click, act.pick, reads=PlayForm, draws=(*_FORM, *_MODEL))
    parts.picker.expand(lambda: gr.Tabs(selected="finetunes"), None, tabs, api_visibility="private")
    parts.on(named, act.describe, reads=PlayForm, draws=(*_FORM, *_MODEL), **newest)
    parts.on(parts.prompt.change, act.check_prompt, reads=PlayForm, draws=("trigger",), **newest)
    parts.on(parts.trigger.click, act.insert_trigger, reads=PlayForm, draws=("prompt", "trigger"))
    parts.on(parts.upload.upload, act.add_references, reads=(*PlayForm.model_fields, "upload"), draws=_IMAGES)
    parts.on(parts.strip.click, act.arrange_references, reads=PlayForm, draws=_IMAGES)
    parts.on(parts.aspect.input, act.choose_shape, reads=PlayForm, draws=("width", "height", "route"))
    sides = [parts.width.input, parts.height.input]
    parts.on(sides, act.name_shape, reads=PlayForm, draws=("aspect", "route"), **newest)
    parts.on(parts.last.click, act.reuse_seed, draws=("seed",))


def _wire_values(parts: Parts) -> None:
    """Fields that go together without a question to the server, but for what a strength means as a number."""
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    parts.slider.input(None, parts.slider, parts.strength, js="(value) => value.toFixed(2)", **quiet)
    # "change", as a textbox sends "input" before its new value.
    parts.strength.change(slide_to, parts.strength, parts.slider, trigger_mode="always_last", **quiet)
    parts.reset.click(None, None, [parts.strength, parts.slider], js="() => ['1.00', 1]", **quiet)
    parts.dice.click(None, None, parts.seed, js="() => ''", **quiet)


def _wire_runs(parts: Parts, act: PlayHandlers) -> None:
    run: dict[str, Any] = {
        "reads": PlayForm, "draws": (*_SEEN, "status", "run", "stop"), "failed": draw_buttons(), "trigger_mode": "once"
    }  # fmt: skip
    parts.on(parts.run.click, act.run, goes_to="play-status", **run)
    parts.on(parts.picture.retry, act.retry, **run)
    parts.on(parts.picture.play, act.compare, **run)
    parts.on(parts.stop.click, act.stop, draws=("stop",))


def _wire_picture(parts: Parts, act: PlayHandlers, sweep: SweepTab, tabs: gr.Tabs) -> None:
    def sweep_this(caller: Caller, form: PlayForm, said: Said) -> Changes:
        _, record = act.find(form.selected)
        request, backend = record.cell.request, record.cell.target.backend
        filled = sweep_form(request, backend=backend, lora=act.name_lora(caller, request))
        return {
            tabs: gr.update(selected=SWEEP_TAB),
            **sweep.fill(caller, filled),
        }

    anew = [parts.history.click, parts.output_format.input, parts.picture.clear]
    parts.on(anew, act.show, reads=PlayForm, draws=_SEEN)
    parts.on(parts.picture.edit, act.use, reads=PlayForm, draws=_FORM)
    parts.on(parts.picture.select, sweep_this, reads=PlayForm, draws=(tabs, *sweep.targets))
