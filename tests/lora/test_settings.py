"""PEFT's adapter_config.json: it decides the scale, so it belongs to the file and to its digest."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_runtime.catalogue import POCKET
from lora_runtime.errors import InvalidInput, LoraUnreadable, LoraUnsupported, NotFound
from lora_runtime.lora.check import check_file
from lora_runtime.lora.file import read_file
from lora_runtime.lora.library import find_lora, path_of, report_of
from lora_runtime.registry.accounts import LOCAL
from lora_runtime.registry.local import open_registry
from tests.lora_files import make_adapter, make_lokr, write_bfl, write_diffusers, write_lokr

SETTINGS = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
Q = "transformer_blocks.0.attn.to_q"
OUT = "transformer_blocks.1.attn.to_out.0"


def write_peft(folder: Path, *, name: str = "adapter_model.safetensors", **settings: object) -> Path:
    """A folder as `PeftModel.save_pretrained` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_diffusers(folder / name, make_adapter(POCKET, rank=4), prefix="base_model.model.")
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    return folder


def scales(folder: Path) -> dict[str, float]:
    return {layer.module: layer.scale for layer in report_of(find_lora(str(folder))).layers}


def test_a_folder_is_a_lora(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "My Style")
    ref = find_lora(str(folder))
    assert (ref.name, ref.path) == ("my-style", folder / "adapter_model.safetensors")
    assert set(scales(folder).values()) == {2.0}
    assert find_lora(str(folder / "adapter_model.safetensors")) == ref


def test_rslora_and_patterns(tmp_path: Path) -> None:
    assert set(scales(write_peft(tmp_path / "a", use_rslora=True)).values()) == {4.0}
    by_name = scales(write_peft(tmp_path / "b", alpha_pattern={Q: 2, "attn.to_out.0": 1, r"^.*to_qkv_mlp_proj$": 16}))
    assert (by_name[Q], by_name[OUT]) == (0.5, 0.25)
    assert by_name["single_transformer_blocks.0.attn.to_qkv_mlp_proj"] == 4.0
    assert by_name["transformer_blocks.0.attn.to_k"] == 2.0
    assert set(scales(write_peft(tmp_path / "c", r=16, rank_pattern={"attn": 4, ".*": 4})).values()) == {2.0}


def test_patterns_may_use_the_files_own_names(tmp_path: Path) -> None:
    write_bfl(tmp_path / "a.safetensors", make_adapter(POCKET, rank=4))
    tensors = load_file(tmp_path / "a.safetensors")
    renamed = {key.replace("diffusion_model.", "base_model.model."): tensor for key, tensor in tensors.items()}
    folder = tmp_path / "bfl"
    folder.mkdir()
    save_file(renamed, folder / "adapter_model.safetensors")
    settings = SETTINGS | {"alpha_pattern": {"double_blocks.0.img_attn.qkv": 2}}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    assert {scales(folder)[f"transformer_blocks.0.attn.{name}"] for name in ("to_q", "to_k", "to_v")} == {0.5}
    assert scales(folder)[OUT] == 2.0


def test_settings_of_a_lokr(tmp_path: Path) -> None:
    """PEFT scales a LoKr by alpha/r even where both factors are whole."""
    folder = tmp_path / "lokr"
    folder.mkdir()
    write_lokr(folder / "adapter_model.safetensors", make_lokr(POCKET), prefix="base_model.model.")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LOKR", "r": 8, "alpha": 2}))
    assert set(scales(folder).values()) == {0.25}


def test_the_digest_covers_the_settings_and_the_kept_file_has_them(tmp_path: Path, home: Path) -> None:
    one, two = (find_lora(str(write_peft(tmp_path / name, lora_alpha=alpha))) for name, alpha in (("a", 8), ("b", 4)))
    assert one.sha256 != two.sha256
    with open_registry() as finetunes:
        kept = finetunes.keep(LOCAL, report_of(one), [one.name]).lora
    assert kept.name == "a"
    assert kept.sha256 == one.sha256 == read_file(path_of(kept)).sha256
    assert report_of(kept).scales == (2.0,)
    original = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert all(torch.equal(original[key], tensor) for key, tensor in load_file(path_of(kept)).items())


