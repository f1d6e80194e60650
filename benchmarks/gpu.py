"""How long do 8 strengths take on a GPU, at klein's true size? Against diffusers' own loop and the GPU's matrix rate.

Random weights, real shapes: nothing is downloaded. Every row is 4B or 9B, 512 or 1024 px, BF16 or FP8, eager or with
compiled blocks. The baseline is the loop of `strengths.py` on the same weights in BF16, eager. "Of matrix rate" is the
work of all images, counted by torch, over the time and the rate of a large BF16 product on this very GPU.
"""

import gc
import itertools
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import time_once
from benchmarks.requests import PROMPT, STRENGTHS, list_requests
from benchmarks.true_size import make_pipeline, write_lora
from lora_runtime.catalogue import Weights, find_weights
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline.batch import Model, render_batch
from lora_runtime.pipeline.load import compile_blocks
from lora_runtime.pipeline.memory import estimate_needs, free_bytes, largest_batch
from lora_runtime.values import LoraRef, Precision, RenderRequest

WEIGHTS = ("klein-4b", "klein-9b")
SIZES = (512, 1024)
RANK = 32
ROUNDS = 3
MATRIX_SIDE = 8192


def run(console: Console) -> list[dict[str, Any]]:
    """Measure everything that fits; print a table and return its rows; none without a CUDA GPU."""
    if not torch.cuda.is_available():
        console.print("gpu: skipped, there is no CUDA GPU here")
        return []
    device = torch.device("cuda", torch.cuda.current_device())
    rate = _measure_rate(device)
    table = Table(
        "weights", "size", "precision", "mode", "8 strengths s", "loop s", "ratio", "of matrix rate", "peak GB"
    )
    rows: list[dict[str, Any]] = []
    for name in WEIGHTS:
        weights = find_weights(name)
        if estimate_needs(weights, "bf16", device).everything > free_bytes(device):
            console.print(f"gpu: {name} skipped, it does not fit this GPU")
            continue
        with tempfile.TemporaryDirectory() as folder:
            lora = find_lora(str(write_lora(Path(folder) / f"{name}.safetensors", weights.shape, RANK)))
            rows += _measure_weights(weights, lora, device, rate)
    for row in rows:
        table.add_row(
            row["weights"], f"{row['size']} px", row["precision"], row["mode"], f"{row['ours_s']:.2f}",
            f"{row['loop_s']:.2f}", f"{row['ratio']:.2f}x", f"{row['share_of_matrix_rate']:.0%}",
            f"{row['peak_bytes'] / 1e9:.1f}",
        )  # fmt: skip
    console.print(table)
    return rows


def _measure_weights(weights: Weights, lora: LoraRef, device: torch.device, rate: float) -> list[dict[str, Any]]:
    loops = _measure_loops(weights, lora, device)
    rows = []
    precisions: tuple[Precision, ...] = ("bf16", "fp8")
    for precision, compiled in itertools.product(precisions, (False, True)):
        pipeline = make_pipeline(weights, device, precision=precision)
        if compiled:
            compile_blocks(pipeline.transformer)
        model = Model(pipeline, weights=weights, precision=precision, adapter_cache_bytes=1 << 31, device=device)
        for size in SIZES:
            requests = list_requests(weights, precision, size, lora=lora)
            _sweep(model, requests)
            torch.cuda.reset_peak_memory_stats(device)
            seconds = statistics.median(time_once(partial(_sweep, model, requests)) for _ in range(ROUNDS))
            loop_s, flop = loops[size]
            rows.append(
                {
                    "weights": weights.name,
                    "size": size,
                    "precision": precision,
                    "mode": "compiled" if compiled else "eager",
                    "ours_s": round(seconds, 4),
                    "loop_s": round(loop_s, 4),
                    "ratio": round(loop_s / seconds, 3),
                    "tflop": round(flop / 1e12, 1),
                    "share_of_matrix_rate": round(flop / seconds / rate, 3),
                    "peak_bytes": torch.cuda.max_memory_allocated(device),
                }
            )
        del model, pipeline
        _release()
    return rows


def _measure_loops(weights: Weights, lora: LoraRef, device: torch.device) -> dict[int, tuple[float, float]]:
    """For every size: seconds of diffusers' loop, and the floating-point operations it does."""
    pipeline = make_pipeline(weights, device)
    pipeline.load_lora_weights(str(lora.path), adapter_name="benchmarked_lora")
    found = {}
    for size in SIZES:
        loop = partial(_run_loop, pipeline, weights, size)
        with FlopCounterMode(display=False) as counter:
            loop()
        seconds = statistics.median(time_once(loop) for _ in range(ROUNDS))
        found[size] = (seconds, float(counter.get_total_flops()))
    del pipeline, loop
    _release()
    return found


def _run_loop(pipeline: Any, weights: Weights, size: int) -> None:
    for strength in STRENGTHS:
        pipeline.set_adapters(["benchmarked_lora"], [float(strength)])
        pipeline(
            prompt=PROMPT,
            width=size,
            height=size,
            num_inference_steps=weights.steps,
            guidance_scale=weights.guidance,
            generator=torch.Generator().manual_seed(7),
            max_sequence_length=weights.max_sequence_length,
            text_encoder_out_layers=weights.text_encoder_out_layers,
        )
    torch.cuda.synchronize()


def _sweep(model: Model, requests: Sequence[RenderRequest]) -> None:
    """What the engine does with a sweep: batches as large as pay, image by image."""
    first = requests[0]
    size = largest_batch(model.weights, first.width, first.height, model.device)
    for start in range(0, len(requests), size):
        for image in render_batch(model, requests[start : start + size], on_step=lambda _step, _steps: None):
            if isinstance(image, Exception):
                raise image
    torch.cuda.synchronize()


def _measure_rate(device: torch.device) -> float:
    """The rate of a large BF16 matrix product, in FLOP/s."""
    a, b = (torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))

    def multiply() -> None:
        for _ in range(10):
            torch.mm(a, b)
        torch.cuda.synchronize()

    multiply()
    seconds = statistics.median(time_once(multiply) for _ in range(5)) / 10
    return float(2 * MATRIX_SIDE**3 / seconds)


def _release() -> None:
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
