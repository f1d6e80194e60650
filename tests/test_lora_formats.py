"""Each spelling is understood as the same layers; each misfit has its own error."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_runtime.catalogue import KLEIN_4B, POCKET
from lora_runtime.errors import Conflict, InvalidInput, LoraMismatch, LoraUnreadable, LoraUnsupported, NotFound
from lora_runtime.lora.check import check_file, measure_blocks, read_trigger_phrase, require_fit
from lora_runtime.lora.file import read_file
from lora_runtime.lora.formats import read_layers
from lora_runtime.lora.library import find_lora, keep_lora, list_loras
from tests.lora_files import fuse, make_adapter, write_bfl, write_diffusers, write_kohya


def modules(path: Path) -> dict[str, tuple[int, int, int, float]]:
    return {
        layer.module: (layer.out_features, layer.in_features, layer.rank, layer.scale)
        for layer in read_layers(read_file(path)).layers
    }


def test_three_spellings_are_one_adapter(tmp_path: Path) -> None:
    adapter = make_adapter(POCKET)
    plain = modules(write_diffusers(tmp_path / "a.safetensors", adapter))
    assert plain == modules(write_bfl(tmp_path / "b.safetensors", adapter))
    kohya = modules(write_kohya(tmp_path / "c.safetensors", adapter, alpha_over_rank=0.5))
    assert {name: values[:3] for name, values in kohya.items()} == {name: values[:3] for name, values in plain.items()}
    assert {values[3] for values in plain.values()} == {1.0}
    assert {values[3] for values in kohya.values()} == {0.5}


@pytest.mark.parametrize("prefix", ["", "base_model.model.", "diffusion_model.", "base_model.model.transformer."])
def test_other_prefixes(tmp_path: Path, prefix: str) -> None:
    adapter = make_adapter(POCKET)
    expected = modules(write_diffusers(tmp_path / "a.safetensors", adapter))
    assert modules(write_diffusers(tmp_path / "b.safetensors", adapter, prefix=prefix)) == expected


def test_peft_default_infix(tmp_path: Path) -> None:
    adapter = make_adapter(POCKET)
    expected = modules(write_diffusers(tmp_path / "a.safetensors", adapter))
    assert modules(write_diffusers(tmp_path / "b.safetensors", adapter, infix=".default")) == expected


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
        (layer,) = read_layers(read_file(tmp_path / "a.safetensors")).layers
        assert layer.module == "norm_out.linear"
        assert layer.swap_halves is swapped


def test_text_encoder_layers_are_left_out_with_a_notice(tmp_path: Path) -> None:
    tensors = load_file(write_kohya(tmp_path / "a.safetensors", make_adapter(POCKET)))
    tensors["lora_te_layers_0_mlp.lora_down.weight"] = torch.ones(2, 2)
    save_file(tensors, tmp_path / "b.safetensors")
    report = check_file(tmp_path / "b.safetensors")
    assert report.notices == ("1 text-encoder tensors are left out: only the transformer is adapted.",)


@pytest.mark.parametrize(
    ("key", "what"),
    [("dora_scale", "DoRA"), ("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("oft_blocks", "OFT"), ("diff", "full")],
)
def test_other_kinds_are_refused_by_name(tmp_path: Path, key: str, what: str) -> None:
    tensors = load_file(write_bfl(tmp_path / "a.safetensors", make_adapter(POCKET)))
    tensors[f"diffusion_model.double_blocks.0.img_attn.qkv.{key}"] = torch.ones(4)
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(LoraUnsupported, match=what):
        check_file(tmp_path / "b.safetensors")


def test_lone_matrix(tmp_path: Path) -> None:
    tensors = load_file(write_bfl(tmp_path / "a.safetensors", make_adapter(POCKET)))
    del tensors["diffusion_model.single_blocks.0.linear1.lora_B.weight"]
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(LoraUnreadable, match="without its partner"):
        check_file(tmp_path / "b.safetensors")


def test_ranks_that_do_not_meet(tmp_path: Path) -> None:
    tensors = load_file(write_bfl(tmp_path / "a.safetensors", make_adapter(POCKET)))
    tensors["diffusion_model.single_blocks.0.linear1.lora_A.weight"] = torch.ones(3, POCKET.hidden)
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(LoraUnreadable, match="do not fit each other"):
        check_file(tmp_path / "b.safetensors")


def test_wrong_base_names_the_right_one(tmp_path: Path) -> None:
    path = write_diffusers(tmp_path / "a.safetensors", make_adapter(KLEIN_4B, rank=1))
    assert check_file(path).fits == ("klein-4b", "klein-base-4b")
    with pytest.raises(LoraMismatch, match=r"0 of 5 layers match pocket klein; .*Choose klein-4b"):
        require_fit(check_file(path), "pocket")


def test_one_layer_too_many_is_an_error(tmp_path: Path) -> None:
    tensors = load_file(write_bfl(tmp_path / "a.safetensors", make_adapter(POCKET)))
    h = POCKET.hidden
    tensors["diffusion_model.single_blocks.37.linear1.lora_A.weight"] = torch.ones(4, h)
    tensors["diffusion_model.single_blocks.37.linear1.lora_B.weight"] = torch.ones(9 * h, 4)
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(LoraMismatch, match=r"1 of 6 do not fit.*single_transformer_blocks\.37"):
        check_file(tmp_path / "b.safetensors")


def test_file_without_any_lora(tmp_path: Path) -> None:
    save_file({"model.weight": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(LoraMismatch, match="no LoRA layer"):
        check_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("metadata", "phrase"),
    [
        ({}, None),
        ({"modelspec.trigger_phrase": "ohwx"}, "ohwx"),
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
    ("module", "shape", "model"),
    [
        ("double_blocks.0.img_mod.lin", (18432, 3072), "FLUX.1"),
        ("single_blocks.37.modulation.lin", (9216, 3072), "FLUX.1"),
        ("single_blocks.3.q_proj", (3072, 3072), "FLUX.3 [klein]"),
        ("double_blocks.0.img_attn.proj", (6144, 6144), "FLUX.2 [dev]"),
    ],
)
def test_other_models_are_recognised(tmp_path: Path, module: str, shape: tuple[int, int], model: str) -> None:
    out_features, in_features = shape
    tensors = {
        f"diffusion_model.{module}.lora_A.weight": torch.ones(1, in_features),
        f"diffusion_model.{module}.lora_B.weight": torch.ones(out_features, 1),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(LoraMismatch, match=re.escape(f"is a LoRA for {model}, which")):
        check_file(tmp_path / "a.safetensors")


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


def test_library_keeps_a_file_and_finds_it_again(tmp_path: Path, home: Path) -> None:
    path = write_bfl(tmp_path / "My LoRA.safetensors", make_adapter(POCKET))
    kept = keep_lora(path)
    assert (kept.name, kept.path.parent) == ("my-lora", home / "loras")
    assert keep_lora(path) == kept == find_lora("my-lora")
    assert kept in list_loras()
    other = write_bfl(tmp_path / "other.safetensors", make_adapter(POCKET, seed=1))
    with pytest.raises(Conflict, match="my-lora"):
        keep_lora(other, name="my-lora")
    with pytest.raises(InvalidInput, match="lowercase"):
        keep_lora(other, name="../evil")
    assert find_lora(str(other)).name == "other"


def test_library_says_which_names_there_are(home: Path) -> None:
    with pytest.raises(NotFound, match="Known names"):
        find_lora("nothing")
