"""The Sweep tab's form: what it makes of each second axis, and the way back; what it will take and cost."""

import json
from decimal import Decimal

import pytest

from evaluation.axes import list_rows
from evaluation.grid import SweepSpec, plan
from evaluation.store.store import Store
from evaluation.strengths import parse_strengths
from evaluation.sweep import run_sweep
from evaluation.tabs.sweep_estimate import estimate_form, say_estimate
from evaluation.tabs.sweep_form import (
    STRENGTHS,
    SweepForm,
    choose_backends,
    count_cells,
    fill_form,
    make_form_spec,
)
from lora_runtime.backends.base import Backend
from lora_runtime.errors import InvalidInput
from lora_runtime.lora.library import find_lora
from lora_runtime.settings import settings
from lora_runtime.values import ModelStatus
from tests.drawing_backend import DrawingBackend

FORM = SweepForm(lora="style", prompt="a red fox", strengths="0, 1", seed="7", weights="pocket")


def changed(form: SweepForm, **changes: object) -> SweepForm:
    return form.model_copy(update=changes)


def make(**changes: object) -> SweepSpec:
    backend = DrawingBackend()
    form = changed(FORM, **changes)
    return make_form_spec({backend.name: backend}, form, find_lora)


@pytest.mark.parametrize(
    ("precision", "expected"), [("", ["fp32"]), ("bf16", ["bf16"]), ("fp32", ["fp32"]), ("bf16,fp32", ["bf16", "fp32"])]
)
def test_the_precision_of_the_form_is_that_of_the_rows(precision: str, expected: list[str]) -> None:
    spec = make(precision=precision)
    assert [target.precision for target in spec.targets] == expected
    assert count_cells(changed(FORM, precision=precision)) == (len(expected), 2)


def drawing() -> DrawingBackend:
    """A backend that can draw on both pockets."""
    backend = DrawingBackend()
    statuses = [
        *backend.models()[:2],
        ModelStatus(weights="pocket-base", precision="fp32", available=True, digest="d2"),
    ]
    backend.models = lambda: statuses  # type: ignore[method-assign]
    return backend


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16"},
        {"further_seeds": "8, 9"},
        {"further_prompts": "a blue owl\na green fish"},
        {"further_prompts": "a blue owl\na green fish", "further_seeds": "8"},
        {"rows": "lora", "more_loras": ("subject",)},
        {"rows": "lora", "more_loras": ("subject",), "further_prompts": "a blue owl", "further_seeds": "8, 9"},
        {"rows": "trigger", "lora": "subject", "prompt": "a large ohwx in the snow"},
        {"rows": "weights", "more_weights": ("pocket-base",)},
        {"rows": "precision", "precision": "bf16", "more_precisions": ("fp32",)},
        {"rows": "backend", "backends": "drawing", "more_backends": ("elsewhere",)},
    ],
)
def test_a_form_comes_back_from_its_spec(changes: dict[str, object]) -> None:
    form = changed(FORM, **changes)
    backends = {"drawing": drawing(), "elsewhere": drawing()}
    made = make_form_spec(backends, form, find_lora)
    again = fill_form(made)
    assert again.rows == form.rows
    assert make_form_spec(backends, again, find_lora) == made
    assert fill_form(make_form_spec(backends, again, find_lora)) == again
    places = len(choose_backends(backends, form))
    assert count_cells(form, places) == (len(list_rows(made)), len(made.strengths))


def test_what_belongs_to_another_axis_does_not_count() -> None:
    more = {"more_loras": ("subject",), "more_weights": ("pocket-base",), "more_precisions": ("bf16",)}
    assert len(plan(make(**more, more_backends=("nowhere",)))) == 2


@pytest.mark.parametrize(
    ("rows", "prompts", "seeds"),
    [("seed", "", "8, 9"), ("prompt", "b\nc", ""), ("lora", "", ""), ("none", "", "")],
)
def test_an_older_preset_opens_with_the_scenes_that_it_counted(rows: str, prompts: str, seeds: str) -> None:
    kept = {"lora": "style", "prompt": "a", "seed": "7", "rows": rows, "more_seeds": "8, 9", "more_prompts": "b\nc"}
    form = SweepForm.load(json.dumps(kept))
    assert (form.further_prompts, form.further_seeds) == (prompts, seeds)
    assert form.rows == (rows if rows == "lora" else "none")
    assert SweepForm.load(form.dump()) == form


def test_a_form_survives_as_a_preset() -> None:
    form = changed(FORM, rows="weights", more_weights=("pocket-base",), width=64, guidance=1.0)
    assert SweepForm.load(form.dump()) == form
    older = json.loads(form.dump())
    del older["more_weights"], older["more_backends"]
    assert SweepForm.load(json.dumps({**older, "gone": 1})) == changed(form, more_weights=())
    with pytest.raises(InvalidInput, match="cannot be read"):
        SweepForm.load('{"lora": []}')


def test_two_precisions_and_another_axis_are_too_much() -> None:
    with pytest.raises(InvalidInput, match="several LoRAs and several precisions"):
        make(precision="bf16,fp32", rows="lora", more_loras=("subject",))


@pytest.mark.parametrize("strengths", STRENGTHS.values())
def test_strengths_at_a_click_are_exact_and_start_at_the_base(strengths: str) -> None:
    assert parse_strengths(strengths)[0] == 0
    assert len(parse_strengths(strengths)) <= 12


def test_time_here_and_credits_elsewhere_are_estimated() -> None:
    store = Store.open(settings())
    try:
        statuses = {"local": drawing().models()}
        here: dict[str, Backend] = {"local": DrawingBackend()}
        there: dict[str, Backend] = {"remote": DrawingBackend(server="http://lab")}
        first = estimate_form(FORM, here, statuses, store)
        assert (first.images, first.seconds, first.credits) == (2, None, None)
        backend = DrawingBackend()
        list(run_sweep(make(), backend=backend, store=store))
        known = estimate_form(changed(FORM, rows="lora", more_loras=("subject",)), here, statuses, store)
        assert (known.images, known.seconds) == (4, 1.0)
        both = changed(FORM, rows="backend", more_backends=("remote",))
        beside = estimate_form(both, here | there, statuses, store)
        assert (beside.rows, beside.images, beside.seconds, beside.credits) == (2, 4, 0.5, Decimal("0.2"))
        assert say_estimate(beside, here=True) == ("2 × 2 = 4 images", ("about 1 s", "about 0.2 credits"))
        dear = changed(FORM, weights="klein-9b", width=1024, height=1024, strengths="0-1 [5]", backends="remote")
        only = estimate_form(dear, there, {}, store)
        assert (only.seconds, only.credits) == (None, Decimal("7.5"))
        assert say_estimate(only, here=False) == ("5 images", ("about 7.5 credits",))
        partly = changed(dear, weights="klein-4b", precision="bf16,fp8")  # there is no endpoint for bf16
        assert estimate_form(partly, there, {}, store).credits is None
    finally:
        store.close()
