"""The strength laws: what is written on a cell is what acted on it."""

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from diffusers.hooks import apply_group_offloading
from safetensors.torch import load_file

from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import POCKET, find_weights
from lora_runtime.errors import LoraUnreadable
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline.batch import Model
from lora_runtime.pipeline.find import find_checkpoint
from lora_runtime.values import LoraRef, Precision
from tests.lora_files import (
    STYLES,
    make_adapter,
    make_lokr,
    write_bfl,
    write_diffusers,
    write_kohya,
    write_lokr,
    write_styled,
)
from tests.pocket_model import load_model, predict, psnr, render, request

STRENGTHS = [Decimal(text) for text in ("0", "0.35", "0.7", "1", "1.2", "-0.5")]


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoraRef]:
    folder = tmp_path_factory.mktemp("loras")
    one, two = make_adapter(POCKET, size=0.6), make_adapter(POCKET, rank=2, seed=1, size=0.6)
    paths = {
        "one": write_diffusers(folder / "one.safetensors", one),
        "kohya": write_kohya(folder / "kohya.safetensors", one, alpha_over_rank=0.5),
        "two": write_bfl(folder / "two.safetensors", two),
    }
    return {name: find_lora(str(path)) for name, path in paths.items()}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_strength_zero_is_the_base_bit_for_bit(
    local_backend: LocalBackend, loras: dict[str, LoraRef], precision: Precision
) -> None:
    asked = ((loras["one"], "0"), (loras["one"], "1"), (None, "0"))
    zero, one, base = render(local_backend, *(request(lora, at, precision=precision) for lora, at in asked))
    (alone,) = render(local_backend, request(precision=precision))
    assert (zero == base).all()
    assert psnr(zero, alone) > 80  # another batch size may round another way in fp32
    assert not (one == base).all()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_batch_equals_its_images_one_by_one(
    local_backend: LocalBackend, loras: dict[str, LoraRef], precision: Precision
) -> None:
    requests = [request(loras["one"], strength, precision=precision) for strength in STRENGTHS]
    together = render(local_backend, *requests)
    for image, single in zip(together, requests, strict=True):
        (alone,) = render(local_backend, single)
        assert psnr(image, alone) > (50 if precision == "bf16" else 80)


def test_neighbouring_strengths_differ(local_backend: LocalBackend, loras: dict[str, LoraRef]) -> None:
    images = render(local_backend, *(request(loras["one"], strength) for strength in STRENGTHS))
    for index, image in enumerate(images):
        assert all(not (image == other).all() for other in images[index + 1 :])


def test_each_spelling_gives_the_same_pixels(local_backend: LocalBackend, tmp_path: Path) -> None:
    """Every style of `STYLES`, whatever diffusers' own loader makes of it, is one and the same adapter."""
    adapter = make_adapter(POCKET, size=0.6)
    refs = [
        find_lora(str(write_styled(tmp_path / f"{index}.safetensors", adapter, style)))
        for index, style in enumerate(STYLES.values())
    ]
    assert len({ref.sha256 for ref in refs}) == len(refs)
    strengths = ("0", "0.7", "-0.5")
    (base,) = render(local_backend, request(steps=2))
    expected = [render(local_backend, request(refs[0], at, steps=2))[0] for at in strengths]
    assert (expected[0] == base).all()
    assert not (expected[1] == base).all()
    for style, ref in zip(STYLES, refs, strict=True):
        for at, image in zip(strengths, expected, strict=True):
            (other,) = render(local_backend, request(ref, at, steps=2))
            assert (other == image).all(), f"{style} at {at}"


def test_two_loras_in_one_batch_do_not_touch_each_others_rows(
    local_backend: LocalBackend, loras: dict[str, LoraRef]
) -> None:
    requests = [
        request(loras["one"], "0.7"),
        request(loras["two"], "1.2"),
        request(None),
        request(loras["two"], "0.3", seed=8, prompt="a blue fox"),
        request(loras["one"], "1", seed=8),
    ]
    mixed = render(local_backend, *requests)
    for image, single in zip(mixed, requests, strict=True):
        (alone,) = render(local_backend, single)
        assert psnr(image, alone) > 50


def test_a_lora_is_computed_for_its_own_rows_alone(model: Model, loras: dict[str, LoraRef]) -> None:
    """Two prompts are the two rows of `predict`."""
    one, two = (model.adapters.attach(loras[name]) for name in ("one", "two"))
    computed: dict[str, set[int]] = {}
    for module in model.pipeline.transformer.modules():
        for name, half in getattr(module, "lora_A", {}).items():
            half.register_forward_pre_hook(
                lambda _half, args, name=name: computed.setdefault(name, set()).add(args[0].shape[0])
            )
    with model.adapters.strengths({one: [0.7, 0.0], two: [0.0, 1.2]}):
        mixed = predict(model)
    assert computed == {one: {1}, two: {1}}
    for name, row, strengths in ((one, 0, [0.7, 0.7]), (two, 1, [1.2, 1.2])):
        with model.adapters.strengths({name: strengths}):
            assert torch.allclose(predict(model)[row], mixed[row], atol=1e-5)
    assert computed == {one: {1, 2}, two: {1, 2}}
    computed.clear()
    with model.adapters.strengths({one: [0.0, 0.0]}):
        predict(model)
    assert not computed


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_equals_the_diffusers_loop(
    local_backend: LocalBackend, loras: dict[str, LoraRef], precision: Precision
) -> None:
    weights = find_weights("pocket")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    pipeline = Flux2KleinPipeline.from_pretrained(find_checkpoint(weights), dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(loras["kohya"].path), adapter_name="reference_adapter")
    ours = render(local_backend, *(request(loras["kohya"], strength, precision=precision) for strength in STRENGTHS))
    for image, strength in zip(ours, STRENGTHS, strict=True):
        pipeline.set_adapters(["reference_adapter"], [float(strength)])
        reference = pipeline(
            prompt="a red cat in the meadow",
            width=64,
            height=64,
            num_inference_steps=4,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(7),
            max_sequence_length=weights.max_sequence_length,
            text_encoder_out_layers=weights.text_encoder_out_layers,
        ).images[0]
        assert psnr(image, np.asarray(reference)) >= 45


