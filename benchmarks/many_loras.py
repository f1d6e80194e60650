"""What do different LoRAs in one batch cost? Every row with one of its own, against all rows with the same one.

The pocket in bf16, a batch of 24 at 64 and 128 px. The kinds are timed in turns, so that what else the machine does
meets all of them.
"""

import statistics
import tempfile
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from benchmarks.machine import time_once
from lora_runtime.catalogue import find_weights
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline.batch import Model, render_batch
from lora_runtime.pipeline.find import find_checkpoint
from lora_runtime.pipeline.load import load_pipeline
from lora_runtime.pocket import LORAS_DIR
from lora_runtime.values import LoraRef, RenderRequest

ROWS: Final = 24
ROUNDS: Final = 4
SIZES: Final = (64, 128)


def run(console: Console) -> list[dict[str, Any]]:
    """Measure the pocket at every size; print a table and return its rows."""
    weights = find_weights("pocket")
    pipeline = load_pipeline(weights, "bf16", find_checkpoint(weights), torch.device("cpu"))
    model = Model(pipeline, weights=weights, precision="bf16", adapter_cache_bytes=10**9)
    table = Table("what", "without s", "one LoRA s", f"{ROWS} LoRAs s", "ratio")
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        loras = _make_loras(Path(folder))
        for size in SIZES:
            kinds = {
                "without": _make_requests([None] * ROWS, size),
                "one": _make_requests(loras[:1] * ROWS, size),
                "each": _make_requests(loras, size),
            }
            found.append({"what": f"pocket, {size} px"} | _time(model, kinds))
    for row in found:
        table.add_row(row["what"], *(f"{row[kind]:.3f}" for kind in ("without", "one", "each")), f"{row['ratio']:.2f}x")
    console.print(table)
    return found


def _make_loras(folder: Path) -> list[LoraRef]:
    """As many LoRAs as rows: the bundled style with another factor each, so that no two files are the same."""
    tensors = load_file(LORAS_DIR / "style.safetensors")
    loras = []
    for number in range(ROWS):
        path = folder / f"style-{number}.safetensors"
        save_file({key: tensor * (1 - number / 100) for key, tensor in tensors.items()}, path)
        loras.append(find_lora(str(path)))
    return loras


def _make_requests(loras: Sequence[LoraRef | None], size: int) -> list[RenderRequest]:
    return [
        RenderRequest(
            weights="pocket", precision="bf16", prompt="a red cat", seed=seed, width=size, height=size, steps=4,
            guidance=1.0, lora=lora, strength=Decimal("0.8" if lora else 0),
        )
        for seed, lora in enumerate(loras)
    ]  # fmt: skip


def _time(model: Model, kinds: dict[str, list[RenderRequest]]) -> dict[str, float]:
    """Median seconds of each kind, taken in turns, and what `each` costs beside `one`."""

    def render(requests: list[RenderRequest]) -> float:
        return time_once(lambda: list(render_batch(model, requests, on_step=lambda _step, _steps: None)))

    rounds = [{kind: render(requests) for kind, requests in kinds.items()} for _ in range(ROUNDS + 1)][1:]
    seconds = {kind: statistics.median(each[kind] for each in rounds) for kind in kinds}
    return {kind: round(each, 4) for kind, each in seconds.items()} | {
        "ratio": round(statistics.median(each["each"] / each["one"] for each in rounds), 3)
    }
