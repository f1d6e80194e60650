"""Make LoRA files in any trainer's spelling from one and the same adapter."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from lora_runtime.catalogue import Shape

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")


def make_adapter(shape: Shape, *, rank: int = 4, seed: int = 0, size: float = 0.2) -> dict[str, torch.Tensor]:
    """`<diffusers module>.A/B` for the first double and single block; q, k and v share A, as in a fused file."""
    generator = torch.Generator().manual_seed(seed)
    h = shape.hidden

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * size / columns**0.5

    shared = matrix(rank, h)
    adapter = {}
    for name in QKV:
        adapter[f"transformer_blocks.0.{name}.A"] = shared
        adapter[f"transformer_blocks.0.{name}.B"] = matrix(h, rank) * rank**0.5
    adapter["single_transformer_blocks.0.attn.to_qkv_mlp_proj.A"] = matrix(rank, h)
    adapter["single_transformer_blocks.0.attn.to_qkv_mlp_proj.B"] = matrix(9 * h, rank) * rank**0.5
    adapter["transformer_blocks.1.attn.to_out.0.A"] = matrix(rank, h)
    adapter["transformer_blocks.1.attn.to_out.0.B"] = matrix(h, rank) * rank**0.5
    return adapter


def write_diffusers(
    path: Path, adapter: dict[str, torch.Tensor], *, prefix: str = "transformer.", infix: str = ""
) -> Path:
    """`transformer.<module>.lora_A.weight`."""
    tensors = {
        f"{prefix}{key[:-2]}.lora_{key[-1]}{infix}.weight": tensor.clone().contiguous()
        for key, tensor in adapter.items()
    }
    save_file(tensors, path)
    return path


def fuse(adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same adapter under BFL's names, qkv fused."""
    names = {
        "single_transformer_blocks.0.attn.to_qkv_mlp_proj": "single_blocks.0.linear1",
        "transformer_blocks.1.attn.to_out.0": "double_blocks.1.img_attn.proj",
    }
    fused = {f"{bfl}.{part}": adapter[f"{name}.{part}"] for name, bfl in names.items() for part in "AB"}
    fused["double_blocks.0.img_attn.qkv.A"] = adapter["transformer_blocks.0.attn.to_q.A"]
    fused["double_blocks.0.img_attn.qkv.B"] = torch.cat([adapter[f"transformer_blocks.0.{name}.B"] for name in QKV])
    return fused


def write_bfl(path: Path, adapter: dict[str, torch.Tensor], *, metadata: dict[str, str] | None = None) -> Path:
    """`diffusion_model.<BFL module>.lora_A.weight`, as AI-Toolkit writes it."""
    tensors = {
        f"diffusion_model.{key[:-2]}.lora_{key[-1]}.weight": tensor.clone().contiguous()
        for key, tensor in fuse(adapter).items()
    }
    save_file(tensors, path, metadata=metadata)
    return path


def write_kohya(path: Path, adapter: dict[str, torch.Tensor], *, alpha_over_rank: float = 0.5) -> Path:
    """`lora_unet_<bfl_module>.lora_down.weight`, alpha unlike rank; B is scaled up so that the effect is the same."""
    tensors = {}
    for key, tensor in fuse(adapter).items():
        module = "lora_unet_" + key[:-2].replace(".", "_")
        if key.endswith(".A"):
            tensors[f"{module}.lora_down.weight"] = tensor.clone().contiguous()
            tensors[f"{module}.alpha"] = torch.tensor(alpha_over_rank * tensor.shape[0])
        else:
            tensors[f"{module}.lora_up.weight"] = (tensor / alpha_over_rank).contiguous()
    save_file(tensors, path)
    return path
