"""The prompt fit of a run: scored once a judge, kept, and never beside another judge's."""

import shutil
from pathlib import Path

import pytest

from evaluation.judge.metrics import SCORES
from evaluation.judge.metrics.clip import measure_prompt_fit
from evaluation.judge.metrics.embeddings import embed_images
from evaluation.judge.prompt_fit import embed_kept, score_prompts
from evaluation.store.store import Store
from evaluation.sweep import Finished, run_sweep
from lora_runtime.backends.local import LocalBackend
from lora_runtime.judges import read_judge
from lora_runtime.pocket import JUDGE_DIR
from lora_runtime.requests import find_status, make_request
from lora_runtime.settings import settings
from lora_runtime.values import Rendered
from tests.drawing_backend import DrawingBackend, make_drawing_spec


@pytest.mark.slow
def test_a_picture_of_the_prompt_fits_better_than_another(local_backend: LocalBackend) -> None:
    prompts = ["a red cat in the snow", "a blue boat on the beach"]
    requests = [make_request(find_status(local_backend), prompt=prompt, seed=7) for prompt in prompts]
    rendered = [event for event in local_backend.render(requests) if isinstance(event, Rendered)]
    images = [event.image for event in sorted(rendered, key=lambda event: event.index)]
    judge = read_judge(JUDGE_DIR)
    fits = measure_prompt_fit(embed_images(images, judge), prompts, judge)
    for index in range(2):
        assert fits[index, index] > fits[1 - index, index] + 3


def test_what_is_missing_is_scored_once_a_judge_and_kept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_drawing_spec(prompts=["a red cat", "a blue fish"])
    *_, finished = run_sweep(spec, backend=DrawingBackend(), store=store)
    assert isinstance(finished, Finished)
    run_id = finished.run_id
    assert not any("clip" in record.scores for record in store.cells(run_id))
    assert list(score_prompts(store, store.cells(run_id))) == [3, 6]
    scored = store.cells(run_id)
    assert all(record.scores.keys() == SCORES.keys() for record in scored)
    assert list(score_prompts(store, scored)) == []

    another = Path(shutil.copytree(JUDGE_DIR, tmp_path / "another"))
    monkeypatch.setenv("KLEIN_LAB_CLIP", str(another))
    settings.cache_clear()
    assert not any("clip" in record.scores for record in store.cells(run_id)), "scores of two judges never mix"
    assert list(score_prompts(store, store.cells(run_id))) == [3, 6]
    again = [record.scores["clip"] for record in store.cells(run_id)]
    assert again != [record.scores["clip"] for record in scored], "asked in more looks, it is another judge"
    monkeypatch.delenv("KLEIN_LAB_CLIP")
    settings.cache_clear()
    assert store.cells(run_id) == scored, "what the first one said is still known"


def test_a_judge_looks_at_an_image_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_drawing_spec()
    *_, finished = run_sweep(spec, backend=DrawingBackend(), store=store)
    assert isinstance(finished, Finished)
    judge = read_judge(JUDGE_DIR)
    records = store.cells(finished.run_id)
    images = {record.cell.identity: record.image for record in records if record.image}
    first = embed_kept(store, images, judge)
    for record in records:
        assert record.image is not None
        record.image.unlink()
    kept = embed_kept(store, images, judge)
    assert {identity: vector.tolist() for identity, vector in kept.items()} == {
        identity: vector.tolist() for identity, vector in first.items()
    }
    assert len(kept) == len(records) == 3
