"""Judges: which folder is one and what names it, what a model sees against transformers' own call, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from evaluation.judge.metrics.clip import LOOKS, list_looks, measure_prompt_fit
from evaluation.judge.metrics.embeddings import embed_images, embed_texts, read_logits, split_text
from lora_runtime.errors import InvalidInput
from lora_runtime.judges import Judge, find_eye, find_judge, read_judge, say_missing
from lora_runtime.pocket import JUDGE_DIR
from lora_runtime.settings import settings
from tests.judge_folders import make_clip, make_dinov2, make_siglip

MAKERS = {"clip": make_clip, "siglip": make_siglip, "dinov2": make_dinov2}
IMAGES = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "white")]
TEXTS = ["a red cat", "blue boats, at night"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("judges")
    return {kind: make(root / kind) for kind, make in MAKERS.items()}


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_folders(**chosen: Path) -> None:
        for name, folder in chosen.items():
            monkeypatch.setenv(f"KLEIN_LAB_{name.upper()}", str(folder))
        settings.cache_clear()

    return set_folders


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_logits_are_those_of_the_model(folders: dict[str, Path], kind: str) -> None:
    judge = read_judge(folders[kind])
    model = AutoModel.from_pretrained(folders[kind], dtype=torch.float32).eval()
    padding = "max_length" if kind == "siglip" else True
    words = AutoTokenizer.from_pretrained(folders[kind])(TEXTS, padding=padding, return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(folders[kind])(IMAGES, return_tensors="pt")
    known = {name: words[name] for name in ("input_ids", "attention_mask") if name in words}
    with torch.inference_mode():
        expected = model(**known, **pixels).logits_per_image.numpy()
    found = read_logits(embed_images(IMAGES, judge), embed_texts(TEXTS, judge), judge)
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", MAKERS)
def test_likeness_is_a_cosine_and_a_batch_sees_what_one_sees(folders: dict[str, Path], kind: str) -> None:
    judge = read_judge(folders[kind])
    vectors = embed_images(IMAGES * 8, judge)
    alike = vectors @ vectors.T
    assert np.diag(alike) == pytest.approx(np.ones(24), abs=1e-5)
    assert alike == pytest.approx(alike.T, abs=1e-6)
    assert alike[0, 3] == pytest.approx(1, abs=1e-5)
    assert alike[0, 1] < 0.999
    assert embed_images(IMAGES[:1], judge)[0] == pytest.approx(vectors[0], abs=1e-5)
    assert embed_images([], judge).shape[0] == 0


def test_a_long_prompt_is_split_and_nothing_of_it_is_lost(folders: dict[str, Path]) -> None:
    for folder in (folders["clip"], folders["siglip"], JUDGE_DIR):
        judge = read_judge(folder)
        long = ", ".join(["a red cat in the snow"] * 20)
        one, other = embed_texts([f"{long}, a blue boat", f"{long}, a green owl"], judge)
        assert one != pytest.approx(other, abs=1e-4), "the end counts"
        for text in ("cat " * 5000, "x" * 3000, "", "日本語 🦊 {} {0}"):
            assert np.isfinite(embed_texts([text], judge)).all()
    text, judge = "red cat, blue boat. " * 9, read_judge(folders["clip"])
    tokenizer = AutoTokenizer.from_pretrained(judge.folder)
    parts = split_text(text, lambda part: len(tokenizer(part)["input_ids"]) <= 77)
    assert " ".join(parts) == text.strip()
    assert len(parts) > 1
    assert all(part.endswith(".") for part in parts), "split where sentences end"
    mean = embed_texts(parts, judge).mean(axis=0)
    assert embed_texts([text], judge)[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-4)


def test_a_full_judge_is_asked_in_every_look_and_the_bundled_one_in_plain_words(folders: dict[str, Path]) -> None:
    judge, bundled = read_judge(folders["clip"]), read_judge(JUDGE_DIR)
    assert list_looks("a {cat}", bundled) == ["a {cat}"]
    vectors = embed_images(IMAGES, judge)
    looks = read_logits(vectors, embed_texts([look.replace("{}", TEXTS[0]) for look in LOOKS], judge), judge)
    assert measure_prompt_fit(vectors, TEXTS, judge)[:, 0] == pytest.approx(looks.max(axis=1), abs=1e-5)


def test_a_judge_is_named_by_what_is_in_its_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    first = read_judge(folders["clip"])
    assert first.id == f"clip@{first.digest}"
    same = Path(shutil.copytree(folders["clip"], tmp_path / "same"))
    assert read_judge(same).digest == first.digest
    assert read_judge(make_clip(tmp_path / "seed", seed=1)).digest != first.digest
    (same / "preprocessor_config.json").write_text('{"crop_size": 64}')
    assert read_judge(same).digest != first.digest


def test_a_changed_judge_sees_anew(tmp_path: Path) -> None:
    before = read_judge(make_clip(tmp_path / "clip"))
    seen = embed_images(IMAGES, before)
    after = read_judge(make_clip(tmp_path / "clip", seed=1))
    assert embed_images(IMAGES, after) != pytest.approx(seen, abs=1e-3)


def _without_text_tower(folder: Path) -> None:
    path = folder / "model.safetensors"
    kept = {key: value for key, value in load_file(path).items() if not key.startswith("text_model")}
    save_file(kept, path, metadata={"format": "pt"})


def _under_other_keys(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({f"other.{key}": value for key, value in load_file(path).items()}, path, metadata={"format": "pt"})


def _of_another_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["projection_dim"] = 20
    (folder / "config.json").write_text(json.dumps(config))


def _with_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _of_kind(kind: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": kind}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without_text_tower, r"lacks \d+ of its weights, such as text_model"),
        (_under_other_keys, r"lacks \d+ of its weights"),
        (_of_another_width, r"cannot be loaded|lacks \d+ of its weights"),
        (_with_a_pickle, "lacks model.*safetensors"),
        (lambda folder: (folder / "vocab.json").unlink(), "lacks tokenizer.json or vocab.json"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "lacks preprocessor_config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"half a file"), "cannot be loaded"),
        (_of_kind("bert"), "is of kind 'bert'"),
        (_of_kind("clip_text_model"), "is of kind 'clip_text_model'"),
        (lambda folder: (folder / "config.json").write_text("[]"), "has no config.json that can be read"),
        (shutil.rmtree, "has no config.json that can be read"),
    ],
)
def test_a_folder_that_cannot_judge_is_refused(tmp_path: Path, spoil: Callable[[Path], object], words: str) -> None:
    folder = make_clip(tmp_path / "mine")
    spoil(folder)
    with pytest.raises(InvalidInput, match=words) as caught:
        embed_texts(["a cat"], read_judge(folder))
    assert str(caught.value).startswith(str(folder))
    assert "python -m lora_runtime download judge" in str(caught.value)


def test_which_judge_looks_at_which_weights(
    folders: dict[str, Path], choose: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def name(found: Judge | None) -> str | None:
        return found.name if found else None

    assert name(find_judge("pocket")) == name(find_judge("pocket-base")) == name(find_eye("pocket")) == "pocket-judge"
    assert find_judge("klein-4b") is find_eye("klein-4b") is None
    assert say_missing("pocket") is None
    missing = say_missing("klein-4b")
    assert missing is not None
    assert "\n" not in missing
    assert "python -m lora_runtime download judge" in missing
    choose(clip=folders["siglip"])
    assert name(find_judge("klein-4b")) == name(find_judge("pocket")) == name(find_eye("klein-4b")) == "siglip"
    assert say_missing("klein-4b") is None
    choose(dino=folders["dinov2"])
    assert name(find_eye("klein-4b")) == "dinov2"
    choose(clip=folders["dinov2"])
    with pytest.raises(InvalidInput, match="reads no prompts"):
        find_judge("klein-4b")
    assert "KLEIN_LAB_DINO" in str(say_missing("klein-4b"))
    with pytest.raises(InvalidInput, match="only looks"):
        embed_texts(["a cat"], read_judge(folders["dinov2"]))
