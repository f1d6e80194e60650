"""How long does it take to attach a LoRA to the true-size 4B, and to change the strengths of a batch?

The weights are random, the shapes real. The baseline for attaching is diffusers' `load_lora_weights` of the same file,
which leaves the matrices mapped to it; ours are copied, so that a file that changes later changes nothing. Before that,
once a file, comes the check: its digest, NaN, and the size of each layer's change. For strengths the baseline is
`set_adapters`, which sets one strength for all rows where ours sets one for each of eight.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import time_once
from benchmarks.true_size import make_pipeline, write_lora
from lora_runtime.catalogue import find_weights
from lora_runtime.lora.check import check_file
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline.adapters import Adapters
from lora_runtime.pipeline.load import choose_device
from lora_runtime.pipeline.memory import estimate_needs, free_bytes

RANKS = (32, 128)
ROUNDS = 5
ROWS = 8
STRENGTH_ROUNDS = 50


def run(console: Console) -> list[dict[str, Any]]:
    """Measure every rank; print a table and return its rows; none when the 4B does not fit."""
    weights, device = find_weights("klein-4b"), choose_device()
    # Two of the largest LoRA lie beside the transformer for a moment: the file's tensors and the attached ones.
    needed = estimate_needs(weights, "bf16", device).transformer + 2_000_000_000
    if free_bytes(device) < needed:
        console.print(f"attach: skipped, {needed / 1e9:.0f} GB of memory are needed on {device}")
        return []
    pipeline = make_pipeline(weights, device, parts=["transformer"])
    table = Table("rank", "file MB", "check s", "attach s", "diffusers s", "ratio", "8 strengths ms", "set_adapters ms")
    rows = []
    for rank in RANKS:
        with tempfile.TemporaryDirectory() as folder:
            path = write_lora(Path(folder) / f"rank-{rank}.safetensors", weights.shape, rank)
            rows.append({"rank": rank, "device": str(device)} | _measure(pipeline, weights.name, path))
        row = rows[-1]
        table.add_row(
            str(rank), f"{row['file_mb']:.0f}", f"{row['check_s']:.2f}", f"{row['attach_s']:.2f}",
            f"{row['diffusers_s']:.2f}", f"{row['ratio']:.2f}x", f"{row['strengths_ms']:.2f}",
            f"{row['set_adapters_ms']:.2f}",
        )  # fmt: skip
    console.print(table)
    return rows


def _measure(pipeline: Any, weights: str, path: Path) -> dict[str, Any]:
    check_s = time_once(lambda: check_file(path))
    lora = find_lora(str(path))
    ours, theirs = [], []
    adapters = Adapters(pipeline.transformer, weights=weights, cache_bytes=0)
    for _ in range(ROUNDS + 1):
        ours.append(time_once(lambda: adapters.attach(lora)))
        adapters.shrink()
        theirs.append(time_once(lambda: pipeline.load_lora_weights(str(path), adapter_name="benchmarked_lora")))
        pipeline.delete_adapters("benchmarked_lora")
    name = adapters.attach(lora)
    strengths = [row / ROWS for row in range(ROWS)]

    def set_rows() -> None:
        with adapters.strengths({name: strengths}):
            pass

    changed = statistics.median(time_once(set_rows) for _ in range(STRENGTH_ROUNDS))
    adapters.shrink()
    pipeline.load_lora_weights(str(path), adapter_name="benchmarked_lora")
    single = statistics.median(
        time_once(lambda: pipeline.set_adapters(["benchmarked_lora"], [0.7])) for _ in range(STRENGTH_ROUNDS)
    )
    pipeline.delete_adapters("benchmarked_lora")
    attach_s, diffusers_s = statistics.median(ours[1:]), statistics.median(theirs[1:])  # the first warms up
    return {
        "file_mb": round(path.stat().st_size / 1e6, 1),
        "check_s": round(check_s, 3),
        "attach_s": round(attach_s, 3),
        "diffusers_s": round(diffusers_s, 3),
        "ratio": round(diffusers_s / attach_s, 2),
        "strengths_ms": round(1000 * changed, 3),
        "set_adapters_ms": round(1000 * single, 3),
    }
