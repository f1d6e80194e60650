"""Write a trained LoRA in the spelling of one of three trainers, with the metadata each leaves in the header.

The diffusers file keeps q, k and v apart. BFL's names, which AI-Toolkit and kohya's musubi-tuner use, fuse them:
their A is shared (see `loras.py`) and their B are stacked, which is exact. kohya writes alpha next to the weights and
a loader multiplies by alpha / rank, so the up matrix is stored larger by rank / alpha.

Source: diffusers `_convert_non_diffusers_flux2_lora_to_diffusers`, `_convert_kohya_flux2_lora_to_diffusers`; AI-
Toolkit `toolkit/metadata.py`; musubi-tuner `training/trainer_base.py`.
"""

import json
import re
from pathlib import Path

import torch
from diffusers import Flux2KleinPipeline
from safetensors.torch import save_file

from lora_runtime.pocket.build.loras import RANK, Factors

KOHYA_ALPHA = 4.0
"""Not the rank, so a loader that forgets alpha shows twice the strength."""

BASE_VERSION = "flux2_klein_pocket"

_BFL_SUFFIXES = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.to_out": "linear2",
}
_FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def write_diffusers(path: Path, factors: Factors) -> None:
    """Write through diffusers' own `save_lora_weights`: `transformer.*.lora_A/B.weight` and the adapter's config."""
    layers = {}
    for name, (down, up) in factors.items():
        layers[f"{name}.lora_A.weight"] = down.to(torch.bfloat16).contiguous()
        layers[f"{name}.lora_B.weight"] = up.to(torch.bfloat16).contiguous()
    config = {
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": sorted(factors),
        "lora_dropout": 0.0,
        "bias": "none",
    }
    Flux2KleinPipeline.save_lora_weights(
        path.parent,
        transformer_lora_layers=layers,
        weight_name=path.name,
        transformer_lora_adapter_metadata=config,
    )


def write_ai_toolkit(path: Path, factors: Factors, *, trigger: str = "") -> None:
    """Write BFL names with `lora_A/B`, as AI-Toolkit does; its alpha always equals the rank and is left out."""
    tensors = {}
    for name, (down, up) in fuse_to_bfl(factors).items():
        tensors[f"diffusion_model.{name}.lora_A.weight"] = down.to(torch.bfloat16).contiguous()
        tensors[f"diffusion_model.{name}.lora_B.weight"] = up.to(torch.bfloat16).contiguous()
    metadata = {
        "format": "pt",
        "name": json.dumps(path.stem),
        "ss_base_model_version": BASE_VERSION,
        "ss_output_name": path.stem,
        "software": json.dumps({"name": "klein-lora-lab pocket build", "layout": "ai-toolkit"}),
    }
    if trigger:
        metadata["ss_tag_frequency"] = json.dumps({f"1_{trigger}": {trigger: 1}})
    save_file(tensors, path, metadata=metadata)


def write_kohya(path: Path, factors: Factors) -> None:
    """Write `lora_unet_*` names with `lora_down`, `lora_up` and an alpha that is not the rank, as musubi-tuner does."""
    tensors = {}
    for name, (down, up) in fuse_to_bfl(factors).items():
        key = "lora_unet_" + name.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = down.to(torch.bfloat16).contiguous()
        tensors[f"{key}.lora_up.weight"] = (up * (RANK / KOHYA_ALPHA)).to(torch.bfloat16).contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(KOHYA_ALPHA)
    metadata = {
        "format": "pt",
        "ss_base_model_version": BASE_VERSION,
        "ss_sd_model_name": "pocket-base",
        "ss_output_name": path.stem,
        "ss_network_module": "networks.lora_flux_2",
        "ss_network_dim": str(RANK),
        "ss_network_alpha": str(KOHYA_ALPHA),
        "modelspec.architecture": "Flux.2-klein-pocket/lora",
        "modelspec.title": path.stem,
    }
    save_file(tensors, path, metadata=metadata)


def fuse_to_bfl(factors: Factors) -> Factors:
    """Rename modules to BFL's names and stack q, k and v, whose A is one and the same."""
    fused: Factors = {}
    for name, pair in factors.items():
        kind, number, rest = _split_name(name)
        prefix = f"double_blocks.{number}" if kind == "transformer_blocks" else f"single_blocks.{number}"
        if rest in _BFL_SUFFIXES:
            fused[f"{prefix}.{_BFL_SUFFIXES[rest]}"] = pair
    for name in factors:
        kind, number, rest = _split_name(name)
        for target, (query, key, value) in _FUSED.items():
            if kind == "transformer_blocks" and rest == query:
                parts = [factors[f"{kind}.{number}.{part}"] for part in (query, key, value)]
                if not all(torch.equal(parts[0][0], down) for down, _ in parts):
                    raise ValueError(f"{name}: q, k and v must share A to be fused; train with tie_qkv=True.")
                fused[f"double_blocks.{number}.{target}"] = (parts[0][0], torch.cat([up for _, up in parts]))
    return fused


def _split_name(name: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)", name)
    if match is None:
        raise ValueError(f"{name} is not inside a block of a FLUX.2 transformer.")
    return match[1], match[2], match[3]
