"""What happens while a person fills in the Sweep tab: echo, hints, choices, uploads, presets. `sweep_run` renders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import gradio as gr

from evaluation.axes import LORA
from evaluation.captions import call_loras, count_checkpoints, name_run
from evaluation.grid import name_lora
from evaluation.report.draw import draw, part
from evaluation.report.grid_view import view_plan
from evaluation.store.presets import Preset, Presets
from evaluation.store.records import CellRecord, Run
from evaluation.store.store import Store
from evaluation.strengths import note_strengths, parse_strengths
from evaluation.tabs.fields import Form
from evaluation.tabs.live_grid import draw_view
from evaluation.tabs.page import Caller, Changes, Said, draw_error
from evaluation.tabs.sweep_estimate import estimate_form, say_estimate
from evaluation.tabs.sweep_form import SweepForm, SweepPage, choose_backends, list_places, list_prompts, show_rows
from evaluation.trigger import add_trigger, has_trigger
from lora_runtime.backends.base import Backend
from lora_runtime.catalogue import WEIGHTS, find_weights
from lora_runtime.errors import KleinLabError
from lora_runtime.lora.library import is_elsewhere, report_of
from lora_runtime.lora.training import TrainingRun
from lora_runtime.registry.shelf import Shelf
from lora_runtime.registry.training_runs import Listed, TrainingRuns
from lora_runtime.requests import choose_weights
from lora_runtime.values import LoraRef, ModelStatus

EARLIER: Final = 50
"""How many runs the list of earlier sweeps offers."""


class PresetFields(Form):
    """The fields of the presets. `preset_undone` is what Undo brings back."""

    preset: str | None = None
    preset_name: str = ""
    preset_undone: Any = None


class FormAndPreset(SweepForm, PresetFields):
    """What Save reads."""


class SweepFields:
    """Events of the form. What a backend can run is asked for when a page loads: the first answer may import torch."""

    def __init__(
        self, backends: Mapping[str, Backend], store: Store, shelf: Shelf, training_runs: TrainingRuns
    ) -> None:
        self._backends = backends
        self._store = store
        self._shelf = shelf
        self._training_runs = training_runs
        self._presets = Presets(store.database)
        self._statuses: Mapping[str, tuple[ModelStatus, ...]] = {}

    def list_all(self, caller: Caller) -> Changes:
        """Fill the lists that need no model: LoRAs, earlier sweeps and presets."""
        choices = self._lora_choices(caller)
        names = [name for _, name in choices]
        return {
            "lora": gr.update(choices=choices, value=names[0] if names else None),
            "more_loras": gr.update(choices=self._more_choices(caller)),
            **self.list_earlier(caller),
            **self._list_presets(caller, None),
        }

    def refresh(self, caller: Caller, form: SweepForm, said: Said) -> Changes:
        """Offer what was added or rendered on other tabs meanwhile; what is chosen stays."""
        earlier = gr.update(choices=self._earlier_choices(caller))
        return {
            "lora": gr.update(choices=self._lora_choices(caller, form.lora)),
            "more_loras": gr.update(choices=self._more_choices(caller)),
            "earlier": earlier,
            **self.describe_lora(caller, form, said),
        }

    def load_weights(self, caller: Caller, values: Mapping[str, Any], said: Said) -> Changes:
        """Say for all weights whether they run here; the first time takes seconds."""
        self._statuses = {name: tuple(backend.models()) for name, backend in self._backends.items()}
        choices = gr.update(choices=[(self._weights_label(name), name) for name in WEIGHTS])
        return {"weights": choices, "more_weights": choices}

    def choose_weights(self, caller: Caller, form: SweepForm, said: Said) -> Changes:
        """Put the defaults of the chosen weights into the advanced fields, and say why they cannot run there."""
        record = find_weights(form.weights)
        names = choose_backends(self._backends, form)
        found = [_first_status(self._statuses.get(name, ()), form.weights) for name in names]
        missing = [status.reason for status in found if status and not status.available]
        notes = " · ".join(status.note for status in found if status and status.note)
        return {
            "weights_hint": part("hint", text=missing[0], kind="warn") if missing else part("hint", text=notes),
            "width": record.default_size,
            "height": record.default_size,
            "steps": record.steps,
            "guidance": gr.update(
                value=record.guidance,
                interactive=not record.distilled,
                info="Distilled weights take none." if record.distilled else "",
            ),
        }

    def follow_lora(self, caller: Caller, form: SweepForm, said: Said) -> Changes:
        """Choose weights that the chosen LoRA was made for, when those of the form are others."""
        lora = self._find_lora(caller, form.lora)
        if lora is None or is_elsewhere(lora) or form.weights in report_of(lora).fits:
            return {}
        (first, *_) = choose_backends(self._backends, form).values()
        weights = choose_weights(first, lora)
        followed = form.model_copy(update={"weights": weights})
        return {"weights": weights, **self.choose_weights(caller, followed, said)}

    def echo(self, caller: Caller, page: SweepPage, said: Said) -> Changes:
        """Say what the form would render, how long it takes and what it costs; draw its empty grid while none is."""
        try:
            places = choose_backends(self._backends, page)
            count = self._count_checkpoints(caller, page.lora)
            estimate = estimate_form(page, places, self._statuses, self._store, checkpoints=count)
            strengths = parse_strengths(page.strengths)
        except KleinLabError as error:
            return {"echo": draw_error(error)}
        default = find_weights(page.weights).default_size
        plan = view_plan(strengths, estimate.rows, (page.width or default, page.height or default))
        images, words = say_estimate(estimate, here=any(not place.server for place in places.values()))
        note = note_strengths(page.strengths)
        echo = draw("estimate.html", heads=plan.heads, images=images, words=words, note=note)
        return {"echo": echo} if page.run_id else {"echo": echo, "grid": draw_view(plan).value()}

    def describe_lora(self, caller: Caller, form: SweepForm, said: Said) -> Changes:
        """Show the trigger phrases of the LoRAs that are chosen, and whether the prompts have them."""
        phrases, prompts = self._list_triggers(caller, form), list_prompts(form)
        stages = self._describe_training(caller, form)
        hints = [part("hint", text=stages)] if stages else []
        if not form.lora:
            hints.append(part("hint", text="Choose a LoRA, or upload .safetensors files.", kind="warn"))
        missing = False
        for name, phrase in phrases.items():
            lacking = sum(not has_trigger(prompt, phrase) for prompt in prompts)
            whose = f" of {name}" if len(phrases) > 1 else ""
            where = "the prompt" if len(prompts) == 1 else f"{lacking} of {len(prompts)} prompts"
            text = f"The trigger phrase “{phrase}”{whose} is missing from {where}: the LoRA may do little without it."
            if not lacking:
                has = "The prompt has" if len(prompts) == 1 else "All prompts have"
                text = f"{has} the trigger phrase “{phrase}”{whose}."
            hints.append(part("hint", text=text, kind="warn" if lacking else "good"))
            missing = missing or lacking > 0
        return {
            "lora_hint": "".join(hints),
            "insert_trigger": gr.update(visible=missing),
            **{name: gr.update(visible=bool(stages)) for name in ("every", "last")},
        }

    def insert_trigger(self, caller: Caller, form: SweepForm, said: Said) -> Changes:
        """Put the trigger phrases in front of every prompt that lacks them."""
        first, *further = list_prompts(form)
        for phrase in self._list_triggers(caller, form).values():
            first, further = add_trigger(first, phrase), [add_trigger(prompt, phrase) for prompt in further]
        return {"prompt": first, "further_prompts": "\n".join(further)}

    def upload(self, caller: Caller, values: Mapping[str, Any], said: Said) -> Changes:
        """Check an uploaded LoRA, keep it as a finetune and choose it; several files at once are a training run."""
        paths = [Path(path) for path in values["upload"] or ()]
        if not paths:
            return {"upload_hint": ""}
        if len(paths) == 1:
            name = self._shelf.keep(caller.organization, paths[0]).name
            hint = part("hint", text=f"Kept as “{name}”.", kind="good")
        else:
            run = self._training_runs.keep(caller.organization, paths)
            name, hint = run.name, _say_kept(run)
        return {
            "lora": gr.update(choices=self._lora_choices(caller), value=name),
            "more_loras": gr.update(choices=self._more_choices(caller)),
            "upload_hint": hint,
        }

    def choose_rows(self, caller: Caller, values: Mapping[str, Any], said: Said) -> Changes:
        """Show the field of the second axis."""
        return {field: gr.update(**shown) for field, shown in show_rows(str(values["rows"])).items()}

    def fill(self, caller: Caller, form: SweepForm) -> Changes:
        """Put a whole form on the page, on backends that are here now.

        The lists of LoRAs may be older than those of the form, and Gradio refuses a value that is not in its list.
        """
        here = any(value == form.backends for _, value in list_places(self._backends))
        more = tuple(name for name in form.more_backends if name in self._backends)
        placed = form.model_copy(update={"backends": form.backends if here else "", "more_backends": more})
        changes = placed.put()
        changes["lora"] = gr.update(choices=self._lora_choices(caller, form.lora), value=form.lora)
        changes["more_loras"] = {**changes["more_loras"], "choices": self._more_choices(caller)}
        return changes

    def list_loras(self, caller: Caller) -> tuple[LoraRef, ...]:
        """Every LoRA that the visitor can choose."""
        return self._shelf.list(caller.organization)

    def list_training_runs(self, caller: Caller) -> tuple[Listed, ...]:
        """Every training run that the visitor can choose."""
        return self._training_runs.list(caller.organization)

    def find_ready(self, caller: Caller, name: str) -> TrainingRun | None:
        """Return a training run that may grow, with the checkpoints that are written to their end; None for others."""
        return self._training_runs.find_ready(caller.organization, name)

    def choose_lora(self, organization: str, name: str) -> LoraRef | TrainingRun:
        """Return what `organization` sees under a name of the LoRA field."""
        return self._training_runs.choose(organization, name)

    def list_earlier(self, caller: Caller) -> Changes:
        """The visitor's newest sweeps, none chosen."""
        return {"earlier": gr.update(choices=self._earlier_choices(caller), value=None)}

    def use_preset(self, caller: Caller, values: PresetFields, said: Said) -> Changes:
        """Fill the form with a preset."""
        if not values.preset:
            return {}
        name = values.preset
        can_go = {"preset_delete": gr.update(interactive=True)}
        try:
            form = SweepForm.load(self._presets.find(caller.organization, name).form)
        except KleinLabError as error:
            return {"preset_hint": draw_error(error), **can_go}
        changes = {**self.fill(caller, form), **can_go, "preset_name": name, "preset_undo": gr.update(visible=False)}
        if self._find_lora(caller, form.lora) is None:
            del changes["lora"]
            text = f"Filled in from “{name}”, but its LoRA “{form.lora}” has gone."
            return {**changes, "preset_hint": part("hint", text=text, kind="warn")}
        return {**changes, "preset_hint": part("hint", text=f"The form is filled in from “{name}”.", kind="good")}

    def save_preset(self, caller: Caller, values: FormAndPreset, said: Said) -> Changes:
        """Keep the form under the name; one that was there is replaced, which Undo takes back."""
        form = SweepForm.model_validate(values.model_dump())
        before = self._presets.save(caller.organization, values.preset_name, form.dump())
        name = " ".join(values.preset_name.split())
        text = f"Saved as “{name}”, in place of the one that was there." if before else f"Saved as “{name}”."
        return self._tell_preset(caller, name, text, "good", undone=before)

    def delete_preset(self, caller: Caller, values: PresetFields, said: Said) -> Changes:
        """Delete the chosen preset; Undo brings it back."""
        if not values.preset:
            return {}
        gone = self._presets.delete(caller.organization, values.preset)
        return self._tell_preset(caller, None, f"Deleted “{gone.name}”.", "", undone=gone)

    def undo_preset(self, caller: Caller, values: PresetFields, said: Said) -> Changes:
        """Bring back what Delete or Save took away."""
        before = values.preset_undone
        if not isinstance(before, Preset):
            return {}
        self._presets.save(caller.organization, before.name, before.form)
        return self._tell_preset(caller, before.name, f"“{before.name}” is as it was.", "good", undone=None)

    def _tell_preset(
        self, caller: Caller, chosen: str | None, text: str, kind: str, *, undone: Preset | None
    ) -> Changes:
        return {
            **self._list_presets(caller, chosen),
            "preset_hint": part("hint", text=text, kind=kind),
            "preset_undone": undone,
            "preset_undo": gr.update(visible=undone is not None),
        }

    def _list_presets(self, caller: Caller, chosen: str | None) -> Changes:
        names = [preset.name for preset in self._presets.list(caller.organization)]
        return {
            "preset": gr.update(choices=names, value=chosen),
            "preset_delete": gr.update(interactive=chosen is not None),
        }

    def _list_triggers(self, caller: Caller, form: SweepForm) -> dict[str, str]:
        """The trigger phrases of the LoRAs that the form would render, by the names of the LoRAs."""
        names = [form.lora, *(form.more_loras if form.rows == LORA.name else ())]
        found = [self._find_lora(caller, name) for name in dict.fromkeys(names)]
        return {lora.name: lora.trigger_phrase for lora in found if lora and lora.trigger_phrase}

    def _find_lora(self, caller: Caller, name: str | None) -> LoraRef | None:
        """The LoRA of that name; of a training run its first checkpoint."""
        run = self._find_training(caller, name)
        if run is not None:
            return next((each.lora for each in run.checkpoints if each.lora), None)
        return next((lora for lora in self.list_loras(caller) if lora.name == name), None)

    def _find_training(self, caller: Caller, name: str | None) -> TrainingRun | None:
        try:
            return self._training_runs.find(caller.organization, name) if name else None
        except KleinLabError:  # the folder has gone: what is there no more has nothing to say
            return None

    def _count_checkpoints(self, caller: Caller, name: str | None) -> int:
        return next((each.count for each in self.list_training_runs(caller) if each.name == name), 1)

    def _describe_training(self, caller: Caller, form: SweepForm) -> str:
        """Which checkpoints the form would sweep; empty for a LoRA."""
        run = self._find_training(caller, form.lora)
        if run is None:
            return ""
        chosen = run.select(every=form.every, last=form.last).checkpoints
        refused = sum(not each.lora for each in chosen)
        unfit = f" {refused} of them cannot be rendered, and say why in the grid." if refused else ""
        return f"Checkpoints {', '.join(each.label for each in chosen)}.{unfit}"

    def _lora_choices(self, caller: Caller, chosen: str | None = None) -> list[tuple[str, str]]:
        """LoRAs and training runs; a checkpoint of a run is not listed beside it, unless it is the chosen one."""
        runs = self.list_training_runs(caller)
        inside = frozenset[str]().union(*(run.files for run in runs))
        loras = [lora for lora in self.list_loras(caller) if lora.sha256 not in inside or lora.name == chosen]
        return [*map(_choice, loras), *((count_checkpoints(run.name, run.count), run.name) for run in runs)]

    def _more_choices(self, caller: Caller) -> list[tuple[str, str]]:
        return [*map(_choice, self.list_loras(caller))]

    def _earlier_choices(self, caller: Caller) -> list[tuple[str, str]]:
        history = self._store.history(EARLIER, organization=caller.organization, origin="sweep")
        called = call_loras(run.spec for run, _ in history)
        return [(_run_label(run, records, called), run.id) for run, records in history]

    def _weights_label(self, name: str) -> str:
        statuses = [_first_status(statuses, name) for statuses in self._statuses.values()]
        label = f"{find_weights(name).label} ({name})"
        return label if any(status and status.available for status in statuses) else f"{label} — not here"


def _choice(lora: LoraRef) -> tuple[str, str]:
    return (f"{lora.name} · trigger “{lora.trigger_phrase}”" if lora.trigger_phrase else lora.name, lora.name)


def _say_kept(run: TrainingRun) -> str:
    """That files were kept as a training run, and which of them were not."""
    refused = [f"{each.label}: {each.problem}" for each in run.checkpoints if not each.lora]
    text = f"Kept as the training run “{count_checkpoints(run.name, len(run.checkpoints))}”."
    said = " ".join([text, *(["Not to be rendered:", *refused] if refused else [])])
    return part("hint", text=said, kind="warn" if refused else "good")


def _first_status(statuses: Sequence[ModelStatus], weights: str) -> ModelStatus | None:
    return next((status for status in statuses if status.weights == weights), None)


def _run_label(run: Run, records: Sequence[CellRecord], called: Mapping[LoraRef, str]) -> str:
    done = sum(record.state == "done" for record in records)
    state = "" if run.status == "done" else f" · {done} of {len(records)}, {run.status}"
    alone = run.spec.loras and not run.spec.training
    lora = called[run.spec.loras[0]] if alone else name_lora(run.spec)
    return f"{name_run(run.created, lora, run.spec.prompts[0])}{state}"
