"""BFL's single files give the pictures of the diffusers folder; what is none of them is refused with a reason."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.quantizers.bfl.utils import BFLFP8RLinear
from safetensors.torch import load_file, save_file

from lora_runtime.catalogue import POCKET, Weights, find_weights
from lora_runtime.errors import Unavailable
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline.batch import Model, render_batch
from lora_runtime.pipeline.find import BUNDLED, Checkpoint, find_parts, read_digest
from lora_runtime.pipeline.load import load_pipeline
from lora_runtime.pipeline.single_file import load_transformer
from lora_runtime.settings import settings
from lora_runtime.values import Precision
from tests.lora_files import make_adapter, write_diffusers
from tests.pocket_model import request
from tests.single_files import read_transformer, rename, round_state, write_bf16, write_fp8

CPU = torch.device("cpu")
POCKET_FOLDER = BUNDLED / "pocket"


@pytest.fixture
def klein() -> Weights:
    """A record for downloadable weights that happen to have the pocket's shape."""
    return replace(find_weights("klein-4b"), **{
        name: getattr(find_weights("pocket"), name)
        for name in ("shape", "text_encoder", "vae_parameters", "max_sequence_length", "text_encoder_out_layers")
    })  # fmt: skip


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with klein-4b's configs, text encoder and VAE, but no weights of its transformer."""
    folder = tmp_path / "models"
    shutil.copytree(POCKET_FOLDER, folder / "klein-4b", ignore=shutil.ignore_patterns("diffusion_pytorch_model-*"))
    for left in (folder / "klein-4b" / "transformer").glob("*.index.json"):
        left.unlink()
    monkeypatch.setenv("KLEIN_LAB_MODELS_DIR", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    settings.cache_clear()
    return folder


def render(weights: Weights, precision: Precision, parts: Checkpoint, tmp_path: Path) -> list[bytes]:
    pipeline = load_pipeline(weights, precision, parts.folder, CPU, transformer=parts.transformer)
    return pictures(Model(pipeline, weights=weights, precision=precision, adapter_cache_bytes=0), tmp_path)


def pictures(model: Model, tmp_path: Path) -> list[bytes]:
    path = write_diffusers(tmp_path / "a.safetensors", make_adapter(POCKET, size=0.6))
    lora = find_lora(str(path))
    object.__setattr__(model.adapters, "_weights", "pocket")  # the LoRA is the pocket's, whatever the record is called
    asked = [request(lora, strength) for strength in ("0", "0.7", "1")]
    return [image.tobytes() for image in render_batch(model, asked, on_step=lambda *_: None)]  # type: ignore[union-attr]


def test_a_bf16_file_gives_the_folders_pictures(models: Path, klein: Weights, tmp_path: Path) -> None:
    single = write_bf16(models / "flux-2-klein-4b.safetensors", POCKET_FOLDER)
    parts = find_parts(klein, "bf16")
    assert parts == Checkpoint(folder=models / "klein-4b", transformer=single)
    assert render(klein, "bf16", parts, tmp_path) == render(klein, "bf16", Checkpoint(folder=POCKET_FOLDER), tmp_path)
    assert render(klein, "fp8", parts, tmp_path) == render(klein, "fp8", Checkpoint(folder=POCKET_FOLDER), tmp_path)


def test_an_fp8_file_gives_the_pictures_of_its_rounded_weights(models: Path, klein: Weights, tmp_path: Path) -> None:
    single = write_fp8(models / "klein-4b" / "flux-2-klein-4b-fp8.safetensors", POCKET_FOLDER)
    parts = find_parts(klein, "fp8")
    assert parts == Checkpoint(folder=models / "klein-4b", transformer=single)
    pipeline = load_pipeline(klein, "bf16", POCKET_FOLDER, CPU)
    pipeline.transformer.load_state_dict(round_state(POCKET_FOLDER))
    expected = pictures(Model(pipeline, weights=klein, precision="bf16", adapter_cache_bytes=0), tmp_path)
    assert render(klein, "fp8", parts, tmp_path) == expected
    assert expected != render(klein, "bf16", Checkpoint(folder=POCKET_FOLDER), tmp_path)


def test_the_fp8_layers_are_those_of_the_file(tmp_path: Path) -> None:
    single = write_fp8(tmp_path / "fp8.safetensors", POCKET_FOLDER)
    transformer = load_transformer(single, POCKET_FOLDER, torch.bfloat16)
    stored = load_file(single)
    layer = transformer.get_submodule("transformer_blocks.1.attn.to_k")
    assert isinstance(layer, BFLFP8RLinear)
    fused = stored["double_blocks.1.img_attn.qkv.weight"].chunk(3)[1]
    assert torch.equal(layer.weight.view(torch.uint8), fused.view(torch.uint8))
    scale = stored["double_blocks.1.img_attn.qkv.weight_scale"]
    assert torch.equal(layer.weight_scale, scale.repeat(POCKET.hidden))
    rounded = [name for name, module in transformer.named_modules() if isinstance(module, BFLFP8RLinear)]
    assert len(rounded) == 12 * POCKET.double_blocks + 2 * POCKET.single_blocks


def test_a_file_with_a_scale_per_row_loads_too(tmp_path: Path) -> None:
    state = load_file(write_fp8(tmp_path / "tensor.safetensors", POCKET_FOLDER))
    rows = {
        key: tensor.repeat(state[key.removesuffix("_scale")].shape[0]) if key.endswith("weight_scale") else tensor
        for key, tensor in state.items()
        if not key.endswith("input_scale")
    }
    save_file({key: tensor.contiguous() for key, tensor in rows.items()}, tmp_path / "row.safetensors")
    one, other = (
        load_transformer(tmp_path / name, POCKET_FOLDER, torch.bfloat16).state_dict()
        for name in ("tensor.safetensors", "row.safetensors")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key].float(), other[key].float()) for key in one)


