"""The components of the Playground that events read and change, and how their values become a form and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import gradio as gr

from evaluation.tabs.playground_form import SLIDER, PlayForm, read_choice
from lora_runtime.errors import InvalidInput
from lora_runtime.written import read_decimal

FIELDS: Final = (
    "model", "where", "prompt", "strength", "seed", "aspect", "width", "height", "steps", "guidance",
    "precision", "remote_id", "references", "output_format",
)  # fmt: skip
"""Names of `PlayForm`'s fields, each a component of the same name in `PlayParts`."""

Values = Mapping[gr.components.Component, Any]
"""What Gradio hands to an event: component -> its value. Checked by `read_play_form`."""

Updates = dict[gr.components.Component, Any]
"""What an event gives back: component -> its new value or properties; the others stay as they are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlayParts:
    """Fields first, as in `FIELDS`; then what describes them, buttons, and what a run shows.

    `model` and `selected` are kept by the page, so that an event says what it is about even when two overtake.
    """

    model: gr.Textbox
    where: gr.Radio
    prompt: gr.Textbox
    strength: gr.Textbox
    seed: gr.Textbox
    aspect: gr.Dropdown
    width: gr.Number
    height: gr.Number
    steps: gr.Number
    guidance: gr.Number
    precision: gr.Dropdown
    remote_id: gr.Textbox
    references: gr.State
    output_format: gr.Radio
    slider: gr.Slider
    picker: gr.HTML
    route: gr.HTML
    trigger: gr.HTML
    strip: gr.HTML
    upload: gr.UploadButton
    dice: gr.Button
    last: gr.Button
    reset: gr.Button
    run: gr.Button
    stop: gr.Button
    status: gr.HTML
    picture: gr.HTML
    history: gr.HTML
    selected: gr.Textbox

    def inputs(self) -> set[gr.components.Component]:
        """The components a form is read from."""
        return {getattr(self, name) for name in FIELDS}

    def fields(self) -> set[gr.components.Component]:
        """The components a form is written to: its own, and those that go with one of them."""
        return {*self.inputs(), self.slider, self.strip, self.upload}


def read_play_form(parts: PlayParts, values: Values) -> PlayForm:
    """Return what the fields hold; the page may send anything, so every value is made what the form says it is."""
    found = {name: values.get(getattr(parts, name)) for name in FIELDS}
    return PlayForm(
        model=read_choice(found["model"]),
        where=str(found["where"] or ""),
        prompt=str(found["prompt"] or ""),
        strength=str(found["strength"] if found["strength"] is not None else ""),
        seed=str(found["seed"] if found["seed"] is not None else ""),
        aspect=str(found["aspect"] or ""),
        width=_whole(found["width"]),
        height=_whole(found["height"]),
        steps=_whole(found["steps"]),
        guidance=float(found["guidance"]) if found["guidance"] is not None else None,
        precision=str(found["precision"] or ""),
        remote_id=str(found["remote_id"] or ""),
        references=tuple(found["references"] or ()),
        output_format=str(found["output_format"] or "png"),
    )


def write_play_form(parts: PlayParts, form: PlayForm) -> Updates:
    """Return the updates that put `form` on the page; the download's format stays what the visitor chose."""
    updates: Updates = {
        getattr(parts, name): getattr(form, name)
        for name in FIELDS
        if name != "output_format" and getattr(form, name) is not None
    }
    if form.model is not None:
        updates[parts.model] = form.model.model_dump_json(exclude_defaults=True)
    return {**updates, parts.slider: slide_to(form.strength)}


def slide_to(strength: str) -> float:
    """Where the slider stands for a strength of the box: at its end when the strength is beyond it."""
    low, high = SLIDER
    try:
        return min(max(float(read_decimal("Strength", strength)), low), high)
    except InvalidInput:
        return 1.0


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
