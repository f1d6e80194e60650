import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from evaluation.axes import AXES, SweepSpec, Target, read_spec, row_axis, write_spec
from evaluation.grid import extend_spec, extend_training, make_spec, parse_precisions, plan
from evaluation.identity import base_request, identity, rendered_request
from evaluation.trigger import add_trigger, has_trigger, remove_trigger
from lora_runtime.catalogue import find_weights
from lora_runtime.errors import InvalidInput, InvalidStrengths, LoraMismatch, NotFound, Unavailable
from lora_runtime.requests import LAST_SEED, SEED_BITS, fold_seed, resolve_seed
from lora_runtime.values import LoraRef, ModelStatus, Reference, RenderRequest
from tests.drawing_backend import STYLE, SUBJECT, DrawingBackend
from tests.training_runs import make_drawn_run

no_deadline = settings(deadline=None)  # a busy machine is no failure
REQUEST = RenderRequest(
    weights="pocket",
    precision="fp32",
    prompt="a red fox",
    seed=7,
    width=128,
    height=64,
    steps=4,
    guidance=1.0,
    lora=LoraRef(name="style", path=Path("style.safetensors"), sha256="a" * 64),
    strength=Decimal("0.7"),
)

requests = st.builds(
    RenderRequest,
    weights=st.sampled_from(["pocket", "klein-4b"]),
    precision=st.sampled_from(["fp8", "bf16", "fp32"]),
    prompt=st.text(min_size=1, max_size=20),
    seed=st.integers(0, LAST_SEED),
    width=st.integers(4, 16).map(lambda n: n * 16),
    height=st.integers(4, 16).map(lambda n: n * 16),
    steps=st.integers(1, 100),
    guidance=st.floats(1, 20),
    lora=st.sampled_from([None, STYLE, SUBJECT]),
    strength=st.integers(-40_000, 40_000).map(lambda n: Decimal(n) / 10_000),
)


def spec(**changes: Any) -> SweepSpec:
    asked = {"loras": [STYLE], "prompts": ["a red fox"], "strengths": "0, 0.7, 1", "seeds": [7], **changes}
    return make_spec(DrawingBackend(), **asked)


TARGET = Target(backend="local", weights="pocket", precision="fp32", digest="d1", steps=4, guidance=1.0)


def identify(request: RenderRequest) -> str:
    return identity(request, TARGET)


def as_rendered(request: RenderRequest) -> RenderRequest:
    return rendered_request(request, TARGET)


def test_the_recipe_of_an_identity_does_not_change_by_accident() -> None:
    """When this fails on purpose, raise IDENTITY_VERSION: every stored image is under the old recipe."""
    assert identify(REQUEST) == "7702f43f91141625faf10dfd7417265ee37ef894bbf996c7470153c5697821ad"


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "pocket-base"},
        {"precision": "bf16"},
        {"prompt": "a red fox "},
        {"seed": 8},
        {"width": 64},
        {"height": 128},
        {"steps": 5},
        {"guidance": 1.5},
        {"lora": SUBJECT},
        {"lora": None},
        {"strength": Decimal("0.7001")},
        {"strength": Decimal("-0.7")},
    ],
)
def test_whatever_decides_the_pixels_decides_the_identity(change: dict[str, Any]) -> None:
    assert identify(replace(REQUEST, **change)) != identify(REQUEST)
    assert identity(REQUEST, replace(TARGET, backend="remote")) != identify(REQUEST)
    assert identity(REQUEST, replace(TARGET, digest="d2")) != identify(REQUEST)


@pytest.mark.parametrize(
    "change",
    [
        {"strength": Decimal("0.70")},
        {"strength": Decimal("7E-1")},
        {"guidance": 1},
        {"lora": LoraRef(name="renamed", path=Path("elsewhere"), sha256="a" * 64)},
    ],
)
def test_whatever_does_not_decide_the_pixels_does_not(change: dict[str, Any]) -> None:
    assert identify(replace(REQUEST, **change)) == identify(REQUEST)


def test_every_lora_shares_the_base_cell() -> None:
    at_zero = [
        replace(REQUEST, lora=lora, strength=Decimal(zero)) for lora in (STYLE, SUBJECT) for zero in ("0", "-0.0")
    ]
    assert {identify(request) for request in at_zero} == {identify(base_request(REQUEST))}
    assert {as_rendered(request) for request in at_zero} == {base_request(REQUEST)}


