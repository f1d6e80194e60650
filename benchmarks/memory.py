"""How much memory does the true-size 4B take, and is the estimate right? And how long is one picture at 256 px?

Each part runs in a process of its own, whose peak is what counts: the transformer alone with 4 steps of one picture,
and the whole pipeline from prompt to pixels. Random weights. `pipeline/memory.py` refuses or places a checkpoint by the
estimate, so it should be above the peak, and near.
"""

import json
import multiprocessing
import time
from decimal import Decimal
from multiprocessing.connection import Connection
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import peak_memory_bytes
from benchmarks.requests import list_requests
from benchmarks.true_size import make_pipeline
from lora_runtime.catalogue import find_weights
from lora_runtime.pipeline.batch import Model, render_batch
from lora_runtime.pipeline.load import choose_device
from lora_runtime.pipeline.memory import estimate_needs, free_bytes
from lora_runtime.values import Precision

SIDE = 256
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp8")


def run(console: Console) -> list[dict[str, Any]]:
    """Measure 4B at each precision; print a table and return its rows; none when it does not fit."""
    device = choose_device()
    table = Table("4B at 256 px", "estimate GB", "peak GB", "load s", "one picture s")
    rows: list[dict[str, Any]] = []
    for precision in PRECISIONS:
        # Random BF16 weights come first, whatever the precision.
        needed = estimate_needs(find_weights("klein-4b"), "bf16", device).everything
        if free_bytes(device) < needed:
            console.print(f"memory: {precision} skipped, {needed / 1e9:.0f} GB are needed on {device}")
            continue
        row = _in_own_process(precision, str(device))
        rows.append(row)
        table.add_row(
            precision, f"{row['estimate_bytes'] / 1e9:.1f}", f"{row['peak_bytes'] / 1e9:.1f}",
            f"{row['load_s']:.1f}", f"{row['picture_s']:.1f}",
        )  # fmt: skip
    console.print(table)
    return rows


def _in_own_process(precision: Precision, device: str) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(precision, device, theirs))
    process.start()
    theirs.close()
    try:
        row: dict[str, Any] = json.loads(ours.recv())
    except EOFError as error:
        raise RuntimeError(f"the process that measures {precision} died; was there enough memory?") from error
    finally:
        process.join()
    return row


def _measure(precision: Precision, device_name: str, answer: Connection) -> None:
    weights, device = find_weights("klein-4b"), torch.device(device_name)
    started = time.perf_counter()
    pipeline = make_pipeline(weights, device, precision=precision)
    loaded = time.perf_counter()
    model = Model(pipeline, weights=weights, precision=precision, adapter_cache_bytes=0, device=device)
    requests = list_requests(weights, precision, SIDE, lora=None, strengths=[Decimal(0)])
    (picture,) = render_batch(model, requests, on_step=lambda _step, _steps: None)
    if isinstance(picture, Exception):
        raise picture
    ended = time.perf_counter()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()
    row = {
        "precision": precision,
        "device": device_name,
        "size": SIDE,
        "estimate_bytes": estimate_needs(weights, precision, device).everything,
        "peak_bytes": peak,
        "load_s": round(loaded - started, 2),
        "picture_s": round(ended - loaded, 2),
    }
    answer.send(json.dumps(row))
    answer.close()
