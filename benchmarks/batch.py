"""How large a batch still pays? Images per second and seconds to the first image, by rows in the batch.

The baseline is a batch of one. `pipeline/memory.py` caps the batch where the rate no longer grows: beyond that, another
row only delays the first image.
"""

import statistics
from decimal import Decimal
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import time_once
from benchmarks.requests import list_requests
from lora_runtime.catalogue import find_weights
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline.batch import Model, render_batch
from lora_runtime.pipeline.find import find_checkpoint
from lora_runtime.pipeline.load import load_pipeline
from lora_runtime.pipeline.precision import precisions
from lora_runtime.values import RenderRequest

ROWS = (1, 2, 4, 8, 16, 32)
SIZES = (64, 128, 256)
ROUNDS = 3


def run(console: Console) -> list[dict[str, Any]]:
    """Measure every batch size at the default precision; print a table and return its rows."""
    weights, device = find_weights("pocket"), torch.device("cpu")
    precision = precisions(weights, device)[0]
    pipeline = load_pipeline(weights, precision, find_checkpoint(weights), device)
    model = Model(pipeline, weights=weights, precision=precision, adapter_cache_bytes=0)
    lora = find_lora("style")
    table = Table("size", "rows", "images/s", "against 1 row")
    results: list[dict[str, Any]] = []
    for size in SIZES:
        alone = 0.0
        for rows in ROWS:
            strengths = [Decimal(row) / rows for row in range(rows)]
            requests = list_requests(weights, precision, size, lora=lora, strengths=strengths)
            rate = rows / _median_seconds(model, requests)
            alone = alone or rate
            table.add_row(f"{size} px", str(rows), f"{rate:.1f}", f"{rate / alone:.2f}x")
            results.append(
                {"size": size, "rows": rows, "images_per_s": round(rate, 2), "ratio": round(rate / alone, 3)}
            )
    console.print(table)
    return results


def _median_seconds(model: Model, requests: list[RenderRequest]) -> float:
    def render() -> None:
        list(render_batch(model, requests, on_step=lambda _step, _steps: None))

    render()
    return statistics.median(time_once(render) for _ in range(ROUNDS))