def test_a_server_is_asked_for_each_lora_at_strength_0_and_an_old_spec_says_which_server() -> None:
    there = replace(TARGET, backend="remote", digest="remote:https://lab.example:8/x:flux-2-klein-4b-finetuned",
                    server="https://lab.example:8/x")  # fmt: skip
    at_zero = replace(REQUEST, strength=Decimal(0))
    assert rendered_request(at_zero, there) == at_zero
    assert identity(at_zero, there) == "5d2a04b08673891af79f690555664b5998e137be0b1f1d134d17243bd4a83f04"
    asked = replace(spec(), targets=(there,))
    kept = json.loads(write_spec(asked))
    del kept["targets"][0]["server"]
    assert read_spec(json.dumps(kept)) == read_spec(write_spec(asked)) == asked
    local = json.loads(write_spec(spec()))
    del local["targets"][0]["server"]
    assert read_spec(json.dumps(local)) == spec()


@no_deadline
@given(requests)
def test_identity_survives_a_json_round_trip(request_: RenderRequest) -> None:
    adapter = TypeAdapter(RenderRequest)
    again = adapter.validate_json(json.dumps(json.loads(adapter.dump_json(request_))))
    assert again == request_
    assert identify(again) == identify(request_)
    assert identify(as_rendered(request_)) == identify(request_)


@no_deadline
@given(requests, requests)
def test_two_requests_share_an_identity_only_when_they_render_the_same(
    one: RenderRequest, other: RenderRequest
) -> None:
    assert (identify(one) == identify(other)) == (as_rendered(one) == as_rendered(other))


