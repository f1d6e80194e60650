"""Precisions side by side: one grid, controls of their own, and the measured distance in the verdict."""

import pytest
from PIL import Image

from evaluation.grid import make_spec
from evaluation.judge.distance import describe_distances, measure_distances
from evaluation.judge.metrics import score_image
from evaluation.store.store import Store
from evaluation.sweep import Finished, run_sweep
from lora_runtime.backends.local import LocalBackend


def test_fp8_beside_bf16_is_measured_and_trusted(local_backend: LocalBackend, store: Store) -> None:
    spec = make_spec(
        local_backend,
        loras=["style"],
        prompts=["a red cat in the meadow"],
        strengths="0, 0.7",
        seeds=[7],
        width=64,
        height=64,
        precision=["bf16", "fp8"],
    )
    *_, finished = run_sweep(spec, backend=local_backend, store=store)
    assert isinstance(finished, Finished)
    assert finished.verdict.ok, finished.verdict
    assert [finding.split(" at strength 0 equals")[0] for finding in finished.verdict.findings[:2]] == [
        "style at bf16",
        "style at fp8",
    ]
    assert finished.verdict.findings[2].startswith("fp8 against bf16, same seed and strength: SSIM 0.")
    assert "one step of strength" in finished.verdict.findings[2]

    records = store.cells(finished.run_id)
    assert [record.cell.request.precision for record in records] == ["bf16", "bf16", "fp8", "fp8"]
    assert [record.provenance["arithmetic"][:4] for record in records] == ["bf16", "bf16", "fp8 ", "fp8 "]
    distances = measure_distances(records)
    assert [str(distance.row.request.strength) for distance in distances] == ["0", "0.7"]
    for distance, bf16, fp8 in zip(distances, records[:2], records[2:], strict=True):
        assert bf16.image is not None
        assert fp8.image is not None
        with Image.open(fp8.image) as image, Image.open(bf16.image) as reference:
            scores = score_image(image.convert("RGB"), reference.convert("RGB"))
        assert distance.ssim == pytest.approx(scores["ssim"])
        assert distance.difference == pytest.approx(scores["mean_difference"])
        assert 0.8 < distance.ssim < 1
    assert describe_distances(records[:2]) == ()
