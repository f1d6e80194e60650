"""Own presets: the whole form under a name, to fill it in again, to replace it, to delete it and to undo that."""

from dataclasses import dataclass, fields
from typing import Any, Final

import gradio as gr

from evaluation.store.presets import MAX_NAME, Preset, Presets
from evaluation.tabs import markup
from evaluation.tabs.form import dump_form, load_form
from evaluation.tabs.parts import SweepParts, Updates, Values, read_form
from evaluation.tabs.sweep_fields import FieldHandlers
from lora_runtime.errors import KleinLabError
from lora_runtime.registry.visitors import Visitors

_QUIET: Final = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(frozen=True, kw_only=True, eq=False)
class PresetParts:
    """The components of the presets. `undone` is what Undo brings back: a preset, or None."""

    chosen: gr.Dropdown
    name: gr.Textbox
    save: gr.Button
    delete: gr.Button
    undo: gr.Button
    hint: gr.HTML
    undone: gr.State


def lay_out_presets() -> PresetParts:
    """Lay the presets out where the caller is."""
    found: dict[str, Any] = {}
    found["chosen"] = gr.Dropdown([], value=None, label="Use a preset", elem_id="preset", filterable=False)
    with gr.Row():
        found["name"] = gr.Textbox(
            label="Save the form as", placeholder="a name", max_length=MAX_NAME, scale=3, min_width=150,
            elem_id="preset-name",
        )  # fmt: skip
        found["save"] = gr.Button("Save", scale=1, min_width=80, size="md", elem_classes="beside-field")
    found["hint"] = gr.HTML(
        markup.draw_hint("A preset keeps every field of this form under a name."), apply_default_css=False
    )
    with gr.Row():
        found["delete"] = gr.Button("Delete the preset", size="sm", interactive=False, min_width=120)
        found["undo"] = gr.Button("Undo", size="sm", visible=False, min_width=80)
    found["undone"] = gr.State(None)
    return PresetParts(**{part.name: found[part.name] for part in fields(PresetParts)})


class PresetHandlers:
    """Events of the presets."""

    def __init__(
        self, presets: Presets, visitors: Visitors, parts: PresetParts, form: SweepParts, act: FieldHandlers
    ) -> None:
        self._presets = presets
        self._visitors = visitors
        self._parts = parts
        self._form = form
        self._act = act

    def load(self, request: gr.Request) -> Updates:
        """List the presets; none is chosen."""
        return self._list(request, None)

    def use(self, name: str | None, request: gr.Request) -> Updates:
        """Fill the form with a preset."""
        if not name:
            return {self._parts.hint: gr.skip()}
        parts = self._parts
        try:
            form = load_form(self._presets.find(self._organization(request), name).form)
        except KleinLabError as error:
            return {parts.hint: markup.draw_error(error), parts.delete: gr.update(interactive=True)}
        known = {lora.name for lora in self._act.list_loras(request)}
        said = markup.draw_hint(f"The form is filled in from “{name}”.", kind="good")
        updates = self._act.fill(form, request)
        if form.lora not in known:
            updates[self._form.lora] = gr.skip()
            said = markup.draw_hint(f"Filled in from “{name}”, but its LoRA “{form.lora}” has gone.", kind="warn")
        return {
            **updates, parts.hint: said, parts.name: name, parts.undo: gr.update(visible=False),
            parts.delete: gr.update(interactive=True),
        }  # fmt: skip

    def save(self, values: Values, request: gr.Request) -> Updates:
        """Keep the form under the name; one that was there is replaced, which Undo takes back."""
        parts = self._parts
        name = " ".join(str(values[parts.name] or "").split())
        try:
            before = self._presets.save(self._organization(request), name, dump_form(read_form(self._form, values)))
        except KleinLabError as error:
            return {parts.hint: markup.draw_error(error)}
        text = f"Saved as “{name}”, in place of the one that was there." if before else f"Saved as “{name}”."
        return {**self._list(request, name), parts.hint: markup.draw_hint(text, kind="good"), **self._offer(before)}

    def delete(self, name: str | None, request: gr.Request) -> Updates:
        """Delete the chosen preset; Undo brings it back."""
        if not name:
            return {self._parts.hint: gr.skip()}
        parts = self._parts
        try:
            gone = self._presets.delete(self._organization(request), name)
        except KleinLabError as error:
            return {**self._list(request, None), parts.hint: markup.draw_error(error)}
        hint = markup.draw_hint(f"Deleted “{name}”.")
        return {**self._list(request, None), parts.hint: hint, **self._offer(gone)}

    def undo(self, before: Preset | None, request: gr.Request) -> Updates:
        """Bring back what Delete or Save took away."""
        if before is None:
            return {self._parts.hint: gr.skip()}
        parts = self._parts
        try:
            self._presets.save(self._organization(request), before.name, before.form)
        except KleinLabError as error:
            return {parts.hint: markup.draw_error(error)}
        hint = markup.draw_hint(f"“{before.name}” is as it was.", kind="good")
        return {**self._list(request, before.name), parts.hint: hint, **self._offer(None)}

    def _list(self, request: gr.Request, chosen: str | None) -> Updates:
        names = [preset.name for preset in self._presets.list(self._organization(request))]
        return {
            self._parts.chosen: gr.update(choices=names, value=chosen),
            self._parts.delete: gr.update(interactive=chosen is not None),
        }

    def _offer(self, before: Preset | None) -> Updates:
        return {self._parts.undone: before, self._parts.undo: gr.update(visible=before is not None)}

    def _organization(self, request: gr.Request) -> str:
        return self._visitors.organization(request.session_hash)


def wire_presets(act: PresetHandlers, parts: PresetParts, form: SweepParts) -> None:
    """Wire the events of the presets."""
    listed = {parts.chosen, parts.delete, parts.hint, parts.undo, parts.undone}
    parts.chosen.input(act.use, parts.chosen, {*form.fields(), *listed, parts.name}, api_name="use_preset", **_QUIET)
    parts.save.click(act.save, {*form.fields(), parts.name}, listed, api_name="save_preset", **_QUIET)
    parts.name.submit(act.save, {*form.fields(), parts.name}, listed, api_name="submit_preset", **_QUIET)
    parts.delete.click(act.delete, parts.chosen, listed, api_name="delete_preset", **_QUIET)
    parts.undo.click(act.undo, parts.undone, listed, api_name="undo_preset", **_QUIET)
