"""FP8, BF16 and FP32: which run where, which is the default, and what FP8 means.

FP8 keeps the weights of the transformer's blocks as float8 (E4M3) with one float32 scale per output row: the layers and
the format of BFL's own fp8 checkpoints. Embedders, modulation, norms and the output layer stay in BF16. On a GPU with
FP8 arithmetic the activations are rounded too, with a scale per token, so that no image depends on its neighbours in
the batch; elsewhere the weights are widened to BF16 just before each product. LoRAs run beside it in BF16, never fused.

The layer is diffusers' `BFLFP8RLinear`: one implementation for checkpoints that come in FP8 and for those rounded here.
Source: the header of FLUX.2-klein-4b-fp8; diffusers/quantizers/bfl/utils.py.
"""

from typing import Any, Final

import torch
from diffusers.quantizers.bfl.utils import BFLFP8RLinear, quantize_fp8r

from lora_runtime.catalogue import Weights
from lora_runtime.values import Precision

DTYPES: Final[dict[Precision, torch.dtype]] = {"fp8": torch.bfloat16, "bf16": torch.bfloat16, "fp32": torch.float32}
"""What activations, LoRAs, text encoder and VAE compute in."""

BLOCKS: Final = ("transformer_blocks", "single_transformer_blocks")
"""The parts of the transformer that FP8 covers."""

_FP8_CAPABILITY = (8, 9)  # Ada; torch._scaled_mm asks for it


def precisions(weights: Weights, device: torch.device) -> tuple[Precision, ...]:
    """Return the precisions at which `weights` can run on `device`, the default first.

    BF16 where the hardware multiplies it; FP32 leads only for the pocket on a CPU that would emulate BF16. The full
    klein weights are published in BF16, so FP32 would cost memory and add nothing. Apple's GPUs have no float8.
    """
    fp8: tuple[Precision, ...] = () if device.type == "mps" else ("fp8",)
    if not weights.bundled:
        return ("bf16", *fp8)
    return ("bf16", *fp8, "fp32") if multiplies_bf16(device) else ("fp32", *fp8, "bf16")


def multiplies_bf16(device: torch.device) -> bool:
    """Whether `device` has BF16 arithmetic of its own."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return True


def multiplies_fp8(device: torch.device) -> bool:
    """Whether `device` has FP8 arithmetic of its own."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FP8_CAPABILITY


def describe_precision(precision: Precision, device: torch.device) -> str:
    """Say in a few words what `precision` means on `device`, for an image's provenance."""
    if precision != "fp8":
        return precision
    return "fp8 weights and activations" if multiplies_fp8(device) else "fp8 weights, bf16 arithmetic"


@torch.no_grad()
def round_to_fp8(transformer: Any) -> None:
    """Replace every linear layer of the blocks by its FP8 form, in place; layers that have it already stay.

    Raises:
        ValueError: A block has biases, so it is none of klein's.
    """
    for name in BLOCKS:
        blocks = getattr(transformer, name)
        if any(parameter.endswith(".bias") for parameter, _ in blocks.named_parameters()):
            raise ValueError("a klein block has no biases, but this one has")
        # By name: a list of the layers would keep all of them beside their FP8 forms.
        for path in [path for path, _ in blocks.named_modules()]:
            layer = blocks.get_submodule(path)
            if isinstance(layer, torch.nn.Linear) and not isinstance(layer, BFLFP8RLinear):
                blocks.set_submodule(path, round_layer(layer))


def widen_on_cpu(transformer: Any) -> None:
    """Let the FP8 layers of `transformer`, which is on a CPU, widen their weights in pieces: the same numbers, sooner.

    Raises:
        ValueError: A layer holds NaN.
    """
    for path, layer in transformer.named_modules():
        if isinstance(layer, BFLFP8RLinear):
            if bool(((layer.weight.view(torch.uint8) & 0x7F) == 0x7F).any()):
                raise ValueError(f"the FP8 weights of {path} hold NaN")
            layer.__class__ = _CpuLinear


@torch.no_grad()
def round_layer(layer: torch.nn.Linear) -> torch.nn.Module:
    """Return the FP8 form of a linear layer without bias."""
    rounded = BFLFP8RLinear(
        layer.in_features, layer.out_features, bias=False, compute_dtype=DTYPES["fp8"], device="meta"
    )
    weight, scale = quantize_fp8r(layer.weight)
    rounded.weight = torch.nn.Parameter(weight, requires_grad=False)
    rounded.weight_scale = scale
    module: torch.nn.Module = rounded
    return module


def is_fp8(transformer: Any) -> bool:
    """Whether the blocks of `transformer` hold FP8 weights."""
    return any(isinstance(layer, BFLFP8RLinear) for layer in transformer.modules())


_PIECE = 2**19
"""Numbers widened at once: what stays in a core's cache on its way from FP8 to BF16."""


class _CpuLinear(BFLFP8RLinear):  # type: ignore[misc]
    """An FP8 layer on a CPU, where torch converts float8 one number after the other.

    E4M3 and BF16 are both sign, exponent, mantissa. Shifted by 4, the bits of the one are a number of the other that is
    2^120 too small, subnormal ones included; the row's scale makes up for it, without any rounding more. Weights that
    are NaN would become numbers; `widen_on_cpu` sees to it that there are none.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs: (..., in) -> (..., out)."""
        rows, columns = self.weight.shape
        scales = (self.weight_scale * 2.0**120)[:, None]
        numbers = self.weight.view(torch.int8)
        weight = torch.empty(rows, columns, dtype=self.compute_dtype)
        step = max(1, _PIECE // columns)
        for first in range(0, rows, step):
            piece = slice(first, first + step)
            bits = numbers[piece].to(torch.int16)  # the sign fills the upper byte
            bits.bitwise_left_shift_(4).bitwise_and_(-32768 | 0x07F0)
            weight[piece] = bits.view(torch.bfloat16).to(torch.float32).mul_(scales[piece])
        output: torch.Tensor = torch.nn.functional.linear(inputs, weight, self.bias)
        return output