def test_cells_come_row_by_row_and_share_noise() -> None:
    cells = plan(spec(seeds=[7, 8]))
    assert [(cell.position, cell.row, cell.column) for cell in cells] == [(i, i // 3, i % 3) for i in range(6)]
    assert [cell.column_label for cell in cells[:3]] == ["strength 0 (base)", "strength 0.70", "strength 1.00"]
    assert {cell.row_label for cell in cells[3:]} == {"seed 8"}
    assert {cell.request.seed for cell in cells[:3]} == {7}
    assert all(cell.base == cells[0].identity for cell in cells[:3])
    assert cells[0].request.lora == STYLE  # the sweep's own, though the image has none


def test_scenes_make_the_rows_of_each_value_of_one_other_axis() -> None:
    assert row_axis(spec()).name == "seed"
    assert row_axis(spec(prompts=["a", "b"])).name == "prompt"
    assert row_axis(spec(loras=[STYLE, SUBJECT])).name == "lora"
    assert [cell.row_label for cell in plan(spec(loras=[STYLE, SUBJECT]))] == ["style"] * 3 + ["subject"] * 3
    both = spec(loras=[STYLE, SUBJECT], prompts=["a", "b"], seeds=[1, 2])
    cells = plan(both)
    assert [cell.row_label for cell in cells[::3]] == [
        f"{lora} · {prompt} · seed {seed}" for lora in ("style", "subject") for prompt in "ab" for seed in (1, 2)
    ]
    assert [cell.position for cell in cells] == list(range(24))
    alone = plan(spec(loras=[SUBJECT], prompts=["b"], seeds=[1]))
    assert [cell.identity for cell in alone] == [cell.identity for cell in cells[18:21]]
    assert [cell.row_label for cell in plan(spec(prompts=["a", "b"], seeds=[1, 2]))[::3]] == [
        "a · seed 1", "a · seed 2", "b · seed 1", "b · seed 2"
    ]  # fmt: skip
    with pytest.raises(InvalidInput, match="several LoRAs and several precisions"):
        spec(loras=[STYLE, SUBJECT], precision=["bf16", "fp32"])
    assert set(AXES) == {"lora", "checkpoint", "prompt", "seed", "trigger", "target", "strength"}


def test_several_precisions_make_rows_of_their_own_identity() -> None:
    made = spec(precision=["bf16", "fp32", "bf16"])
    assert row_axis(made).name == "target"
    assert [target.precision for target in made.targets] == ["bf16", "fp32"]
    cells = plan(made)
    assert [cell.row_label for cell in cells] == ["bf16"] * 3 + ["fp32"] * 3
    assert [cell.request.precision for cell in cells] == ["bf16"] * 3 + ["fp32"] * 3
    assert len({cell.identity for cell in cells}) == 6
    assert {cell.base for cell in cells[3:]} == {cells[3].identity}
    assert [cell.identity for cell in cells[3:]] == [cell.identity for cell in plan(spec(precision="fp32"))]


def drawing(*weights: str) -> DrawingBackend:
    """A backend that can draw each of these weights, each with a digest of its own."""
    backend = DrawingBackend()
    statuses = [ModelStatus(weights=name, precision="bf16", available=True, digest=f"d-{name}") for name in weights]
    backend.models = lambda: statuses  # type: ignore[method-assign]
    return backend


def test_several_weights_make_rows_each_with_its_own_recipe() -> None:
    backend = drawing("pocket", "pocket-base")
    asked = {"loras": [STYLE], "prompts": ["a red fox"], "strengths": "0, 1", "seeds": [7]}
    made = make_spec(backend, weights=["pocket", "pocket-base"], steps=6, **asked)  # type: ignore[arg-type]
    base = find_weights("pocket-base")
    assert [(target.weights, target.digest) for target in made.targets] == [
        ("pocket", "d-pocket"),
        ("pocket-base", "d-pocket-base"),
    ]
    assert [(target.steps, target.guidance) for target in made.targets] == [(6, 1.0), (base.steps, base.guidance)]
    cells = plan(made)
    assert cells[2].row_label == f"pocket klein Base · bf16 · {base.steps} steps"
    assert [(cell.request.weights, cell.request.steps, cell.request.guidance) for cell in cells[2:]] == [
        ("pocket-base", base.steps, base.guidance)
    ] * 2
    assert len({cell.identity for cell in cells}) == 4
    assert {cell.base for cell in cells[2:]} == {cells[2].identity}
    alone = make_spec(backend, weights="pocket-base", **asked)  # type: ignore[arg-type]
    assert [cell.identity for cell in plan(alone)] == [cell.identity for cell in cells[2:]]


def test_a_lora_and_a_size_must_suit_all_weights() -> None:
    backend = drawing("pocket", "klein-4b")
    asked = {"prompts": ["a red fox"], "strengths": "0, 1", "seeds": [7], "weights": ["pocket", "klein-4b"]}
    with pytest.raises(LoraMismatch, match="they fit pocket"):
        make_spec(backend, loras=[STYLE], **asked)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="for pocket"):
        make_spec(
            drawing("klein-4b", "pocket"),
            loras=[],
            width=512,
            **{**asked, "strengths": "0", "weights": ["klein-4b", "pocket"]},
        )  # type: ignore[arg-type]


def test_rows_with_the_trigger_phrase_and_without() -> None:
    ohwx = replace(STYLE, trigger_phrase="ohwx")
    made = spec(loras=[ohwx], prompts=["a large ohwx in the snow"], compare_trigger=True)
    cells = plan(made)
    assert row_axis(made).name == "trigger"
    assert [cell.request.prompt for cell in cells[::3]] == ["a large ohwx in the snow", "a large in the snow"]
    assert [cell.row_label for cell in cells[::3]] == [
        "with the trigger phrase “ohwx”",
        "without the trigger phrase “ohwx”",
    ]
    assert read_spec(write_spec(made)) == made
    put_in = plan(spec(loras=[ohwx], prompts=["a fox"], compare_trigger=True))
    assert [cell.request.prompt for cell in put_in[::3]] == ["ohwx a fox", "a fox"]
    for change, said in (
        ({"loras": [STYLE]}, "style has no trigger phrase"),
        ({"prompts": ["OHWX"]}, "only “ohwx”"),
        ({"precision": ["bf16", "fp32"]}, "several triggers and several precisions"),
    ):
        with pytest.raises(InvalidInput, match=said):
            spec(**{"loras": [ohwx], "compare_trigger": True, **change})


@no_deadline
@given(st.text("ab ,oO", max_size=12), st.sampled_from(["o", "ob", "o b"]))
def test_a_trigger_phrase_goes_in_and_out(prompt: str, phrase: str) -> None:
    assert has_trigger(add_trigger(prompt, phrase), phrase)
    assert not has_trigger(remove_trigger(prompt, phrase), phrase)


def test_more_strengths_keep_the_identity_of_what_was_there() -> None:
    before = spec(strengths="0, 1, 0.5", seeds=[7, 8])
    after = extend_spec(before, [Decimal("0.75"), Decimal("0.5")])
    assert after.strengths == (0, Decimal("0.5"), Decimal("0.75"), 1)
    known = {cell.identity for cell in plan(before)}
    assert [cell.request.strength for cell in plan(after) if cell.identity not in known] == [Decimal("0.75")] * 2
    with pytest.raises(InvalidInput, match="its one strength is 0"):
        extend_spec(spec(loras=[], strengths="0"), [Decimal("0.5")])
    with pytest.raises(InvalidInput, match="402 cells"):
        extend_spec(spec(strengths="0, 1", seeds=range(134)), [Decimal("0.5")])


@pytest.mark.parametrize("precision", ["bf16", ["bf16", "fp32"]])
def test_specs_of_older_databases_still_load(precision: Any) -> None:
    made = spec(precision=precision)
    assert read_spec(write_spec(made)) == made
    kept = json.loads(write_spec(made))
    first, *further = kept.pop("targets")
    kept.update(first)
    names = ("backend", "precision", "digest")
    kept["further_targets"] = [{name: target[name] for name in names} for target in further]
    del kept["triggers"]
    assert read_spec(json.dumps(kept)) == made
    if not further:  # and from before there were several precisions
        del kept["further_targets"], kept["references"]
        assert read_spec(json.dumps(kept)) == made


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", ()), ("bf16", ("bf16",)), (" FP8 , bf16,", ("fp8", "bf16")), ("bf16,bf16", ("bf16",))],
)
def test_precisions_are_read_in_order(text: str, expected: tuple[str, ...]) -> None:
    assert parse_precisions(text) == expected
    with pytest.raises(InvalidInput, match="'int4' is none of fp8, bf16, fp32"):
        parse_precisions(f"{text},int4")


