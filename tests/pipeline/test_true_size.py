"""The random models of the benchmarks are whole and runnable: at toy size, and blocks at their true width."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks import memory
from benchmarks.gpu import Plan, check_goals, measure
from benchmarks.true_size import make_pipeline, make_transformer, write_lora
from lora_runtime.catalogue import Shape, TextEncoder, find_weights
from lora_runtime.lora.file import read_file
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline.adapters import Adapters
from lora_runtime.pipeline.batch import Model, render_batch
from lora_runtime.pipeline.memory import free_bytes
from lora_runtime.pipeline.precision import is_fp8
from lora_runtime.values import Precision
from tests.pocket_model import request

TOY = replace(
    find_weights("klein-4b"),
    shape=Shape(hidden=256, text=3 * 128, latent=128, double_blocks=1, single_blocks=2),
    text_encoder=TextEncoder(
        hidden=128, query=256, key_value=128, intermediate=256, layers=6, vocabulary=64, tied=True
    ),
    max_sequence_length=24,
    text_encoder_out_layers=(1, 2, 3),
    default_size=64,
)
CPU = torch.device("cpu")


def test_a_random_model_renders_at_both_precisions() -> None:
    for precision in ("bf16", "fp8"):
        pipeline = make_pipeline(TOY, torch.device("cpu"), precision=precision)
        model = Model(pipeline, weights=TOY, precision=precision, adapter_cache_bytes=0)
        first, second = render_batch(model, [request(seed=1), request(seed=2)], on_step=lambda *_: None)
        assert np.asarray(first).shape == (64, 64, 3)
        assert np.asarray(first).tobytes() != np.asarray(second).tobytes()


def test_a_random_lora_covers_every_block(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.safetensors", TOY.shape, 4)
    assert len(read_file(path).tensors) == 2 * (12 * TOY.shape.double_blocks + 2 * TOY.shape.single_blocks)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_unattended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole of it, on this CPU at toy size: every row is there, and printed as it comes."""
    monkeypatch.setattr("lora_runtime.lora.check.WEIGHTS", {TOY.name: TOY})
    plan = Plan(device=CPU, weights=(TOY,), sizes=(64,), rounds=1, compiler="eager", matrix_side=256)
    rows = measure(plan, Console(width=200))
    assert [(row["mode"], row["precision"]) for row in rows] == [
        ("eager", "bf16"), ("eager", "fp8"), ("compiled", "bf16"), ("compiled", "fp8"),
    ]  # fmt: skip
    assert all(row["ours_s"] > 0 and row["loop_s"] > 0 and row["share_of_floor"] > 0 for row in rows)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert printed == rows


def test_the_memory_benchmark_hands_the_prompt_over_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two halves, at toy size and in this process: the second one has no text encoder."""
    monkeypatch.setattr("lora_runtime.lora.check.WEIGHTS", {TOY.name: TOY})
    monkeypatch.setattr(memory, "find_weights", lambda _name: TOY)
    monkeypatch.setattr(memory, "SIDE", 64)
    case = memory.Case(weights=TOY.name, precision="fp8", strengths=("0", "0.7"), device="cpu")
    assert case.apart_bytes < case.whole_bytes
    with pytest.raises(AttributeError):
        memory._draw_apart(case, tmp_path)
    encoded, drawn = memory._encode(case, tmp_path), memory._draw_apart(case, tmp_path)
    for answer in (encoded, drawn):
        assert answer["load_peak_bytes"] > 0
        assert answer["render_s"] > 0


def test_the_gpu_benchmark_stops_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_runtime.lora.check.WEIGHTS", {TOY.name: TOY})
    plan = Plan(device=CPU, weights=(TOY,), sizes=(64,), rounds=1, matrix_side=256, budget_s=0)
    assert measure(plan, Console(quiet=True)) == []


def test_goals_are_told_from_the_fastest_rows() -> None:
    row = {"weights": "klein-4b", "size": 1024, "precision": "bf16", "ours_s": 2.5, "ratio": 2.0}
    slower = row | {"ours_s": 4.0, "ratio": 1.2}
    fp8, small = row | {"precision": "fp8", "ours_s": 2.4}, row | {"size": 512, "ratio": 2.4}
    assert [goal.rpartition(": ")[2] for goal in check_goals([slower, row, fp8, small])] == [
        "met", "met", "missed", "missed",
    ]  # fmt: skip
    assert check_goals([]) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), [("klein-4b", "bf16"), ("klein-9b", "bf16"), ("klein-9b", "fp8")])
def test_blocks_of_true_width_take_a_lora_and_a_strength_a_row(tmp_path: Path, name: str, precision: Precision) -> None:
    """One block of each kind, a LoRA of true shapes: rows at 0 are the base bit for bit, and bytes are as counted."""
    shape = replace(find_weights(name).shape, double_blocks=1, single_blocks=1)
    block_bytes = (26 + 13) * shape.hidden**2 * (1 if precision == "fp8" else 2)
    if free_bytes(CPU) < 3 * block_bytes + 10**9:
        pytest.skip(f"{3 * block_bytes / 1e9 + 1:.1f} GB of free memory are needed")
    transformer = make_transformer(shape, CPU, precision=precision)
    assert is_fp8(transformer) == (precision == "fp8")
    blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    held = sum(weight.nbytes for block in blocks for weight in block.parameters())
    assert held == pytest.approx(block_bytes, rel=1e-3)
    adapters = Adapters(transformer, weights=name, cache_bytes=0)
    lora = find_lora(str(write_lora(tmp_path / "a.safetensors", shape, 16)))

    def predict() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            output: torch.Tensor = transformer(
                hidden_states=torch.randn(1, 4, shape.latent, generator=generator).bfloat16().repeat(3, 1, 1),
                timestep=torch.full((3,), 0.5),
                encoder_hidden_states=torch.randn(1, 8, shape.text, generator=generator).bfloat16().repeat(3, 1, 1),
                txt_ids=torch.zeros(3, 8, 4, dtype=torch.long),
                img_ids=torch.zeros(3, 4, 4, dtype=torch.long),
                return_dict=False,
            )[0]
        return output

    base = predict()
    attached = adapters.attach(lora)
    with adapters.strengths({attached: [0.0, 0.7, 1.2]}):
        zero, some, more = predict()
    assert torch.equal(zero, base[0])
    assert 0 < (some - zero).float().norm() < (more - zero).float().norm()
    adapters.detach(attached)
    assert torch.equal(predict(), base)
