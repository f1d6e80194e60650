"""The random models of the benchmarks are whole and runnable; here at toy size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.true_size import make_pipeline, write_lora
from lora_runtime.catalogue import Shape, TextEncoder, find_weights
from lora_runtime.lora.file import read_file
from lora_runtime.pipeline.batch import Model, render_batch
from tests.pocket_model import request

TOY = replace(
    find_weights("klein-4b"),
    shape=Shape(hidden=256, text=3 * 128, latent=128, double_blocks=1, single_blocks=2),
    text_encoder=TextEncoder(
        hidden=128, query=256, key_value=128, intermediate=256, layers=6, vocabulary=64, tied=True
    ),
    max_sequence_length=24,
    text_encoder_out_layers=(1, 2, 3),
)


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