@pytest.fixture
def model() -> Model:
    return load_model()


def test_detach_restores_the_base_bit_for_bit(model: Model, loras: dict[str, LoraRef]) -> None:
    before = predict(model)
    name = model.adapters.attach(loras["one"])
    with model.adapters.strengths({name: [1.0, 0.0]}):
        during = predict(model)
    with model.adapters.strengths({}):
        assert torch.equal(predict(model), before)
    model.adapters.detach(name)
    assert torch.equal(predict(model), before)
    assert not torch.equal(during[0], before[0])
    assert torch.equal(during[1], before[1])


def attached(model: Model) -> set[str]:
    return set(model.pipeline.transformer.peft_config)


def test_adapters_over_the_cache_size_leave_unless_in_use(model: Model, loras: dict[str, LoraRef]) -> None:
    first, second = (model.adapters.attach(loras[name]) for name in ("one", "two"))
    model.adapters.shrink(keep=[second])
    assert attached(model) == {second}
    assert model.adapters.attach(loras["one"]) == first
    with model.adapters.strengths({first: [1.0, 1.0]}):
        model.adapters.shrink()
        assert attached(model) == {first}
        predict(model)


@pytest.mark.parametrize("kind", ["LoRA", "LoKr"])
def test_the_least_recently_used_leave_by_bytes(tmp_path: Path, kind: str) -> None:
    def write(seed: int) -> LoraRef:
        path = tmp_path / f"{seed}.safetensors"
        if kind == "LoKr":
            return find_lora(str(write_lokr(path, make_lokr(POCKET, rank=4, seed=seed))))
        return find_lora(str(write_diffusers(path, make_adapter(POCKET, seed=seed))))

    one, two, three = (write(seed) for seed in range(3))
    loaded = load_file(one.path).items()
    matrices = sum(tensor.nbytes * (3 if "img_attn.qkv.lokr_w2" in key else 1) for key, tensor in loaded)
    model = load_model(adapter_cache_bytes=2 * matrices + matrices // 2)
    names = {ref.sha256: model.adapters.attach(ref) for ref in (one, two, one, three)}
    model.adapters.shrink()
    assert attached(model) == {names[one.sha256], names[three.sha256]}
    again = model.adapters.attach(two)
    with model.adapters.strengths({again: [1.0, 1.0]}):
        predict(model)


def test_key_order_does_not_matter(model: Model, loras: dict[str, LoraRef], tmp_path: Path) -> None:
    adapter = make_adapter(POCKET, size=0.6)
    backwards = dict(reversed(adapter.items()))
    outputs = []
    for index, tensors in enumerate((adapter, backwards)):
        path = write_diffusers(tmp_path / f"{index}.safetensors", tensors)
        name = model.adapters.attach(find_lora(str(path)))
        with model.adapters.strengths({name: [1.0, 1.0]}):
            outputs.append(predict(model))
        if index == 0:
            model.adapters.detach(name)
    assert torch.equal(*outputs)


def test_a_file_that_changed_after_it_was_chosen_is_refused(model: Model, tmp_path: Path) -> None:
    path = write_diffusers(tmp_path / "a.safetensors", make_adapter(POCKET))
    chosen = find_lora(str(path))
    write_diffusers(path, make_adapter(POCKET, seed=5))
    with pytest.raises(LoraUnreadable, match="changed after it was chosen"):
        model.adapters.attach(chosen)


@pytest.mark.parametrize("kind", ["LoRA", "LoKr"])
def test_attaching_to_layers_that_come_in_turns(model: Model, tmp_path: Path, kind: str) -> None:
    """Group offloading hooks each base layer; adapters come later and stay outside of it."""
    path = tmp_path / "a.safetensors"
    written = write_lokr(path, make_lokr(POCKET, rank=4)) if kind == "LoKr" else write_bfl(path, make_adapter(POCKET))
    name = model.adapters.attach(find_lora(str(written)))
    with model.adapters.strengths({name: [1.0, 0.5]}):
        expected = predict(model)
    offloaded = load_model()
    base = predict(offloaded)
    cpu = torch.device("cpu")
    apply_group_offloading(
        offloaded.pipeline.transformer, onload_device=cpu, offload_device=cpu, offload_type="leaf_level"
    )
    name = offloaded.adapters.attach(find_lora(str(written)))
    with offloaded.adapters.strengths({name: [1.0, 0.5]}):
        assert torch.equal(predict(offloaded), expected)
    offloaded.adapters.detach(name)
    assert torch.equal(predict(offloaded), base)
