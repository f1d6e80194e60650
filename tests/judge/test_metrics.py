import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import structural_similarity_index_measure

from evaluation.judge.metrics import METRICS, score_image
from lora_runtime.errors import InvalidInput

random = np.random.default_rng(0)


def picture(width: int = 40, height: int = 24) -> Image.Image:
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def disturb(image: Image.Image, by: int) -> Image.Image:
    noise = random.integers(-by, by + 1, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


BLACK, WHITE = Image.new("RGB", (32, 32)), Image.new("RGB", (32, 32), (255, 255, 255))


@pytest.mark.parametrize("name", METRICS)
def test_an_image_is_most_like_itself(name: str) -> None:
    image = picture()
    best = METRICS[name].range[1 if METRICS[name].higher_is_better else 0]
    assert METRICS[name].function(image, image) == best


@pytest.mark.parametrize("name", METRICS)
def test_the_order_does_not_matter(name: str) -> None:
    one, other = picture(), picture()
    assert METRICS[name].function(one, other) == pytest.approx(METRICS[name].function(other, one), abs=1e-6)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("pair", [(BLACK, WHITE), (picture(32, 32), BLACK), (picture(32, 32), picture(32, 32))])
def test_values_stay_in_range(name: str, pair: tuple[Image.Image, Image.Image]) -> None:
    low, high = METRICS[name].range
    value = METRICS[name].function(*pair)
    assert math.isfinite(value)
    assert low - 1e-6 <= value <= high + 1e-6


@pytest.mark.parametrize("name", METRICS)
def test_more_change_is_a_worse_value(name: str) -> None:
    image = picture(64, 64)
    values = [METRICS[name].function(disturb(image, by), image) for by in (2, 20, 120)]
    assert values == sorted(values, reverse=METRICS[name].higher_is_better)


@pytest.mark.parametrize("size", [(48, 32), (7, 90)])
def test_ssim_equals_torchmetrics(size: tuple[int, int]) -> None:
    reference = Image.radial_gradient("L").resize(size).convert("RGB")
    image = disturb(reference, 25)
    x, y = (torch.from_numpy(np.asarray(each) / 255).permute(2, 0, 1)[None] for each in (image, reference))
    theirs = structural_similarity_index_measure(x, y, gaussian_kernel=True, sigma=1.5, data_range=1.0)
    assert METRICS["ssim"].function(image, reference) == pytest.approx(float(theirs), abs=1e-9)
    assert 0.1 < theirs < 0.95


def test_mean_difference_by_hand() -> None:
    image = Image.new("RGB", (2, 2), (10, 20, 30))
    reference = image.copy()
    reference.putpixel((1, 1), (22, 20, 0))
    assert METRICS["mean_difference"].function(image, reference) == (12 + 30) / 12


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (11, 11)])
def test_the_smallest_images(size: tuple[int, int]) -> None:
    image = picture(*size)
    assert METRICS["ssim"].function(image, image) == 1
    assert METRICS["ssim"].function(image, picture(*size)) < 1


def test_every_metric_is_scored_under_its_name() -> None:
    image = picture()
    assert score_image(image, image).keys() == METRICS.keys()
    assert all(name == metric.name and metric.source for name, metric in METRICS.items())
    with pytest.raises(InvalidInput, match="cannot be compared"):
        score_image(image, BLACK)


def test_listing_metrics_does_not_import_torch() -> None:
    code = "import sys, evaluation.judge.metrics, evaluation.sweep; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
