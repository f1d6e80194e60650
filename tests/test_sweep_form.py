"""The Sweep tab's form: what it makes of a choice of precision, and the way back."""

from dataclasses import replace

import pytest
from drawing_backend import DrawingBackend

from evaluation.grid import SweepSpec
from evaluation.tabs.form import PRECISIONS, SweepForm, count_cells, fill_form, make_form_spec
from lora_runtime.errors import InvalidInput
from lora_runtime.lora.library import find_lora

FORM = SweepForm(lora="style", prompt="a red fox", strengths="0, 1", seed="7", weights="pocket")


def make(**changes: object) -> SweepSpec:
    backend = DrawingBackend()
    form = replace(FORM, **changes)  # type: ignore[arg-type]
    return make_form_spec({backend.name: backend}, form, find_lora)


@pytest.mark.parametrize(
    ("precision", "expected"), [("", ["fp32"]), ("bf16", ["bf16"]), ("fp32", ["fp32"]), ("bf16,fp32", ["bf16", "fp32"])]
)
def test_the_precision_of_the_form_is_that_of_the_rows(precision: str, expected: list[str]) -> None:
    spec = make(precision=precision)
    assert [target.precision for target in spec.targets] == expected
    assert count_cells(replace(FORM, precision=precision)) == (len(expected), 2)


def test_a_form_comes_back_from_its_spec() -> None:
    assert fill_form(make(precision="bf16")).precision == "bf16"
    again = fill_form(make(rows="seed", more_seeds="8, 9"))
    assert (again.rows, again.more_seeds, again.seed) == ("seed", "8, 9", "7")
    both = fill_form(make(precision="bf16,fp32"))
    assert both.rows == "none", "two precisions are no choice of the second axis"
    assert both.precision in PRECISIONS


def test_two_precisions_and_another_axis_are_too_much() -> None:
    with pytest.raises(InvalidInput, match="several seeds and several precisions"):
        make(precision="bf16,fp32", rows="seed", more_seeds="8")
