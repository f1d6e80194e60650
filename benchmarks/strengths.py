"""How long do 8 strengths of one LoRA take, against diffusers' own loop?

The baseline is what a careful user of diffusers writes: load the LoRA once, then `set_adapters` and a pipeline call per
strength. Both run the same weights, precision and seeds in one process, in turns; what counts is the ratio of medians.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import measure_matrix_rate, peak_memory_bytes, time_once
from benchmarks.requests import PROMPT, STRENGTHS, list_requests
from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import Weights, find_weights
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline.find import find_checkpoint
from lora_runtime.pipeline.precision import DTYPES
from lora_runtime.values import LoraRef, Precision, Rendered, RenderRequest

SIZES = (64, 128, 256)
ROUNDS = 7


def run(console: Console) -> list[dict[str, Any]]:
    """Measure every size at every precision; print a table and return its rows."""
    weights = find_weights("pocket")
    lora = find_lora("style")
    table = Table("size", "precision", "ours s", "diffusers s", "ratio", "first image s", "of matrix rate")
    backend = LocalBackend()
    rows = []
    # FP8 against BF16 is a question of its own (`fp8.py`): plain diffusers has no loop to hold it against.
    precisions = [
        status.precision for status in backend.models() if status.weights == weights.name and status.precision != "fp8"
    ]
    for precision in precisions:
        matrix_rate = measure_matrix_rate(DTYPES[precision])
        loop = DiffusersLoop(weights, precision, lora)
        for size in SIZES:
            row = _measure(backend, loop, weights, precision, lora, size, matrix_rate)
            rows.append(row)
            table.add_row(
                f"{size} px",
                precision,
                f"{row['ours_s']:.2f}",
                f"{row['diffusers_s']:.2f}",
                f"{row['ratio']:.2f}x",
                f"{row['first_image_s']:.2f}",
                f"{row['share_of_matrix_rate']:.0%}",
            )
    backend.close()
    console.print(table)
    return rows


class DiffusersLoop:
    """The baseline: `load_lora_weights` once, then `set_adapters` and a pipeline call per strength."""

    def __init__(self, weights: Weights, precision: Precision, lora: LoraRef) -> None:
        self.weights = weights
        self.pipeline = Flux2KleinPipeline.from_pretrained(find_checkpoint(weights), dtype=DTYPES[precision])
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.load_lora_weights(str(lora.path), adapter_name="benchmarked_lora")

    def __call__(self, size: int) -> None:
        """Render every strength at `size` px."""
        for strength in STRENGTHS:
            self.pipeline.set_adapters(["benchmarked_lora"], [float(strength)])
            self.pipeline(
                prompt=PROMPT,
                width=size,
                height=size,
                num_inference_steps=self.weights.steps,
                guidance_scale=self.weights.guidance,
                generator=torch.Generator().manual_seed(7),
                max_sequence_length=self.weights.max_sequence_length,
                text_encoder_out_layers=self.weights.text_encoder_out_layers,
            )


def _measure(
    backend: LocalBackend,
    loop: DiffusersLoop,
    weights: Weights,
    precision: Precision,
    lora: LoraRef,
    size: int,
    matrix_rate: float,
) -> dict[str, Any]:
    requests = list_requests(weights, precision, size, lora=lora)
    with FlopCounterMode(display=False) as counter:
        loop(size)
    ours: list[float] = []
    first: list[float] = []
    theirs: list[float] = []
    _time_to_images(backend, requests)
    for _ in range(ROUNDS):
        first_s, all_s = _time_to_images(backend, requests)
        first.append(first_s)
        ours.append(all_s)
        theirs.append(time_once(_bind(loop, size)))
    ours_s, theirs_s = statistics.median(ours), statistics.median(theirs)
    return {
        "size": size,
        "precision": precision,
        "strengths": len(STRENGTHS),
        "ours_s": round(ours_s, 4),
        "diffusers_s": round(theirs_s, 4),
        "ratio": round(theirs_s / ours_s, 3),
        "first_image_s": round(statistics.median(first), 4),
        "gflop": round(counter.get_total_flops() / 1e9, 1),
        "matrix_rate_gflops": round(matrix_rate, 1),
        "share_of_matrix_rate": round(counter.get_total_flops() / 1e9 / ours_s / matrix_rate, 3),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _time_to_images(backend: LocalBackend, requests: Sequence[RenderRequest]) -> tuple[float, float]:
    """Seconds to the first image and to the last."""
    started = time.perf_counter()
    ended = [time.perf_counter() - started for event in backend.render(requests) if isinstance(event, Rendered)]
    return ended[0], ended[-1]


def _bind(loop: DiffusersLoop, size: int) -> Callable[[], None]:
    return lambda: loop(size)
