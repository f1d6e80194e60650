"""klein at its true size with random weights on a GPU: it runs, its memory was foreseen, and too much is survived."""

from pathlib import Path

import pytest
import torch

from benchmarks.true_size import make_pipeline, write_lora
from lora_runtime.catalogue import find_weights
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline.batch import Model, render_batch
from lora_runtime.pipeline.engine import Engine
from lora_runtime.pipeline.kernels import set_attention
from lora_runtime.pipeline.memory import estimate_needs, free_bytes, largest_batch, row_bytes
from lora_runtime.values import Failed, Precision, Rendered
from tests.pocket_model import request

STRENGTHS = ("0", "0.2", "0.4", "0.6", "0.7", "0.8", "1", "1.2")


def make_model(name: str, precision: Precision, gpu: torch.device) -> Model:
    weights = find_weights(name)
    needed = estimate_needs(weights, "bf16", gpu).everything
    if free_bytes(gpu) < needed:
        pytest.skip(f"{name} needs {needed / 1e9:.0f} GB of GPU memory")
    pipeline = make_pipeline(weights, gpu, precision=precision)
    attention = set_attention(pipeline.transformer, gpu)
    return Model(
        pipeline, weights=weights, precision=precision, adapter_cache_bytes=1 << 31, device=gpu, attention=attention
    )


@pytest.mark.parametrize("name", ["klein-4b", "klein-9b", "klein-9b-kv"])
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_eight_strengths_run_within_the_estimate(
    gpu: torch.device, tmp_path: Path, name: str, precision: Precision
) -> None:
    model = make_model(name, precision, gpu)
    lora = find_lora(str(write_lora(tmp_path / "a.safetensors", model.weights.shape, 32)))
    side = model.weights.default_size
    asked = [
        request(lora, strength, weights=name, precision=precision, width=side, height=side) for strength in STRENGTHS
    ]
    rows = min(len(asked), largest_batch(model.weights, side, side, gpu))
    torch.cuda.reset_peak_memory_stats(gpu)
    pictures = []
    for start in range(0, len(asked), rows):
        pictures += list(render_batch(model, asked[start : start + rows], on_step=lambda *_: None))
    assert not [picture for picture in pictures if isinstance(picture, Exception)]
    foreseen = estimate_needs(model.weights, precision, gpu).everything + rows * row_bytes(model.weights, side, side)
    assert torch.cuda.max_memory_allocated(gpu) <= foreseen


def test_a_batch_over_the_gpus_memory_is_split(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for two pictures and an estimate that says eight: all eight come."""
    model = make_model("klein-4b", "bf16", gpu)
    side = 512
    monkeypatch.setattr("lora_runtime.pipeline.engine.largest_batch", lambda *_: 8)
    asked = [request(weights="klein-4b", width=side, height=side, seed=seed, steps=1) for seed in range(8)]
    total = torch.cuda.get_device_properties(gpu).total_memory
    room = torch.cuda.memory_allocated(gpu) + 2 * row_bytes(model.weights, side, side) + side * side * 2600
    torch.cuda.set_per_process_memory_fraction(room / total, gpu)
    engine = Engine(lambda _request: model)
    try:
        events = [event for event in engine.render(asked) if isinstance(event, Rendered | Failed)]
    finally:
        engine.close()
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    assert [event for event in events if isinstance(event, Failed)] == []
    assert len(events) == 8
