"""How much memory do the true-size 4B and 9B take, is the estimate right, and how long is a picture at 256 px?

From a prompt to pixels with random weights, a LoRA of rank 32 on every layer of the blocks, and a strength of its own
for each row of the batch. Each part runs in a process of its own, whose peak is what counts. Where the 9B does not fit
beside its text encoder, that runs first, in its own process, and hands over by the cache of prompts on disk.
`pipeline/memory.py` refuses or places a checkpoint by the estimate, so it should be above the peak, and near.
"""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from decimal import Decimal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import peak_memory_bytes
from benchmarks.requests import PROMPT, list_requests
from benchmarks.true_size import make_pipeline, write_lora
from lora_runtime.catalogue import find_weights
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline.batch import Model, render_batch
from lora_runtime.pipeline.load import choose_device
from lora_runtime.pipeline.memory import estimate_needs, free_bytes
from lora_runtime.pipeline.prompts import DiskCache, Prompts
from lora_runtime.values import Precision

SIDE = 256
RANK = 32


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured: `strengths` are the rows of one batch."""

    weights: str
    precision: Precision
    strengths: tuple[str, ...]
    device: str

    @property
    def whole_bytes(self) -> int:
        """The estimate with all parts in memory at once."""
        return estimate_needs(find_weights(self.weights), self.precision, torch.device(self.device)).everything

    @property
    def apart_bytes(self) -> int:
        """The estimate with the text encoder gone before the transformer comes."""
        needs = estimate_needs(find_weights(self.weights), self.precision, torch.device(self.device))
        return max(needs.everything - needs.text_encoder, needs.everything - needs.transformer - needs.vae)


def run(console: Console) -> list[dict[str, Any]]:
    """Measure what fits this machine; print a table and return its rows."""
    device = choose_device()
    table = Table(
        "256 px", "precision", "rows", "text encoder", "estimate GB", "loaded GB", "peak GB", "load s", "render s"
    )
    rows: list[dict[str, Any]] = []
    for case in list_cases(device):
        free = free_bytes(device)
        if case.apart_bytes > free:
            console.print(
                f"memory: {case.weights} at {case.precision} skipped, {case.apart_bytes / 1e9:.1f} GB are needed on "
                f"{device} and {free / 1e9:.1f} GB are free"
            )
            continue
        row = measure(case, apart=case.whole_bytes > free)
        rows.append(row)
        console.print_json(json.dumps(row), indent=None)  # a run that is cut off still leaves what it measured
        table.add_row(
            row["weights"], row["precision"], str(len(row["strengths"])), row["text_encoder"],
            f"{row['estimate_bytes'] / 1e9:.1f}", f"{row['load_peak_bytes'] / 1e9:.1f}",
            f"{row['peak_bytes'] / 1e9:.1f}", f"{row['load_s']:.1f}", f"{row['render_s']:.1f}",
        )  # fmt: skip
    console.print(table)
    return rows


def list_cases(device: torch.device) -> list[Case]:
    """One picture of the 4B, and two strengths in one batch of the 9B, at each precision."""
    strengths = {"klein-4b": ("1",), "klein-9b": ("0", "0.7")}
    precisions: tuple[Precision, ...] = ("bf16", "fp8")
    return [
        Case(weights=name, precision=precision, strengths=values, device=str(device))
        for name, values in strengths.items()
        for precision in precisions
    ]


def measure(case: Case, *, apart: bool) -> dict[str, Any]:
    """Render `case` from prompt to pixels; `apart` lets the text encoder go before the transformer comes."""
    with tempfile.TemporaryDirectory() as folder:
        nothing = dict.fromkeys(("load_peak_bytes", "peak_bytes", "load_s", "render_s"), 0)
        encoded = _in_own_process(_encode, case, folder) if apart else nothing
        drawn = _in_own_process(_draw_apart if apart else _draw, case, folder)
    return {
        **asdict(case),
        "size": SIDE,
        "lora_rank": RANK,
        "steps": find_weights(case.weights).steps,
        "text_encoder": "before" if apart else "beside",
        "estimate_bytes": case.apart_bytes if apart else case.whole_bytes,
        "load_peak_bytes": max(encoded["load_peak_bytes"], drawn["load_peak_bytes"]),
        "peak_bytes": max(encoded["peak_bytes"], drawn["peak_bytes"]),
        "load_s": round(encoded["load_s"] + drawn["load_s"], 2),
        "render_s": round(encoded["render_s"] + drawn["render_s"], 2),
    }


def _in_own_process(part: Callable[[Case, Path], dict[str, Any]], case: Case, folder: str) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(part, case, folder, theirs))
    process.start()
    theirs.close()
    try:
        answer: dict[str, Any] = json.loads(ours.recv())
    except EOFError as error:
        raise RuntimeError(f"the process that measures {case} died; was there enough memory?") from error
    finally:
        process.join()
    return answer


def _answer(part: Callable[[Case, Path], dict[str, Any]], case: Case, folder: str, pipe: Connection) -> None:
    device = torch.device(case.device)
    answer = part(case, Path(folder))
    pipe.send(json.dumps(answer | {"peak_bytes": _peak(device)}))
    pipe.close()


@torch.inference_mode()
def _encode(case: Case, folder: Path) -> dict[str, Any]:
    """The prompt alone; its embedding stays on disk."""
    weights, device = find_weights(case.weights), torch.device(case.device)
    started = time.perf_counter()
    pipeline = make_pipeline(weights, device, parts=["text_encoder"])
    loaded, load_peak = time.perf_counter(), _peak(device)

    def encode(prompt: str) -> torch.Tensor:
        embedding: torch.Tensor = pipeline.encode_prompt(
            prompt=prompt,
            device=device,
            max_sequence_length=weights.max_sequence_length,
            text_encoder_out_layers=weights.text_encoder_out_layers,
        )[0]
        return embedding

    Prompts(encode, disk=_disk(folder)).embed([PROMPT])
    return {"load_peak_bytes": load_peak, "load_s": loaded - started, "render_s": time.perf_counter() - loaded}


def _draw(case: Case, folder: Path) -> dict[str, Any]:
    return _render(case, folder, ["transformer", "text_encoder", "vae"])


def _draw_apart(case: Case, folder: Path) -> dict[str, Any]:
    return _render(case, folder, ["transformer", "vae"])


def _render(case: Case, folder: Path, parts: list[str]) -> dict[str, Any]:
    weights, device = find_weights(case.weights), torch.device(case.device)
    lora = find_lora(str(write_lora(folder / "a.safetensors", weights.shape, RANK)))
    started = time.perf_counter()
    pipeline = make_pipeline(weights, device, precision=case.precision, parts=parts)
    loaded, load_peak = time.perf_counter(), _peak(device)
    model = Model(
        pipeline, weights=weights, precision=case.precision, adapter_cache_bytes=0, device=device, disk=_disk(folder)
    )
    strengths = [Decimal(text) for text in case.strengths]
    requests = list_requests(weights, case.precision, SIDE, lora=lora, strengths=strengths)
    for picture in render_batch(model, requests, on_step=lambda _step, _steps: None):
        if isinstance(picture, Exception):
            raise picture
    return {"load_peak_bytes": load_peak, "load_s": loaded - started, "render_s": time.perf_counter() - loaded}


def _peak(device: torch.device) -> int:
    """The most memory that was held so far: of the GPU, or of this process."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else peak_memory_bytes()


def _disk(folder: Path) -> DiskCache:
    return DiskCache(folder=folder / "prompts", key=("benchmark",))
