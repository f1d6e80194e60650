"""FP8, BF16 and FP32: which run where, and which is the default."""

import torch

from lora_runtime.catalogue import Weights
from lora_runtime.values import Precision

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


def precisions(weights: Weights, device: torch.device) -> tuple[Precision, ...]:
    """Return the precisions at which `weights` can run on `device`, the default first.

    BF16 where the hardware multiplies it; FP32 leads only for the pocket on a CPU that would emulate BF16. The full
    klein weights are published in BF16, so FP32 would cost memory and add nothing.
    """
    if not weights.bundled:
        return ("bf16",)
    return ("bf16", "fp32") if multiplies_bf16(device) else ("fp32", "bf16")


def multiplies_bf16(device: torch.device) -> bool:
    """Whether `device` has BF16 arithmetic of its own."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return True
