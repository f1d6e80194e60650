"""What happens while a person fills in the Sweep tab: echo, hints, choices, uploads. Rendering is in `run.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final

import gradio as gr

from evaluation.captions import call_loras, shorten
from evaluation.grid import name_lora
from evaluation.report.grid_view import view_plan
from evaluation.store.store import CellRecord, Run, Store
from evaluation.strengths import note_strengths, parse_strengths
from evaluation.tabs import markup
from evaluation.tabs.estimate import draw_estimate, estimate_form
from evaluation.tabs.form import SweepForm, choose_backends, list_places
from evaluation.tabs.live_grid import draw_view
from evaluation.tabs.parts import SweepParts, Updates, Values, read_form, show_rows, write_form
from evaluation.trigger import add_trigger, has_trigger
from lora_runtime.backends.base import Backend
from lora_runtime.catalogue import WEIGHTS, find_weights
from lora_runtime.errors import KleinLabError
from lora_runtime.lora.library import is_elsewhere, report_of
from lora_runtime.registry.shelf import Shelf
from lora_runtime.registry.visitors import Visitors
from lora_runtime.requests import choose_weights
from lora_runtime.values import LoraRef, ModelStatus

EARLIER: Final = 50
"""How many runs the list of earlier sweeps offers."""


class FieldHandlers:
    """Events of the form. What a backend can run is asked for when a page loads: the first answer may import torch."""

    def __init__(
        self, backends: Mapping[str, Backend], store: Store, shelf: Shelf, visitors: Visitors, parts: SweepParts
    ) -> None:
        self._backends = backends
        self._store = store
        self._shelf = shelf
        self._visitors = visitors
        self._parts = parts
        self._statuses: Mapping[str, tuple[ModelStatus, ...]] = {}

    def load(self, request: gr.Request) -> Updates:
        """Fill the lists that need no model: LoRAs and earlier sweeps."""
        loras = self.list_loras(request)
        names = [lora.name for lora in loras]
        parts = self._parts
        chosen = gr.update(choices=_lora_choices(loras), value=names[0] if names else None)
        return {
            parts.lora: chosen,
            parts.more_loras: gr.update(choices=_lora_choices(loras)),
            parts.earlier: gr.update(choices=self.list_earlier(request), value=None),
        }

    def refresh(self, values: Values, request: gr.Request) -> Updates:
        """Offer what was added or rendered on other tabs meanwhile; what is chosen stays."""
        choices = _lora_choices(self.list_loras(request))
        return {
            self._parts.lora: gr.update(choices=choices),
            self._parts.more_loras: gr.update(choices=choices),
            self._parts.earlier: gr.update(choices=self.list_earlier(request)),
            **self.describe_lora(values, request),
        }

    def load_weights(self) -> Updates:
        """Say for all weights whether they run here."""
        self._statuses = {name: tuple(backend.models()) for name, backend in self._backends.items()}
        choices = [(self._weights_label(name), name) for name in WEIGHTS]
        return {self._parts.weights: gr.update(choices=choices), self._parts.more_weights: gr.update(choices=choices)}

    def describe(self, values: Values, request: gr.Request) -> Updates:
        """Say all there is to say about the form."""
        return {**self.echo(values), **self.describe_lora(values, request)}

    def note_run(self, values: Values, request: gr.Request) -> Updates:
        """After a run: it can be opened again, and its speed is known."""
        return {self._parts.earlier: gr.update(choices=self.list_earlier(request), value=None), **self.echo(values)}

    def choose_weights(self, values: Values) -> Updates:
        """Put the defaults of the chosen weights into the advanced fields, and say why they cannot run there."""
        parts = self._parts
        form = read_form(parts, values)
        record = find_weights(form.weights)
        statuses = self._find_statuses(form)
        missing = [status.reason for status in statuses if not status.available]
        notes = " · ".join(status.note for status in statuses if status.note)
        hint = markup.draw_hint(missing[0], kind="warn") if missing else markup.draw_hint(notes)
        return {
            parts.weights_hint: hint,
            parts.width: record.default_size,
            parts.height: record.default_size,
            parts.steps: record.steps,
            parts.guidance: gr.update(
                value=record.guidance,
                interactive=not record.distilled,
                info="Distilled weights take none." if record.distilled else "",
            ),
        }

    def follow_lora(self, values: Values, request: gr.Request) -> Updates:
        """Choose weights that the chosen LoRA was made for, when those of the form are others."""
        form = read_form(self._parts, values)
        lora = next((lora for lora in self.list_loras(request) if lora.name == form.lora), None)
        try:
            if lora is None or is_elsewhere(lora) or form.weights in report_of(lora).fits:
                return {self._parts.upload_hint: gr.skip()}
            (first, *_) = choose_backends(self._backends, form).values()
            weights = choose_weights(first, lora)
        except KleinLabError as error:
            return {self._parts.upload_hint: markup.draw_error(error)}
        return {self._parts.weights: weights, **self.choose_weights({**values, self._parts.weights: weights})}

    def echo(self, values: Values) -> Updates:
        """Say what the form would render, how long it takes and what it costs; draw its empty grid while none is."""
        parts = self._parts
        form = read_form(parts, values)
        try:
            places = choose_backends(self._backends, form)
            estimate = estimate_form(form, places, self._statuses, self._store)
            strengths, note = parse_strengths(form.strengths), note_strengths(form.strengths)
        except KleinLabError as error:
            return {parts.echo: markup.draw_error(error)}
        here = not all(backend.server for backend in places.values())
        updates: Updates = {parts.echo: draw_estimate(strengths, estimate, here=here) + markup.draw_hint(note)}
        if values[parts.run_id] is None:
            default = find_weights(form.weights).default_size
            shape = (form.width or default, form.height or default)
            updates[parts.grid] = draw_view(view_plan(strengths, estimate.rows, shape)).value()
        return updates

    def describe_lora(self, values: Values, request: gr.Request) -> Updates:
        """Show the trigger phrase of the LoRA, and whether the prompt has it."""
        parts = self._parts
        form = read_form(parts, values)
        phrase = self._trigger_phrase(form.lora, request)
        if not phrase:
            hint = "" if form.lora else markup.draw_hint("Choose a LoRA, or upload a .safetensors file.", kind="warn")
            return {parts.lora_hint: hint, parts.insert_trigger: gr.update(visible=False)}
        there = has_trigger(form.prompt, phrase)
        text = (
            f"The prompt has the trigger phrase “{phrase}”."
            if there
            else f"The trigger phrase “{phrase}” is missing from the prompt: the LoRA may do little without it."
        )
        return {
            parts.lora_hint: markup.draw_hint(text, kind="good" if there else "warn"),
            parts.insert_trigger: gr.update(visible=not there),
        }

    def insert_trigger(self, values: Values, request: gr.Request) -> Updates:
        """Put the trigger phrase in front of the prompt."""
        form = read_form(self._parts, values)
        phrase = self._trigger_phrase(form.lora, request)
        return {self._parts.prompt: add_trigger(form.prompt, phrase) if phrase else form.prompt}

    def upload(self, file: str | None, request: gr.Request) -> Updates:
        """Check an uploaded LoRA, keep it as a finetune and choose it."""
        parts = self._parts
        if file is None:
            return {parts.upload_hint: ""}
        try:
            kept = self._shelf.keep(self._organization(request), Path(file))
        except KleinLabError as error:
            return {parts.upload_hint: markup.draw_error(error)}
        choices = _lora_choices(self.list_loras(request))
        return {
            parts.lora: gr.update(choices=choices, value=kept.name),
            parts.more_loras: gr.update(choices=choices),
            parts.upload_hint: markup.draw_hint(f"Kept as “{kept.name}”.", kind="good"),
        }

    def choose_rows(self, rows: str) -> Updates:
        """Show the field of the second axis."""
        return show_rows(self._parts, rows)

    def fill(self, form: SweepForm, request: gr.Request) -> Updates:
        """Put a whole form on the page, for "Sweep again with these settings"; on backends that are here now.

        The lists of LoRAs may be older than those of the form, and Gradio refuses a value that is not in its list.
        """
        here = any(value == form.backends for _, value in list_places(self._backends))
        more = tuple(name for name in form.more_backends if name in self._backends)
        choices = _lora_choices(self.list_loras(request))
        updates = write_form(self._parts, replace(form, backends=form.backends if here else "", more_backends=more))
        updates[self._parts.lora] = gr.update(choices=choices, value=form.lora)
        updates[self._parts.more_loras] = {**updates[self._parts.more_loras], "choices": choices}
        return updates

    def list_earlier(self, request: gr.Request) -> list[tuple[str, str]]:
        """The visitor's newest sweeps as choices, unfinished ones marked."""
        history = self._store.history(EARLIER, organization=self._organization(request), origin="sweep")
        called = call_loras(run.spec for run, _ in history)
        return [(_run_label(run, records, called), run.id) for run, records in history]

    def list_loras(self, request: gr.Request) -> tuple[LoraRef, ...]:
        """Every LoRA that the visitor can choose."""
        return self._shelf.list(self._organization(request))

    def _organization(self, request: gr.Request) -> str:
        return self._visitors.organization(request.session_hash)

    def _find_statuses(self, form: SweepForm) -> list[ModelStatus]:
        """What each backend of the form says of its weights at the default precision, once that is known."""
        names = choose_backends(self._backends, form)
        found = [_first_status(self._statuses.get(name, ()), form.weights) for name in names]
        return [status for status in found if status is not None]

    def _weights_label(self, name: str) -> str:
        statuses = [_first_status(statuses, name) for statuses in self._statuses.values()]
        label = f"{find_weights(name).label} ({name})"
        return label if any(status and status.available for status in statuses) else f"{label} — not here"

    def _trigger_phrase(self, name: str | None, request: gr.Request) -> str | None:
        return next((lora.trigger_phrase for lora in self.list_loras(request) if lora.name == name), None)


def _first_status(statuses: Sequence[ModelStatus], weights: str) -> ModelStatus | None:
    return next((status for status in statuses if status.weights == weights), None)


def _lora_choices(loras: Sequence[LoraRef]) -> list[tuple[str, str]]:
    return [
        (f"{lora.name} · trigger “{lora.trigger_phrase}”" if lora.trigger_phrase else lora.name, lora.name)
        for lora in loras
    ]


def _run_label(run: Run, records: Sequence[CellRecord], called: Mapping[LoraRef, str]) -> str:
    done = sum(record.state == "done" for record in records)
    state = "" if run.status == "done" else f" · {done} of {len(records)}, {run.status}"
    prompt = run.spec.prompts[0]
    shown = shorten(prompt, 48)
    lora = called[run.spec.loras[0]] if run.spec.loras else name_lora(run.spec)
    return f"{_when(run.created)} · {lora} · {shown}{state}"


def _when(moment: datetime) -> str:
    return f"{moment:%d %b %H:%M} UTC"
