"""The prompt fit: a real CLIP from a folder, scores that are kept, and what stands in the way."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import CLIPModel, CLIPProcessor

from evaluation.judge.metrics import PROMPT_FIT, SCORES
from evaluation.judge.metrics.clip import BATCH, BUNDLED_JUDGE, LOOKS, measure_prompt_fit
from evaluation.judge.prompt_fit import find_judge, score_prompts
from evaluation.store.store import Store
from evaluation.sweep import Finished, run_sweep
from lora_runtime.backends.local import LocalBackend
from lora_runtime.errors import InvalidInput
from lora_runtime.requests import find_status, make_request
from lora_runtime.settings import settings
from lora_runtime.values import Rendered
from tests.drawing_backend import DrawingBackend, make_drawing_spec


def disc(colour: str) -> Image.Image:
    image = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(image).ellipse((20, 20, 76, 76), fill=colour)
    return image


def score_directly(folder: Path, image: Image.Image, texts: list[str]) -> float:
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    with torch.inference_mode():
        inputs = processor(text=texts, images=[image], padding=True, truncation=True, return_tensors="pt")
        return float(model(**inputs).logits_per_image.max())


def test_the_score_is_the_logit_of_the_prompt_and_of_a_full_clip_that_of_the_best_look(tmp_path: Path) -> None:
    image, prompt = disc("red"), "a red cat"
    expected = score_directly(BUNDLED_JUDGE, image, [prompt])
    assert measure_prompt_fit([image], prompt, BUNDLED_JUDGE) == [pytest.approx(expected, abs=1e-3)]
    another = tmp_path / "clip"
    shutil.copytree(BUNDLED_JUDGE, another)
    expected = score_directly(another, image, [look.format(prompt) for look in LOOKS])
    assert measure_prompt_fit([image], prompt, another) == [pytest.approx(expected, abs=1e-3)]


def test_a_batch_scores_as_one_by_one() -> None:
    images = [disc(colour) for colour in ("red", "blue", "green")] * (BATCH // 2)
    together = measure_prompt_fit(images, "a blue fish under the sea", BUNDLED_JUDGE)
    alone = [measure_prompt_fit([image], "a blue fish under the sea", BUNDLED_JUDGE)[0] for image in images[:3]]
    assert together[:3] == pytest.approx(alone, abs=1e-3)
    assert len(together) == len(images) > BATCH
    assert all(PROMPT_FIT.range[0] <= score <= PROMPT_FIT.range[1] for score in together)
    assert measure_prompt_fit([], "a fish", BUNDLED_JUDGE) == []


def test_a_long_prompt_is_cut_and_a_strange_one_is_scored() -> None:
    for prompt in ("cat " * 5000, "", "日本語 🦊 {} {0}", "${alert(1)}"):
        assert len(measure_prompt_fit([disc("red")], prompt, BUNDLED_JUDGE)) == 1


@pytest.mark.slow
def test_a_picture_of_the_prompt_fits_better_than_another(local_backend: LocalBackend) -> None:
    prompts = ["a red cat in the snow", "a blue boat on the beach"]
    requests = [make_request(find_status(local_backend), prompt=prompt, seed=7) for prompt in prompts]
    rendered = [event for event in local_backend.render(requests) if isinstance(event, Rendered)]
    images = [event.image for event in sorted(rendered, key=lambda event: event.index)]
    for index, prompt in enumerate(prompts):
        fits = measure_prompt_fit(images, prompt, BUNDLED_JUDGE)
        assert fits[index] > fits[1 - index] + 3


def test_what_is_missing_is_scored_once_and_kept(store: Store) -> None:
    spec = make_drawing_spec(prompts=["a red cat", "a blue fish"])
    *_, finished = run_sweep(spec, backend=DrawingBackend(), store=store)
    assert isinstance(finished, Finished)
    run_id = finished.run_id
    records = store.cells(run_id)
    assert not any("clip" in record.scores for record in records)
    assert list(score_prompts(store, records)) == [3, 6]
    scored = store.cells(run_id)
    assert all(record.scores.keys() == SCORES.keys() for record in scored)
    assert list(score_prompts(store, scored)) == []


def test_which_judge_looks_at_which_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_judge("pocket") == find_judge("pocket-base") == BUNDLED_JUDGE
    assert find_judge("klein-4b") is None, "the bundled judge knows only what the pocket draws"
    monkeypatch.setenv("KLEIN_LAB_CLIP", str(tmp_path))
    settings.cache_clear()
    assert find_judge("klein-4b") == find_judge("pocket") == tmp_path


def _broken(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize("prepare", [lambda folder: None, _broken, lambda folder: folder.rmdir()])
def test_a_folder_without_a_clip_is_a_sentence(tmp_path: Path, prepare: Callable[[Path], None]) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(InvalidInput, match="holds no CLIP model"):
        measure_prompt_fit([disc("red")], "a cat", folder)
