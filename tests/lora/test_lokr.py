"""LoKr files: read exactly, and under the strength laws like any LoRA."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import KLEIN_4B, KLEIN_9B, POCKET
from lora_runtime.errors import LoraMismatch, LoraUnreadable, LoraUnsupported
from lora_runtime.lora.check import Report, check_file, measure_blocks, require_fit
from lora_runtime.lora.formats import Kronecker
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline.batch import Model
from lora_runtime.pipeline.kronecker import split_kronecker
from lora_runtime.values import Precision
from tests.lora_files import (
    Factors,
    kronecker,
    make_adapter,
    make_lokr,
    under_diffusers_names,
    write_diffusers,
    write_lokr,
)
from tests.pocket_model import load_model, predict, psnr, render, request

KINDS: Mapping[str, dict[str, int]] = {
    "whole": {},
    "w2-factored": {"rank": 4},
    "both-factored": {"rank": 4, "w1_rank": 4},
    "w1-factored": {"w1_rank": 4},
}


def dense(adapter: Mapping[str, Factors], scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Each diffusers module's weight change, from the definition of the Kronecker product and nothing of ours."""
    q, k, v = (scale * kronecker(adapter["double_blocks.0.img_attn.qkv"])).chunk(3)
    return {
        "transformer_blocks.0.attn.to_q": q,
        "transformer_blocks.0.attn.to_k": k,
        "transformer_blocks.0.attn.to_v": v,
        "single_transformer_blocks.0.attn.to_qkv_mlp_proj": scale * kronecker(adapter["single_blocks.0.linear1"]),
        "transformer_blocks.1.attn.to_out.0": scale * kronecker(adapter["double_blocks.1.img_attn.proj"]),
    }


def reference(changes: Mapping[str, torch.Tensor], strength: float) -> torch.Tensor:
    """The pocket's prediction with the changes added to its weights."""
    model = load_model()
    with torch.no_grad():
        for name, change in changes.items():
            weight = model.pipeline.transformer.get_submodule(name).weight
            weight.copy_(weight.double() + strength * change)
    return predict(model)


def layer_scales(report: Report) -> set[float]:
    return {layer.scale for layer in report.layers}


@pytest.mark.parametrize("kind", KINDS)
def test_read_from_shapes(tmp_path: Path, kind: str) -> None:
    adapter = make_lokr(POCKET, **KINDS[kind])
    report = check_file(write_lokr(tmp_path / "a.safetensors", adapter))
    assert report.fits == ("pocket", "pocket-base")
    assert report.spelling == "BFL / AI-Toolkit LoKr"
    assert report.ranks == (() if kind == "whole" else (4,))
    assert len(report.layers) == 5
    for module, change in dense(adapter).items():
        assert report.norms[module] == pytest.approx(float(change.norm()), rel=1e-5)
    assert list(measure_blocks(report)) == ["double 0", "double 1", "single 0"]


@pytest.mark.parametrize(
    ("kind", "alpha", "scale"),
    [("whole", 1e10, 1.0), ("whole", 1.0, 1.0), ("whole", None, 1.0), ("w2-factored", 2.0, 0.5),
     ("both-factored", 2.0, 0.5), ("w1-factored", 1.0, 0.25), ("w2-factored", None, 1.0)],
)  # fmt: skip
def test_alpha_counts_only_where_a_factor_is_a_product(
    tmp_path: Path, kind: str, alpha: float | None, scale: float
) -> None:
    path = write_lokr(tmp_path / "a.safetensors", make_lokr(POCKET, **KINDS[kind]), alpha=alpha)
    assert layer_scales(check_file(path)) == {scale}


