"""The components of the Finetunes tab that events read and change: the list, the panel of an opened row, the dialog."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import gradio as gr

Values: TypeAlias = Mapping[gr.components.Component, Any]
"""What Gradio hands to an event: component -> its value. The page may send anything, so every value is made a text."""

Updates: TypeAlias = dict[Any, Any]
"""What an event gives back: component -> its new value or properties; the others stay as they are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ListParts:
    """The list. `table` ends with the opened row and `rest` goes on below its panel; `selected` is its id.

    The page keeps `selected`, so that an event says which row it is about even when another was opened meanwhile.
    """

    you: gr.HTML
    organization: gr.Dropdown
    shown: gr.Radio
    search: gr.Textbox
    note: gr.HTML
    table: gr.HTML
    rest: gr.HTML
    deleted: gr.HTML
    selected: gr.Textbox

    def view(self) -> set[gr.components.Component]:
        """The components that say what is listed, and for whom."""
        return {self.organization, self.shown, self.search, self.selected}

    def drawn(self) -> set[gr.components.Component]:
        """The components that show the list."""
        return {
            self.you, self.organization, self.shown, self.search, self.note, self.table, self.rest, self.deleted,
            self.selected,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class FormParts:
    """The fields of a finetune, each with a line below it; both the panel and the dialog have them."""

    base: gr.Dropdown
    base_hint: gr.HTML
    precision: gr.Dropdown
    trigger: gr.Textbox
    trigger_hint: gr.HTML

    def fields(self) -> set[gr.components.Component]:
        """The components that hold values."""
        return {self.base, self.precision, self.trigger}

    def all(self) -> set[gr.components.Component]:
        """Every component."""
        return {getattr(self, part.name) for part in fields(self)}


@dataclass(frozen=True, kw_only=True, eq=False)
class PanelParts:
    """The panel of an opened row. `owned` holds what only the owner sees."""

    panel: gr.Column
    heading: gr.HTML
    language: gr.Radio
    example: gr.HTML
    owned: gr.Column
    form: FormParts
    save: gr.Button
    saved: gr.HTML
    share_to: gr.Textbox
    grant: gr.Button
    grants: gr.HTML
    shared: gr.HTML
    report: gr.HTML

    def drawn(self) -> set[gr.components.Component]:
        """The components that show a finetune."""
        return {
            self.panel, self.heading, self.example, self.owned, *self.form.all(), self.saved, self.share_to,
            self.grants, self.shared, self.report,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class DialogParts:
    """The dialog that adds a finetune."""

    head: gr.HTML
    file: gr.File
    file_hint: gr.HTML
    name: gr.Textbox
    name_hint: gr.HTML
    form: FormParts
    report: gr.HTML
    error: gr.HTML
    upload: gr.Button

    def fields(self) -> set[gr.components.Component]:
        """The components that hold values."""
        return {self.file, self.name, *self.form.fields()}

    def drawn(self) -> set[gr.components.Component]:
        """The components that a check or a validation changes."""
        return {
            self.file, self.file_hint, self.name, self.name_hint, *self.form.all(), self.report, self.error, self.upload
        }  # fmt: skip


def read_text(values: Values, part: gr.components.Component) -> str:
    """Return the value of a part as a text, empty for none."""
    value = values.get(part)
    return str(value) if value is not None else ""
