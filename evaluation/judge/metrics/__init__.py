"""What is measured of an image. One score, one file.

A metric compares two RGB images of the same size: the image, then the base image. The prompt fit needs none, but
a model, so it is measured apart (`prompt_fit.py`). What needs torch imports it when it runs, so that the command line
and a sweep on another machine start without.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from PIL import Image

from evaluation.judge.metrics.mean_difference import measure_mean_difference
from evaluation.judge.metrics.ssim import measure_ssim
from lora_runtime.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Score:
    """One score: how it is called, what its numbers mean, where it comes from."""

    name: str
    label: str
    range: tuple[float, float]
    higher_is_better: bool
    """Whether a higher value means nearer to the base, or to the prompt."""
    source: str


@dataclass(frozen=True, kw_only=True)
class Metric(Score):
    """A score against a base image."""

    function: Callable[[Image.Image, Image.Image], float]


METRICS: Final[Mapping[str, Metric]] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric(
                name="ssim",
                label="SSIM to base",
                range=(-1.0, 1.0),
                higher_is_better=True,
                function=measure_ssim,
                source="Wang et al. 2004, doi:10.1109/TIP.2003.819861",
            ),
            Metric(
                name="mean_difference",
                label="Difference to base",
                range=(0.0, 255.0),
                higher_is_better=False,
                function=measure_mean_difference,
                source="Mean absolute difference of 8-bit channel values",
            ),
        )
    }
)
"""Every metric by name."""

PROMPT_FIT: Final = Score(
    name="clip",
    label="Prompt fit (CLIP)",
    range=(-100.0, 100.0),
    higher_is_better=True,
    source="Radford et al. 2021, arXiv:2103.00020",
)

SCORES: Final[Mapping[str, Score]] = MappingProxyType({**METRICS, PROMPT_FIT.name: PROMPT_FIT})
"""Every score by name: the metrics, then the prompt fit."""


def score_image(image: Image.Image, base: Image.Image) -> dict[str, float]:
    """Return every metric's value for `image` against `base`.

    Raises:
        InvalidInput: They differ in size.
    """
    if image.size != base.size:
        raise InvalidInput(f"Images of {image.size} and {base.size} px cannot be compared. Use one size.")
    return {metric.name: metric.function(image, base) for metric in METRICS.values()}
