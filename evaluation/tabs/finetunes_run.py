"""What happens in the list of finetunes and in the panel of the opened row: filter, open, edit, share, delete, undo.

Every event reads the registry again, so what programs and other pages changed is there too.
"""

from collections.abc import Callable, Generator, Sequence
from decimal import Decimal
from typing import Any, Final

import gradio as gr

from evaluation.report.draw import part
from evaluation.tabs.export_run import run_export
from evaluation.tabs.finetunes_form import (
    EditForm,
    ExportForm,
    ListForm,
    check_base_field,
    check_recommended_field,
    check_trigger_field,
    describe_fields,
    list_changes,
    make_sweep_form,
    offer_precision,
)
from evaluation.tabs.finetunes_view import Row, draw_heading, draw_report, draw_table, list_rows
from evaluation.tabs.page import Caller, Changes, Said
from evaluation.tabs.sweep_form import SweepForm
from lora_runtime.catalogue import find_weights
from lora_runtime.errors import KleinLabError, NotAuthorized, NotFound
from lora_runtime.lora.check import Report
from lora_runtime.lora.library import report_of
from lora_runtime.lora.names import check_trigger
from lora_runtime.registry.accounts import LOCAL
from lora_runtime.registry.finetune import Finetune, Source, check_base, check_recommended
from lora_runtime.registry.shelf import Shelf
from lora_runtime.registry.training_runs import TrainingRuns
from lora_runtime.registry.visitors import VISITOR_PREFIX
from lora_runtime.server.access import find_caller
from lora_runtime.server.service import Service
from lora_runtime.snippets import Language, write_example
from lora_runtime.written import quote, read_decimal

MANY: Final = 8
"""From more than so many finetunes on there is a search field."""

_FILTERS: Final = {"All": None, "Owned": Source.OWNED, "Shared": Source.THIRD_PARTY}