def test_references_count_by_content_and_order() -> None:
    one, two = (Reference(sha256=letter * 64, path=Path(letter)) for letter in "ab")
    with_one = replace(REQUEST, references=(one,))
    assert identify(with_one) != identify(REQUEST)
    assert identify(replace(REQUEST, references=(one, two))) != identify(replace(REQUEST, references=(two, one)))
    assert identify(replace(with_one, references=(replace(one, path=Path("moved")),))) == identify(with_one)
    assert identify(base_request(with_one)) != identify(base_request(REQUEST))
    made = spec(references=[one, two], width=64, height=64)
    assert all(cell.request.references == (one, two) for cell in plan(made))
    with pytest.raises(InvalidInput, match="5 references are too many"):
        spec(references=[one] * 5, width=64, height=64)


def test_the_base_column_comes_first_unless_it_is_there() -> None:
    assert spec(strengths="0.7, 1").strengths == (0, Decimal("0.7"), 1)
    assert spec(strengths="-1-1 [3]").strengths == (-1, 0, 1)
    assert spec(strengths="0.7, 1", base_column=False).strengths == (Decimal("0.7"), 1)


def test_defaults_come_from_the_catalogue_and_the_backend() -> None:
    made = spec()
    assert (made.target.backend, made.target.digest, made.target.precision) == ("drawing", "d1", "fp32")
    assert (made.width, made.height, made.steps, made.guidance) == (128, 128, 4, 1.0)
    assert spec(precision="bf16").target.precision == "bf16"


@pytest.mark.parametrize("unset", [None, -1])
def test_a_random_seed_is_resolved_once(unset: int | None) -> None:
    first, second = spec(seeds=[unset]), spec(seeds=[unset])
    assert 0 <= first.seeds[0] < 2**32
    assert first.seeds != second.seeds
    assert plan(first) == plan(first)


def test_a_seed_that_is_refused_would_repeat_the_one_it_is_told_of() -> None:
    def noise(seed: int) -> list[float]:
        latents: list[float] = torch.randn(4, generator=torch.Generator("cpu").manual_seed(seed)).tolist()
        return latents

    for seed in (2**32, 2**32 + 7, 2**63 - 1, 3 * 2**40 + 5):
        same = fold_seed(seed)
        assert same is not None
        assert noise(seed) == noise(same)
        with pytest.raises(InvalidInput, match=f"would give the image of seed {same}"):
            resolve_seed(seed)
    assert noise(LAST_SEED) != noise(LAST_SEED - 1)
    assert 2**SEED_BITS == LAST_SEED + 1
    assert [fold_seed(seed) for seed in (None, -1, 0, LAST_SEED)] == [None, -1, 0, LAST_SEED]


