"""Write LoRA files from sizes alone, without torch: keys, shapes and metadata are all that most questions need."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

Arrays = dict[str, np.ndarray]
DOWN_UP = ("lora_down.weight", "lora_up.weight")
A_B = ("lora_A.weight", "lora_B.weight")


def lora(
    modules: Mapping[str, tuple[int, int]], *, prefix: str = "transformer.", parts: tuple[str, str] = A_B
) -> Arrays:
    """A LoRA of rank 1 on `modules`, name -> (out, in); underscored where the prefix is (`lora_unet_`)."""
    arrays = {}
    for name, (out, in_) in modules.items():
        module = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
        arrays[f"{module}.{parts[0]}"] = np.ones((1, in_), np.float16)
        arrays[f"{module}.{parts[1]}"] = np.ones((out, 1), np.float16)
    return arrays


def klein(h: int, double: int, single: int) -> dict[str, tuple[int, int]]:
    """The last blocks of a klein of this width and depth, in diffusers' names."""
    return {
        f"transformer_blocks.{double - 1}.attn.to_q": (h, h),
        f"single_transformer_blocks.{single - 1}.attn.to_qkv_mlp_proj": (9 * h, h),
        f"single_transformer_blocks.{single - 1}.attn.to_out": (h, 4 * h),
    }


def klein_bfl(h: int, double: int, single: int) -> dict[str, tuple[int, int]]:
    """The same in BFL's names."""
    return {
        f"double_blocks.{double - 1}.img_attn.qkv": (3 * h, h),
        f"single_blocks.{single - 1}.linear1": (9 * h, h),
        f"single_blocks.{single - 1}.linear2": (h, 4 * h),
    }


def write(path: Path, arrays: Arrays, metadata: dict[str, str] | None = None) -> Path:
    save_file(arrays, path, metadata=metadata)
    return path
