"""Pictures of the look or the subject on the Sweep tab: what a sweep's pictures should grow like. To judge by alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import gradio as gr

from evaluation.grid import MAX_LIKENESS
from evaluation.report.draw import part
from evaluation.store.references import keep_reference
from evaluation.tabs.page import Caller, Changes, Parts, Said
from evaluation.tabs.sweep_form import SweepForm
from lora_runtime.errors import InvalidInput
from lora_runtime.references import read_reference
from lora_runtime.storage.blobs import Blobs
from lora_runtime.values import Reference
from lora_runtime.written import count_of

ADVICE: Final = (
    "Pictures of the look or the subject that the LoRA was not trained on: the answer then says from which strength it "
    "is there, not only that something changes. Training pictures reward copying."
)
_DRAWN: Final = ("likeness", "likeness_hint", "likeness_clear")


def lay_out_likeness(parts: Parts) -> None:
    """Lay the field out."""
    SweepForm.lay_out(parts, "likeness")
    with gr.Row():
        parts["likeness_upload"] = gr.UploadButton(
            "Add pictures of the look", file_types=["image"], file_count="multiple", type="filepath", size="sm",
            elem_id="likeness",
        )  # fmt: skip
        parts["likeness_clear"] = gr.Button("Take them away", size="sm", visible=False, min_width=120)
    parts.html("likeness_hint", part("hint", text=ADVICE))


def wire_likeness(parts: Parts, blobs: Blobs) -> None:
    """Wire the field."""
    act = LikenessActs(blobs)
    told: dict[str, Any] = {"draws": _DRAWN, "problem": "likeness_hint"}
    parts.on(parts.likeness_upload.upload, act.add, reads=("likeness", "likeness_upload"), **told)
    parts.on(parts.likeness_clear.click, act.clear, api_name="clear_likeness", **told)
    parts.on(parts.likeness.change, act.show, reads=SweepForm, draws=_DRAWN[1:], api_name="show_likeness")


class LikenessActs:
    """The handlers. What is added is kept at once, as a preset or a link may ask for it tomorrow."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def add(self, caller: Caller, values: Mapping[str, Any], said: Said) -> Changes:
        """Check and keep uploaded pictures."""
        found = [*SweepForm.read(values).likeness]
        for file in values["likeness_upload"] or ():
            if len(found) == MAX_LIKENESS:
                raise InvalidInput(f"Likeness: at most {MAX_LIKENESS} pictures are looked at. Take them away first.")
            found.append(keep_reference(self._blobs, read_reference(Path(file))))
        found = list(dict.fromkeys(found))
        return {"likeness": found, **_tell(found)}

    def clear(self, caller: Caller, values: Mapping[str, Any], said: Said) -> Changes:
        """Take all pictures away."""
        return {"likeness": [], **_tell([])}

    def show(self, caller: Caller, form: SweepForm, said: Said) -> Changes:
        """Say how many there are, after a preset or an earlier sweep was opened."""
        return _tell(form.likeness)


def _tell(found: Sequence[Reference]) -> Changes:
    text = f"{count_of(len(found), 'picture')} of the look. They must not be training pictures." if found else ADVICE
    return {
        "likeness_hint": part("hint", text=text, kind="good" if found else ""),
        "likeness_clear": gr.update(visible=bool(found)),
    }
