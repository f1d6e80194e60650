"""How long do 8 strengths take on a GPU, at klein's true size? Against diffusers' own loop and the physical floor.

Random weights, real shapes: nothing is downloaded. Every row is 4B or 9B, 512 or 1024 px, BF16 or FP8, eager or with
compiled blocks. The baseline is the loop of `strengths.py` on the same weights in BF16, eager. Each round has a prompt
of its own: ours encodes it once for the sweep, the loop once a picture.

The floor is the work, counted by torch, at the rates that large products reach on the GPU: prompt once, and eight times
the denoising and the decoding. Rows are printed as they come, so a run that is cut off leaves what it measured; after
`BUDGET_S` seconds nothing new is begun.
"""

import gc
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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
from lora_runtime.pipeline.batch import Model, make_noise, render_batch
from lora_runtime.pipeline.kernels import set_attention
from lora_runtime.pipeline.memory import estimate_needs, free_bytes, largest_batch
from lora_runtime.values import LoraRef, Precision, RenderRequest

RANK = 32
BUDGET_S = 450
_ADAPTER = "benchmarked_lora"


@dataclass(frozen=True, kw_only=True)
class Rates:
    """FLOP/s that a GPU reaches: products of matrices in BF16 and FP8, attention beside FP8 products, convolutions."""

    bf16: float
    fp8: float
    attention: float
    convolution: float


