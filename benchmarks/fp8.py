"""How far is FP8 from BF16, and what does it cost or save? Same prompts, seeds and strengths on the pocket klein.

The distance is set beside that of one strength step (0.7 to 0.8), and of FP32 against BF16: rounding that everybody
accepts. The judge says what the pictures lose of their prompts: the bundled CLIP's logit, where a fall by 3 means that
the prompt became 20 times less likely. On a CPU FP8 saves memory, not time.
"""

import statistics
from collections.abc import Sequence
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.machine import time_once
from benchmarks.requests import list_requests
from evaluation.judge.metrics.clip import measure_prompt_fit
from evaluation.judge.metrics.embeddings import embed_images
from evaluation.judge.metrics.ssim import measure_ssim
from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import find_weights
from lora_runtime.judges import read_judge
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline.load import choose_device
from lora_runtime.pipeline.memory import estimate_needs
from lora_runtime.pocket import JUDGE_DIR
from lora_runtime.values import Failed, Precision, Rendered, RenderRequest

PROMPTS = ("a red cat in the meadow", "a blue boat on the beach", "a green teapot in the snow")
SEEDS = (3, 7, 11)
STRENGTHS = tuple(Decimal(text) for text in ("0", "0.7", "0.8", "1"))
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp8", "fp32")


def run(console: Console) -> list[dict[str, Any]]:
    """Measure each precision against BF16; print a table and return its rows."""
    weights, device = find_weights("pocket"), choose_device()
    backend = LocalBackend()
    pictures: dict[Precision, list[Image.Image]] = {}
    seconds: dict[Precision, float] = {}
    for precision in PRECISIONS:
        requests = _list_requests(precision)
        pictures[precision] = _render(backend, requests)
        seconds[precision] = statistics.median(time_once(partial(_render, backend, requests)) for _ in range(3))
    backend.close()
    fits = {precision: _judge(images) for precision, images in pictures.items()}
    rows = [
        {
            "what": f"{precision} against bf16",
            **_distance(pictures[precision], pictures["bf16"]),
            **_compare_fits(fits[precision], fits["bf16"]),
        }
        | {
            "seconds_per_image": round(seconds[precision] / len(pictures[precision]), 4),
            "transformer_mb": round(estimate_needs(weights, precision, device).transformer / 1e6, 1),
        }
        for precision in PRECISIONS
    ]
    starts = [STRENGTHS.index(Decimal(text)) for text in ("0.8", "0.7")]
    step = [pictures["bf16"][start :: len(STRENGTHS)] for start in starts]
    step_fits = [fits["bf16"][start :: len(STRENGTHS)] for start in starts]
    rows.append({"what": "strength 0.8 against 0.7", **_distance(*step), **_compare_fits(*step_fits)})
    table = Table("what", "PSNR dB", "SSIM", "lowest SSIM", "judge", "change", "seconds/image", "transformer MB")
    for row in rows:
        table.add_row(
            row["what"], f"{row['psnr_db']:.1f}", f"{row['ssim']:.3f}", f"{row['ssim_lowest']:.3f}",
            f"{row['judge']:.2f}", f"{row['judge_change']:+.2f}",
            str(row.get("seconds_per_image", "")), str(row.get("transformer_mb", "")),
        )  # fmt: skip
    console.print(table)
    return rows


def _list_requests(precision: Precision) -> list[RenderRequest]:
    weights, lora = find_weights("pocket"), find_lora("style")
    return [
        request
        for prompt in PROMPTS
        for seed in SEEDS
        for request in list_requests(
            weights, precision, weights.default_size, lora=lora, strengths=STRENGTHS, prompt=prompt, seed=seed
        )
    ]


def _render(backend: LocalBackend, requests: Sequence[RenderRequest]) -> list[Image.Image]:
    images: dict[int, Image.Image] = {}
    for event in backend.render(requests):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Rendered):
            images[event.index] = event.image
    return [images[index] for index in range(len(requests))]


def _distance(images: Sequence[Image.Image], others: Sequence[Image.Image]) -> dict[str, Any]:
    """Mean PSNR (99 dB where pictures are equal), mean and lowest SSIM."""
    pairs = list(zip(images, others, strict=True))
    similar = [measure_ssim(image, other) for image, other in pairs]
    return {
        "images": len(pairs),
        "psnr_db": round(statistics.mean(_psnr(image, other) for image, other in pairs), 2),
        "ssim": round(statistics.mean(similar), 4),
        "ssim_lowest": round(min(similar), 4),
    }


def _judge(images: Sequence[Image.Image]) -> list[float]:
    """The bundled judge's score of each picture against its prompt; the prompts are equal parts of `images`."""
    judge = read_judge(JUDGE_DIR)
    each = len(images) // len(PROMPTS)
    parts = [images[start : start + each] for start in range(0, len(images), each)]
    return [
        fit
        for prompt, part in zip(PROMPTS, parts, strict=True)
        for fit in measure_prompt_fit(embed_images(part, judge), [prompt], judge)[:, 0].tolist()
    ]


def _compare_fits(fits: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Mean score, its mean change, and the largest fall of one picture."""
    changes = [fit - other for fit, other in zip(fits, others, strict=True)]
    return {
        "judge": round(statistics.mean(fits), 3),
        "judge_change": round(statistics.mean(changes), 3),
        "judge_lowest_change": round(min(changes), 3),
    }


def _psnr(image: Image.Image, other: Image.Image) -> float:
    """Source: PSNR = 10 log10(255^2 / MSE)."""
    error = float(((np.asarray(image, dtype=np.float64) - np.asarray(other, dtype=np.float64)) ** 2).mean())
    return 99.0 if error == 0 else min(99.0, float(10 * np.log10(255**2 / error)))
