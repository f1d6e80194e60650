"""Another model is named by its own marks, in the names of every trainer; a misfit of klein never is."""

import re
from pathlib import Path

import numpy as np
import pytest

from lora_runtime.errors import LoraMismatch
from lora_runtime.lora.check import check_file
from lora_runtime.lora.foreign import FOREIGN
from tests.header_files import DOWN_UP, Arrays, klein, klein_bfl, lora, write

H = 3072


def every(names: str, count: int, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """`{}` of a name is a block's number; several names are apart by a bar."""
    return {name.format(number): size for name in names.split("|") for number in range(count)}


FLUX1_ATTENTION = every("transformer_blocks.{}.attn.to_q|transformer_blocks.{}.attn.add_k_proj", 19, (H, H))
FLUX3 = {
    **every(
        "mode_blocks.image.{}.attn.to_q|mode_blocks.image_cond.{}.attn.to_k|txt_mode_blocks.{}.attn.to_out.0", 5, (H, H)
    ),
    **every("single_transformer_blocks.{}.attn.to_q|single_transformer_blocks.{}.attn.to_out.0", 28, (H, H)),
}
MODELS: dict[str, list[dict[str, tuple[int, int]]]] = {
    "FLUX.2 [dev]": [
        klein(6144, 8, 48),
        klein_bfl(6144, 8, 48),
        {
            "time_guidance_embed.guidance_embedder.linear_1": (6144, 256),
            "single_transformer_blocks.0.attn.to_out": (6144, 24576),
        },
        {"guidance_in.in_layer": (6144, 256), "single_blocks.47.linear2": (6144, 24576)},
        klein(6144, 8, 48) | {"norm_foo": (6144, 6144)},
    ],
    "FLUX.1": [
        FLUX1_ATTENTION,
        FLUX1_ATTENTION | every("transformer_blocks.{}.ff.net.0.proj", 19, (4 * H, H)),
        {
            "transformer_blocks.0.attn.to_q": (H, H),
            "single_transformer_blocks.0.attn.to_q": (H, H),
            "single_transformer_blocks.0.proj_mlp": (4 * H, H),
        },
        every("double_blocks.{}.img_attn.qkv", 19, (3 * H, H)) | every("single_blocks.{}.linear1", 38, (7 * H, H)),
        every("single_blocks.{}.linear2", 38, (H, 5 * H)),
        {"double_blocks.0.img_mod.lin": (6 * H, H)},
        {
            "img_in": (H, 128),
            "double_blocks.18.img_attn.qkv": (3 * H, H),
            "single_blocks.37.modulation.lin": (3 * H, H),
        },
    ],
    "FLUX.3 [klein]": [
        FLUX3,
        every("single_transformer_blocks.{}.attn.to_q|single_transformer_blocks.{}.attn.to_v", 28, (H, H)),
        every("content_mode_blocks.image.{}.q_proj|single_blocks.{}.q_proj", 5, (H, H)),
    ],
    "Chroma": [
        every("double_blocks.{}.img_attn.qkv", 19, (3 * H, H))
        | every("distilled_guidance_layer.layers.{}.in_layer", 5, (5120, 5120))
    ],
    "Z-Image": [
        every("layers.{}.attention.to_q|layers.{}.feed_forward.w1", 30, (3840, 3840)),
        every("noise_refiner.{}.attention.qkv|context_refiner.{}.attention.out", 2, (3840, 3840)),
    ],
    "Qwen-Image": [
        every("transformer_blocks.{}.attn.to_q|transformer_blocks.{}.attn.to_add_out", 60, (H, H)),
        every("transformer_blocks.{}.img_mod.1", 60, (6 * H, H)) | every("transformer_blocks.{}.attn.to_q", 60, (H, H)),
    ],
    "SDXL": [
        every("down_blocks.2.attentions.0.transformer_blocks.{}.attn1.to_q", 10, (1280, 1280)),
        every("input_blocks.7.1.transformer_blocks.{}.attn2.to_k", 10, (1280, 2048)),
    ],
    "Stable Diffusion (1.5 or SDXL)": [{"up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (1280, 768)}],
    "Stable Diffusion 3": [every("transformer_blocks.{}.attn.to_q|transformer_blocks.{}.ff.net.2", 24, (1536, 1536))],
    "Wan": [
        every("blocks.{}.self_attn.q|blocks.{}.cross_attn.k|blocks.{}.ffn.0", 40, (5120, 5120)),
        every("blocks.{}.attn1.to_q|blocks.{}.attn2.to_v", 40, (5120, 5120)),
    ],
    "LTX-Video or PixArt": [every("transformer_blocks.{}.attn1.to_q", 28, (2048, 2048))],
    "HunyuanVideo": [every("double_blocks.{}.img_attn_q|double_blocks.{}.txt_mlp.fc1", 20, (H, H))],
    "HiDream": [every("double_stream_blocks.{}.block.attn1.to_q", 16, (2560, 2560))],
    "ERNIE-Image": [every("layers.{}.self_attention.to_q", 36, (4096, 4096))],
    "Cosmos or Anima": [every("blocks.{}.self_attn.q_proj|blocks.{}.adaln_modulation_mlp.1", 28, (2048, 2048))],
}
CASES = [(model, modules) for model, files in MODELS.items() for modules in files]


def test_every_model_has_a_case() -> None:
    assert {model.name for model in FOREIGN} == set(MODELS)


@pytest.mark.parametrize(("model", "modules"), CASES)
@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model.", "lora_unet_"])
def test_other_models_are_named(tmp_path: Path, model: str, modules: dict[str, tuple[int, int]], prefix: str) -> None:
    small = (
        {name: modules[name] for name in list(modules)[:: max(1, len(modules) // 60)]}
        if len(modules) > 400
        else modules
    )
    arrays = lora(small, prefix=prefix, parts=DOWN_UP if prefix.endswith("_") else ("lora_A.weight", "lora_B.weight"))
    with pytest.raises(LoraMismatch, match=re.escape(f"is a LoRA for {model}, which is another model")):
        check_file(write(tmp_path / "a.safetensors", arrays))


def test_a_control_lora_of_flux1_is_named_before_its_biases(tmp_path: Path) -> None:
    arrays = lora(
        {"img_in": (H, 128), "double_blocks.18.img_attn.qkv": (3 * H, H), "single_blocks.37.modulation.lin": (9, H)},
        prefix="",
    )
    arrays |= {
        "img_in.lora_B.bias": np.ones(H, np.float16),
        "double_blocks.18.img_attn.norm.key_norm.scale": np.ones(128, np.float16),
    }
    with pytest.raises(LoraMismatch, match=r"is a LoRA for FLUX\.1"):
        check_file(write(tmp_path / "a.safetensors", arrays))


def test_xlabs_names_are_flux1(tmp_path: Path) -> None:
    arrays = {
        f"double_blocks.0.processor.qkv_lora1.{part}.weight": np.ones((H, 16), np.float16) for part in ("down", "up")
    }
    with pytest.raises(LoraMismatch, match=r"is a LoRA for FLUX\.1"):
        check_file(write(tmp_path / "a.safetensors", arrays))


KLEINS = {"4B": (3072, 5, 20), "9B": (4096, 8, 24), "pocket": (256, 2, 4)}
ONE_PART: dict[str, dict[str, tuple[int, int]]] = {
    "FLUX.1's norm": {"transformer_blocks.0.norm1.linear": (H, H)},
    "FLUX.1's MLP": {"transformer_blocks.0.ff.net.2": (H, H)},
    "FLUX.1's single q": {"single_transformer_blocks.0.attn.to_q": (H, H)},
    "FLUX.1's modulation": {"double_blocks.0.img_mod.lin": (6 * H, H)},
    "a block too many": {"single_transformer_blocks.30.attn.to_qkv_mlp_proj": (9 * H, H)},
    "a double block too many": {"transformer_blocks.12.attn.to_q": (H, H)},
    "dev's guidance": {"time_guidance_embed.guidance_embedder.linear_1": (6144, 256)},
    "dev's width": {"single_transformer_blocks.0.attn.to_out": (6144, 24576)},
    "FLUX.3's blocks": {"txt_mode_blocks.0.attn.to_q": (H, H)},
    "Z-Image's layers": {"layers.0.attention.to_q": (3840, 3840)},
    "a module nobody has": {"norm_foo": (3, 3)},
}


@pytest.mark.parametrize("part", ONE_PART)
@pytest.mark.parametrize("size", KLEINS)
@pytest.mark.parametrize("bfl", [False, True])
def test_a_misfit_of_klein_is_never_called_another_model(tmp_path: Path, size: str, part: str, bfl: bool) -> None:
    good = (klein_bfl if bfl else klein)(*KLEINS[size])
    path = write(tmp_path / "a.safetensors", lora(good, prefix="diffusion_model.") | lora(ONE_PART[part]))
    with pytest.raises(LoraMismatch) as raised:
        check_file(path)
    said = str(raised.value)
    label = {"4B": "FLUX.2 [klein] 4B", "9B": "FLUX.2 [klein] 9B", "pocket": "pocket klein"}[size]
    assert f"nearest is {label}" in said or f"is for {label}, but" in said
    assert next(iter(ONE_PART[part])) in said


def test_attention_of_klein_4b_with_one_part_of_flux1(tmp_path: Path) -> None:
    """The two have that attention in common; one strange layer among ten does not make it FLUX.1."""
    attention = every("transformer_blocks.{}.attn.to_q|transformer_blocks.{}.attn.to_v", 5, (H, H))
    path = write(tmp_path / "a.safetensors", lora(attention | {"transformer_blocks.0.norm1.linear": (6 * H, H)}))
    with pytest.raises(LoraMismatch, match=r"is for FLUX\.2 \[klein\] 4B, but"):
        check_file(path)


def whole(h: int, names: dict[str, tuple[int, int]]) -> Arrays:
    return {
        f"{name}.weight": np.ones((out // 3072 * h, in_ // 3072 * h), np.float16) for name, (out, in_) in names.items()
    }


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (whole(256, klein_bfl(H, 1, 1)), r"is a whole model, not a LoRA: .* pocket klein.*put a larger one at"),
        (
            {f"{name}.weight": np.zeros(size, np.int8) for name, size in klein_bfl(H, 1, 1).items()},
            r"whole model.*Put it at \$KLEIN_LAB_MODELS_DIR/flux-2-klein-4b\.safetensors or .*flux-2-klein-base-4b",
        ),
        (
            {f"{name}.weight": np.zeros(size, np.int8) for name, size in klein(H, 1, 1).items()},
            r"whole model.*Put it at \$KLEIN_LAB_MODELS_DIR/klein-4b/transformer/",
        ),
        ({"double_blocks.0.img_mod.lin.weight": np.ones((H, 2), np.float16)}, r"whole model, not .*: it is FLUX\.1"),
        ({"model.layers.0.weight": np.ones((2, 2), np.float16)}, "is a whole model, not a LoRA: it has plain weights"),
    ],
)  # fmt: skip
def test_a_whole_model_is_told_where_it_belongs(tmp_path: Path, arrays: Arrays, says: str) -> None:
    with pytest.raises(LoraMismatch, match=says):
        check_file(write(tmp_path / "a.safetensors", arrays))