KNOWN_RATES = {name: Rates(bf16=800e12, fp8=1600e12, attention=600e12, convolution=400e12) for name in ("H100", "H200")}
"""Of the SXM cards; 80% of the 989 and 1979 TFLOP/s in NVIDIA's data sheet."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured, and where."""

    device: torch.device
    weights: tuple[Weights, ...]
    sizes: tuple[int, ...] = (512, 1024)
    rounds: int = 3
    compiler: str = "inductor"
    matrix_side: int = 8192
    budget_s: float = BUDGET_S
    started: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() - self.started > self.budget_s


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOP of a prompt, and of a picture: its products, attention and decoding."""

    prompt: float
    products: float
    attention: float
    decoding: float

    def floor_s(self, images: int, precision: Precision, rates: Rates) -> float:
        """Seconds that `images` of one prompt take at `rates`."""
        products, attention = (rates.fp8, rates.attention) if precision == "fp8" else (rates.bf16, rates.bf16)
        picture = self.products / products + self.attention / attention + self.decoding / rates.convolution
        return self.prompt / products + images * picture


def run(console: Console) -> list[dict[str, Any]]:
    """Measure everything that fits; print tables and return the rows; none without a CUDA GPU."""
    if not torch.cuda.is_available():
        console.print("gpu: skipped, there is no CUDA GPU here")
        return []
    device = torch.device("cuda", torch.cuda.current_device())
    return measure(Plan(device=device, weights=(find_weights("klein-4b"), find_weights("klein-9b"))), console)


def measure(plan: Plan, console: Console) -> list[dict[str, Any]]:
    """Measure what `plan` says; print tables and return the rows."""
    rates = _find_rates(plan)
    console.print(f"gpu: rates in FLOP/s are {json.dumps(asdict(rates))}")
    rows: list[dict[str, Any]] = []
    for weights in plan.weights:
        if plan.over:
            console.print(f"gpu: {weights.name} skipped, the time is up")
            continue
        if estimate_needs(weights, "bf16", plan.device).everything > free_bytes(plan.device):
            console.print(f"gpu: {weights.name} skipped, it does not fit {plan.device}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            lora = find_lora(str(write_lora(Path(folder) / f"{weights.name}.safetensors", weights.shape, RANK)))
            rows += _measure_weights(plan, weights, lora, rates, console)
    _print_rows(rows, console)
    for goal in check_goals(rows):
        console.print(goal)
    return rows


def check_goals(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each goal of one H100 that these rows can answer."""
    best: dict[tuple[str, int, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["weights"], row["size"], row["precision"])
        if key not in best or row["ours_s"] < best[key]["ours_s"]:
            best[key] = row
    large, small = best.get(("klein-4b", 1024, "bf16")), best.get(("klein-4b", 512, "bf16"))
    fp8 = best.get(("klein-4b", 1024, "fp8"))
    found: list[tuple[str, float, float, bool]] = []
    if large:
        found.append(("4B at 1024 px in bf16, seconds", large["ours_s"], 3.0, False))
        found.append(("4B at 1024 px in bf16, times the loop", large["ratio"], 1.8, True))
    if large and fp8:
        found.append(("4B at 1024 px, fp8 times our bf16", large["ours_s"] / fp8["ours_s"], 1.2, True))
    if small:
        found.append(("4B at 512 px in bf16, times the loop", small["ratio"], 2.5, True))
    return [
        f"goal: {what}: {value:.2f}, {'at least' if higher else 'under'} {goal}: "
        f"{'met' if (value >= goal) == higher else 'missed'}"
        for what, value, goal, higher in found
    ]


def _measure_weights(
    plan: Plan, weights: Weights, lora: LoraRef, rates: Rates, console: Console
) -> list[dict[str, Any]]:
    baselines = _measure_loops(plan, weights, lora)
    rows = []
    precisions: tuple[Precision, ...] = ("bf16", "fp8")
    for compiled, precision in itertools.product((False, True), precisions):
        if plan.over:
            console.print(f"gpu: {weights.name} at {precision} skipped, the time is up")
            continue
        model = _load(plan, weights, precision, compiled)
        for size in plan.sizes:
            started = time.monotonic()
            _sweep(model, weights, lora, size, 0)
            warm_up_s = time.monotonic() - started
            _reset_peak(plan.device)
            seconds = statistics.median(
                time_once(partial(_sweep, model, weights, lora, size, turn)) for turn in range(1, plan.rounds + 1)
            )
            loop_s, work = baselines[size]
            floor_s = work.floor_s(len(STRENGTHS), precision, rates)
            rows.append(
                {
                    "weights": weights.name,
                    "size": size,
                    "precision": precision,
                    "mode": "compiled" if compiled else "eager",
                    "attention": model.attention,
                    "ours_s": round(seconds, 4),
                    "loop_s": round(loop_s, 4),
                    "ratio": round(loop_s / seconds, 3),
                    "floor_s": round(floor_s, 4),
                    "share_of_floor": round(floor_s / seconds, 3),
                    "warm_up_s": round(warm_up_s, 2),
                    "peak_bytes": _peak(plan.device),
                }
            )
            console.print_json(json.dumps(rows[-1]), indent=None)
        del model
        _release(plan.device)
    return rows


def _load(plan: Plan, weights: Weights, precision: Precision, compiled: bool) -> Model:
    pipeline = make_pipeline(weights, plan.device, precision=precision)
    return Model(
        pipeline,
        weights=weights,
        precision=precision,
        adapter_cache_bytes=1 << 31,
        device=plan.device,
        attention=set_attention(pipeline.transformer, plan.device),
        compiler=plan.compiler if compiled else None,
    )


def _measure_loops(plan: Plan, weights: Weights, lora: LoraRef) -> dict[int, tuple[float, Work]]:
    """For every size: seconds of diffusers' loop, and the work of a picture."""
    pipeline = make_pipeline(weights, plan.device)
    pipeline.load_lora_weights(str(lora.path), adapter_name=_ADAPTER)
    found = {}
    for size in plan.sizes:
        work = _count_work(pipeline, weights, size)
        _run_loop(pipeline, weights, size, 0)
        seconds = statistics.median(
            time_once(partial(_run_loop, pipeline, weights, size, turn)) for turn in range(1, plan.rounds + 1)
        )
        found[size] = (seconds, work)
    del pipeline
    _release(plan.device)
    return found


@torch.inference_mode()
def _count_work(pipeline: Any, weights: Weights, size: int) -> Work:
    """Count one picture's operations, with the LoRA attached."""
    with FlopCounterMode(display=False) as prompt:
        embeddings = pipeline.encode_prompt(
            PROMPT,
            max_sequence_length=weights.max_sequence_length,
            text_encoder_out_layers=weights.text_encoder_out_layers,
        )[0]
    (request,) = list_requests(weights, "bf16", size, lora=None, strengths=STRENGTHS[:1])
    with FlopCounterMode(display=False) as denoising:
        latents = pipeline(
            prompt_embeds=embeddings,
            latents=make_noise(pipeline, request),
            width=size,
            height=size,
            num_inference_steps=weights.steps,
            guidance_scale=weights.guidance,
            output_type="latent",
            return_dict=False,
        )[0]
    with FlopCounterMode(display=False) as decoding:
        pipeline.vae.decode(latents, return_dict=False)
    total = float(denoising.get_total_flops())
    attention = float(
        sum(flop for operation, flop in denoising.get_flop_counts()["Global"].items() if "attention" in str(operation))
    )
    return Work(
        prompt=float(prompt.get_total_flops()),
        products=total - attention,
        attention=attention,
        decoding=float(decoding.get_total_flops()),
    )


def _run_loop(pipeline: Any, weights: Weights, size: int, turn: int) -> None:
    for strength in STRENGTHS:
        pipeline.set_adapters([_ADAPTER], [float(strength)])
        pipeline(
            prompt=f"{PROMPT} {turn}",
            width=size,
            height=size,
            num_inference_steps=weights.steps,
            guidance_scale=weights.guidance,
            generator=torch.Generator().manual_seed(7),
            max_sequence_length=weights.max_sequence_length,
            text_encoder_out_layers=weights.text_encoder_out_layers,
        )
    _wait(pipeline.device)


def _sweep(model: Model, weights: Weights, lora: LoraRef, size: int, turn: int) -> None:
    """What the engine does with a sweep: batches as large as pay, image by image."""
    requests: list[RenderRequest] = list_requests(weights, model.precision, size, lora=lora, prompt=f"{PROMPT} {turn}")
    rows = largest_batch(model.weights, size, size, model.device)
    for start in range(0, len(requests), rows):
        for image in render_batch(model, requests[start : start + rows], on_step=lambda _step, _steps: None):
            if isinstance(image, Exception):
                raise image
    _wait(model.device)


def _find_rates(plan: Plan) -> Rates:
    """The known rates of this GPU; of another one what a large product reaches now, with a data sheet's proportions."""
    name = torch.cuda.get_device_name(plan.device) if plan.device.type == "cuda" else "this CPU"
    known = next((rates for part, rates in KNOWN_RATES.items() if part in name), None)
    if known is not None:
        return known
    side = plan.matrix_side
    a, b = (torch.randn(side, side, device=plan.device, dtype=torch.bfloat16) for _ in range(2))

    def multiply() -> None:
        for _ in range(10):
            torch.mm(a, b)
        _wait(plan.device)

    multiply()
    rate = 10 * 2 * side**3 / statistics.median(time_once(multiply) for _ in range(5))
    return Rates(bf16=rate, fp8=2 * rate, attention=0.75 * rate, convolution=0.5 * rate)


def _print_rows(rows: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table("weights", "size", "precision", "mode", "8 strengths s", "loop s", "ratio", "of floor", "peak GB")
    for row in rows:
        table.add_row(
            row["weights"], f"{row['size']} px", row["precision"], row["mode"], f"{row['ours_s']:.2f}",
            f"{row['loop_s']:.2f}", f"{row['ratio']:.2f}x", f"{row['share_of_floor']:.0%}",
            f"{row['peak_bytes'] / 1e9:.1f}",
        )  # fmt: skip
    console.print(table)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0


def _release(device: torch.device) -> None:
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
