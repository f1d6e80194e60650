"""The components of the Sweep tab that events read and change, and how their values become a form and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import gradio as gr

from evaluation.tabs.form import SweepForm

FIELDS: Final = (
    "lora", "prompt", "strengths", "seed", "weights", "rows", "more_seeds", "more_prompts", "more_loras",
    "more_weights", "more_precisions", "more_backends", "width", "height", "steps", "guidance", "precision", "backends",
)  # fmt: skip
"""Names of `SweepForm`'s fields, each a component of the same name in `SweepParts`."""

Values = Mapping[gr.components.Component, Any]
"""What Gradio hands to an event: component -> its value. Checked by `read_form`."""

Updates = dict[gr.components.Component, Any]
"""What an event gives back: component -> its new value or properties; the others stay as they are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepParts:
    """Fields first, as in `FIELDS`; then hints, buttons, and what a run shows.

    `chosen` are the positions of the cells A and B, or None.
    """

    lora: gr.Dropdown
    prompt: gr.Textbox
    strengths: gr.Textbox
    seed: gr.Textbox
    weights: gr.Dropdown
    rows: gr.Radio
    more_seeds: gr.Textbox
    more_prompts: gr.Textbox
    more_loras: gr.Dropdown
    more_weights: gr.Dropdown
    more_precisions: gr.Dropdown
    more_backends: gr.Dropdown
    width: gr.Number
    height: gr.Number
    steps: gr.Number
    guidance: gr.Number
    precision: gr.Dropdown
    backends: gr.Dropdown
    lora_hint: gr.HTML
    insert_trigger: gr.Button
    echo: gr.HTML
    weights_hint: gr.HTML
    upload: gr.UploadButton
    upload_hint: gr.HTML
    dice: gr.Button
    earlier: gr.Dropdown
    run: gr.Button
    stop: gr.Button
    resume: gr.Button
    download: gr.Button
    download_file: gr.DownloadButton
    status: gr.HTML
    verdict: gr.HTML
    grid: gr.HTML
    add_values: gr.Textbox
    add: gr.Button
    refine: gr.Button
    extend_hint: gr.HTML
    run_id: gr.State
    chosen: gr.State

    def fields(self) -> set[gr.components.Component]:
        """The components a form is read from."""
        return {getattr(self, name) for name in FIELDS}


def read_form(parts: SweepParts, values: Values) -> SweepForm:
    """Return what the fields hold; the page may send anything, so every value is made what the form says it is."""
    found = {name: values.get(getattr(parts, name)) for name in FIELDS}
    return SweepForm(
        lora=str(found["lora"]) if found["lora"] else None,
        prompt=str(found["prompt"] or ""),
        strengths=str(found["strengths"] or ""),
        seed=str(found["seed"] if found["seed"] is not None else ""),
        weights=str(found["weights"] or "pocket"),
        rows=str(found["rows"] or "none"),
        more_seeds=str(found["more_seeds"] or ""),
        more_prompts=str(found["more_prompts"] or ""),
        more_loras=_names(found["more_loras"]),
        more_weights=_names(found["more_weights"]),
        more_precisions=_names(found["more_precisions"]),
        more_backends=_names(found["more_backends"]),
        width=_whole(found["width"]),
        height=_whole(found["height"]),
        steps=_whole(found["steps"]),
        guidance=float(found["guidance"]) if found["guidance"] is not None else None,
        precision=str(found["precision"] or ""),
        backends=str(found["backends"] or ""),
    )


def write_form(parts: SweepParts, form: SweepForm) -> Updates:
    """Return the updates that put `form` on the page; its numbers too, unless they are None."""
    updates: Updates = {}
    for name in FIELDS:
        value = getattr(form, name)
        if value is not None:
            updates[getattr(parts, name)] = list(value) if isinstance(value, tuple) else value
    for field, shown in show_rows(parts, form.rows).items():
        updates[field] = {**shown, "value": updates[field]}
    return updates


def show_rows(parts: SweepParts, rows: str) -> Updates:
    """Return the updates that show the one field of the chosen second axis."""
    fields = {
        "seed": parts.more_seeds, "prompt": parts.more_prompts, "lora": parts.more_loras,
        "weights": parts.more_weights, "precision": parts.more_precisions, "backend": parts.more_backends,
    }  # fmt: skip
    return {field: gr.update(visible=name == rows) for name, field in fields.items()}


def _names(value: Any) -> tuple[str, ...]:
    return tuple(str(name) for name in value or ())


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
