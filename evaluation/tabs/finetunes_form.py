"""The fields of a finetune as a person fills them in: each is checked while they type, and says what to write instead.

The rules are `finetune_rules.py` and the file's own report; here they become choices, hints and errors at the field.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gradio as gr

from evaluation.tabs import finetunes_markup as markup
from evaluation.tabs.finetunes_parts import FormParts, Updates, Values, read_text
from evaluation.tabs.sweep_form import EXAMPLES, SweepForm
from lora_runtime.catalogue import ENDPOINTS, WEIGHTS, find_weights
from lora_runtime.errors import Conflict, InvalidInput, KleinLabError
from lora_runtime.lora.check import Report, require_fit
from lora_runtime.lora.library import make_name, report_of
from lora_runtime.lora.names import check_trigger, number_name
from lora_runtime.registry.finetune import NAME_RULE, Finetune, check_base, check_name, find_endpoint, list_precisions
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

NAME_HINT: Final = markup.draw_hint(f"{NAME_RULE}.")
BASE_HINT: Final = markup.draw_hint("Proposed when the file has been checked.")
TRIGGER_HINT: Final = markup.draw_hint("Optional: the word or phrase the LoRA was trained on, which prompts must have.")
"""The lines below fields that nobody has filled in."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the fields hold. An empty precision is the base's own."""

    weights: str
    precision: str
    trigger_phrase: str


@dataclass(frozen=True, kw_only=True)
class Hint:
    """The line below a field; `ok` when nothing keeps it from being saved."""

    html: str
    ok: bool = True


def read_entry(parts: FormParts, values: Values) -> Entry:
    """Return what the fields hold; a precision left over from another base becomes the default of this one."""
    weights = read_text(values, parts.base)
    return Entry(
        weights=weights,
        precision=settle_precision(weights, read_text(values, parts.precision)),
        trigger_phrase=read_text(values, parts.trigger),
    )


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


def check_entry(parts: FormParts, entry: Entry, report: Report | None, *, name: str = "") -> tuple[Updates, bool]:
    """Return the lines below base and trigger phrase, and whether both can be saved; `name` is what has the file."""
    base, trigger = _check_base(entry, report, name), _check_trigger(entry)
    return {parts.base_hint: base.html, parts.trigger_hint: trigger.html}, base.ok and trigger.ok


def propose_name(finetunes: Finetunes, organization: str, file_name: str) -> str:
    """Return a name made of the file's that is free: `my-lora`, or `my-lora-2`."""
    wanted, taken = make_name(file_name), {finetune.name for finetune in finetunes.list(organization)}
    return next(name for name in number_name(wanted) if name not in taken)


def find_same(finetunes: Finetunes, organization: str, sha256: str) -> str:
    """Return the id of a finetune that has the same file already, "" for none."""
    return next((found.id for found in finetunes.list(organization) if found.lora.sha256 == sha256), "")


def check_new_name(finetunes: Finetunes, organization: str, name: str) -> Hint:
    """Say whether a new finetune can have this name."""
    if not name:
        return Hint(html=NAME_HINT, ok=False)
    try:
        check_name(name)
        finetunes.require_free(organization, name)
    except InvalidInput:
        too_long = "At most 64 characters." if len(name) > 64 else f"{NAME_RULE}."
        return Hint(html=markup.draw_hint(f"{too_long} Try “{make_name(name)}”.", kind="bad"), ok=False)
    except Conflict as error:
        return Hint(html=markup.draw_hint(str(error), kind="bad"), ok=False)
    if any(finetune.name == name for finetune in finetunes.list_deleted(organization)):
        return Hint(html=markup.draw_hint("Replaces the deleted finetune of this name for good.", kind="warn"))
    return Hint(html=markup.draw_hint(f"Callers write finetune_id: {name}"))


def _check_base(entry: Entry, report: Report | None, name: str) -> Hint:
    def check() -> str:
        weights, precision = check_base(entry.weights, entry.precision or None)
        if report is not None:
            require_fit(report, weights, name=name or None)
        return markup.draw_hint(f"Called at {find_endpoint(weights, precision).path}")

    return _hint(check)


def _check_trigger(entry: Entry) -> Hint:
    def check() -> str:
        phrase = check_trigger(entry.trigger_phrase)
        return (
            markup.draw_hint(f"Examples and the Playground put “{phrase}” into the prompt.") if phrase else TRIGGER_HINT
        )

    return _hint(check)


def _hint(check: Callable[[], str]) -> Hint:
    try:
        return Hint(html=check())
    except KleinLabError as error:
        return Hint(html=markup.draw_hint(str(error), kind="bad"), ok=False)


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


def describe_fields(weights: str, precision: str | None, trigger_phrase: str | None) -> dict[str, str]:
    """Return the fields of a finetune by their names on the page."""
    return {
        "Base Model": find_weights(weights).label,
        "Precision": precision.upper() if precision else "",
        "Trigger Phrase": trigger_phrase or "",
    }
