"""Each spelling is understood as the same layers; each misfit has its own error."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_runtime.catalogue import POCKET
from lora_runtime.errors import LoraMismatch, LoraUnreadable
from lora_runtime.lora.check import check_file, measure_blocks, read_trigger_phrase
from lora_runtime.lora.contents import sort_keys
from lora_runtime.lora.file import read_file
from lora_runtime.lora.formats import Layers, read_layers
from tests.lora_files import STYLES, fuse, make_adapter, write_bfl, write_diffusers, write_kohya, write_styled
from tests.pocket_model import load_model


def layers_of(path: Path) -> Layers:
    file = read_file(path)
    return read_layers(file, sort_keys(file))


def modules(path: Path) -> dict[str, tuple[int, int, int, float]]:
    return {
        layer.module: (layer.out_features, layer.in_features, layer.rank, layer.scale)
        for layer in layers_of(path).layers
    }


def test_three_spellings_are_one_adapter(tmp_path: Path) -> None:
    adapter = make_adapter(POCKET)
    plain = modules(write_diffusers(tmp_path / "a.safetensors", adapter))
    assert plain == modules(write_bfl(tmp_path / "b.safetensors", adapter))
    kohya = modules(write_kohya(tmp_path / "c.safetensors", adapter, alpha_over_rank=0.5))
    assert {name: values[:3] for name, values in kohya.items()} == {name: values[:3] for name, values in plain.items()}
    assert {values[3] for values in plain.values()} == {1.0}
    assert {values[3] for values in kohya.values()} == {0.5}


@pytest.mark.parametrize("style", STYLES)
def test_each_style_is_the_same_layers(tmp_path: Path, style: str) -> None:
    adapter = make_adapter(POCKET)
    expected = modules(write_diffusers(tmp_path / "a.safetensors", adapter))
    scale = STYLES[style].alpha_over_rank or 1.0
    for name, values in modules(write_styled(tmp_path / "b.safetensors", adapter, STYLES[style])).items():
        assert values == (*expected[name][:3], scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_alpha_of_any_type(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = load_file(write_kohya(tmp_path / "a.safetensors", make_adapter(POCKET, rank=4), alpha_over_rank=0.5))
    tensors = {key: tensor.to(dtype) if key.endswith(".alpha") else tensor for key, tensor in tensors.items()}
    save_file(tensors, tmp_path / "b.safetensors")
    assert {values[3] for values in modules(tmp_path / "b.safetensors").values()} == {0.5}


def test_alpha_of_adapter_metadata(tmp_path: Path) -> None:
    tensors = load_file(write_diffusers(tmp_path / "a.safetensors", make_adapter(POCKET, rank=4)))
    config = {
        "transformer.r": 4,
        "transformer.lora_alpha": 8,
        "transformer.alpha_pattern": {"single_transformer_blocks.0.attn.to_qkv_mlp_proj": 2},
    }
    save_file(tensors, tmp_path / "b.safetensors", metadata={"lora_adapter_metadata": json.dumps(config)})
    scales = {name: values[3] for name, values in modules(tmp_path / "b.safetensors").items()}
    assert scales.pop("single_transformer_blocks.0.attn.to_qkv_mlp_proj") == 0.5
    assert set(scales.values()) == {2.0}
    config["transformer.use_rslora"] = True
    save_file(tensors, tmp_path / "c.safetensors", metadata={"lora_adapter_metadata": json.dumps(config)})
    assert modules(tmp_path / "c.safetensors")["transformer_blocks.0.attn.to_q"][3] == 4.0


def test_adaln_halves_are_swapped_only_for_bfl_names(tmp_path: Path) -> None:
    for name, swapped in (
        ("diffusion_model.final_layer.adaLN_modulation.1", True),
        ("transformer.norm_out.linear", False),
    ):
        h = POCKET.hidden
        save_file(
            {f"{name}.lora_A.weight": torch.ones(2, h), f"{name}.lora_B.weight": torch.ones(2 * h, 2)},
            tmp_path / "a.safetensors",
        )
        (layer,) = layers_of(tmp_path / "a.safetensors").layers
        assert layer.module == "norm_out.linear"
        assert layer.swap_halves is swapped


def test_text_encoder_layers_are_left_out_with_a_notice(tmp_path: Path) -> None:
    tensors = load_file(write_kohya(tmp_path / "a.safetensors", make_adapter(POCKET)))
    tensors["lora_te_layers_0_mlp.lora_down.weight"] = torch.ones(2, 2)
    save_file(tensors, tmp_path / "b.safetensors")
    report = check_file(tmp_path / "b.safetensors")
    assert report.notices == ("1 text-encoder tensors are left out: only the transformer is adapted.",)


def test_file_without_any_lora(tmp_path: Path) -> None:
    save_file({"model.weight": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(LoraMismatch, match="no LoRA layer"):
        check_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("metadata", "phrase"),
    [
        ({}, None),
        ({"modelspec.trigger_phrase": "ohwx"}, "ohwx"),
        ({"trainedWords": '["ohwx", "ohwx cat"]'}, "ohwx, ohwx cat"),
        ({"trigger_phrase": "[ohwx"}, "[ohwx"),
        ({"ss_tag_frequency": '{"1_ohwx": {"ohwx": 1}}'}, "ohwx"),
        ({"ss_tag_frequency": '{"1_all": {"a cat": 1, "a dog": 1}}'}, None),
        ({"ss_tag_frequency": "not json"}, None),
    ],
)
def test_trigger_phrase(tmp_path: Path, metadata: dict[str, str], phrase: str | None) -> None:
    path = write_bfl(tmp_path / "a.safetensors", make_adapter(POCKET), metadata=metadata)
    assert read_trigger_phrase(read_file(path)) == phrase


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_norms_are_those_of_the_product(tmp_path: Path, dtype: torch.dtype) -> None:
    adapter = {key: tensor.to(dtype) for key, tensor in make_adapter(POCKET).items()}
    report = check_file(write_bfl(tmp_path / "a.safetensors", adapter))
    for module, norm in report.norms.items():
        product = adapter[f"{module}.B"].double() @ adapter[f"{module}.A"].double()
        assert norm == pytest.approx(float(product.norm()), rel=1e-6)
    blocks = measure_blocks(report)
    assert list(blocks) == ["double 0", "double 1", "single 0"]
    double_0 = sum(norm**2 for module, norm in report.norms.items() if module.startswith("transformer_blocks.0."))
    assert blocks["double 0"] == pytest.approx(double_0**0.5)


def test_nan_and_zero_files_are_refused(tmp_path: Path) -> None:
    adapter = make_adapter(POCKET)
    key = "transformer_blocks.0.attn.to_q.B"
    broken = adapter | {key: adapter[key] * float("nan")}
    with pytest.raises(LoraUnreadable, match="NaN or infinity"):
        check_file(write_diffusers(tmp_path / "nan.safetensors", broken))
    empty = {name: tensor * (not name.endswith("B")) for name, tensor in adapter.items()}
    with pytest.raises(LoraUnreadable, match="change nothing"):
        check_file(write_diffusers(tmp_path / "zero.safetensors", empty))


@pytest.mark.parametrize(
    ("metadata", "trained_on"),
    [
        ({}, None),
        ({"ss_sd_model_name": "flux-2-klein-base-4b.safetensors"}, "base"),
        ({"ss_sd_model_name": "flux-2-klein-4b.safetensors"}, "distilled"),
        ({"ss_base_model_version": "flux2_klein_4b"}, None),
    ],
)
def test_base_or_distilled_where_the_trainer_says_so(
    tmp_path: Path, metadata: dict[str, str], trained_on: str | None
) -> None:
    path = write_bfl(tmp_path / "a.safetensors", make_adapter(POCKET), metadata=metadata)
    assert check_file(path).trained_on == trained_on


def test_fuse_helper_is_not_trivial() -> None:
    adapter = make_adapter(POCKET)
    fused = fuse(adapter)
    assert fused["double_blocks.0.img_attn.qkv.B"].shape == (3 * POCKET.hidden, 4)


BFL_NAMES = (  # as the checkpoints of FLUX.2 [klein] have them
    "img_in", "txt_in", "time_in.in_layer", "time_in.out_layer", "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.lin", "single_stream_modulation.lin", "final_layer.linear",
    "final_layer.adaLN_modulation.1", "single_blocks.0.linear1", "single_blocks.0.linear2",
    *(f"double_blocks.0.{stream}_{part}" for stream in ("img", "txt") for part in ("attn.qkv", "attn.proj", "mlp.0",
                                                                                   "mlp.2")),
)  # fmt: skip


@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_"])
def test_every_layer_of_the_transformer_has_a_name_in_every_dialect(tmp_path: Path, prefix: str) -> None:
    """Both dialects cover each linear layer of the real transformer once, at its real size."""
    model = load_model().pipeline.transformer
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}

    def write(names: dict[str, tuple[int, int]]) -> Path:
        tensors = {}
        for name, (out_features, in_features) in names.items():
            module = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
            tensors[f"{module}.lora_A.weight"] = torch.ones(1, in_features)
            tensors[f"{module}.lora_B.weight"] = torch.ones(out_features, 1)
        save_file(tensors, tmp_path / "a.safetensors")
        return tmp_path / "a.safetensors"

    sizes = {name: (layer.out_features, layer.in_features) for name, layer in linear.items()}
    assert {layer.module for layer in check_file(write(sizes)).layers} == sizes.keys()
    found = layers_of(write(dict.fromkeys(BFL_NAMES, (3, 1))))
    assert not found.unmatched
    first_blocks = {name for name in sizes if "blocks." not in name or "blocks.0." in name}
    assert {layer.module for layer in found.layers} == first_blocks