def test_changed_settings_are_noticed(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "a")
    before = find_lora(str(folder))
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | {"lora_alpha": 12}))
    assert find_lora(str(folder)).sha256 != before.sha256
    assert report_of(before).file.sha256 != before.sha256  # so attaching it is refused


def test_settings_belong_to_pefts_file_or_to_a_lone_one(tmp_path: Path) -> None:
    alone = write_peft(tmp_path / "alone", name="style.safetensors")
    assert set(scales(alone).values()) == {2.0}
    write_diffusers(alone / "other.safetensors", make_adapter(POCKET, seed=1))
    assert check_file(alone / "style.safetensors").scales == (1.0,)
    with pytest.raises(NotFound, match=r"2 \.safetensors files: other\.safetensors, style\.safetensors"):
        find_lora(str(alone))
    write_peft(alone)
    assert set(scales(alone).values()) == {2.0}


def test_a_missing_alpha_is_said(tmp_path: Path) -> None:
    path = write_diffusers(tmp_path / "a.safetensors", make_adapter(POCKET), prefix="base_model.model.")
    assert any("adapter_config.json" in notice for notice in check_file(path).notices)
    assert not check_file(write_bfl(tmp_path / "b.safetensors", make_adapter(POCKET))).notices


def test_base_from_the_settings(tmp_path: Path) -> None:
    for name, trained_on in (("FLUX.2-klein-base-4B", "base"), ("FLUX.2-klein-4B", "distilled"), ("mine", None)):
        folder = write_peft(tmp_path / name, base_model_name_or_path=f"black-forest-labs/{name}")
        assert report_of(find_lora(str(folder))).trained_on == trained_on


def test_folders_without_a_lora(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no \.safetensors file"):
        find_lora(str(tmp_path))
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(InvalidInput, match=r"not a \.safetensors file"):
        find_lora(str(tmp_path / "a.bin"))


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"use_dora": True}, LoraUnsupported, "DoRA"),
        ({"peft_type": "LOHA"}, LoraUnsupported, "type LOHA"),
        ({"init_lora_weights": "pissa_niter_16"}, LoraUnsupported, "path_initial_model_for_weight_conversion"),
        ({"r": 8}, LoraUnreadable, "say rank 8 .* have rank 4"),
        ({"lora_alpha": "eight"}, LoraUnreadable, "not a number"),
        ({"lora_alpha": float("nan")}, LoraUnreadable, "not a number"),
        ({"alpha_pattern": [1]}, LoraUnreadable, "not a table"),
        ({"alpha_pattern": {"(a+)+b": 1}}, LoraUnreadable, "more than a module's name"),
        ({"alpha_pattern": {"w*w*w*w*w*b": 1}}, LoraUnreadable, "more than a module's name"),
        ({"alpha_pattern": {"*": 1}}, LoraUnreadable, "not a pattern"),
    ],
)
def test_settings_that_cannot_be_honoured(
    tmp_path: Path, settings: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        find_lora(str(write_peft(tmp_path / "a", **settings)))


@pytest.mark.parametrize(("text", "says"), [("{", "not JSON"), ("[]", "not a JSON object"), ("[" * 9999, "not JSON")])
def test_damaged_settings(tmp_path: Path, text: str, says: str) -> None:
    folder = write_peft(tmp_path / "a")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(LoraUnreadable, match=says):
        find_lora(str(folder))
    (folder / "adapter_config.json").write_text(" " * 2_000_000)
    with pytest.raises(LoraUnreadable, match="larger than 1 MB"):
        find_lora(str(folder))
