"""Compiled blocks: what compiles and what does not, counted by a backend that only counts.

And the strength laws for the slot that LoRAs fill there; it is the same without compiling, and faster to test.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_runtime.catalogue import POCKET, find_weights
from lora_runtime.errors import LoraMismatch
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline.adapters import Adapters
from lora_runtime.pipeline.batch import Model, render_batch
from lora_runtime.pipeline.find import find_checkpoint
from lora_runtime.pipeline.load import load_pipeline
from lora_runtime.pipeline.slot import Slot
from lora_runtime.values import LoraRef, Precision, RenderRequest
from tests.lora_files import make_adapter, make_lokr, write_bfl, write_diffusers, write_lokr
from tests.pocket_model import predict, psnr, request

CPU = torch.device("cpu")
BATCH_SIZES = (1, 2, 8)
RANKS = (2, 8, 16)
STRENGTHS = ("0", "0.35", "0.7", "1", "-0.5")


class Counter:
    """A torch.compile backend that runs the graph as it is and counts how many it was given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def counter() -> Any:
    torch._dynamo.reset()
    yield Counter()
    torch._dynamo.reset()


def load(counter: Counter | None = None, precision: Precision = "bf16", *, slot: bool = False) -> Model:
    """The pocket, compiled by `counter`; or eager, with a `slot` or without."""
    weights = find_weights("pocket")
    pipeline = load_pipeline(weights, precision, find_checkpoint(weights), CPU)
    model = Model(pipeline, weights=weights, precision=precision, adapter_cache_bytes=1 << 30, compiler=counter)
    if slot:
        model.adapters = Adapters(pipeline.transformer, weights=weights.name, cache_bytes=1 << 30, slot=True)
    return model


def draw(model: Model, *requests: RenderRequest) -> list[np.ndarray]:
    return [np.asarray(image) for image in render_batch(model, requests, on_step=lambda *_: None)]


def make_lora(folder: Path, *, rank: int = 4, seed: int = 0) -> LoraRef:
    path = folder / f"rank-{rank}-seed-{seed}.safetensors"
    return find_lora(str(write_diffusers(path, make_adapter(POCKET, rank=rank, seed=seed, size=0.6))))


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp8", marks=pytest.mark.slow)])
def test_strengths_ranks_batch_sizes_and_picture_sizes_compile_nothing(
    counter: Counter, tmp_path: Path, precision: Precision
) -> None:
    model = load(counter, precision)
    loras = [make_lora(tmp_path, rank=rank, seed=rank) for rank in RANKS]
    for rows in (1, 2):
        draw(model, *(request(loras[0], "1", precision=precision, seed=seed, steps=1) for seed in range(rows)))
    assert counter.graphs <= 2 * 2, "two kinds of block, for one row and for many"
    before = counter.graphs
    for lora in loras:
        for rows in BATCH_SIZES:
            strengths = [STRENGTHS[row % len(STRENGTHS)] for row in range(rows)]
            draw(model, *(request(lora, strength, precision=precision, steps=1) for strength in strengths))
    draw(model, *(request(loras[0], "1", precision=precision, steps=1, width=96, height=128) for _ in range(2)))
    assert counter.graphs == before


def test_what_compiles_does_so_once(counter: Counter, tmp_path: Path) -> None:
    """The base without a LoRA, and a larger rank: two of rank 8 make 16, as one of rank 16; three make 32."""
    model = load(counter)
    loras = [make_lora(tmp_path, rank=8, seed=seed) for seed in range(3)]
    draw(model, *(request(loras[0], "1", seed=seed, steps=1) for seed in range(2)))
    first = counter.graphs
    draw(model, request(loras[0], "1", steps=1), request(loras[1], "1", steps=1), request(steps=1))
    assert counter.graphs == first
    for _ in range(2):
        draw(model, *(request(lora, "1", steps=1) for lora in loras))
        assert counter.graphs == first + 2
    for _ in range(2):
        draw(model, request(steps=1), request(seed=8, steps=1))
        assert counter.graphs == first + 4
        draw(model, request(loras[2], "1", steps=1), request(loras[1], "0", steps=1))


