"""The fields of a finetune as a person fills them in: each is checked while they type, and says what to write instead.

The rules are `registry/finetune.py` and the file's own report; here they become the lines below the fields.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final

import gradio as gr

from evaluation.report.draw import part
from evaluation.tabs.fields import Box, Form
from evaluation.tabs.sweep_form import EXAMPLES, SweepForm
from lora_runtime.catalogue import ENDPOINTS, WEIGHTS, find_weights
from lora_runtime.errors import Conflict, InvalidInput, KleinLabError
from lora_runtime.lora.check import Report, require_fit
from lora_runtime.lora.library import make_name, report_of
from lora_runtime.lora.names import check_trigger, number_name
from lora_runtime.registry.finetune import (
    NAME_RULE,
    Finetune,
    check_base,
    check_name,
    check_recommended,
    find_endpoint,
    list_precisions,
)
from lora_runtime.registry.finetunes import Finetunes
from lora_runtime.snippets import write_prompt
from lora_runtime.values import LoraRef

BASES: Final = [
    (record.label, name)
    for name, record in WEIGHTS.items()
    if any(endpoint.finetuned and endpoint.weights == name for endpoint in ENDPOINTS.values())
]
"""What the Base Model dropdown offers."""

PRECISIONS: Final = [("FP8", "fp8"), ("BF16", "bf16"), ("Default", "")]
"""What the Precision dropdown offers; the pocket has no other than its default."""

NAME_HINT: Final = f"{NAME_RULE}."
BASE_HINT: Final = "Proposed when the file has been checked."
TRIGGER_HINT: Final = "Optional: the word or phrase the LoRA was trained on, which prompts must have."
RECOMMENDED_HINT: Final = "Optional: the strength that examples and the Playground begin with, in place of 1."
"""The lines below fields that nobody has filled in."""

_LINE: Final = {"max_lines": 1}
_BASE: Final = Box(gr.Dropdown, choices=BASES, label="Base Model", filterable=False, scale=3, min_width=190)
_PRECISION: Final = Box(
    gr.Dropdown, choices=PRECISIONS, label="Precision", filterable=False, scale=1, min_width=110, interactive=False
)
_TRIGGER: Final = Box(gr.Textbox, label="Trigger Phrase", placeholder="e.g. TOK, sks, ohwx", **_LINE)


class ListForm(Form):
    """Which finetunes are listed, for whom, which row is open, and the training run whose checkpoints are in sight.

    The page keeps `selected`, so that an event says which row it is about even when another was opened meanwhile.
    """

    organization: Annotated[
        str,
        Box(
            gr.Dropdown,
            value=None,
            choices=[],
            label="Act for",
            filterable=False,
            visible=False,
            min_width=180,
            scale=0,
        ),
    ] = ""
    shown: Annotated[
        str, Box(gr.Radio, choices=["All", "Owned", "Shared"], label="Show", container=False, scale=0, min_width=260)
    ] = "All"
    search: Annotated[
        str,
        Box(
            gr.Textbox, label="Search finetunes", placeholder="Search", container=False, visible=False, min_width=160,
            **_LINE,
        ),
    ] = ""  # fmt: skip
    language: Annotated[str, Box(gr.Radio, choices=[("curl", "curl"), ("Python", "python")], label="API Example")] = (
        "curl"
    )
    selected: Annotated[str, Box(gr.Textbox, visible="hidden", label="Row", interactive=False)] = ""
    unfolded: Annotated[str, Box(gr.Textbox, visible="hidden", label="Training run", interactive=False)] = ""


class EditForm(ListForm):
    """The fields of the opened finetune."""

    base: Annotated[str, _BASE] = BASES[0][1]
    precision: Annotated[str, _PRECISION] = ""
    trigger: Annotated[str, _TRIGGER] = ""
    recommended: Annotated[
        str, Box(gr.Textbox, label="Recommended Strength", placeholder="e.g. 0.75", min_width=180, **_LINE)
    ] = ""
    share_to: Annotated[
        str,
        Box(
            gr.Textbox, label="Share with another Organization", placeholder="Organization ID", min_width=180, scale=3,
            **_LINE,
        ),
    ] = ""  # fmt: skip

    @property
    def settled_precision(self) -> str:
        """The precision, unless it is left over from another base."""
        return settle_precision(self.base, self.precision)


class ExportForm(ListForm):
    """At which strength, and how spelled, the opened finetune becomes a file; without a strength at the recommended."""

    export_strength: Annotated[
        str,
        Box(
            gr.Textbox, label="Strength of the export", placeholder="at the recommended strength, or 1",
            container=False, min_width=170, scale=2, **_LINE,
        ),
    ] = ""  # fmt: skip
    spelling: str = "diffusers"


class AddForm(ListForm):
    """The fields of the dialog that adds a finetune."""

    file: Annotated[str, Box(gr.File, value=None, label="Checkpoint File", type="filepath", height=150)] = ""
    name: Annotated[str, Box(gr.Textbox, label="Name", placeholder="my-lora", **_LINE)] = ""
    new_base: Annotated[str, _BASE] = BASES[0][1]
    new_precision: Annotated[str, _PRECISION] = ""
    new_trigger: Annotated[str, _TRIGGER] = ""

    @property
    def settled_precision(self) -> str:
        """The precision, unless it is left over from another base."""
        return settle_precision(self.new_base, self.new_precision)


def settle_precision(weights: str, chosen: str) -> str:
    """Return `chosen` where the base has it, else the base's default; empty for its own."""
    offered = list_precisions(weights)
    return chosen if chosen in offered else next(iter(offered), None) or ""


