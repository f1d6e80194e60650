"""Reference images: what is let in, how it is cut, and that it reaches the picture the way plain diffusers does it."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinKVPipeline, Flux2KleinPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from typer.testing import CliRunner

from lora_runtime.__main__ import app
from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import POCKET, find_weights
from lora_runtime.errors import InvalidInput
from lora_runtime.lora.library import find_lora
from lora_runtime.pipeline.batch import Model, render_batch
from lora_runtime.pipeline.find import BUNDLED
from lora_runtime.pipeline.load import load_pipeline
from lora_runtime.pipeline.memory import count_tokens, largest_batch, row_bytes
from lora_runtime.png import read_metadata
from lora_runtime.references import (
    MAX_BYTES,
    fit_reference,
    load_reference,
    measure_reference,
    read_reference,
)
from lora_runtime.requests import find_status, make_request
from lora_runtime.values import Reference, Rendered, RenderRequest
from tests.lora_files import make_adapter, write_diffusers
from tests.pocket_model import psnr, render, request

CPU = torch.device("cpu")
ORIENTATION = 0x0112


def draw(path: Path, size: tuple[int, int] = (96, 64), *, seed: int = 0, **options: object) -> Reference:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size).save(path, **options)  # type: ignore[arg-type]
    return read_reference(path)


def test_png_jpeg_and_webp_are_read_and_hashed(tmp_path: Path) -> None:
    for ending in ("png", "jpg", "webp"):
        reference = draw(tmp_path / f"a.{ending}")
        assert reference.sha256 == hashlib.sha256(reference.path.read_bytes()).hexdigest()
        assert measure_reference(reference) == (96, 64)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("a.bmp", (96, 96), "is no whole PNG, JPEG, WEBP file"),
        ("a.png", (63, 96), "each side needs 64 px"),
        ("a.png", (640, 80), None),
        ("a.png", (648, 80), "over 8 times the other"),
        ("a.png", (5001, 4000), "at most 20 megapixels"),
    ],
)
def test_what_the_model_cannot_read_is_said(
    tmp_path: Path, name: str, size: tuple[int, int], words: str | None
) -> None:
    path = tmp_path / name
    Image.new("RGB", size).save(path)
    if words is None:
        measure_reference(read_reference(path))
        return
    with pytest.raises(InvalidInput, match=words):
        read_reference(path)


def test_damaged_large_and_missing_files_are_said(tmp_path: Path) -> None:
    whole = draw(tmp_path / "whole.png", (128, 128)).path.read_bytes()
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInput, match="no whole"):
        read_reference(damaged)
    large = tmp_path / "large.png"
    large.write_bytes(b"\0" * (MAX_BYTES + 1))
    with pytest.raises(InvalidInput, match="more than 20 MB"):
        read_reference(large)
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_reference(tmp_path / "nobody.png")


@settings(deadline=None)
@given(st.integers(64, 5000), st.integers(64, 5000), st.sampled_from(["pocket", "klein-4b"]))
def test_what_the_model_reads_is_on_its_grid_and_within_its_area(width: int, height: int, name: str) -> None:
    weights = find_weights(name)
    if max(width, height) > 8 * min(width, height):
        return
    across, down = fit_reference((width, height), weights)
    assert across % 16 == down % 16 == 0
    assert min(across, down) >= 64
    assert max(across, down) <= 8 * min(across, down)
    assert across * down <= min(1024**2, weights.sizes[1] ** 2)
    if width * height <= min(1024**2, weights.sizes[1] ** 2) and max(width, height) < 7 * min(width, height):
        assert (width - across, height - down) == (width % 16, height % 16)


def test_a_turned_photograph_is_read_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    reference = draw(tmp_path / "a.jpg", (128, 64), exif=exif)
    assert measure_reference(reference) == (64, 128)
    upright = load_reference(reference, find_weights("pocket"))
    with Image.open(reference.path) as file:
        assert upright.tobytes() == ImageOps.exif_transpose(file).convert("RGB").tobytes()


def test_a_file_that_changed_or_went_is_refused(tmp_path: Path) -> None:
    reference = draw(tmp_path / "a.png")
    draw(tmp_path / "a.png", seed=1)
    with pytest.raises(InvalidInput, match="changed after it was chosen"):
        load_reference(reference, find_weights("pocket"))
    reference.path.unlink()
    with pytest.raises(InvalidInput, match="has gone"):
        load_reference(reference, find_weights("pocket"))


def test_the_picture_takes_the_first_references_size(local_backend: LocalBackend, tmp_path: Path) -> None:
    small, large = draw(tmp_path / "a.png", (100, 70)), draw(tmp_path / "b.png", (1000, 500))

    def size(*references: Reference, **asked: int) -> tuple[int, int]:
        made = make_request(find_status(local_backend), prompt="a fox", references=references, **asked)  # type: ignore[arg-type]
        assert made.references == references
        return made.width, made.height

    assert size(small, large) == (96, 64)
    assert size(large, small) == (256, 128)
    assert size(large, width=64) == (64, 128)
    assert size() == (128, 128)
    with pytest.raises(InvalidInput, match="5 references are too many"):
        size(*[small] * 5)


def plain(kind: type, requests: list[RenderRequest], files: list[Path]) -> list[np.ndarray]:
    """What a user of diffusers writes, image by image, from the files."""
    pipeline = kind.from_pretrained(BUNDLED / "pocket", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    weights, images = find_weights("pocket"), []
    for item in requests:
        opened = [Image.open(path) for path in files]
        guidance = {} if kind is Flux2KleinKVPipeline else {"guidance_scale": 1.0}
        images.append(
            np.asarray(
                pipeline(
                    image=opened,
                    prompt=item.prompt,
                    width=item.width,
                    height=item.height,
                    num_inference_steps=item.steps,
                    generator=torch.Generator().manual_seed(item.seed),
                    max_sequence_length=weights.max_sequence_length,
                    text_encoder_out_layers=weights.text_encoder_out_layers,
                    **guidance,
                ).images[0]
            )
        )
        for image in opened:
            image.close()
    return images


@pytest.mark.parametrize("kv", [False, True])
def test_references_act_as_in_plain_diffusers(tmp_path: Path, kv: bool) -> None:
    references = tuple(draw(tmp_path / f"{i}.png", size, seed=i) for i, size in enumerate([(96, 64), (70, 90)]))
    weights = replace(find_weights("pocket"), kv_cache=kv)
    pipeline = load_pipeline(weights, "fp32", BUNDLED / "pocket", CPU)
    assert isinstance(pipeline, Flux2KleinKVPipeline if kv else Flux2KleinPipeline)
    model = Model(pipeline, weights=weights, precision="fp32", adapter_cache_bytes=0)
    lora = find_lora(str(write_diffusers(tmp_path / "a.safetensors", make_adapter(POCKET, size=0.6))))
    asked = [
        request(seed=seed, precision="fp32", references=references, lora=lora, strength=strength)
        for seed, strength in ((1, 0), (2, 0), (2, 1))
    ]
    encoded: list[int] = []
    pipeline.vae.encoder.register_forward_hook(lambda *_: encoded.append(1))
    ours = [np.asarray(image) for image in render_batch(model, asked, on_step=lambda _step, _steps: None)]
    assert len(encoded) == len(references), "each reference is encoded once for the whole batch"
    theirs = plain(type(pipeline), asked[:2], [reference.path for reference in references])
    for image, expected in zip(ours, theirs, strict=False):
        assert psnr(image, expected) >= 45
    assert psnr(ours[2], ours[1]) < 45, "the LoRA acts beside the references"


def test_only_equal_references_share_a_batch(local_backend: LocalBackend, tmp_path: Path) -> None:
    one, two = draw(tmp_path / "1.png", seed=1), draw(tmp_path / "2.png", seed=2)
    asked = [request(references=references) for references in ((one,), (two,), (one,), (one, two), ())]
    sizes = {
        event.index: event.timing.batch_size for event in local_backend.render(asked) if isinstance(event, Rendered)
    }
    assert sizes == {0: 2, 1: 1, 2: 2, 3: 1, 4: 1}
    images = render(local_backend, *asked)
    assert (images[0] == images[2]).all()
    assert len({image.tobytes() for image in images}) == 4


def test_references_cost_memory(tmp_path: Path) -> None:
    pocket, klein = find_weights("pocket"), find_weights("klein-9b-kv")
    reference = draw(tmp_path / "a.png", (1024, 1024))
    assert count_tokens(klein, [reference] * 2) == 2 * 4096
    assert count_tokens(pocket, [reference]) == 256
    assert row_bytes(klein, 1024, 1024, [reference]) > 1.8 * row_bytes(klein, 1024, 1024)
    assert row_bytes(klein, 1024, 1024, [reference]) > row_bytes(
        replace(klein, kv_cache=False), 1024, 1024, [reference]
    )
    assert largest_batch(pocket, 128, 128, CPU, [reference]) < largest_batch(pocket, 128, 128, CPU)


def test_generate_takes_images_and_the_png_names_them(tmp_path: Path) -> None:
    references = [draw(tmp_path / f"{index}.png", seed=index) for index in range(2)]
    images = [argument for reference in references for argument in ("--image", str(reference.path))]
    out = tmp_path / "out.png"
    done = CliRunner().invoke(
        app, ["generate", "--prompt", "a fox", "--seed", "7", "--precision", "fp8", "--out", str(out), *images]
    )
    assert done.exit_code == 0, done.output
    metadata = read_metadata(out)
    assert metadata is not None
    assert metadata["references"] == [reference.sha256 for reference in references]
    assert (metadata["width"], metadata["height"], metadata["precision"]) == (96, 64, "fp8")
    none = CliRunner().invoke(
        app, ["generate", "--prompt", "a fox", "--out", str(out), "--image", str(tmp_path / "no.png")]
    )
    assert none.exit_code == 1
    assert "cannot be read" in none.stderr
