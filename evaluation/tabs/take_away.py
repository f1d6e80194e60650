"""What an answer is good for, beside it: use its strength in the Playground, recommend it, export the LoRA at it.

Shown as soon as an answer names a strength. Several answers of a sweep are a choice, and of a training run the named
checkpoint comes first; each stands for the cell at its best strength, so the prompt and the seed go along. A checkpoint
that lies in a trainer's folder becomes a finetune when it is taken.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

import gradio as gr

from evaluation.judge.answer import tell_cells
from evaluation.judge.training import list_named
from evaluation.report.draw import part
from evaluation.store.records import CellRecord
from evaluation.store.store import Store
from evaluation.strengths import exact
from evaluation.tabs.export_run import DRAWN, TakeAwayForm, run_export
from evaluation.tabs.page import Caller, Changes, Parts, Said
from evaluation.tabs.playground import PLAYGROUND_TAB, PlaygroundTab
from lora_runtime.errors import InvalidInput
from lora_runtime.registry.finetune import RECOMMENDED, Finetune, Source
from lora_runtime.registry.training_runs import TrainingRuns
from lora_runtime.server.service import Service
from lora_runtime.values import LoraRef

_OFFERED: Final = ("take", "taken", "use", "recommend", "export", "export_hint")


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A LoRA at a strength, and the cell that shows it."""

    lora: LoraRef
    strength: Decimal
    record: CellRecord


def wire_take_away(
    parts: Parts,
    store: Store,
    service: Service,
    training_runs: TrainingRuns,
    playground: PlaygroundTab,
    tabs: gr.Tabs,
) -> None:
    """Wire the row on the Sweep tab's `parts`; it follows what the answer says."""
    act = TakeAway(store, service, training_runs, playground, tabs)
    lane: dict[str, Any] = {"reads": TakeAwayForm, "problem": "export_hint", "lane": "take away"}
    parts.on(parts.verdict.change, act.offer, draws=_OFFERED, **lane)
    parts.on(parts.taken.input, act.choose, draws=_OFFERED, **lane)
    parts.on(parts.use.click, act.use, draws=(tabs, *playground.targets()), **lane)
    parts.on(parts.recommend.click, act.recommend, draws=("export_hint",), **lane)
    exported = parts.on(
        parts.export.click, act.export, reads=TakeAwayForm, draws=DRAWN, problem="export_hint",
        failed={"export": gr.update(interactive=True)},
    )  # fmt: skip
    parts.save(exported, "export_file")


class TakeAway:
    """The handlers. What is taken is looked up anew, as the page may send anything."""

    def __init__(
        self, store: Store, service: Service, training_runs: TrainingRuns, playground: PlaygroundTab, tabs: gr.Tabs
    ) -> None:
        self._store = store
        self._service = service
        self._training_runs = training_runs
        self._playground = playground
        self._tabs = tabs

    def offer(self, caller: Caller, form: TakeAwayForm, said: Said) -> Changes:
        """Show what the answers of the run on the page name, if they name anything."""
        return {**self._offer(caller, form.model_copy(update={"taken": ""})), "export_hint": ""}

    def choose(self, caller: Caller, form: TakeAwayForm, said: Said) -> Changes:
        """Take another answer."""
        return {**self._offer(caller, form), "export_hint": ""}

    def use(self, caller: Caller, form: TakeAwayForm, said: Said) -> Changes:
        """Fill the Playground with the LoRA at that strength, with prompt and seed."""
        cell = self._take(caller, form).record.cell
        filled = self._playground.fill(cell.request, backend=cell.target.backend)
        return {self._tabs: gr.update(selected=PLAYGROUND_TAB), **filled}

    def recommend(self, caller: Caller, form: TakeAwayForm, said: Said) -> Changes:
        """Make the strength the recommended one of the finetune."""
        taken = self._take(caller, form)
        finetune = self._find_own(caller, taken)
        if finetune is None:
            raise InvalidInput("This LoRA is no finetune of yours, so nothing can be recommended for it. Add it first.")
        strength = exact(taken.strength)
        self._service.finetunes.edit(caller.organization, finetune.full_name, recommended_strength=strength)
        text = f"{finetune.id} is recommended at {strength}: its examples and the Playground begin with it."
        return {"export_hint": part("hint", text=text, kind="good")}

    def export(self, caller: Caller, form: TakeAwayForm, said: Said) -> Generator[Changes]:
        """Write the LoRA so that 1 is that strength."""
        taken = self._take(caller, form)
        yield from run_export(self._service, caller.organization, taken.lora, taken.strength, form.spelling)

    def _offer(self, caller: Caller, form: TakeAwayForm) -> Changes:
        found = self._list(form)
        if not found:
            return {"take": gr.update(visible=False)}
        name = form.taken if form.taken in found else next(iter(found))
        taken = found[name]
        strength = exact(taken.strength)
        own = self._find_own(caller, taken) or self._training_runs.is_in_folder(caller.organization, taken.lora)
        low, high = RECOMMENDED
        fits = bool(own) and low < taken.strength <= high
        return {
            "take": gr.update(visible=True),
            "taken": gr.update(choices=list(found), value=name, visible=len(found) > 1),
            "use": gr.update(value=f"Use {strength}"),
            "export": gr.update(value=f"Export at {strength}", interactive=True),
            "recommend": gr.update(value=f"Recommend {strength}", visible=fits),
        }

    def _list(self, form: TakeAwayForm) -> Mapping[str, Taken]:
        """What can be taken, by its words: what each answer names, and the first cell of it."""
        if form.run_id is None:
            return {}
        run, records = self._store.look(form.run_id)
        answers, _ = tell_cells(self._store, records)
        found = {}
        for answer, record in list_named(run.spec.training, records, answers):
            lora, strength = record.cell.request.lora, record.cell.request.strength
            if lora is not None:
                found[f"{answer.label} at {exact(strength)}"] = Taken(lora=lora, strength=strength, record=record)
        return found

    def _take(self, caller: Caller, form: TakeAwayForm) -> Taken:
        """The answer that is taken, its LoRA a finetune of the caller's where it lay in a folder."""
        found = self._list(form)
        if not found:
            raise InvalidInput("No answer names a strength here. Run a sweep that ends with one.")
        taken = found[form.taken] if form.taken in found else next(iter(found.values()))
        return replace(taken, lora=self._training_runs.take(caller.organization, taken.lora))

    def _find_own(self, caller: Caller, taken: Taken) -> Finetune | None:
        owned = self._service.finetunes.list(caller.organization, source=Source.OWNED)
        return next((finetune for finetune in owned if finetune.lora.sha256 == taken.lora.sha256), None)
