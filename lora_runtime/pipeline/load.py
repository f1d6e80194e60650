"""Build a klein pipeline from a folder, or a folder and one of BFL's single files, and place it on the device."""

import ctypes
import platform
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2KleinKVPipeline, Flux2KleinPipeline
from diffusers.hooks import apply_group_offloading
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from lora_runtime.catalogue import Weights
from lora_runtime.errors import OutOfMemory, Unavailable
from lora_runtime.pipeline.memory import Offload
from lora_runtime.pipeline.precision import DTYPES, is_fp8, precisions, round_to_fp8, widen_on_cpu
from lora_runtime.pipeline.prompts import load_text_encoder
from lora_runtime.pipeline.single_file import load_transformer
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


def load_pipeline(
    weights: Weights,
    precision: Precision,
    folder: Path,
    device: torch.device,
    *,
    transformer: Path | None = None,
    offload: Offload = "none",
) -> Any:
    """Load `folder` at `precision`, ready to render on `device`. `transformer` is BFL's single file, where one is used.

    Raises:
        Unavailable: The precision is not supported, or the folder or file holds something else.
        OutOfMemory: It does not fit.
    """
    if device.type == "cpu":
        _keep_freed_memory()
    if precision not in precisions(weights, device):
        there = ", ".join(precisions(weights, device))
        raise Unavailable(f"{weights.label} cannot run at {precision} on {device.type}. Choose one of: {there}.")
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()  # a server's console is no place for five bars a load
    try:
        pipeline = _build(weights, DTYPES[precision], folder, transformer)
        if precision == "fp8":
            round_to_fp8(pipeline.transformer)
        elif is_fp8(pipeline.transformer):
            raise Unavailable(f"{transformer} holds FP8 weights; they cannot run at {precision}. Choose fp8.")
        _place(pipeline, device, offload)
        if precision == "fp8" and device.type == "cpu":
            widen_on_cpu(pipeline.transformer)
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


def _build(weights: Weights, dtype: torch.dtype, folder: Path, transformer: Path | None) -> Any:
    # The KV-cached weights need their own attention, which reads references once and remembers them.
    kind = Flux2KleinKVPipeline if weights.kv_cache else Flux2KleinPipeline
    parts = {"text_encoder": load_text_encoder(folder, weights, dtype)}
    if transformer is not None:
        parts["transformer"] = load_transformer(transformer, folder, dtype)
    return kind.from_pretrained(folder, dtype=dtype, local_files_only=True, **parts)


def _place(pipeline: Any, device: torch.device, offload: Offload) -> None:
    """Put the parts on `device`, or let them come there in turns."""
    if offload == "none":
        pipeline.to(device)
    elif offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.vae.to(device)
        for part in (pipeline.text_encoder, pipeline.transformer):
            apply_group_offloading(
                part,
                onload_device=device,
                offload_device=torch.device("cpu"),
                offload_type="leaf_level",
                use_stream=device.type == "cuda",
            )


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


def _check_shape(pipeline: Any, weights: Weights, folder: Path) -> None:
    """The folder must hold what the catalogue says, or LoRA checks and results would lie."""
    config = pipeline.transformer.config
    hidden = config.num_attention_heads * config.attention_head_dim
    found = (hidden, config.num_layers, config.num_single_layers, bool(pipeline.config.get("is_distilled", True)))
    shape = weights.shape
    wanted = (shape.hidden, shape.double_blocks, shape.single_blocks, weights.distilled)
    if found != wanted:
        raise Unavailable(
            f"{folder} does not hold {weights.label}: (width, double blocks, single blocks, distilled) is {found}, "
            f"not {wanted}. Put the right checkpoint there."
        )