class FinetunesEvents:
    """The handlers. `sweep` and `play` go to another tab with a finetune: each returns what changes there."""

    def __init__(
        self,
        service: Service,
        training_runs: TrainingRuns,
        *,
        apart: bool,
        sweep: Callable[[SweepForm, Caller], Changes],
        play: Callable[[str, Caller], Changes],
    ) -> None:
        self._service = service
        self._registry = service.finetunes
        self._training_runs = training_runs
        self._shelf = Shelf(service.finetunes)
        self._apart = apart
        self._sweep = sweep
        self._play = play

    def organization(self, caller: Caller, form: ListForm) -> str:
        """Return the organization that the page acts for; only the owner of a machine may choose another."""
        known = self._list_organizations(caller.organization)
        return form.organization if form.organization in known else caller.organization

    def refresh(self, caller: Caller, form: ListForm, _: Said) -> Changes:
        """Draw everything anew, for whoever comes to the tab; an opened row stays open."""
        organizations = self._list_organizations(caller.organization)
        choice = gr.update(choices=organizations, value=self.organization(caller, form), visible=len(organizations) > 1)
        drawn = self.show(caller, form, form.selected) if form.selected else self.draw(caller, form)
        return {"note": "", **drawn, "organization": choice}

    def filter(self, caller: Caller, form: ListForm, _: Said) -> Changes:
        """Draw the list of other filters."""
        return self.draw(caller, form)

    def switch(self, caller: Caller, form: ListForm, _: Said) -> Changes:
        """Act for another organization."""
        return {**self.draw(caller, form, selected=""), "note": ""}

    def click(self, caller: Caller, form: ListForm, said: Said) -> Changes:
        """Do what was clicked: at a row, or at the line that says what happened."""
        organization = self.organization(caller, form)
        match said.act:
            case "open" if said.id == form.selected:
                return self.draw(caller, form, selected="")
            case "open":
                return self.show(caller, form, said.id)
            case "unfold":
                unfolded = "" if said.id == form.unfolded else said.id
                return self.draw(caller, form.model_copy(update={"unfolded": unfolded}), selected="")
            case "sweep-run":
                return self._sweep_run(caller, organization, said.id)
            case "delete":
                gone = self._registry.remove(organization, said.id)
                note = part("note", "finetunes.html", text=f"{gone.name} was deleted.", undo=gone.name)
                opened = "" if form.selected == gone.id else form.selected
                return {**self.draw(caller, form, selected=opened), "note": note}
            case "restore":
                back = self._registry.restore(organization, said.id)
                shared = ", shared as before" if back.granted_to else ""
                return {**self.draw(caller, form), "note": draw_note(f"{back.name} is back{shared}.")}
            case "sweep" | "playground":
                return self._go(caller, self._registry.find(organization, said.id), said.act)
        return {}

    def draw(self, caller: Caller, form: ListForm, *, selected: str | None = None) -> dict[str, Any]:
        """Return the list of the filters; `selected` is the row that is open from now on, "" for none."""
        organization = self.organization(caller, form)
        opened = form.selected if selected is None else selected
        everything = self._registry.list(organization)
        shown = form.shown if form.shown in _FILTERS else "All"
        listed = [each for each in everything if _filters(each, shown) and _matches(each, form.search.lower())]
        runs = () if form.search.strip() else self._training_runs.list(organization)
        rows = list_rows(listed, runs, opened=opened, unfolded=form.unfolded)
        place = next((at for at, row in enumerate(rows) if isinstance(row, Row) and row.opened), None)
        cut = len(rows) if place is None else place + 1
        empty = part("empty", "finetunes.html", shown=shown, organization=organization)
        return {
            "you": part("you", "finetunes.html", organization=organization),
            "shown": gr.update(choices=_count(everything), value=shown),
            "search": gr.update(visible=len(everything) > MANY or bool(form.search.strip())),
            "table": draw_table(rows[:cut]) or empty,
            "rest": draw_table(rows[cut:], continued=True),
            "deleted": part(
                "deleted", "finetunes.html", names=[each.name for each in self._registry.list_deleted(organization)]
            ),
            "selected": opened,
            "unfolded": form.unfolded,
            "panel": gr.update(visible=place is not None),
        }

    def show(self, caller: Caller, form: ListForm, finetune_id: str, *, note: str = "") -> dict[str, Any]:
        """Return a row opened with fresh contents, and what has just happened."""
        try:
            finetune = self._registry.find(self.organization(caller, form), finetune_id)
        except KleinLabError as error:
            return {**self.draw(caller, form, selected=""), "note": draw_note(str(error))}
        runs = self._training_runs.list(self.organization(caller, form))
        inside = next((run.name for run in runs if finetune.lora.sha256 in run.files), form.unfolded)
        drawn = self.draw(caller, form.model_copy(update={"unfolded": inside}), selected=finetune.id)
        return {**drawn, **self._open(caller, form, finetune), "note": draw_note(note) if note else ""}

    def check(self, caller: Caller, form: EditForm, _: Said) -> Changes:
        """Say at the fields whether what they hold can be saved, and offer the precisions of the base."""
        finetune = self._selected(caller, form)
        hint, _ok = check_base_field(form.base, form.settled_precision, _find_report(finetune), name=finetune.name)
        return {
            "base_hint": hint,
            "trigger_hint": check_trigger_field(form.trigger)[0],
            "recommended_hint": check_recommended_field(form.recommended)[0],
            "precision": offer_precision(form.base, chosen=form.precision),
        }

    def example(self, caller: Caller, form: ListForm, _: Said) -> Changes:
        """Write the example in the chosen language."""
        return {"example": self._write_example(caller, form, self._selected(caller, form))}

    def save(self, caller: Caller, form: EditForm, said: Said) -> Changes:
        """Save the fields, or say at the fields why not; nothing is saved then."""
        before = self._selected(caller, form)
        try:
            # A base without a choice of precision has its own.
            weights, precision = check_base(form.base, form.settled_precision or None)
            check_trigger(form.trigger)
            check_recommended(form.recommended)
            after = self._registry.edit(
                self.organization(caller, form), before.id,
                weights=weights, precision=precision, trigger_phrase=form.trigger,
                recommended_strength=form.recommended,
            )  # fmt: skip
        except KleinLabError as error:
            hint = part("hint", text=f"Not saved. {error}", kind="bad")
            return {**self.check(caller, form, said), "saved": hint}
        changed = list_changes(describe_fields(before), describe_fields(after))
        if after.endpoint != before.endpoint:
            changed += f". Call it at {after.endpoint.path} from now on"
        words = f"Saved: {changed}." if changed else "Nothing was changed."
        return {**self.show(caller, form, after.id), "saved": part("hint", text=words, kind="good")}

    def export(self, caller: Caller, form: ExportForm, said: Said) -> Generator[Changes]:
        """Write the opened finetune so that 1 is another strength, for download."""
        finetune = self._selected(caller, form)
        strength = finetune.recommended_strength or Decimal(1)
        if form.export_strength.strip():
            strength = read_decimal("Strength", form.export_strength)
        organization = self.organization(caller, form)
        yield from run_export(self._service, organization, finetune.lora, strength, form.spelling)

    def grant(self, caller: Caller, form: EditForm, _: Said) -> Changes:
        """Share the opened finetune."""
        to = form.share_to.strip()
        granted = self._registry.grant(self.organization(caller, form), form.selected, to)
        if to in self._service.accounts.list_organizations():
            told = part("hint", text=f"{to} can use it now.", kind="good")
        else:
            words = f"{to} can use it once this server knows an organization of that id. Is it spelt right?"
            told = part("hint", text=words, kind="warn")
        return {"grants": _draw_grants(granted), "share_to": "", "shared": told}

    def revoke(self, caller: Caller, form: ListForm, said: Said) -> Changes:
        """Take a grant back."""
        left = self._registry.revoke(self.organization(caller, form), form.selected, said.id)
        told = part("hint", text=f"{said.id} cannot use it any more.", kind="good")
        return {"grants": _draw_grants(left), "shared": told}

    def _selected(self, caller: Caller, form: ListForm) -> Finetune:
        return self._registry.find(self.organization(caller, form), form.selected)

    def _open(self, caller: Caller, form: ListForm, finetune: Finetune) -> dict[str, Any]:
        """What the panel shows of a finetune."""
        precision, trigger = finetune.precision or "", finetune.trigger_phrase or ""
        try:
            report = report_of(finetune.lora)
            drawn = draw_report(report, key="panel")
        except KleinLabError as error:
            report = None
            drawn = part("error", text=str(error), heading="The file of this finetune cannot be read.")
        return {
            "heading": draw_heading(finetune),
            "owned": gr.update(visible=finetune.source is Source.OWNED),
            "base": finetune.weights,
            "precision": offer_precision(finetune.weights, chosen=precision),
            "trigger": trigger,
            "base_hint": check_base_field(finetune.weights, precision, report, name=finetune.name)[0],
            "trigger_hint": check_trigger_field(trigger)[0],
            "recommended": describe_fields(finetune)["Recommended Strength"],
            "recommended_hint": check_recommended_field(describe_fields(finetune)["Recommended Strength"])[0],
            "saved": "",
            "share_to": "",
            "shared": "",
            "export_hint": "",
            "grants": _draw_grants(finetune),
            "report": drawn,
            "example": self._write_example(caller, form, finetune),
        }

    def _write_example(self, caller: Caller, form: ListForm, finetune: Finetune) -> str:
        """The example, for this server as the visitor reaches it, and what a caller needs."""
        language: Language = "python" if form.language == "python" else "curl"
        program = write_example(finetune, caller.base_url, language)
        try:
            advice, works = self._advise(self.organization(caller, form), finetune, caller), True
        except KleinLabError as error:
            advice, works = str(error), False
        return part(
            "example", "finetunes.html", path=finetune.endpoint.path, program=program, language=language,
            advice=advice, works=works,
        )  # fmt: skip

    def _advise(self, organization: str, finetune: Finetune, caller: Caller) -> str:
        """What a caller needs.

        Raises:
            KleinLabError: The call would not work yet.
        """
        accounts = self._service.accounts
        if not find_weights(finetune.weights).bundled:  # asking may import torch; the pocket runs everywhere
            self._service.find_status(finetune.endpoint)
        if self._service.is_off:
            raise NotAuthorized(
                "The /v1 API of this Space is off until its owner sets a key, so this does not work yet."
            )
        if accounts.has_keys():
            if self._apart and finetune.source is not Source.OFFICIAL:
                raise NotAuthorized(
                    "The keys of this Space are of other organizations than your browser's: run the app at home."
                )
            return f"Set BFL_API_KEY to a key of organization {organization}."
        if organization != LOCAL:
            command = f"python -m lora_runtime keys create --organization {organization}"
            raise NotAuthorized(f"Without a key callers are {LOCAL}. Make one: {command}")
        if caller.http is not None:
            find_caller(accounts, caller.http, None)
        return "No key is needed on this machine until you create one."

    def _go(self, caller: Caller, finetune: Finetune, where: str) -> Changes:
        """Fill in another tab; it acts for the visitor's own organization, and calls the finetune as that does."""
        own = caller.organization
        shown = {each.full_name: each for each in self._shelf.show(own)}
        if finetune.full_name not in shown:
            raise NotFound(f"Sweeps and the Playground act for {own}: share {finetune.name} with {own} first.")
        if where == "playground":
            return self._play(self._registry.find(own, finetune.full_name).id, caller)
        return self._sweep(make_sweep_form(finetune, shown[finetune.full_name].lora.name), caller)

    def _sweep_run(self, caller: Caller, organization: str, name: str) -> Changes:
        """Fill in the Sweep tab with a training run, on the weights of its first checkpoint."""
        run = next((run for run in self._training_runs.list(caller.organization) if run.name == name), None)
        if run is None or organization != caller.organization:
            raise NotFound(f"Sweeps act for {caller.organization}, which has no training run {quote(name)}.")
        first = next(each for each in self._registry.list(organization) if each.lora.sha256 in run.files)
        return self._sweep(make_sweep_form(first, run.name), caller)

    def _list_organizations(self, own: str) -> list[str]:
        """The organizations a page may act for: where visitors are kept apart, its own alone."""
        if self._apart:
            return [own]
        known = self._service.accounts.list_organizations()
        return [own, *(name for name in known if name != own and not name.startswith(VISITOR_PREFIX))]


def draw_note(text: str) -> str:
    """Return what has just happened."""
    return part("note", "finetunes.html", text=text)


def _draw_grants(finetune: Finetune) -> str:
    return part("grants", "finetunes.html", names=finetune.granted_to, called=finetune.full_name)


def _find_report(finetune: Finetune) -> Report | None:
    try:
        return report_of(finetune.lora)
    except KleinLabError:  # said where the report stands
        return None


def _filters(finetune: Finetune, shown: str) -> bool:
    return _FILTERS[shown] in (None, finetune.source)


def _matches(finetune: Finetune, text: str) -> bool:
    about = f"{finetune.id} {finetune.weights} {finetune.trigger_phrase or ''} {finetune.source}".lower()
    return all(word in about for word in text.split())


def _count(everything: Sequence[Finetune]) -> list[tuple[str, str]]:
    return [(f"{name} {sum(_filters(finetune, name) for finetune in everything)}", name) for name in _FILTERS]
