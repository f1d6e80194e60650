"""How many images to render at once: what fits, and what still pays.

One more row costs activations, not weights. Beyond the size at which the matrix products are already large, another
row only delays the first image, so the batch is capped there too (see `make bench`).
"""

import psutil
import torch

from lora_runtime.catalogue import Weights

PX_PER_TOKEN = 16
"""A packed latent pixel covers 16 x 16 image pixels: 8 by the VAE, 2 by the packing."""

_ROW_BYTES_PER_TOKEN_AND_WIDTH = 40
"""Peak activation bytes of one row per token and unit of width: q, k, v, gate, up and the residuals in bf16."""

_TOKENS_THAT_PAY = {"cpu": 1024, "cuda": 16384, "mps": 8192}
"""Image tokens per batch beyond which a larger batch hardly saves time (CPU: benchmarks/results/cpu-batch.json)."""


def largest_batch(weights: Weights, width: int, height: int, device: torch.device) -> int:
    """Return how many images of `width` x `height` pixels to render in one batch, at least 1."""
    tokens = (width // PX_PER_TOKEN) * (height // PX_PER_TOKEN)
    row_bytes = (tokens + weights.max_sequence_length) * weights.shape.hidden * _ROW_BYTES_PER_TOKEN_AND_WIDTH
    fits = _free_bytes(device) // max(1, row_bytes)
    pays = _TOKENS_THAT_PAY.get(device.type, 1024) // max(1, tokens)
    return max(1, min(fits, pays))


def _free_bytes(device: torch.device) -> int:
    """What the batch may take: most of a GPU's free memory, an eighth of a CPU's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.8)
    return int(psutil.virtual_memory().available) // 8
