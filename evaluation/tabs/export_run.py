"""A LoRA as a file to download, at the strength that becomes its 1: from the answer, and from the Finetunes tab."""

import tempfile
from collections.abc import Generator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final

import gradio as gr
from gradio.utils import get_upload_folder

from evaluation.report.draw import part
from evaluation.strengths import exact
from evaluation.tabs.fields import Box
from evaluation.tabs.page import Changes, Parts
from evaluation.tabs.sweep_form import RunOnPage
from lora_runtime.errors import NotAuthorized
from lora_runtime.lora.names import clean_name
from lora_runtime.lora.spellings import SPELLINGS
from lora_runtime.proof import export_lora
from lora_runtime.registry.finetune import Source
from lora_runtime.server.service import Service
from lora_runtime.values import LoraRef

SPELLED: Final = [("diffusers", "diffusers"), ("AI-Toolkit, ComfyUI", "ai-toolkit"), ("kohya", "kohya")]
"""What the Spelling dropdown offers."""

DRAWN: Final = ("export", "export_file", "export_hint")
"""What an export draws."""


class TakeAwayForm(RunOnPage):
    """Which answer of the run on the page is taken, and how it is spelled."""

    taken: Annotated[
        str, Box(gr.Dropdown, label="Take away", value=None, container=False, filterable=False, choices=[])
    ] = ""
    spelling: str = "diffusers"


def lay_out_export(parts: Parts, key: str, *, interactive: bool = True) -> None:
    """Lay out the choice of a spelling and the button."""
    parts["spelling"] = gr.Dropdown(
        SPELLED, value=next(iter(SPELLINGS)), label="Spelling", container=False, filterable=False, min_width=150,
        scale=1, elem_id=f"{key}-spelling",
    )  # fmt: skip
    parts["export"] = gr.Button(
        "Export", size="sm", min_width=140, scale=1, interactive=interactive, elem_id=f"{key}-export"
    )


def lay_out_take_away(parts: Parts) -> None:
    """Lay out the row, which is not seen before there is something to take."""
    with gr.Row(elem_classes="run-bar", elem_id="take-away", visible=False) as parts["take"]:
        TakeAwayForm.lay_out(parts, "taken", elem_id="take-which", min_width=230, visible=False)
        parts["use"] = gr.Button("Use it", size="sm", min_width=120, scale=1, elem_id="take-use")
        parts["recommend"] = gr.Button("Recommend it", size="sm", min_width=150, scale=1, elem_id="take-recommend")
        lay_out_export(parts, "take")
    # Hands the file over. In the row, it would be seen with it.
    parts["export_file"] = gr.DownloadButton(visible="hidden")
    parts.html("export_hint", elem_id="take-hint")


def require_own(service: Service, organization: str, lora: LoraRef) -> None:
    """Refuse a file that may not leave with `organization`: a grant lets others render it, not take it home.

    Raises:
        NotAuthorized: It is neither theirs nor everybody's.
    """
    theirs = service.finetunes.list(organization)
    if any(each.lora.sha256 == lora.sha256 and each.source is not Source.THIRD_PARTY for each in theirs):
        return
    raise NotAuthorized(
        f"{lora.name} is no finetune of yours, so its file cannot be exported here. Its owner can; of a file that you "
        "have, add it on the Finetunes tab."
    )


def run_export(
    service: Service, organization: str, lora: LoraRef, strength: Decimal, spelling: str
) -> Generator[Changes]:
    """Write the file where Gradio serves downloads from, once its pictures were compared, and say how near it comes.

    Raises:
        NotAuthorized: See `require_own`.
        KleinLabError: As `export_lora`.
    """
    require_own(service, organization, lora)
    yield {
        "export": gr.update(interactive=False),
        "export_hint": part("message", text="Writing it, and comparing what it draws …", running=True),
        "export_file": None,
    }
    # Gradio's own cache, which empties itself; a large file is streamed from there.
    folder = Path(get_upload_folder())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{clean_name(lora.name.rpartition('/')[2])}-{exact(strength)}-{spelling}.safetensors"
    out = Path(tempfile.mkdtemp(dir=folder)) / name
    written = export_lora(lora, out, strength=strength, spelling=spelling, backend=service.backend)
    yield {
        "export": gr.update(interactive=True),
        "export_hint": part("hint", text=f"{name}: {' '.join(written.said)}", kind="good"),
        "export_file": str(out),
    }