def test_fp8_takes_bfls_file_and_bf16_never_does(models: Path, klein: Weights) -> None:
    write_fp8(models / "flux-2-klein-4b-fp8.safetensors", POCKET_FOLDER)
    with pytest.raises(Unavailable, match=r"transformer/\*\.safetensors is missing"):
        find_parts(klein, "bf16")
    write_bf16(models / "flux-2-klein-4b.safetensors", POCKET_FOLDER)
    bf16, fp8 = find_parts(klein, "bf16"), find_parts(klein, "fp8")
    assert (bf16.transformer, fp8.transformer) == (
        models / "flux-2-klein-4b.safetensors",
        models / "flux-2-klein-4b-fp8.safetensors",
    )
    digests = {read_digest(parts.folder, parts.transformer) for parts in (bf16, fp8)}
    assert len(digests | {read_digest(POCKET_FOLDER)}) == 3
    with pytest.raises(Unavailable, match="holds FP8 weights; they cannot run at bf16"):
        load_pipeline(klein, "bf16", fp8.folder, CPU, transformer=fp8.transformer)


def test_the_hub_cache_is_searched_for_single_files(models: Path, klein: Weights, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / f"models--{str(klein.fp8_hub_id).replace('/', '--')}"
    single = write_fp8(repository / "snapshots" / "abc" / "flux-2-klein-4b-fp8.safetensors", POCKET_FOLDER)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert find_parts(klein, "fp8").transformer == single


def damage(path: Path, change: str) -> Path:
    state = rename(read_transformer(POCKET_FOLDER))
    metadata = {}
    if change == "cut":
        path.write_bytes(path.read_bytes()[:5000])
        return path
    if change == "missing":
        del state["double_blocks.1.img_mlp.0.weight"]
    elif change == "more":
        state["single_blocks.4.linear1.weight"] = state["single_blocks.3.linear1.weight"].clone()
    elif change == "other":
        state = {f"model.{key}": tensor for key, tensor in state.items()}
    elif change == "narrow":
        state = {key: tensor[: len(tensor) // 2].clone() for key, tensor in state.items()}
    elif change == "nvfp4":
        metadata["_quantization_metadata"] = json.dumps({"layers": {"a": {"format": "nvfp4"}}})
    elif change == "metadata":
        metadata["_quantization_metadata"] = "{"
    save_file(state, path, metadata=metadata)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("cut", "is damaged"),
        ("missing", r"not whole: 1 of 49 tensors are missing, for example double_blocks\.1\.img_mlp\.0\.weight"),
        ("other", "is no FLUX.2 transformer in BFL's names"),
        ("more", "has 1 tensors more, for example single_blocks.4.linear1.weight"),
        ("narrow", "does not fit the model of"),
        ("nvfp4", "holds nvfp4 weights, which do not run here. Choose the fp8 file"),
        ("metadata", "_quantization_metadata cannot be read"),
    ],
)
def test_each_misfit_has_its_own_error(tmp_path: Path, change: str, words: str) -> None:
    path = damage(write_bf16(tmp_path / "a.safetensors", POCKET_FOLDER), change)
    with pytest.raises(Unavailable, match=words):
        load_transformer(path, POCKET_FOLDER, torch.bfloat16)
