"""Memory: what a checkpoint needs, where its parts go, and how many images to render at once.

Everything is counted from shapes before anything is loaded, so too little memory is a sentence with a remedy and never
a crash halfway. On a GPU the parts stay on the device when all of them fit; else they take turns (`model`: text
encoder, transformer, VAE), else the transformer streams through layer by layer (`group`). On a CPU all of it must fit.

One more row of a batch costs activations, not weights. Beyond the size at which the matrix products are already large,
another row only delays the first image, so the batch is capped there too (see `make bench`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import psutil
import torch

from lora_runtime.catalogue import TextEncoder, Weights
from lora_runtime.errors import Unavailable
from lora_runtime.references import fit_reference, measure_reference
from lora_runtime.values import Precision, Reference

Offload: TypeAlias = Literal["none", "model", "group"]

PX_PER_TOKEN: Final = 16
"""A packed latent pixel covers 16 x 16 image pixels: 8 by the VAE, 2 by the packing."""

_ROW_BYTES_PER_TOKEN_AND_WIDTH: Final = 40
"""Peak activation bytes of one row per token and unit of width: q, k, v, gate, up and the residuals in bf16."""

_DECODE_BYTES_PER_PX: Final = 2600
"""Peak bytes of the VAE's decoder per pixel: a few full-size maps of 128 to 256 channels in bf16."""

_CONTEXT_BYTES: Final = {"cuda": 1_000_000_000, "mps": 500_000_000, "cpu": 300_000_000}
"""What libraries and kernels take on a device beside the model."""

_TOKENS_THAT_PAY: Final = {"cpu": 1024, "cuda": 16384, "mps": 8192}
"""Image tokens per batch beyond which a larger batch hardly saves time (CPU: benchmarks/results/cpu-batch.json)."""

_BYTES: Final[dict[Precision, int]] = {"fp8": 2, "bf16": 2, "fp32": 4}
"""Bytes of a number outside the blocks of the transformer."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes of a checkpoint's parts at a precision, and of rendering one picture of its default size."""

    transformer: int
    largest_block: int
    text_encoder: int
    vae: int
    work: int

    @property
    def everything(self) -> int:
        """All parts at once, and the work."""
        return self.transformer + self.text_encoder + self.vae + self.work


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the parts go. `reason` is a sentence for people."""

    offload: Offload
    reason: str


def count_transformer(weights: Weights) -> tuple[int, int]:
    """Return the transformer's parameters: those of the blocks' linear layers, and all others.

    Source: diffusers/models/transformers/transformer_flux2.py; norms of 128 numbers are left out.
    """
    shape = weights.shape
    square = shape.hidden**2
    blocks = (26 * shape.double_blocks + 13 * shape.single_blocks) * square
    # Modulation 6 + 6 + 3, output norm 2, second timestep layer 1; then embedders and the output layer.
    rest = 18 * square + (2 * shape.latent + shape.text + 256) * shape.hidden
    return blocks, rest


def count_text_encoder(encoder: TextEncoder, layers: int) -> int:
    """Return the parameters of the embedding and the first `layers` layers."""
    attention = 2 * encoder.hidden * (encoder.query + encoder.key_value)
    return encoder.vocabulary * encoder.hidden + layers * (attention + 3 * encoder.hidden * encoder.intermediate)


def count_fp8_file(weights: Weights) -> int:
    """Return the bytes of BFL's FP8 transformer: a byte for each number of the blocks, two for the others."""
    blocks, rest = count_transformer(weights)
    return blocks + 2 * rest


def download_bytes(weights: Weights) -> int:
    """Return the bytes of the published checkpoint in BF16, the text encoder with every layer."""
    encoder = weights.text_encoder
    text = count_text_encoder(encoder, encoder.layers) + (0 if encoder.tied else encoder.vocabulary * encoder.hidden)
    return 2 * (sum(count_transformer(weights)) + text + weights.vae_parameters)


def estimate_needs(weights: Weights, precision: Precision, device: torch.device) -> Needs:
    """Count what rendering one picture of the default size takes."""
    blocks, rest = count_transformer(weights)
    size, side = _BYTES[precision], weights.default_size
    block_size = 1 if precision == "fp8" else size
    work = max(row_bytes(weights, side, side), side * side * _DECODE_BYTES_PER_PX)
    return Needs(
        transformer=blocks * block_size + rest * size,
        largest_block=26 * weights.shape.hidden**2 * block_size,
        text_encoder=count_text_encoder(weights.text_encoder, weights.text_encoder_out_layers[-1]) * size,
        vae=weights.vae_parameters * size,
        work=work + _CONTEXT_BYTES.get(device.type, 0),
    )