def test_what_is_given_twice_counts_once() -> None:
    assert spec(seeds=[7, 7, 0]).seeds == (7, 0)
    assert spec(prompts=["a", "a"]).prompts == ("a",)
    assert spec(loras=[STYLE, STYLE]).loras == (STYLE,)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"weights": "klein-5b"}, NotFound, "klein-base-9b"),
        ({"weights": "klein-4b"}, LoraMismatch, "they fit pocket"),
        ({"weights": "pocket-base"}, Unavailable, "run make"),
        ({"precision": "fp8"}, InvalidInput, "Choose one of: fp32, bf16"),
        ({"loras": []}, InvalidInput, "LoRA"),
        ({"loras": ["no-such-lora"]}, NotFound, "no-such-lora"),
        ({"prompts": []}, InvalidInput, "Prompt: give"),
        ({"prompts": [" \n"]}, InvalidInput, "Prompt"),
        ({"prompts": ["x" * 10_001]}, InvalidInput, "10001"),
        ({"prompts": ["a\0b"]}, InvalidInput, "NUL"),
        ({"prompts": ["\ud83e"]}, InvalidInput, "surrogate"),
        ({"strengths": "0, x"}, InvalidStrengths, "character 4"),
        ({"seeds": []}, InvalidInput, "Seed"),
        ({"seeds": [-2]}, InvalidInput, "-2"),
        ({"seeds": [2**32 + 7]}, InvalidInput, "Only 32 bits act: it would give the image of seed 7."),
        ({"seeds": [10**400]}, InvalidInput, "a number of 1329 bits is not from 0 to 4294967295"),
        ({"width": 100}, InvalidInput, "nearest is 96"),
        ({"height": 1024}, InvalidInput, "nearest is 256"),
        ({"height": 0}, InvalidInput, "nearest is 64"),
        ({"steps": 0}, InvalidInput, "Steps"),
        ({"guidance": float("nan")}, InvalidInput, "Guidance"),
        ({"guidance": 3.0}, InvalidInput, "distilled"),
        ({"seeds": range(101), "strengths": "0-1 [4]"}, InvalidInput, "404 cells"),
    ],
)
def test_each_bad_field_has_its_own_error(change: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        spec(**change)


def test_a_backend_without_the_weights_is_refused() -> None:
    elsewhere = DrawingBackend()
    elsewhere.models = list  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="does not run pocket"):
        make_spec(elsewhere, loras=[STYLE], prompts=["a red fox"], strengths="1")


def test_the_checkpoints_of_a_training_run_are_an_axis_by_what_differs() -> None:
    run = make_drawn_run(["500", "1000", "1500"], problems={"1000": "It was cut off."})
    trained = spec(loras=(), training=run, seeds=[7, 8])
    cells = plan(trained)
    assert row_axis(trained).name == "checkpoint"
    assert [cell.row_label for cell in cells[::3]] == [
        "500 · seed 7", "500 · seed 8", "1500 · seed 7", "1500 · seed 8"
    ]  # fmt: skip
    assert trained.training is not None
    assert [(stage.label, stage.problem) for stage in trained.training.stages] == [
        ("500", ""), ("1000", "It was cut off."), ("1500", "")
    ]  # fmt: skip
    assert len({cell.identity for cell in cells if not cell.request.strength}) == 2, "a base image a scene, for all"
    assert read_spec(write_spec(trained)) == trained


def test_a_training_run_that_grew_keeps_the_cells_it_had() -> None:
    before = spec(loras=(), training=make_drawn_run(["500"]))
    after = extend_training(before, make_drawn_run(["500", "1000"]))
    assert {cell.identity for cell in plan(before)} < {cell.identity for cell in plan(after)}
    assert [lora.name for lora in after.loras] == ["my-style-500", "my-style-1000"]


def test_a_checkpoint_that_is_an_earlier_one_again_says_so() -> None:
    run = make_drawn_run(["500", "1000"])
    last = replace(run.checkpoints[1], label="end")
    trained = spec(loras=(), training=replace(run, checkpoints=(*run.checkpoints, last)))
    assert trained.training is not None
    assert trained.training.stages[2].problem == "It is the same LoRA as 1000."


def test_a_training_run_without_a_checkpoint_that_fits_is_refused() -> None:
    run = make_drawn_run(["500"], problems={"500": "It was cut off."})
    with pytest.raises(InvalidInput, match=r"my-style has no checkpoint that can be rendered\. 500: It was cut off\."):
        spec(loras=(), training=run)
    with pytest.raises(InvalidInput, match="swept alone"):
        spec(training=make_drawn_run(["500"]))
