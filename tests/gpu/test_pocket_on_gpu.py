"""The laws on a GPU, with the pocket klein: strengths, FP8 with rounded activations, offloading, compiled blocks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import POCKET, find_weights
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline.batch import Model, render_batch
from lora_runtime.pipeline.find import find_checkpoint
from lora_runtime.pipeline.kernels import KERNELS, set_attention
from lora_runtime.pipeline.load import load_pipeline
from lora_runtime.pipeline.memory import Offload, Placement
from lora_runtime.pipeline.precision import describe_precision, multiplies_fp8
from lora_runtime.settings import settings
from lora_runtime.values import LoraRef, Precision, RenderRequest
from tests.lora_files import make_adapter, write_diffusers
from tests.pocket_model import psnr, render, request

STRENGTHS = ("0", "0.35", "0.7", "1", "-0.5")


def make_lora(folder: Path, *, rank: int = 4, seed: int = 0) -> LoraRef:
    path = folder / f"rank-{rank}-seed-{seed}.safetensors"
    return find_lora(str(write_diffusers(path, make_adapter(POCKET, rank=rank, seed=seed, size=0.6))))


def load(
    gpu: torch.device, precision: Precision = "bf16", offload: Offload = "none", compiler: str | None = None
) -> Model:
    weights = find_weights("pocket")
    pipeline = load_pipeline(weights, precision, find_checkpoint(weights), gpu, offload=offload)
    placement = Placement(offload=offload, reason="chosen by the test")
    return Model(
        pipeline,
        weights=weights,
        precision=precision,
        adapter_cache_bytes=1 << 30,
        device=gpu,
        placement=placement,
        attention=set_attention(pipeline.transformer, gpu),
        compiler=compiler,
    )


def draw(model: Model, *requests: RenderRequest) -> list[np.ndarray]:
    return [np.asarray(image) for image in render_batch(model, requests, on_step=lambda *_: None)]


@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp32"])
def test_the_strength_laws(precision: Precision, tmp_path: Path) -> None:
    backend, lora = LocalBackend(), make_lora(tmp_path)
    *batch, base = render(
        backend, *(request(lora, strength, precision=precision) for strength in STRENGTHS), request(precision=precision)
    )
    assert (batch[0] == base).all(), "strength 0 is the base model"
    for image, strength in zip(batch, STRENGTHS, strict=True):
        (alone,) = render(backend, request(lora, strength, precision=precision))
        assert psnr(image, alone) >= 35
    backend.close()


def test_fp8_rows_do_not_influence_each_other(gpu: torch.device, tmp_path: Path) -> None:
    """Activations are scaled per token: a loud neighbour in the batch changes nothing."""
    if not multiplies_fp8(gpu):
        pytest.skip(f"{torch.cuda.get_device_name(gpu)} has no FP8 arithmetic")
    assert describe_precision("fp8", gpu) == "fp8 weights and activations"
    model, loud = load(gpu, "fp8"), make_lora(tmp_path, seed=3)
    quiet, _ = draw(model, request(precision="fp8"), request(precision="fp8", seed=8))
    beside, _ = draw(model, request(precision="fp8"), request(loud, "4", precision="fp8", seed=8))
    assert psnr(quiet, beside) >= 45


@pytest.mark.parametrize("offload", ["model", "group"])
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_offloading_moves_memory_and_not_pixels(
    gpu: torch.device, tmp_path: Path, offload: Offload, precision: Precision
) -> None:
    lora = make_lora(tmp_path)
    requests = [request(lora, strength, precision=precision) for strength in STRENGTHS]
    expected = draw(load(gpu, precision), *requests)
    model = load(gpu, precision, offload)
    for _ in range(2):  # the second time with the LoRA already attached
        for image, other in zip(draw(model, *requests), expected, strict=True):
            assert psnr(image, other) >= 40


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_compiled_blocks_draw_what_eager_ones_draw(gpu: torch.device, tmp_path: Path, precision: Precision) -> None:
    lora = make_lora(tmp_path)
    requests = [request(lora, strength, precision=precision) for strength in STRENGTHS]
    expected = draw(load(gpu, precision), *requests)
    for image, other in zip(draw(load(gpu, precision, compiler="inductor"), *requests), expected, strict=True):
        assert psnr(image, other) >= 35


def test_strengths_ranks_and_batch_sizes_compile_nothing(gpu: torch.device, tmp_path: Path) -> None:
    model = load(gpu, compiler="inductor")
    loras = [make_lora(tmp_path, rank=rank, seed=rank) for rank in (4, 8, 16)]
    for rows in (1, 2):
        draw(model, *(request(loras[0], "1", seed=seed) for seed in range(rows)))
    graphs = counters["stats"]["unique_graphs"]
    for lora in loras:
        for rows in (1, 2, 4, 8):
            draw(model, *(request(lora, STRENGTHS[row % len(STRENGTHS)]) for row in range(rows)))
    assert counters["stats"]["unique_graphs"] == graphs


def test_the_attention_that_was_chosen_draws_what_torchs_own_draws(
    gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [request(make_lora(tmp_path), strength) for strength in STRENGTHS]
    chosen = load(gpu)
    assert chosen.attention in KERNELS
    pictures = draw(chosen, *requests)
    monkeypatch.setenv("KLEIN_LAB_ATTENTION", "torch")
    settings.cache_clear()
    plain = load(gpu)
    assert plain.attention == "torch"
    for image, other in zip(pictures, draw(plain, *requests), strict=True):
        assert psnr(image, other) >= 35
