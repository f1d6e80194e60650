"""Make LoRA and LoKr files in any trainer's spelling from one and the same adapter."""

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a trainer writes: its prefix, dotted or underscored names, BFL's fused ones or diffusers', its suffixes.

    With `alpha_over_rank`, each layer has an alpha, and B is scaled so that the effect is the same.
    """

    prefix: str
    bfl: bool
    parts: tuple[str, str] = ("lora_A.weight", "lora_B.weight")
    underscored: bool = False
    alpha_over_rank: float | None = None


DOWN_UP = ("lora_down.weight", "lora_up.weight")
STYLES: Mapping[str, Style] = {
    "diffusers": Style(prefix="transformer.", bfl=False),
    "ai-toolkit": Style(prefix="diffusion_model.", bfl=True),
    "comfy, diffusers blocks": Style(prefix="diffusion_model.", bfl=False),
    "fal": Style(prefix="base_model.model.", bfl=True),
    "raw PEFT": Style(prefix="base_model.model.", bfl=False),
    "PEFT of a pipeline": Style(prefix="base_model.model.transformer.", bfl=False),
    "musubi": Style(prefix="lora_unet_", bfl=True, parts=DOWN_UP, underscored=True, alpha_over_rank=0.5),
    "OneTrainer kohya": Style(prefix="lora_unet_", bfl=False, parts=DOWN_UP, underscored=True, alpha_over_rank=2),
    "OneTrainer legacy": Style(
        prefix="lora_transformer_", bfl=False, parts=DOWN_UP, underscored=True, alpha_over_rank=0.25
    ),
    "OneTrainer comfy": Style(prefix="diffusion_model.", bfl=True, parts=DOWN_UP, alpha_over_rank=0.5),
    "dotted down and up": Style(prefix="transformer.", bfl=False, parts=DOWN_UP, alpha_over_rank=0.5),
    "A and B beside alpha": Style(prefix="diffusion_model.", bfl=True, alpha_over_rank=0.5),
    "whole checkpoint": Style(prefix="model.diffusion_model.", bfl=True),
    "bare BFL": Style(prefix="", bfl=True),
    "bare diffusers": Style(prefix="", bfl=False),
    "DiffSynth": Style(prefix="", bfl=False, parts=("lora_A.default.weight", "lora_B.default.weight")),
    "default infix": Style(
        prefix="base_model.model.", bfl=True, parts=("lora_A.default.weight", "lora_B.default.weight")
    ),
    "DiffSynth, prefix left on": Style(
        prefix="pipe.dit.", bfl=False, parts=("lora_A.default.weight", "lora_B.default.weight")
    ),
    "compiled, inside DDP": Style(prefix="module.transformer._orig_mod.", bfl=False),
    "PEFT inside a pipeline's part": Style(
        prefix="transformer.base_model.model.", bfl=False, parts=("lora.down.weight", "lora.up.weight")
    ),
    "another adapter's name": Style(
        prefix="base_model.model.", bfl=True, parts=("lora_A.my_style.weight", "lora_B.my_style.weight")
    ),
    "VideoX-Fun": Style(prefix="lora_unet__", bfl=False, parts=DOWN_UP, underscored=True, alpha_over_rank=0.5),
    "trailing underscores": Style(
        prefix="lora_unet_", bfl=False, parts=tuple(f"_.{part}" for part in DOWN_UP), underscored=True
    ),
    "a wrapper nobody has seen": Style(prefix="student.net.", bfl=True),
    "LyCORIS LoCon": Style(prefix="lycoris_", bfl=False, parts=DOWN_UP, underscored=True, alpha_over_rank=1),
}


def write_styled(path: Path, adapter: dict[str, torch.Tensor], style: Style) -> Path:
    """The adapter as a trainer of `style` writes it."""
    tensors = {}
    for key, tensor in (fuse(adapter) if style.bfl else adapter).items():
        name, part = key[:-2], key[-1]
        module = style.prefix + (name.replace(".", "_") if style.underscored else name)
        rank = tensor.shape[0] if part == "A" else tensor.shape[1]
        written = tensor / (style.alpha_over_rank or 1) if part == "B" else tensor
        ending = style.parts["AB".index(part)]
        tensors[module + (ending if ending.startswith("_.") else f".{ending}")] = written.clone().contiguous()
        if style.alpha_over_rank is not None:
            tensors[f"{module}.alpha"] = torch.tensor(float(style.alpha_over_rank * rank))
    save_file(tensors, path)
    return path


Factors = Mapping[str, torch.Tensor]


def make_lokr(
    shape: Shape,
    *,
    factor: int = 8,
    rank: int | None = None,
    w1_rank: int | None = None,
    seed: int = 0,
    size: float = 0.2,
) -> dict[str, Factors]:
    """`<BFL module>` -> LyCORIS factors by name (`w1`, `w1_a`, ...), qkv fused, with kron(w1, w2) of LoRA-like size."""
    generator = torch.Generator().manual_seed(seed)
    h = shape.hidden

    def matrix(name: str, rows: int, columns: int, inner: int | None) -> Factors:
        if inner is None:
            return {name: torch.randn(rows, columns, generator=generator) / columns**0.5}
        left = torch.randn(rows, inner, generator=generator)
        right = torch.randn(inner, columns, generator=generator)
        return {f"{name}_a": left / inner**0.5, f"{name}_b": right / columns**0.5}

    def layer(out: int, in_: int) -> Factors:
        w1 = {name: size * tensor for name, tensor in matrix("w1", factor, factor, None).items()}
        if w1_rank is not None:
            w1 = {name: size**0.5 * tensor for name, tensor in matrix("w1", factor, factor, w1_rank).items()}
        return {**w1, **matrix("w2", out // factor, in_ // factor, rank)}

    return {
        "double_blocks.0.img_attn.qkv": layer(3 * h, h),
        "single_blocks.0.linear1": layer(9 * h, h),
        "double_blocks.1.img_attn.proj": layer(h, h),
    }


def kronecker(factors: Factors) -> torch.Tensor:
    """The dense kron(w1, w2) in float64, by its definition: row i*m+k, column j*n+l is w1[i,j] * w2[k,l]."""
    w1, w2 = (
        (factors[name] if name in factors else factors[f"{name}_a"].double() @ factors[f"{name}_b"].double()).double()
        for name in ("w1", "w2")
    )
    return torch.einsum("ij,kl->ikjl", w1, w2).reshape(w1.shape[0] * w2.shape[0], w1.shape[1] * w2.shape[1])


def write_lokr(
    path: Path,
    adapter: Mapping[str, Factors],
    *,
    prefix: str = "diffusion_model.",
    infix: str = "",
    alpha: float | None = None,
) -> Path:
    """`<prefix><module>.lokr_w1`, dotted, or underscored where the prefix is (`lycoris_`, `lora_unet_`)."""
    tensors = {}
    for name, factors in adapter.items():
        module = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
        tensors |= {f"{module}.lokr_{part}{infix}": tensor.clone().contiguous() for part, tensor in factors.items()}
        if alpha is not None:
            tensors[f"{module}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


def under_diffusers_names(adapter: Mapping[str, Factors]) -> dict[str, Factors]:
    """The same LoKr with q, k and v apart; each takes its third of w1's rows, which must split."""
    names = {"single_blocks.0.linear1": "single_transformer_blocks.0.attn.to_qkv_mlp_proj",
             "double_blocks.1.img_attn.proj": "transformer_blocks.1.attn.to_out.0"}  # fmt: skip
    split = {names[name]: factors for name, factors in adapter.items() if name in names}
    fused = adapter["double_blocks.0.img_attn.qkv"]
    for name, w1 in zip(QKV, fused["w1"].chunk(3), strict=True):
        split[f"transformer_blocks.0.{name}"] = {**fused, "w1": w1.clone()}
    return split
