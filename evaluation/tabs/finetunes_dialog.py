"""The dialog that adds a finetune: the file is checked first, and what it says about itself is proposed in the fields.

Nothing is saved before the last button; the file that was uploaded for the check lies in Gradio's own cache, which
empties itself.
"""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import gradio as gr

from evaluation.tabs import finetunes_markup as markup
from evaluation.tabs.finetunes_form import (
    BASE_HINT,
    BASES,
    NAME_HINT,
    TRIGGER_HINT,
    Entry,
    check_entry,
    check_new_name,
    find_same,
    offer_precision,
    propose_name,
    read_entry,
    report_upload,
)
from evaluation.tabs.finetunes_parts import DialogParts, Updates, Values, read_text
from lora_runtime.errors import KleinLabError
from lora_runtime.lora.check import Report
from lora_runtime.registry.finetune import Finetune
from lora_runtime.server.service import Service
from lora_runtime.storage.uploads import check_size

FIRST_BASE: Final = BASES[0][1]


class DialogHandlers:
    """Events of the dialog."""

    def __init__(self, service: Service, parts: DialogParts) -> None:
        self.parts = parts
        self._registry = service.finetunes
        self._max_bytes = service.settings.lora_max_bytes

    def take(self, organization: str, values: Values) -> Iterator[Updates]:
        """Check an uploaded file and propose what it says; the fields wait meanwhile."""
        parts, path = self.parts, read_text(values, self.parts.file)
        if not path:
            yield self.clear_file()
            return
        name = Path(path).name
        yield {
            parts.file_hint: markup.draw_checking(name),
            parts.report: markup.draw_no_report(),
            parts.error: "",
            parts.upload: gr.update(interactive=False),
        }
        try:
            report = self._check(path)
        except KleinLabError as error:
            yield {**self.clear_file(), parts.file: None, parts.file_hint: markup.draw_problem(str(error))}
            return
        entry = Entry(weights=report.fits[0], precision="", trigger_phrase=report.trigger_phrase or "")
        wanted = read_text(values, parts.name) or propose_name(self._registry, organization, name)
        same = find_same(self._registry, organization, report.file.sha256)
        hints, ok = check_entry(parts.form, entry, report)
        named = check_new_name(self._registry, organization, wanted)
        yield {
            parts.file_hint: markup.draw_hint(f"The same file is registered already, as {same}.", kind="warn")
            if same
            else "",
            parts.report: markup.draw_report(report, key="dialog"),
            parts.name: wanted,
            parts.name_hint: named.html,
            parts.form.base: entry.weights,
            parts.form.precision: offer_precision(entry.weights),
            parts.form.trigger: entry.trigger_phrase,
            **hints,
            parts.upload: gr.update(interactive=ok and named.ok),
        }

    def clear_file(self) -> Updates:
        """Forget the file; what was typed stays."""
        parts = self.parts
        return {
            parts.file_hint: "",
            parts.report: markup.draw_no_report(),
            parts.error: "",
            parts.upload: gr.update(interactive=False),
        }

    def check(self, organization: str, values: Values) -> Updates:
        """Say at each field whether it can be saved, and let the last button be pressed when all can."""
        parts, path = self.parts, read_text(values, self.parts.file)
        try:
            report = self._check(path) if path else None
        except KleinLabError:  # said where the file is
            report = None
        named = check_new_name(self._registry, organization, read_text(values, parts.name))
        hints, ok = check_entry(parts.form, read_entry(parts.form, values), report)
        return {
            parts.name_hint: named.html,
            **hints,
            parts.error: "",
            parts.upload: gr.update(interactive=report is not None and ok and named.ok),
        }

    def choose_base(self, organization: str, values: Values) -> Updates:
        """Offer the precisions of the chosen base."""
        entry = read_entry(self.parts.form, values)
        precision = offer_precision(entry.weights, chosen=entry.precision)
        return {**self.check(organization, values), self.parts.form.precision: precision}

    def add(self, organization: str, values: Values) -> Finetune:
        """Register the file.

        Raises:
            KleinLabError: As `Finetunes.add`; nothing is saved then.
        """
        entry = read_entry(self.parts.form, values)
        return self._registry.add_file(
            organization,
            Path(read_text(values, self.parts.file)),
            name=read_text(values, self.parts.name),
            weights=entry.weights,
            precision=entry.precision or None,
            trigger_phrase=entry.trigger_phrase,
        )

    def reset(self, *, close: bool = False) -> Updates:
        """Empty the dialog; `close` takes it off the page."""
        parts = self.parts
        return {
            parts.head: markup.draw_dialog_head(close=uuid.uuid4().hex if close else ""),
            parts.file: None,
            parts.name: "",
            parts.name_hint: NAME_HINT,
            parts.form.base: FIRST_BASE,
            parts.form.precision: offer_precision(FIRST_BASE),
            parts.form.base_hint: BASE_HINT,
            parts.form.trigger: "",
            parts.form.trigger_hint: TRIGGER_HINT,
            **self.clear_file(),
            parts.upload: gr.update(value="Upload Finetune", interactive=False),
        }

    def _check(self, path: str) -> Report:
        file = Path(path)
        if file.is_file():
            check_size(file.name, file.stat().st_size, max_bytes=self._max_bytes)
        return report_upload(path)