def choose_placement(
    weights: Weights,
    precision: Precision,
    device: torch.device,
    *,
    idle: bool = False,
    free: int | None = None,
    host_free: int | None = None,
) -> Placement:
    """Say where the parts of a checkpoint go on `device`.

    `free` and `host_free` are bytes of the device and of the machine; when not given, what is free now, or all there
    is if the machine were `idle`.

    Raises:
        Unavailable: It fits in no way; the message says how much is missing and what would fit.
    """
    needs = estimate_needs(weights, precision, device)
    measure = total_bytes if idle else free_bytes
    host_free = measure(torch.device("cpu")) if host_free is None else host_free
    if device.type != "cuda":
        available = host_free if free is None else free
        # Rounding to FP8 happens layer by layer after a BF16 load.
        loading = needs if precision != "fp8" else estimate_needs(weights, "bf16", device)
        if max(needs.everything, loading.everything - loading.work) > available:
            raise Unavailable(_too_little(weights, precision, device, loading.everything, available))
        return Placement(offload="none", reason=f"needs {_gb(needs.everything)} of {_gb(available)} free")
    free = measure(device) if free is None else free
    if needs.everything <= free:
        return Placement(offload="none", reason=f"everything on the GPU: {_gb(needs.everything)} of {_gb(free)} free")
    parts = needs.transformer + needs.text_encoder + needs.vae
    if parts > host_free:
        raise Unavailable(_too_little(weights, precision, torch.device("cpu"), parts, host_free))
    turn = max(needs.transformer, needs.text_encoder, needs.vae) + needs.work
    if turn <= free:
        return Placement(
            offload="model",
            reason=f"parts take turns on the GPU: {_gb(turn)} at once, as {_gb(needs.everything)} do not fit "
            f"{_gb(free)} free",
        )
    streamed = 3 * needs.largest_block + needs.vae + needs.work
    if streamed <= free:
        return Placement(
            offload="group",
            reason=f"layers stream to the GPU: {_gb(streamed)} at once, as {_gb(turn)} do not fit {_gb(free)} free",
        )
    raise Unavailable(_too_little(weights, precision, device, streamed, free))


def row_bytes(weights: Weights, width: int, height: int, references: Sequence[Reference] = ()) -> int:
    """Return the activation bytes of one image of `width` x `height` px in a batch."""
    read = count_tokens(weights, references)
    tokens = _tokens(width, height) + read + weights.max_sequence_length
    activations = tokens * weights.shape.hidden * _ROW_BYTES_PER_TOKEN_AND_WIDTH
    # The KV-cached weights keep keys and values of the references, in bf16, for every block.
    blocks = weights.shape.double_blocks + weights.shape.single_blocks
    remembered = 2 * 2 * read * weights.shape.hidden * blocks if weights.kv_cache else 0
    return activations + remembered


def count_tokens(weights: Weights, references: Sequence[Reference]) -> int:
    """Return how many tokens the references add to every image."""
    return sum(_tokens(*fit_reference(measure_reference(reference), weights)) for reference in references)


def largest_batch(
    weights: Weights, width: int, height: int, device: torch.device, references: Sequence[Reference] = ()
) -> int:
    """Return how many images of `width` x `height` pixels to render in one batch, at least 1."""
    tokens = _tokens(width, height) + count_tokens(weights, references)
    share = 0.8 if device.type == "cuda" else 0.125
    fits = int(free_bytes(device) * share) // max(1, row_bytes(weights, width, height, references))
    pays = _TOKENS_THAT_PAY.get(device.type, 1024) // max(1, tokens)
    return max(1, min(fits, pays))


def free_bytes(device: torch.device) -> int:
    """Return the bytes that are free on `device` now; on a GPU also those that torch holds unused."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    return int(psutil.virtual_memory().available)


def total_bytes(device: torch.device) -> int:
    """Return the memory of `device`, free or not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def _tokens(width: int, height: int) -> int:
    return (width // PX_PER_TOKEN) * (height // PX_PER_TOKEN)


def _too_little(weights: Weights, precision: Precision, device: torch.device, needed: int, available: int) -> str:
    smaller = "fp8, " if precision != "fp8" and device.type == "cuda" else ""
    where = "this machine" if device.type == "cpu" else "the GPU"
    return (
        f"{weights.label} at {precision} needs {_gb(needed)} of memory, but {where} has {_gb(available)} free. "
        f"Close other programs, or choose {smaller}klein-4b or pocket."
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
