"""Finding and loading checkpoints: the same code for the pocket, a local folder and the Hub's cache."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lora_runtime.catalogue import Weights, find_weights
from lora_runtime.errors import Unavailable
from lora_runtime.pipeline.find import BUNDLED, find_checkpoint, read_digest
from lora_runtime.pipeline.load import choose_device, load_pipeline
from lora_runtime.pipeline.memory import largest_batch
from lora_runtime.pipeline.precision import precisions
from lora_runtime.settings import settings

CPU = torch.device("cpu")


@pytest.fixture
def klein() -> Weights:
    """A record for downloadable weights that happen to have the pocket's shape."""
    return replace(find_weights("pocket"), name="klein-4b", label="FLUX.2 [klein] 4B", hub_id="someone/klein")


@pytest.fixture
def models_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KLEIN_LAB_MODELS_DIR", str(tmp_path / "models"))
    settings.cache_clear()
    return tmp_path / "models"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_local_folder_loads_like_the_pocket(models_dir: Path, klein: Weights) -> None:
    shutil.copytree(BUNDLED / "pocket", models_dir / "klein-4b")
    folder = find_checkpoint(klein)
    assert folder == models_dir / "klein-4b"
    pipeline = load_pipeline(klein, "bf16", folder, CPU)
    assert pipeline.transformer.dtype == torch.bfloat16
    assert read_digest(folder) == read_digest(BUNDLED / "pocket")


def test_the_hub_cache_is_found(hub: Path, klein: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = hub / "models--someone--klein" / "snapshots" / "abc"
    shutil.copytree(BUNDLED / "pocket", snapshot)
    (hub / "models--someone--klein" / "refs").mkdir()
    (hub / "models--someone--klein" / "refs" / "main").write_text("abc")
    assert find_checkpoint(klein) == snapshot


def test_missing_weights_say_how_to_get_them(hub: Path) -> None:
    with pytest.raises(Unavailable, match=r"hf download black-forest-labs/FLUX\.2-klein-4B"):
        find_checkpoint(find_weights("klein-4b"))
    with pytest.raises(Unavailable, match="accept its licence"):
        find_checkpoint(find_weights("klein-9b"))


def test_a_missing_shard_is_named(models_dir: Path, klein: Weights) -> None:
    folder = models_dir / "klein-4b"
    shutil.copytree(BUNDLED / "pocket", folder)
    index = next(folder.glob("transformer/*.index.json"))
    shard = sorted(set(json.loads(index.read_text())["weight_map"].values()))[0]
    (folder / "transformer" / shard).unlink()
    with pytest.raises(Unavailable, match=f"transformer/{shard} is missing"):
        find_checkpoint(klein)


def test_a_folder_with_another_model_is_refused(models_dir: Path) -> None:
    shutil.copytree(BUNDLED / "pocket", models_dir / "klein-4b")
    weights = find_weights("klein-4b")
    with pytest.raises(Unavailable, match=r"does not hold FLUX\.2 \[klein\] 4B"):
        load_pipeline(weights, "bf16", find_checkpoint(weights), CPU)


def test_the_digest_changes_with_one_byte(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED / "pocket", tmp_path / "copy")
    shard = next((tmp_path / "copy").glob("transformer/*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert read_digest(tmp_path / "copy") != read_digest(BUNDLED / "pocket")


def test_unsupported_precision_and_device_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match=r"cannot run at fp32 on cpu\. Choose one of: bf16, fp8"):
        load_pipeline(find_weights("klein-4b"), "fp32", BUNDLED / "pocket", CPU)
    if not torch.cuda.is_available():
        monkeypatch.setenv("KLEIN_LAB_DEVICE", "cuda")
        settings.cache_clear()
        with pytest.raises(Unavailable, match="no such device"):
            choose_device()


def test_precisions_start_with_what_the_hardware_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    pocket = find_weights("pocket")
    for supported, expected in ((True, ("bf16", "fp8", "fp32")), (False, ("fp32", "fp8", "bf16"))):
        monkeypatch.setattr(f"{precisions.__module__}.multiplies_bf16", lambda _device, answer=supported: answer)
        assert precisions(pocket, CPU) == expected
    assert precisions(find_weights("klein-9b"), CPU) == ("bf16", "fp8")


def test_the_batch_shrinks_with_the_picture_and_is_never_empty() -> None:
    pocket, klein = find_weights("pocket"), find_weights("klein-9b")
    sizes = [largest_batch(pocket, side, side, CPU) for side in (64, 128, 256)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] >= 8
    assert largest_batch(klein, 2048, 2048, CPU) == 1