@pytest.mark.parametrize("shape", [KLEIN_4B, KLEIN_9B])
def test_base_from_the_product_of_the_sides(tmp_path: Path, shape: object) -> None:
    h = shape.hidden  # type: ignore[attr-defined]
    w1, w2_a, w2_b = torch.ones(4, 4), torch.ones(9 * h // 4, 1), torch.ones(1, h // 4)
    path = write_lokr(tmp_path / "a.safetensors", {"single_blocks.0.linear1": {"w1": w1, "w2_a": w2_a, "w2_b": w2_b}})
    fits = check_file(path).fits
    assert all(name.endswith("4b" if shape is KLEIN_4B else ("9b", "9b-kv")) for name in fits)
    with pytest.raises(LoraMismatch, match=rf"0 of 1 layers match pocket klein; .*Choose {fits[0]}"):
        require_fit(check_file(path), "pocket")


def test_adaln_under_bfl_names_changes_halves(tmp_path: Path) -> None:
    h = POCKET.hidden
    factors = {"w1": torch.randn(4, 4), "w2": torch.randn(2 * h // 4, h // 4)}
    path = write_lokr(tmp_path / "a.safetensors", {"final_layer.adaLN_modulation.1": factors})
    (layer,) = check_file(path).layers
    assert layer.module == "norm_out.linear"
    a, b = split_kronecker(factors["w1"], (factors["w2"],), part=0, parts=1, swap_halves=layer.swap_halves)
    x = torch.randn(3, h)
    shift, scale = torch.nn.functional.linear(x, kronecker(factors).float()).chunk(2, dim=-1)
    torch.testing.assert_close(b(a(x)), torch.cat([scale, shift], dim=-1), rtol=1e-4, atol=1e-3)


def test_a_fused_product_splits_between_blocks_of_rows() -> None:
    factors = {"w1": torch.randn(8, 4), "w2_a": torch.randn(15, 3), "w2_b": torch.randn(3, 5)}  # 120 rows: 40, 40, 40
    w2 = (factors["w2_a"], factors["w2_b"])
    product = kronecker(factors)
    for part in range(3):
        a, b = split_kronecker(factors["w1"], w2, part=part, parts=3, swap_halves=False)
        for x in (torch.randn(2, 20), torch.randn(2, 7, 20)):
            expected = torch.nn.functional.linear(x.double(), product[40 * part : 40 * part + 40])
            torch.testing.assert_close(b(a(x)).double(), expected, rtol=1e-4, atol=1e-4)
        assert a.weight.shape[0] < 8  # rows of other parts are not computed


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_dense_weights(tmp_path: Path, kind: str) -> None:
    """Per-row strengths, fused q, k, v, alpha: all against weights that were changed by hand."""
    adapter = make_lokr(POCKET, size=0.4, **KINDS[kind])
    model = load_model()
    path = write_lokr(tmp_path / "a.safetensors", adapter, alpha=2.0)
    name = model.adapters.attach(find_lora(str(path)))
    with model.adapters.strengths({name: [0.7, -0.5]}):
        output = predict(model)
    changes = dense(adapter, 1.0 if kind == "whole" else 0.5)
    base = reference(changes, 0.0)
    for row, strength in enumerate((0.7, -0.5)):
        expected = reference(changes, strength)
        torch.testing.assert_close(output[row], expected[row], rtol=1e-3, atol=2e-4)
        assert (expected[row] - base[row]).abs().max() > 0.02


@pytest.mark.parametrize(("kind", "alpha"), [("w2-factored", 2.0), ("whole", 1e10)])
def test_equals_diffusers_own_loader(tmp_path: Path, kind: str, alpha: float) -> None:
    """AI-Toolkit's spelling is one that diffusers takes too; it fuses q, k and v of the base for it."""
    path = write_lokr(tmp_path / "a.safetensors", make_lokr(POCKET, size=0.4, **KINDS[kind]), alpha=alpha)
    theirs, ours = load_model(), load_model()
    base = predict(ours)
    theirs.pipeline.load_lora_weights(str(path), adapter_name="reference_adapter")
    expected = predict(theirs)
    name = ours.adapters.attach(find_lora(str(path)))
    with ours.adapters.strengths({name: [1.0, 1.0]}):
        torch.testing.assert_close(predict(ours), expected, rtol=1e-3, atol=2e-4)
    assert (expected - base).abs().max() > 0.02


@pytest.fixture(scope="module")
def shared_model() -> Model:
    return load_model()


def test_zero_and_detached_are_the_base_bit_for_bit(shared_model: Model, tmp_path: Path) -> None:
    model = shared_model
    before = predict(model)
    weights = {name: tensor.clone() for name, tensor in model.pipeline.transformer.state_dict().items()}
    name = model.adapters.attach(find_lora(str(write_lokr(tmp_path / "a.safetensors", make_lokr(POCKET, rank=4)))))
    with model.adapters.strengths({name: [1.0, 0.0]}):
        during = predict(model)
    assert not torch.equal(during[0], before[0])
    assert torch.equal(during[1], before[1])
    with model.adapters.strengths({}):
        assert torch.equal(predict(model), before)
    model.adapters.detach(name)
    assert torch.equal(predict(model), before)
    after = {key.replace(".base_layer", ""): tensor for key, tensor in model.pipeline.transformer.state_dict().items()}
    assert after.keys() == weights.keys()  # q, k, v are three modules still, and no half of the LoKr stayed
    assert all(torch.equal(after[key], tensor) for key, tensor in weights.items())


def test_a_lora_and_a_lokr_in_one_batch_do_not_touch_each_other(shared_model: Model, tmp_path: Path) -> None:
    model = shared_model
    lokr = model.adapters.attach(find_lora(str(write_lokr(tmp_path / "k.safetensors", make_lokr(POCKET, size=0.5)))))
    plain = model.adapters.attach(find_lora(str(write_diffusers(tmp_path / "l.safetensors", make_adapter(POCKET)))))
    with model.adapters.strengths({lokr: [0.8, 0.0], plain: [0.0, 1.2]}):
        mixed = predict(model)
    with model.adapters.strengths({lokr: [0.8, 0.8]}):
        only_lokr = predict(model)
    with model.adapters.strengths({plain: [1.2, 1.2]}):
        only_plain = predict(model)
    torch.testing.assert_close(mixed[0], only_lokr[0], rtol=0, atol=0)
    torch.testing.assert_close(mixed[1], only_plain[1], rtol=0, atol=0)
    model.adapters.shrink()


@pytest.mark.parametrize("kind", ["whole", "w2-factored"])
def test_each_spelling_gives_the_same_pixels(local_backend: LocalBackend, tmp_path: Path, kind: str) -> None:
    adapter = split_friendly(kind)
    halved = {name: {**factors, "w1": factors["w1"] * 2} for name, factors in adapter.items()}
    alpha = None if kind == "whole" else 2.0  # of rank 4: it halves what was doubled
    apart = under_diffusers_names(halved if alpha else adapter)
    paths = [
        write_lokr(tmp_path / "0.safetensors", adapter),
        write_lokr(tmp_path / "1.safetensors", halved if alpha else adapter, prefix="lora_unet_", alpha=alpha),
        write_lokr(tmp_path / "2.safetensors", adapter, prefix="base_model.model.", infix=".default"),
        write_lokr(tmp_path / "3.safetensors", apart, prefix="lycoris_", alpha=alpha or 1e10),
        write_lokr(tmp_path / "4.safetensors", apart, prefix="transformer.", alpha=alpha),
        write_lokr(tmp_path / "5.safetensors", apart, prefix="", alpha=alpha),
        write_lokr(tmp_path / "6.safetensors", adapter, prefix="lycoris_"),
    ]
    strengths = ("0", "0.7", "1.2")
    first, *others = (
        render(local_backend, *(request(find_lora(str(path)), at, steps=2) for at in strengths)) for path in paths
    )
    assert not (first[0] == first[1]).all()
    for images in others:
        assert all((image == expected).all() for image, expected in zip(images, first, strict=True))
    (base, alone) = render(local_backend, request(steps=2), request(find_lora(str(paths[0])), "0.7", steps=2))
    assert (first[0] == base).all()
    assert psnr(first[1], alone) > 45


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_on_rounded_weights(local_backend: LocalBackend, tmp_path: Path, precision: Precision) -> None:
    """A fused LoKr on an fp8 base, which no fused q, k, v could take: 0 is that base, a batch is its images."""
    lokr = find_lora(str(write_lokr(tmp_path / "a.safetensors", make_lokr(POCKET, rank=4, size=0.5), alpha=4.0)))
    asked = [request(lokr, at, steps=2, precision=precision) for at in ("0", "0.7", "1.2")]
    zero, *others, base = render(local_backend, *asked, request(steps=2, precision=precision))
    assert (zero == base).all()
    for image, single in zip(others, asked[1:], strict=True):
        assert not (image == base).all()
        assert psnr(image, render(local_backend, single)[0]) > 45


def split_friendly(kind: str) -> dict[str, Factors]:
    """A LoKr whose fused w1 has a multiple of 3 rows, so that the same product can be written with q, k, v apart."""
    generator = torch.Generator().manual_seed(3)
    h = POCKET.hidden
    adapter: dict[str, Factors] = {}
    for name, out in {"double_blocks.0.img_attn.qkv": 3 * h, "single_blocks.0.linear1": 9 * h,
                      "double_blocks.1.img_attn.proj": h}.items():  # fmt: skip
        p = 12 if name.endswith("qkv") else 8
        factors = {"w1": torch.randn(p, 8, generator=generator) * 0.2}
        if kind == "whole":
            factors["w2"] = torch.randn(out // p, h // 8, generator=generator) / (h // 8) ** 0.5
        else:
            factors["w2_a"] = torch.randn(out // p, 4, generator=generator) / 2
            factors["w2_b"] = torch.randn(4, h // 8, generator=generator) / (h // 8) ** 0.5
        adapter[name] = factors
    return adapter


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ("no w1", LoraUnreadable, "without its partner"),
        ("no w2_b", LoraUnreadable, "without its partner"),
        ("rank", LoraUnreadable, r"do not fit each other: \[96, 4\] and \[3, 32\]"),
        ("vector", LoraUnreadable, "should be a matrix"),
        ("also lora", LoraUnreadable, "a LoRA and a LoKr at once"),
        ("tucker", LoraUnsupported, "convolutions"),
        ("dora", LoraUnsupported, "DoRA"),
        ("nan", LoraUnreadable, "NaN"),
        ("zero", LoraUnreadable, "change nothing"),
        ("odd", LoraUnreadable, "do not split into q, k and v"),
    ],
)
def test_each_damage_has_its_own_sentence(tmp_path: Path, change: str, error: type[Exception], says: str) -> None:
    tensors = load_file(write_lokr(tmp_path / "a.safetensors", make_lokr(POCKET, rank=4)))
    module = "diffusion_model.double_blocks.0.img_attn.qkv"
    match change:
        case "no w1":
            del tensors[f"{module}.lokr_w1"]
        case "no w2_b":
            del tensors[f"{module}.lokr_w2_b"]
        case "rank":
            tensors[f"{module}.lokr_w2_b"] = torch.ones(3, 32)
        case "vector":
            tensors[f"{module}.lokr_w1"] = torch.ones(8)
        case "also lora":
            tensors[f"{module}.lora_A.weight"] = torch.ones(4, POCKET.hidden)
        case "tucker":
            tensors[f"{module}.lokr_t2"] = torch.ones(4, 4, 1, 1)
        case "dora":
            tensors[f"{module}.dora_scale"] = torch.ones(1, POCKET.hidden)
        case "nan":
            tensors[f"{module}.lokr_w2_a"][0, 0] = torch.nan
        case "zero":
            tensors = {key: torch.zeros_like(tensor) if "w2_a" in key else tensor for key, tensor in tensors.items()}
        case "odd":
            tensors[f"{module}.lokr_w1"] = torch.ones(1, 8)
            tensors[f"{module}.lokr_w2_a"] = torch.ones(100, 4)
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(error, match=says):
        check_file(tmp_path / "b.safetensors")


def test_factors_are_kept_by_their_keys(tmp_path: Path) -> None:
    report = check_file(write_lokr(tmp_path / "a.safetensors", make_lokr(POCKET, rank=4)))
    q = next(layer for layer in report.layers if layer.module.endswith("to_q"))
    assert isinstance(q.factors, Kronecker)
    assert [len(keys) for keys in (q.factors.w1, q.factors.w2)] == [1, 2]
    assert (q.part, q.parts, q.in_features, q.out_features) == (0, 3, POCKET.hidden, POCKET.hidden)