def test_compiled_blocks_draw_what_eager_ones_draw(counter: Counter, tmp_path: Path) -> None:
    asked = [*(request(make_lora(tmp_path), strength) for strength in STRENGTHS), request()]
    zero, *_, base = pictures = draw(load(counter), *asked)
    assert (zero == base).all()
    for image, expected in zip(pictures, draw(load(), *asked), strict=True):
        assert psnr(image, expected) >= 45


@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp32"])
def test_the_slot_draws_what_layers_draw(tmp_path: Path, precision: Precision) -> None:
    one, two = make_lora(tmp_path, rank=4), make_lora(tmp_path, rank=32, seed=1)
    lokr = find_lora(str(write_lokr(tmp_path / "lokr.safetensors", make_lokr(POCKET, rank=4))))
    asked = [
        *(request(one, strength, precision=precision) for strength in STRENGTHS),
        request(two, "0.7", precision=precision),
        request(lokr, "0.7", precision=precision),
        request(precision=precision),
    ]
    pictures = draw(load(precision=precision, slot=True), *asked)
    assert (pictures[0] == pictures[-1]).all(), "strength 0 is the base bit for bit"
    assert not (pictures[3] == pictures[-1]).all()
    for image, expected in zip(pictures, draw(load(precision=precision), *asked), strict=True):
        assert psnr(image, expected) >= (60 if precision == "fp32" else 45)


def test_detaching_restores_the_base_bit_for_bit(tmp_path: Path) -> None:
    model = load(precision="fp32", slot=True)
    before = predict(load(precision="fp32"))
    with model.adapters.strengths({}):
        assert torch.equal(predict(model), before)
    name = model.adapters.attach(make_lora(tmp_path))
    with model.adapters.strengths({name: [1.0, 0.0]}):
        during = predict(model)
    with model.adapters.strengths({}):
        assert torch.equal(predict(model), before)
    model.adapters.detach(name)
    with model.adapters.strengths({}):
        assert torch.equal(predict(model), before)
    assert not torch.equal(during[0], before[0])
    assert torch.equal(during[1], before[1])


def test_the_least_recently_used_leave_the_slot_by_bytes(tmp_path: Path) -> None:
    loras = [make_lora(tmp_path, seed=seed) for seed in range(3)]
    size = sum(tensor.nbytes for tensor in make_adapter(POCKET).values())
    transformer = load(precision="fp32").pipeline.transformer
    adapters = Adapters(transformer, weights="pocket", cache_bytes=2 * size + size // 2, slot=True)
    first, second, _, third = (adapters.attach(loras[index]) for index in (0, 1, 0, 2))
    with adapters.strengths({second: [1.0]}):
        adapters.shrink(keep=[third])
        assert list(adapters.attached) == [second, third], "one in use is never dropped"
    assert adapters.attach(loras[0]) == first
    adapters.shrink()
    assert list(adapters.attached) == [third, first]


def test_a_layer_that_is_not_there_is_refused() -> None:
    transformer = load().pipeline.transformer
    slot = Slot(transformer, device=CPU, dtype=torch.bfloat16)
    for path, width in (("transformer_blocks.9.attn.to_q", POCKET.hidden), ("transformer_blocks.0.attn.to_q", 48)):
        state = {f"{path}.lora_A.weight": torch.zeros(4, width), f"{path}.lora_B.weight": torch.zeros(width, 4)}
        with pytest.raises(LoraMismatch, match=path):
            slot.keep("a", state, label="mine")


def test_one_file_in_two_spellings_fills_the_slot_alike(tmp_path: Path) -> None:
    adapter, model = make_adapter(POCKET, size=0.6), load(slot=True)
    paths = [write_bfl(tmp_path / "a.safetensors", adapter), write_diffusers(tmp_path / "b.safetensors", adapter)]
    first, second = (draw(model, request(find_lora(str(path)), "0.7"))[0] for path in paths)
    assert (first == second).all()
