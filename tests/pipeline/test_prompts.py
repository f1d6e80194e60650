"""Prompt embeddings: the shortened text encoder gives the same ones, and each is computed once, restarts included."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline

from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import find_weights
from lora_runtime.pipeline import prompts as prompts_module
from lora_runtime.pipeline.find import BUNDLED
from lora_runtime.pipeline.prompts import DiskCache, Prompts, load_text_encoder
from tests.pocket_model import render, request

FOLDER = BUNDLED / "pocket"


@pytest.mark.parametrize("layers", [(1, 2, 3), (2, 4, 5), (2, 4, 6)])
def test_the_layers_above_the_last_one_read_do_not_matter(layers: tuple[int, ...]) -> None:
    weights = replace(find_weights("pocket"), text_encoder_out_layers=layers)
    short = load_text_encoder(FOLDER, weights, torch.float32)
    assert len(short.model.layers) == layers[-1]
    pipeline = Flux2KleinPipeline.from_pretrained(FOLDER, dtype=torch.float32)

    def embed(encoder: torch.nn.Module) -> torch.Tensor:
        found: torch.Tensor = pipeline._get_qwen3_prompt_embeds(
            encoder, pipeline.tokenizer, "a red cat", max_sequence_length=24, hidden_states_layers=layers
        )
        return found

    with torch.inference_mode():
        assert torch.equal(embed(short), embed(pipeline.text_encoder))


def test_a_prompt_is_encoded_once_and_never_again_after_a_restart(home: Path) -> None:
    asked = [request(seed=seed, prompt=prompt) for seed in (1, 2) for prompt in ("a red cat", "a blue fox")]
    pictures = []
    for expected in (2, 0):
        backend = LocalBackend()
        render(backend, request(prompt="warm", steps=1))  # loads the model
        (model,) = backend._engine._models.values()
        encoded: list[int] = []
        model.pipeline.text_encoder.register_forward_hook(lambda *_, encoded=encoded: encoded.append(1))
        pictures.append([image.tobytes() for image in render(backend, *asked)])
        backend.close()
        assert len(encoded) == expected
    assert pictures[0] == pictures[1]
    assert len(list((home / "prompts").glob("*.safetensors"))) == 3


def embedding(text: str) -> torch.Tensor:
    return torch.full((1, 4, 8), float(len(text)), dtype=torch.bfloat16)


def test_what_an_embedding_depends_on_keeps_it_apart(tmp_path: Path) -> None:
    one, other = (DiskCache(folder=tmp_path, key=("digest", dtype)) for dtype in ("bf16", "fp32"))
    one.write("a", embedding("a"))
    found = one.read("a")
    assert found is not None
    assert torch.equal(found, embedding("a"))
    assert found.dtype == torch.bfloat16
    assert other.read("a") is None
    assert one.read("b") is None


def test_a_damaged_file_is_encoded_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = DiskCache(folder=tmp_path, key=("digest",))
    Prompts(embedding, disk=disk).embed(["a cat"])
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(b"half a fi")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(Prompts(embedding, disk=disk).embed(["a cat"]), embedding("a cat"))
    assert "cannot be read" in caplog.text
    assert disk.read("a cat") is not None


def test_a_folder_that_cannot_be_written_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    disk = DiskCache(folder=tmp_path / "file" / "prompts", key=("digest",))
    with caplog.at_level(logging.WARNING):
        assert Prompts(embedding, disk=disk).embed(["a cat", "a fox"]).shape == (2, 4, 8)
    assert "could not be kept" in caplog.text


def test_both_caches_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = DiskCache(folder=tmp_path, key=("digest",))
    disk.write("a", embedding("a"))
    (path,) = tmp_path.glob("*.safetensors")
    monkeypatch.setattr(prompts_module, "DISK_BYTES", 2 * path.stat().st_size)
    monkeypatch.setattr(prompts_module, "MEMORY_BYTES", 2 * embedding("a").nbytes)
    prompts = Prompts(embedding, disk=disk)
    prompts.embed(["a", "b", "c"])
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert list(prompts._known) == ["b", "c"]