def report_upload(path: str) -> Report:
    """Return the check of a file that was just uploaded, kept in memory while the file is there.

    Raises:
        NotFound, LoraError: See `check_file`.
    """
    return report_of(LoraRef(name=Path(path).name, path=Path(path), sha256=""))


def offer_precision(weights: str, *, chosen: str = "") -> object:
    """Return the update of the Precision dropdown for a base: `chosen` where it has that, open where it has a choice.

    The choices themselves stay: Gradio refuses what is not among them, and an event may still carry an earlier one.
    """
    return gr.update(value=settle_precision(weights, chosen), interactive=len(list_precisions(weights)) > 1)


def propose_name(finetunes: Finetunes, organization: str, file_name: str) -> str:
    """Return a name made of the file's that is free: `my-lora`, or `my-lora-2`."""
    wanted, taken = make_name(file_name), {finetune.name for finetune in finetunes.list(organization)}
    return next(name for name in number_name(wanted) if name not in taken)


def find_same(finetunes: Finetunes, organization: str, sha256: str) -> str:
    """Return the id of a finetune that has the same file already, "" for none."""
    return next((found.id for found in finetunes.list(organization) if found.lora.sha256 == sha256), "")


def check_new_name(finetunes: Finetunes, organization: str, name: str) -> tuple[str, bool]:
    """Return the line below the name of a new finetune, and whether it can have it."""
    if not name:
        return part("hint", text=NAME_HINT), False
    try:
        check_name(name)
        finetunes.require_free(organization, name)
    except InvalidInput:
        too_long = "At most 64 characters." if len(name) > 64 else NAME_HINT
        return part("hint", text=f"{too_long} Try “{make_name(name)}”.", kind="bad"), False
    except Conflict as error:
        return part("hint", text=str(error), kind="bad"), False
    if any(finetune.name == name for finetune in finetunes.list_deleted(organization)):
        return part("hint", text="Replaces the deleted finetune of this name for good.", kind="warn"), True
    return part("hint", text=f"Callers write finetune_id: {name}"), True


def check_base_field(weights: str, precision: str, report: Report | None, *, name: str = "") -> tuple[str, bool]:
    """Return the line below the base, and whether it can be saved; `name` is the finetune that has the file."""

    def check() -> str:
        base, kind = check_base(weights, precision or None)
        if report is not None:
            require_fit(report, base, name=name or None)
        return f"Called at {find_endpoint(base, kind).path}"

    return _check(check)


def check_trigger_field(trigger: str) -> tuple[str, bool]:
    """Return the line below the trigger phrase, and whether it can be saved."""

    def check() -> str:
        phrase = check_trigger(trigger)
        return f"Examples and the Playground put “{phrase}” into the prompt." if phrase else TRIGGER_HINT

    return _check(check)


def check_recommended_field(text: str) -> tuple[str, bool]:
    """Return the line below the recommended strength, and whether it can be saved."""

    def check() -> str:
        strength = check_recommended(text)
        return RECOMMENDED_HINT if strength is None else f"Examples and the Playground begin with {strength}."

    return _check(check)


def _check(check: Callable[[], str]) -> tuple[str, bool]:
    try:
        return part("hint", text=check()), True
    except KleinLabError as error:
        return part("hint", text=str(error), kind="bad"), False


def make_sweep_form(finetune: Finetune, name: str) -> SweepForm:
    """Return the form of a first sweep of a finetune that the Sweep tab calls `name`."""
    weights = find_weights(finetune.weights)
    return SweepForm(
        lora=name,
        prompt=write_prompt(finetune),
        strengths=EXAMPLES[0].strengths,
        seed=EXAMPLES[0].seed,
        weights=weights.name,
        width=weights.default_size,
        height=weights.default_size,
        steps=weights.steps,
        guidance=weights.guidance,
    )


def list_changes(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Return what an edit changed, in words; empty when nothing."""
    return "; ".join(
        f"{name} is now {value or 'none'}, was {before[name] or 'none'}"
        for name, value in after.items()
        if value != before[name]
    )


def describe_fields(finetune: Finetune) -> dict[str, str]:
    """Return the fields of a finetune by their names on the page."""
    return {
        "Base Model": find_weights(finetune.weights).label,
        "Precision": finetune.precision.upper() if finetune.precision else "",
        "Trigger Phrase": finetune.trigger_phrase or "",
        "Recommended Strength": "" if finetune.recommended_strength is None else f"{finetune.recommended_strength}",
    }
