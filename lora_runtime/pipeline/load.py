"""Build a klein pipeline from a folder and place it on the device."""

import ctypes
import platform
from pathlib import Path

import torch
from diffusers import Flux2KleinPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from lora_runtime.catalogue import Weights
from lora_runtime.errors import OutOfMemory, Unavailable
from lora_runtime.pipeline.precision import DTYPES
from lora_runtime.settings import settings
from lora_runtime.values import Precision


def choose_device() -> torch.device:
    """The device of `KLEIN_LAB_DEVICE`; by default CUDA, then Apple's GPU, then the CPU.

    Raises:
        Unavailable: The chosen device is not there.
    """
    wanted = settings().device
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, there in present.items() if there))
    if not present[wanted]:
        raise Unavailable(f"KLEIN_LAB_DEVICE is {wanted}, but torch finds no such device here. Use auto or cpu.")
    return torch.device(wanted)


def load_pipeline(weights: Weights, precision: Precision, folder: Path, device: torch.device) -> Flux2KleinPipeline:
    """Load `folder` at `precision` onto `device`, ready to render.

    Raises:
        Unavailable: The precision is not supported, or the folder holds something else.
        OutOfMemory: It does not fit.
    """
    if device.type == "cpu":
        _keep_freed_memory()
    if precision not in DTYPES:
        raise Unavailable(f"{weights.label} cannot run at {precision} here yet. Choose one of: {', '.join(DTYPES)}.")
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()  # a server's console is no place for five bars a load
    try:
        pipeline = Flux2KleinPipeline.from_pretrained(folder, dtype=DTYPES[precision], local_files_only=True)
        pipeline.to(device)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{weights.label} at {precision} does not fit into the memory of {device}. Choose smaller weights."
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise Unavailable(f"{weights.label} could not be loaded from {folder}: {error}") from error
    _check_shape(pipeline, weights, folder)
    # Convolutions run on this layout without copying: decoding takes half as long, on CPUs and on GPUs.
    pipeline.vae.to(memory_format=torch.channels_last)
    pipeline.transformer.requires_grad_(False).eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _keep_freed_memory() -> None:
    """Let glibc keep what a denoising step frees for the next one, instead of handing it back to the system.

    Otherwise every large activation is mapped and zeroed anew, page by page: a third of the time of a batch on a CPU.
    The price is that the process keeps its peak size.
    Source: mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 1 << 30)
    mallopt(m_top_pad, 1 << 27)


def _check_shape(pipeline: Flux2KleinPipeline, weights: Weights, folder: Path) -> None:
    """The folder must hold what the catalogue says, or LoRA checks and results would lie."""
    config = pipeline.transformer.config
    hidden = config.num_attention_heads * config.attention_head_dim
    found = (hidden, config.num_layers, config.num_single_layers, bool(pipeline.config.is_distilled))
    shape = weights.shape
    wanted = (shape.hidden, shape.double_blocks, shape.single_blocks, weights.distilled)
    if found != wanted:
        raise Unavailable(
            f"{folder} does not hold {weights.label}: (width, double blocks, single blocks, distilled) is {found}, "
            f"not {wanted}. Put the right checkpoint there."
        )
