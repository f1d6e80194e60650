"""Every file that cannot be rendered faithfully ends in an error of its own, with what to do."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_runtime.catalogue import KLEIN_4B, POCKET
from lora_runtime.errors import LoraError, LoraMismatch, LoraUnreadable, LoraUnsupported
from lora_runtime.lora.check import check_file, require_fit
from tests.lora_files import make_adapter, write_bfl, write_diffusers, write_kohya

Tensors = dict[str, torch.Tensor]
QKV = "diffusion_model.double_blocks.0.img_attn.qkv"
SINGLE = "diffusion_model.single_blocks.0.linear1"
H = POCKET.hidden


def add(**tensors: torch.Tensor) -> Callable[[Tensors], None]:
    """Add tensors; `__` in a name stands for a dot, and names are below the fused qkv."""
    return lambda file: file.update({f"{QKV}.{name.replace('__', '.')}": tensor for name, tensor in tensors.items()})


def put(name: str, tensor: torch.Tensor) -> Callable[[Tensors], None]:
    return lambda file: file.update({name: tensor})


def remove(name: str) -> Callable[[Tensors], None]:
    def change(file: Tensors) -> None:
        del file[name]

    return change


def extra_layer(module: str, out_features: int, in_features: int) -> Callable[[Tensors], None]:
    def change(file: Tensors) -> None:
        file[f"{module}.lora_A.weight"] = torch.ones(4, in_features)
        file[f"{module}.lora_B.weight"] = torch.ones(out_features, 4)

    return change


ONE = torch.ones(1)
MISFITS: dict[str, tuple[Callable[[Tensors], None], type[LoraError], str]] = {
    "DoRA of LyCORIS": (add(dora_scale=torch.ones(1, H)), LoraUnsupported, "a DoRA.*Train without DoRA"),
    "DoRA of PEFT": (add(lora_magnitude_vector=torch.ones(3 * H)), LoraUnsupported, "a DoRA"),
    "LoHa": (add(hada_w1_a=torch.ones(H, 4)), LoraUnsupported, "a LoHa.*Export it as a plain LoRA or LoKr"),
    "OFT": (add(oft_blocks=torch.ones(4, 4, 4)), LoraUnsupported, "an OFT adapter"),
    "BOFT": (add(boft_R=torch.ones(4)), LoraUnsupported, "an OFT adapter"),
    "IA3": (add(ia3_l=ONE), LoraUnsupported, "no LoRA"),
    "GLoRA": (add(a1__weight=ONE), LoraUnsupported, "no LoRA"),
    "Tucker": (add(lora_mid__weight=torch.ones(4, 4, 1, 1)), LoraUnsupported, "convolutions"),
    "full difference": (add(diff=torch.ones(3 * H, H)), LoraUnsupported, "full weight difference.*Extract a LoRA"),
    "bias difference": (add(diff_b=torch.ones(3 * H)), LoraUnsupported, "full weight difference"),
    "bias of B": (add(lora_B__bias=torch.ones(3 * H)), LoraUnsupported, "with biases.*lora_bias off"),
    "norm difference": (
        put("diffusion_model.double_blocks.0.img_attn.norm.query_norm.scale.diff", ONE), LoraUnsupported, "norms",
    ),
    "norm weights": (
        put("diffusion_model.double_blocks.0.img_attn.norm.query_norm.scale", ONE), LoraMismatch,
        r"is for pocket klein, but 1 of its tensors belong.*query_norm\.scale.*without norms and biases",
    ),
    "a lone A": (remove(f"{SINGLE}.lora_B.weight"), LoraUnreadable, "without its partner"),
    "a lone alpha": (put("diffusion_model.single_blocks.1.linear1.alpha", ONE), LoraUnreadable, "without its partner"),
    "ranks that do not meet": (put(f"{SINGLE}.lora_A.weight", torch.ones(3, H)), LoraUnreadable, "do not fit each"),
    "rank zero": (
        lambda file: file.update(
            {f"{SINGLE}.lora_A.weight": torch.ones(0, H), f"{SINGLE}.lora_B.weight": torch.ones(9 * H, 0)}
        ),
        LoraUnreadable, "do not fit each other",
    ),
    "a convolution": (put(f"{SINGLE}.lora_A.weight", torch.ones(4, H, 3, 3)), LoraUnreadable, "should be a matrix"),
    "alpha of two numbers": (put(f"{SINGLE}.alpha", torch.ones(2)), LoraUnreadable, "should be one number"),
    "alpha of NaN": (put(f"{SINGLE}.alpha", torch.tensor(torch.nan)), LoraUnreadable, "is nan"),
    "whole numbers": (
        put(f"{SINGLE}.lora_A.weight", torch.ones(4, H, dtype=torch.int8)), LoraUnreadable, "has type I8; LoRA",
    ),
    "fp8 matrices": (
        put(f"{SINGLE}.lora_A.weight", torch.ones(4, H).to(torch.float8_e4m3fn)), LoraUnreadable, "has type F8_E4M3",
    ),
    "two spellings of one key": (
        put("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight", torch.ones(4, H)),
        LoraUnreadable, "without its partner",
    ),
    "two spellings of one layer": (
        extra_layer("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 9 * H, H),
        LoraUnreadable, "adapts single_transformer_blocks.0.attn.to_qkv_mlp_proj 2 times",
    ),
    "dots and underscores": (
        put("lora_unet_single_blocks_0_linear1.lora_down.weight", torch.ones(4, H)), LoraUnreadable, "two matrices for",
    ),
    "a block too many": (
        extra_layer("diffusion_model.single_blocks.37.linear1", 9 * H, H), LoraMismatch,
        r"1 of 6 do not fit.*single_transformer_blocks\.37",
    ),
    "a block index of 180 digits": (
        extra_layer(f"diffusion_model.single_blocks.{'9' * 180}.linear1", 9 * H, H), LoraMismatch, "single_blocks",
    ),
    "one layer of another width": (
        extra_layer("diffusion_model.single_blocks.1.linear1", 9 * 512, 512), LoraMismatch, "1 of 6 do not fit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_each_misfit_has_its_own_error(tmp_path: Path, name: str) -> None:
    change, error, says = MISFITS[name]
    tensors = load_file(write_bfl(tmp_path / "a.safetensors", make_adapter(POCKET)))
    change(tensors)
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(error, match=says) as raised:
        check_file(tmp_path / "b.safetensors")
    assert type(raised.value) is error
    assert "b.safetensors" in str(raised.value)


@pytest.mark.parametrize(
    ("module", "shape", "model"),
    [
        ("double_blocks.0.img_mod.lin", (18432, 3072), "FLUX.1"),
        ("single_blocks.37.modulation.lin", (9216, 3072), "FLUX.1"),
        ("double_blocks.18.img_attn.proj", (3072, 3072), "FLUX.1"),
        ("single_blocks.3.linear1", (21504, 3072), "FLUX.1"),
        ("double_blocks.3.img_mlp.0", (12288, 3072), "FLUX.1"),
        ("single_blocks.3.q_proj", (3072, 3072), "FLUX.3 [klein]"),
        ("double_blocks.0.img_attn.proj", (6144, 6144), "FLUX.2 [dev]"),
        ("single_blocks.47.linear2", (6144, 24576), "FLUX.2 [dev]"),
    ],
)
def test_other_models_are_recognised(tmp_path: Path, module: str, shape: tuple[int, int], model: str) -> None:
    tensors: Tensors = {}
    extra_layer(f"diffusion_model.{module}", *shape)(tensors)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(LoraMismatch, match=re.escape(f"is a LoRA for {model}, which")):
        check_file(tmp_path / "a.safetensors")


def test_wrong_base_names_the_right_one(tmp_path: Path) -> None:
    path = write_diffusers(tmp_path / "a.safetensors", make_adapter(KLEIN_4B, rank=1))
    assert check_file(path).fits == ("klein-4b", "klein-base-4b")
    with pytest.raises(LoraMismatch, match=r"0 of 5 layers match pocket klein; .*Choose klein-4b"):
        require_fit(check_file(path), "pocket")


def test_only_a_text_encoder(tmp_path: Path) -> None:
    save_file({"lora_te_layers_0_mlp.lora_down.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(LoraMismatch, match="adapts a text encoder only"):
        check_file(tmp_path / "a.safetensors")


def test_a_prefix_is_not_mistaken_for_a_difference(tmp_path: Path) -> None:
    """`model.diffusion_model.` has `.diff` in it."""
    tensors = load_file(write_kohya(tmp_path / "a.safetensors", make_adapter(POCKET)))
    renamed = {
        key.replace("lora_unet_", "model.diffusion_model.").replace("single_blocks_0_", "single_blocks.0."): tensor
        for key, tensor in tensors.items()
        if "single" in key
    }
    save_file(renamed, tmp_path / "b.safetensors")
    assert len(check_file(tmp_path / "b.safetensors").layers) == 1
