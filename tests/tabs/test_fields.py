"""A form is read, written and kept by one code, and a new field is one record."""

from typing import Annotated, Any

import gradio as gr
import pytest

from evaluation.tabs.fields import Box, Form
from lora_runtime.errors import InvalidInput


class Asked(Form):
    """The kinds of fields that tabs have."""

    prompt: Annotated[str, Box(gr.Textbox, label="Prompt", lines=2)] = "a red cat"
    steps: Annotated[int | None, Box(gr.Number, label="Steps", precision=0)] = None
    more: Annotated[tuple[str, ...], Box(gr.Dropdown, label="More", choices=["a", "b"], multiselect=True)] = ()
    selected: str = ""


class Wider(Asked):
    """The same with one more field: this line is all there is to it."""

    note: Annotated[str, Box(gr.Textbox, label="Note", placeholder="why")] = "none"


def lay_out(form: type[Form], **options: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    form.lay_out(parts, *form.boxes(), **options)
    return parts


def test_a_record_lays_a_field_out_reads_writes_and_keeps_it() -> None:
    note = lay_out(Wider)["note"]
    assert (type(note), note.label, note.placeholder, note.value) == (gr.Textbox, "Note", "why", "none")
    form = Wider.read({"prompt": "a boat", "steps": 4.0, "more": ["b"], "note": "for later", "selected": "row"})
    assert form == Wider(prompt="a boat", steps=4, more=("b",), note="for later", selected="row")
    assert form.write() == {"prompt": "a boat", "steps": 4, "more": ["b"], "note": "for later"}
    assert Wider.load(form.dump()) == form
    assert Wider.load(Asked(prompt="kept before").dump()).note == "none"


def test_what_holds_nothing_has_its_default() -> None:
    assert Asked.read({"prompt": None, "steps": None, "more": None}) == Asked()
    assert "steps" not in Asked().write()
    assert set(Asked().write(leave={"more"})) == {"prompt"}
    assert Asked.read({"prompt": 7}).prompt == "7"


def test_options_of_a_page_go_before_those_of_the_record() -> None:
    assert lay_out(Asked, visible=False)["prompt"].visible is False


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"steps": "four"}, "Steps: 'four' does not fit."),
        ({"more": {"a": 1}}, "More: "),
        ({"selected": []}, "selected"),
    ],
)
def test_what_a_page_invents_is_refused_by_its_label(values: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        Asked.read(values)


def test_a_text_that_is_no_form_is_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot be read any more"):
        Asked.load("[]")
