"""An export at 1 is the original at its strength, in every spelling, and to plain diffusers too."""

import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lora_runtime.__main__ import app
from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import KLEIN_4B, POCKET, Shape
from lora_runtime.errors import Conflict, InvalidInput, LoraUnsupported
from lora_runtime.lora.check import check_file
from lora_runtime.lora.difference import measure_difference
from lora_runtime.lora.export import ORIGIN, write_export
from lora_runtime.lora.file import encode_array
from lora_runtime.lora.library import BUNDLED, find_lora, read_lora
from lora_runtime.lora.module_names import MODULES, find_bfl_name, find_place
from lora_runtime.lora.spellings import SPELLINGS, warn_diffusers
from lora_runtime.proof import LEAST_DB, export_lora
from tests.lora_files import (
    make_adapter,
    make_lokr,
    write_bfl,
    write_diffusers,
    write_kohya,
    write_lokr,
)
from tests.pocket_model import draw_plain, load_plain, psnr

BUNDLED_NAMES = ("style", "subject", "overtrained")
runner = CliRunner()

MODULE_NAMES = [
    *(f"transformer_blocks.3.{name}" for targets in MODULES["double"].values() for name in targets),
    *(f"single_transformer_blocks.12.{name}" for targets in MODULES["single"].values() for name in targets),
    *(name for targets in MODULES["top"].values() for name in targets),
]


@pytest.mark.parametrize("module", sorted(set(MODULE_NAMES)))
def test_bfls_name_of_a_module_is_read_back_as_that_module(module: str) -> None:
    found = find_bfl_name(module)
    for wrapper, name in (("diffusion_model.", found.name), ("lora_unet_", found.name.replace(".", "_"))):
        place = find_place(wrapper + name)
        assert place is not None
        assert (place.targets[found.part], len(place.targets)) == (module, found.parts)


def make_uneven(path: Path, shape: Shape = POCKET) -> Path:
    """q and k with an A and a rank each and no v, halves that BFL has the other way round, and a top layer."""
    generator = torch.Generator().manual_seed(3)
    h = shape.hidden
    sizes = {
        "transformer_blocks.0.attn.to_q": (h, h, 2),
        "transformer_blocks.0.attn.to_k": (h, h, 3),
        "norm_out.linear": (2 * h, h, 4),
        "x_embedder": (h, shape.latent, 4),
    }
    tensors = {}
    for name, (out, in_, rank) in sizes.items():
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, in_, generator=generator)
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    save_file(tensors, path)
    return path


def make_source(kind: str, path: Path) -> Path:
    match kind:
        case "diffusers":
            return write_diffusers(path, make_adapter(POCKET))
        case "fused":
            return write_bfl(path, make_adapter(POCKET))
        case "alpha":
            return write_kohya(path, make_adapter(POCKET), alpha_over_rank=0.25)
        case "uneven":
            return make_uneven(path)
    return BUNDLED / f"{kind}.safetensors"


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("kind", ["diffusers", "fused", "alpha", "uneven", *BUNDLED_NAMES])
def test_every_spelling_is_read_back_as_the_same_change(tmp_path: Path, kind: str, spelling: str) -> None:
    before = check_file(make_source(kind, tmp_path / "a.safetensors"))
    write_export(before, tmp_path / "b.safetensors", strength=-0.75, spelling=spelling)
    after = check_file(tmp_path / "b.safetensors")
    assert after.fits == before.fits
    assert after.spelling == {"diffusers": "diffusers / PEFT", "ai-toolkit": "BFL / AI-Toolkit"}.get(spelling, spelling)
    assert {info.dtype for info in after.file.tensors.values()} - {"F32"} == {
        info.dtype for info in before.file.tensors.values()
    } - {"F32"}
    near = measure_difference(before, after, strength=-0.75)
    # Nothing is rounded to 16 bits where the strength stands in alpha, nor where the file has 32.
    assert near > (120 if spelling == "kohya" or kind not in BUNDLED_NAMES else LEAST_DB)
    assert measure_difference(before, after, strength=0.74) < LEAST_DB


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_numbers_are_rounded_as_torch_rounds_them(dtype: torch.dtype) -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-9, 4, 10_000)
    name = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}[dtype]
    raw = bytearray(encode_array(values.numpy(), name))
    assert torch.equal(torch.frombuffer(raw, dtype=dtype), values.to(dtype))


LOKR: Mapping[str, dict[str, int]] = {
    "whole": {}, "product": {"rank": 4}, "both": {"rank": 4, "w1_rank": 4}, "first": {"w1_rank": 4}
}  # fmt: skip


