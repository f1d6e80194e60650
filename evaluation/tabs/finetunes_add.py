"""The dialog that adds a finetune: the file is checked first, and what it says about itself is proposed in the fields.

Nothing is saved before the last button; the file that was uploaded for the check lies in Gradio's own cache, which
empties itself.
"""

import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import gradio as gr

from evaluation.report.draw import part
from evaluation.tabs.finetunes_form import (
    BASE_HINT,
    NAME_HINT,
    TRIGGER_HINT,
    AddForm,
    check_base_field,
    check_new_name,
    check_trigger_field,
    find_same,
    offer_precision,
    propose_name,
    report_upload,
)
from evaluation.tabs.finetunes_run import FinetunesEvents
from evaluation.tabs.finetunes_view import draw_report
from evaluation.tabs.page import Caller, Changes, Said
from lora_runtime.errors import KleinLabError
from lora_runtime.lora.check import Report
from lora_runtime.server.service import Service
from lora_runtime.storage.uploads import check_size

UPLOAD: Final = "Upload Finetune"


class AddEvents:
    """The handlers of the dialog; what it adds is shown in the list."""

    def __init__(self, service: Service, listed: FinetunesEvents) -> None:
        self._registry = service.finetunes
        self._max_bytes = service.settings.lora_max_bytes
        self._listed = listed

    def take(self, caller: Caller, form: AddForm, _: Said) -> Generator[Changes]:
        """Check an uploaded file and propose what it says; the fields wait meanwhile."""
        if not form.file:
            yield self.clear(caller, form, _)
            return
        file = Path(form.file).name
        words = f"Checking {file} …"
        yield {**self.clear(caller, form, _), "file_hint": part("message", text=words, running=True)}
        try:
            report = self._check(form.file)
        except KleinLabError as error:
            yield {"file": None, "file_hint": draw_refused(error)}
            return
        organization = self._listed.organization(caller, form)
        same = find_same(self._registry, organization, report.file.sha256)
        told = f"The same file is registered already, as {same}." if same else ""
        name = form.name or propose_name(self._registry, organization, file)
        proposed = {
            "name": name, "new_base": report.fits[0], "new_precision": "", "new_trigger": report.trigger_phrase or "",
        }  # fmt: skip
        yield {
            **proposed,
            **self._judge(organization, form.model_copy(update=proposed), report),
            "file_hint": part("hint", text=told, kind="warn"),
            "new_report": draw_report(report, key="dialog"),
        }

    def clear(self, _caller: Caller, _form: AddForm, _said: Said) -> dict[str, Any]:
        """Forget the file; what was typed stays."""
        return {
            "file_hint": "",
            "new_report": part("no_report", "finetunes.html"),
            "error": "",
            "upload": gr.update(interactive=False),
        }

    def check(self, caller: Caller, form: AddForm, _: Said) -> Changes:
        """Say at each field whether it can be saved, and let the last button be pressed when all can."""
        try:
            report = self._check(form.file) if form.file else None
        except KleinLabError:  # said where the file is
            report = None
        return {**self._judge(self._listed.organization(caller, form), form, report), "error": ""}

    def add(self, caller: Caller, form: AddForm, said: Said) -> Generator[Changes]:
        """Register the file and open its row."""
        yield {"upload": gr.update(value="Uploading …", interactive=False), "error": ""}
        added = self._registry.add_file(
            self._listed.organization(caller, form), Path(form.file), name=form.name, weights=form.new_base,
            precision=form.settled_precision or None, trigger_phrase=form.new_trigger,
        )  # fmt: skip
        everything = form.model_copy(update={"shown": "All", "search": ""})
        note = f"{added.name} was added. Its API example is below."
        shown = self._listed.show(caller, everything, added.id, note=note)
        search = gr.update(value="", visible=shown["search"]["visible"])
        yield {
            **self.reset(caller, form, said, close=True),
            **shown,
            "search": search if form.search else shown["search"],
        }

    def reset(self, caller: Caller, form: AddForm, said: Said, *, close: bool = False) -> dict[str, Any]:
        """Empty the dialog; `close` takes it off the page."""
        empty = AddForm()
        return {
            "head": part("dialog_head", "finetunes.html", close=str(time.monotonic_ns()) if close else ""),
            **self.clear(caller, form, said),
            "file": None,
            "name": "",
            "name_hint": part("hint", text=NAME_HINT),
            "new_base": empty.new_base,
            "new_base_hint": part("hint", text=BASE_HINT),
            "new_precision": offer_precision(empty.new_base),
            "new_trigger": "",
            "new_trigger_hint": part("hint", text=TRIGGER_HINT),
            "upload": gr.update(value=UPLOAD, interactive=False),
        }

    def _judge(self, organization: str, form: AddForm, report: Report | None) -> dict[str, Any]:
        """The lines below the fields, and whether all of it can be saved."""
        named, name_ok = check_new_name(self._registry, organization, form.name)
        based, base_ok = check_base_field(form.new_base, form.settled_precision, report)
        triggered, trigger_ok = check_trigger_field(form.new_trigger)
        return {
            "name_hint": named,
            "new_base_hint": based,
            "new_trigger_hint": triggered,
            "new_precision": offer_precision(form.new_base, chosen=form.new_precision),
            "upload": gr.update(interactive=report is not None and name_ok and base_ok and trigger_ok),
        }

    def _check(self, path: str) -> Report:
        file = Path(path)
        if file.is_file():
            check_size(file.name, file.stat().st_size, max_bytes=self._max_bytes)
        return report_upload(path)


def draw_refused(error: KleinLabError) -> str:
    """Return why a file cannot be used; the text says what to do."""
    return part("error", text=str(error), heading="This file cannot be added.")
