"""Memory: counts from shapes equal the real models, and the placement follows from what is free."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM

from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import Weights, find_weights
from lora_runtime.errors import Unavailable
from lora_runtime.pipeline import memory
from lora_runtime.pipeline.find import BUNDLED
from lora_runtime.pipeline.memory import (
    choose_placement,
    count_text_encoder,
    count_transformer,
    estimate_needs,
    largest_batch,
    row_bytes,
)
from lora_runtime.values import Failed, Precision, Rendered
from tests.pocket_model import request

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
GB = 10**9


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["klein-4b", "klein-9b"])
def test_counts_are_those_of_the_real_models(name: str) -> None:
    weights = find_weights(name)
    shape, encoder = weights.shape, weights.text_encoder
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(
            in_channels=shape.latent,
            num_layers=shape.double_blocks,
            num_single_layers=shape.single_blocks,
            attention_head_dim=128,
            num_attention_heads=shape.hidden // 128,
            joint_attention_dim=shape.text,
            guidance_embeds=False,
        )
        vae = AutoencoderKLFlux2()
        qwen = Qwen3ForCausalLM(
            Qwen3Config(
                hidden_size=encoder.hidden,
                intermediate_size=encoder.intermediate,
                num_hidden_layers=encoder.layers,
                num_attention_heads=encoder.query // 128,
                num_key_value_heads=encoder.key_value // 128,
                head_dim=128,
                vocab_size=encoder.vocabulary,
                tie_word_embeddings=encoder.tied,
            )
        )
    blocks, rest = count_transformer(weights)
    assert blocks + rest == pytest.approx(count(transformer), rel=1e-4)
    linears = [
        module.weight.numel()
        for path, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and path.startswith(("transformer_blocks", "single_transformer_blocks"))
    ]
    assert blocks == sum(linears)
    head = 0 if encoder.tied else encoder.vocabulary * encoder.hidden
    assert count_text_encoder(encoder, encoder.layers) + head == pytest.approx(count(qwen), rel=1e-4)
    assert weights.vae_parameters == count(vae)


def test_the_pockets_counts_are_near_its_files() -> None:
    weights = find_weights("pocket")
    sizes = {
        part: sum(path.stat().st_size for path in (BUNDLED / "pocket" / part).glob("*.safetensors"))
        for part in ("transformer", "text_encoder", "vae")
    }
    needs = estimate_needs(weights, "bf16", CPU)
    assert needs.transformer == pytest.approx(sizes["transformer"], rel=0.05)
    assert needs.text_encoder == pytest.approx(sizes["text_encoder"], rel=0.2)
    assert needs.vae == pytest.approx(sizes["vae"], rel=1)  # some builds keep it in float32


@pytest.mark.parametrize(
    ("name", "precision", "free", "offload"),
    [
        ("klein-4b", "bf16", 80, "none"),
        ("klein-9b", "bf16", 80, "none"),
        ("klein-4b", "bf16", 16, "model"),
        ("klein-4b", "fp8", 16, "none"),
        ("klein-9b", "bf16", 24, "model"),
        ("klein-9b", "bf16", 12, "group"),
        ("klein-9b", "fp8", 16, "model"),
        ("klein-4b", "bf16", 8, "group"),
    ],
)
def test_a_gpu_gets_what_fits(name: str, precision: Precision, free: int, offload: str) -> None:
    placement = choose_placement(find_weights(name), precision, CUDA, free=free * GB, host_free=64 * GB)
    assert placement.offload == offload, placement.reason
    assert f"{free}.0 GB free" in placement.reason


@pytest.mark.parametrize(
    ("name", "precision", "device", "free", "host", "words"),
    [
        ("klein-9b", "bf16", CUDA, 4, 64, r"needs .* GB of memory, but the GPU has 4\.0 GB free.*choose fp8, klein-4b"),
        ("klein-9b", "bf16", CUDA, 24, 16, r"needs .* GB of memory, but this machine has 16\.0 GB free"),
        ("klein-4b", "bf16", CPU, 8, 8, r"klein\] 4B at bf16 needs .* but this machine has 8\.0 GB free"),
        ("klein-4b", "fp8", CPU, 12, 12, r"klein\] 4B at fp8 needs .* but this machine has 12\.0 GB free"),
    ],
)
def test_too_little_memory_is_said_with_a_remedy(
    name: str, precision: Precision, device: torch.device, free: int, host: int, words: str
) -> None:
    with pytest.raises(Unavailable, match=words):
        choose_placement(find_weights(name), precision, device, free=free * GB, host_free=host * GB)


def test_nothing_is_loaded_without_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    monkeypatch.setattr("lora_runtime.pipeline.load.load_pipeline", lambda *args, **_: opened.append(args))
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 100_000_000)
    backend = LocalBackend()
    (event,) = backend.render([request()])
    backend.close()
    assert isinstance(event, Failed)
    assert isinstance(event.error, Unavailable)
    assert "this machine has 0.1 GB free" in str(event.error)
    assert not opened


def test_status_and_provenance_say_what_was_chosen(local_backend: LocalBackend) -> None:
    status = next(s for s in local_backend.models() if (s.weights, s.precision) == ("pocket", "fp8"))
    assert status.note.startswith("fp8 weights, bf16 arithmetic; needs 0.")
    *_, event = local_backend.render([request()])
    assert isinstance(event, Rendered)
    assert event.provenance["memory"].startswith("needs 0.")


def test_batches_shrink_with_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    weights: Weights = find_weights("klein-4b")
    row = row_bytes(weights, 512, 512)
    assert row_bytes(weights, 1024, 1024) > 2.5 * row
    sizes = []
    for rows in (0.5, 3.5, 100):
        monkeypatch.setattr(memory, "free_bytes", lambda _device, rows=rows: int(rows * row / 0.8))
        sizes.append(largest_batch(weights, 512, 512, CUDA))
    assert sizes == [1, 3, 16]
    assert largest_batch(replace(weights, max_sequence_length=512), 1024, 1024, CUDA) <= 4
