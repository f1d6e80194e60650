"""The panel of an opened row: the API example, editable settings, sharing, and what the check of the file found."""

import gradio as gr
from starlette.requests import Request

from evaluation.tabs import finetunes_markup as markup
from evaluation.tabs.finetunes_form import (
    Entry,
    check_entry,
    describe_fields,
    list_changes,
    offer_precision,
    read_entry,
)
from evaluation.tabs.finetunes_parts import PanelParts, Updates, Values, read_text
from lora_runtime.catalogue import find_weights
from lora_runtime.errors import KleinLabError, NotAuthorized
from lora_runtime.lora.check import Report
from lora_runtime.lora.library import report_of
from lora_runtime.lora.names import check_trigger
from lora_runtime.registry.accounts import LOCAL
from lora_runtime.registry.finetune import Finetune, Source, check_base
from lora_runtime.registry.visitors import Visitors
from lora_runtime.server.access import find_caller, read_base_url
from lora_runtime.server.examples import Language, write_example
from lora_runtime.server.service import Service


class PanelHandlers:
    """Events of the panel. `parts` is what it shows."""

    def __init__(self, service: Service, visitors: Visitors, parts: PanelParts) -> None:
        self.parts = parts
        self._service = service
        self._registry = service.finetunes
        self._visitors = visitors

    def show(self, organization: str, finetune: Finetune, values: Values, request: gr.Request) -> Updates:
        """Show everything about a finetune."""
        parts = self.parts
        owned = finetune.source is Source.OWNED
        entry = Entry(
            weights=finetune.weights,
            precision=finetune.precision or "",
            trigger_phrase=finetune.trigger_phrase or "",
        )
        report = _read_report(finetune)
        hints, _ = check_entry(parts.form, entry, report if isinstance(report, Report) else None, name=finetune.name)
        return {
            parts.heading: markup.draw_heading(finetune),
            parts.owned: gr.update(visible=owned),
            parts.form.base: entry.weights,
            parts.form.precision: offer_precision(entry.weights, chosen=entry.precision),
            parts.form.trigger: entry.trigger_phrase,
            **hints,
            parts.saved: "",
            parts.share_to: "",
            parts.shared: "",
            parts.grants: markup.draw_grants(finetune),
            parts.report: (
                markup.draw_report(report, key="panel")
                if isinstance(report, Report)
                else markup.draw_problem(report, "The file of this finetune cannot be read.")
            ),
            **self.show_example(organization, finetune, values, request),
        }

    def show_example(self, organization: str, finetune: Finetune, values: Values, request: gr.Request) -> Updates:
        """Write the example in the chosen language, for this server as the visitor reaches it."""
        language: Language = "python" if read_text(values, self.parts.language) == "python" else "curl"
        asked = _asked(request)
        settings = self._service.settings
        base_url = read_base_url(asked, settings.public_url) if asked else f"http://{settings.host}:{settings.port}"
        program = write_example(finetune, base_url, language)
        advice = self._advise(organization, finetune, asked)
        return {self.parts.example: markup.draw_example(program, language, finetune, advice)}

    def check(self, organization: str, finetune_id: str, values: Values) -> Updates:
        """Say at the fields whether what they hold can be saved."""
        found = self._registry.find(organization, finetune_id)
        report = _read_report(found)
        entry = read_entry(self.parts.form, values)
        return check_entry(self.parts.form, entry, report if isinstance(report, Report) else None, name=found.name)[0]

    def choose_base(self, organization: str, finetune_id: str, values: Values) -> Updates:
        """Offer the precisions of the chosen base."""
        entry = read_entry(self.parts.form, values)
        checked = self.check(organization, finetune_id, values)
        return {**checked, self.parts.form.precision: offer_precision(entry.weights, chosen=entry.precision)}

    def save(self, organization: str, finetune_id: str, values: Values) -> str:
        """Save base, precision and trigger phrase; return what changed.

        Raises:
            KleinLabError: One of them cannot be saved; nothing is.
        """
        entry = read_entry(self.parts.form, values)
        before = self._registry.find(organization, finetune_id)
        # A base without a choice of precision has its own.
        weights, precision = check_base(entry.weights, entry.precision or None)
        check_trigger(entry.trigger_phrase)
        after = self._registry.edit(
            organization, finetune_id, weights=weights, precision=precision, trigger_phrase=entry.trigger_phrase
        )
        changes = list_changes(_fields(before), _fields(after))
        if after.endpoint != before.endpoint:
            changes += f". Call it at {after.endpoint.path} from now on"
        return f"Saved: {changes}." if changes else "Nothing was changed."

    def grant(self, organization: str, finetune_id: str, to: str) -> tuple[Finetune, str]:
        """Share the finetune; return it, and the line that tells the owner.

        Raises:
            KleinLabError: As `Finetunes.grant`.
        """
        granted = self._registry.grant(organization, finetune_id, to)
        known = to in self._service.accounts.list_organizations()
        if known:
            return granted, markup.draw_hint(f"{to} can use it now.", kind="good")
        told = f"{to} can use it once this server knows an organization of that id. Is it spelt right?"
        return granted, markup.draw_hint(told, kind="warn")

    def revoke(self, organization: str, finetune_id: str, to: str) -> Finetune:
        """Take a grant back.

        Raises:
            KleinLabError: As `Finetunes.revoke`.
        """
        return self._registry.revoke(organization, finetune_id, to)

    def _advise(self, organization: str, finetune: Finetune, asked: Request | None) -> markup.Advice:
        """What a caller needs, or why the call would not work yet."""
        accounts = self._service.accounts
        try:
            if not find_weights(finetune.weights).bundled:  # asking may import torch; the pocket runs everywhere
                self._service.require_available(finetune.endpoint)
        except KleinLabError as error:
            return markup.Advice(text=str(error), works=False)
        if self._service.is_off:
            text = "The /v1 API of this Space is off until its owner sets a key, so this does not work yet."
            return markup.Advice(text=text, works=False)
        if accounts.has_keys():
            if self._visitors.apart and finetune.source is not Source.OFFICIAL:
                text = "The keys of this Space are of other organizations than your browser's: run the app at home."
                return markup.Advice(text=text, works=False)
            return markup.Advice(text=f"Set BFL_API_KEY to a key of organization {organization}.")
        if organization != LOCAL:
            command = f"python -m lora_runtime keys create --organization {organization}"
            text = f"Without a key callers are {LOCAL}. Make one: {command}"
            return markup.Advice(text=text, works=False)
        try:
            if asked is not None:
                find_caller(accounts, asked, None)
        except NotAuthorized as error:
            return markup.Advice(text=str(error), works=False)
        return markup.Advice(text="No key is needed on this machine until you create one.")


def _read_report(finetune: Finetune) -> Report | str:
    """The check of the file, or why there is none."""
    try:
        return report_of(finetune.lora)
    except KleinLabError as error:
        return str(error)


def _asked(request: gr.Request) -> Request | None:
    """The HTTP request behind an event."""
    found = request.request
    return found if isinstance(found, Request) else None


def _fields(finetune: Finetune) -> dict[str, str]:
    return describe_fields(finetune.weights, finetune.precision, finetune.trigger_phrase)