@pytest.mark.parametrize("spelling", ["diffusers", "ai-toolkit"])
@pytest.mark.parametrize("kind", LOKR)
def test_a_lokr_keeps_its_product(tmp_path: Path, kind: str, spelling: str) -> None:
    factors = make_lokr(POCKET, **LOKR[kind]) | {"final_layer.adaLN_modulation.1": make_adaln(**LOKR[kind])}
    before = check_file(write_lokr(tmp_path / "a.safetensors", factors, alpha=3.0))
    write_export(before, tmp_path / "b.safetensors", strength=-0.75, spelling=spelling)
    after = check_file(tmp_path / "b.safetensors")
    assert after.fits == before.fits
    assert [(layer.module, layer.part) for layer in after.layers] == [
        (layer.module, layer.part) for layer in before.layers
    ]
    assert measure_difference(before, after, strength=-0.75) > 120
    assert measure_difference(before, after, strength=-0.74) < LEAST_DB
    assert after.norms == pytest.approx({module: 0.75 * norm for module, norm in before.norms.items()}, rel=1e-5)


def make_adaln(rank: int | None = None, w1_rank: int | None = None) -> dict[str, torch.Tensor]:
    """A LoKr of the layer whose halves BFL has the other way round."""
    h = POCKET.hidden
    made: dict[str, torch.Tensor] = {}
    for name, rows, columns, inner in (("w1", 8, 8, w1_rank), ("w2", 2 * h // 8, h // 8, rank)):
        if inner is None:
            made[name] = torch.randn(rows, columns)
        else:
            made |= {f"{name}_a": torch.randn(rows, inner), f"{name}_b": torch.randn(inner, columns)}
    return made


@pytest.mark.parametrize(
    ("fused", "spelling", "words"),
    [(True, "kohya", "does not read in kohya's names"), (False, "ai-toolkit", "with q, k and v apart")],
)
def test_a_lokr_that_no_reader_would_take_is_refused(tmp_path: Path, fused: bool, spelling: str, words: str) -> None:
    apart = {
        f"transformer_blocks.0.attn.to_{each}": {"w1": torch.randn(8, 8), "w2": torch.randn(32, 32)} for each in "qkv"
    }
    prefix = "diffusion_model." if fused else "transformer."
    report = check_file(write_lokr(tmp_path / "a.safetensors", make_lokr(POCKET) if fused else apart, prefix=prefix))
    with pytest.raises(LoraUnsupported, match=words):
        write_export(report, tmp_path / "b.safetensors", strength=0.5, spelling=spelling)
    write_export(report, tmp_path / "b.safetensors", strength=0.5, spelling="diffusers")
    assert measure_difference(report, check_file(tmp_path / "b.safetensors"), strength=0.5) > 120


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_plain_diffusers_does_not_read_as_it_is_meant_is_said(tmp_path: Path, spelling: str) -> None:
    h = POCKET.hidden
    sizes = {"single_stream_modulation.linear": 3, "double_stream_modulation_img.linear": 6, "norm_out.linear": 2}
    tensors = {}
    for name, rows in sizes.items():
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(2, h)
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(rows * h, 2)
    name = "transformer_blocks.0.attn.to_out.0"
    tensors |= {
        f"transformer.{name}.lora_A.weight": torch.randn(2, h),
        f"transformer.{name}.lora_B.weight": torch.randn(h, 2),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    write_export(check_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", strength=1, spelling=spelling)
    report = check_file(tmp_path / "b.safetensors")
    read = Flux2KleinPipeline.lora_state_dict(tmp_path / "b.safetensors")
    found = {layer.module: f"transformer.{layer.module}.lora_B.weight" for layer in report.layers}
    lost = {module for module, key in found.items() if key not in read}
    other = {module for module, key in found.items() if key in read and not torch.allclose(read[key], tensors[key])}
    assert (lost, other) == {
        "diffusers": (set(), set()), "ai-toolkit": (set(), {"norm_out.linear"}), "kohya": (set(sizes), set())
    }[spelling]  # fmt: skip
    said = " ".join(report.notices)
    assert said == " ".join(warn_diffusers(report.layers))
    assert all(module in said for module in lost | other)
    assert ("leaves 3 layers of this file out" in said, "halves exchanged" in said) == (bool(lost), bool(other))


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_plain()


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", BUNDLED_NAMES)
def test_plain_diffusers_draws_an_export_at_1_as_the_original(
    tmp_path: Path, pipeline: Any, name: str, spelling: str
) -> None:
    write_export(
        check_file(BUNDLED / f"{name}.safetensors"), tmp_path / "b.safetensors", strength=0.75, spelling=spelling
    )
    before = draw_plain(pipeline, BUNDLED / f"{name}.safetensors", 0.75)
    after = draw_plain(pipeline, tmp_path / "b.safetensors", 1.0)
    assert psnr(before, after) >= LEAST_DB
    assert psnr(before, draw_plain(pipeline, BUNDLED / f"{name}.safetensors", 1.0)) < LEAST_DB


@pytest.mark.parametrize("spelling", ["diffusers", "ai-toolkit"])
def test_a_lokr_is_exported_by_its_pictures_and_plain_diffusers_draws_the_same(
    tmp_path: Path, local_backend: LocalBackend, spelling: str
) -> None:
    factors = make_lokr(POCKET, rank=4, size=1.5)
    source = write_lokr(tmp_path / "a.safetensors", factors, alpha=2.0)
    out = tmp_path / "b.safetensors"
    written = export_lora(read_lora(source), out, strength=Decimal("0.75"), spelling=spelling, backend=local_backend)
    assert "2 pictures on pocket klein in float32" in written.said[0]
    drawn = [draw_plain(load_plain(), path, strength) for path, strength in ((source, 0.75), (out, 1.0), (source, 0.0))]
    assert psnr(*drawn[:2]) >= LEAST_DB
    assert psnr(drawn[0], drawn[2]) < LEAST_DB


def test_an_export_is_compared_by_its_pictures_before_it_gets_its_name(tmp_path: Path) -> None:
    out = tmp_path / "new" / "subject-075.safetensors"
    command = ["export", "subject", "--strength", "0.75", "--as", "kohya", "--out", str(out)]
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "as the original at 0.75 (2 pictures on pocket klein in float32)" in result.stdout
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    source = check_file(BUNDLED / "subject.safetensors").file.sha256
    assert json.loads(metadata[ORIGIN]) == {"sha256": source, "strength": 0.75}
    assert (metadata["format"], metadata["modelspec.trigger_phrase"]) == ("pt", "ohwx")
    assert metadata["ss_base_model_version"] == "flux2_klein_pocket"
    assert check_file(out).trigger_phrase == "ohwx"
    written = out.read_bytes()
    again = runner.invoke(app, command)
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr
    assert out.read_bytes() == written


def test_without_the_weights_the_changes_are_compared_and_that_is_said(
    tmp_path: Path, local_backend: LocalBackend
) -> None:
    path = write_diffusers(tmp_path / "a.safetensors", make_adapter(KLEIN_4B, rank=1))
    out = tmp_path / "b.safetensors"
    written = export_lora(read_lora(path), out, strength=Decimal("0.5"), spelling="kohya", backend=local_backend)
    assert "layer by layer: no " in written.said[0]
    assert "runs here in float32" in written.said[0]
    assert check_file(out).scales == (0.5,)


def test_where_16_bits_would_round_too_much_the_file_is_float32(tmp_path: Path, local_backend: LocalBackend) -> None:
    fine = write_diffusers(tmp_path / "fine.safetensors", make_adapter(KLEIN_4B, rank=1))
    tensors = {key: (tensor * (1e-6 if "lora_B" in key else 1e3)).half() for key, tensor in load_file(fine).items()}
    save_file(tensors, tmp_path / "a.safetensors")
    out = tmp_path / "b.safetensors"
    lora = read_lora(tmp_path / "a.safetensors")
    written = export_lora(lora, out, strength=Decimal("0.7"), spelling="ai-toolkit", backend=local_backend)
    assert written.said[1].startswith("It is float32")
    assert {info.dtype for info in check_file(out).file.tensors.values()} == {"F32"}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"strength": Decimal(0)}, InvalidInput, "changes nothing"),
        ({"spelling": "comfy"}, InvalidInput, "Choose diffusers, ai-toolkit, kohya"),
        ({"out": "b.bin"}, InvalidInput, "does not end in .safetensors"),
        ({"out": "there.safetensors"}, Conflict, "is there already"),
        ({"lora": "lokr", "spelling": "kohya"}, LoraUnsupported, "is a LoKr"),
    ],
)
def test_what_cannot_be_exported_says_why_and_leaves_nothing(
    tmp_path: Path, local_backend: LocalBackend, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "there.safetensors").write_bytes(b"mine")
    lokr = write_lokr(tmp_path / "lokr.safetensors", make_lokr(POCKET))
    lora = find_lora(str(lokr)) if changes.pop("lora", "") else find_lora("style")
    fields: dict[str, Any] = {"strength": Decimal("0.75"), "spelling": "diffusers", "out": "b.safetensors"} | changes
    with pytest.raises(error, match=words):
        export_lora(lora, folder / fields.pop("out"), backend=local_backend, **fields)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"there.safetensors": b"mine"}
