"""How alike two pictures are: their layouts, without a model; and how near to pictures of a look, by an eye.

A rank needs no calibration to one model: a picture has grown like a look when it is nearer to the pictures of it than
the base image of every scene is. Of n scenes, chance passes one in n + 1. An eye that does not find the look in those
pictures themselves cannot tell: the bundled one knows things, and no looks.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from evaluation.judge.metrics.embeddings import embed_images
from lora_runtime.judges import Judge
from lora_runtime.values import Reference

COPIED: Final = 0.98
"""How alike layouts are from which a picture is one of those given of the look: learnt by heart, or given wrongly."""

TOLD: Final = 0.75
"""The share of the pictures of a look that an eye must find it in."""

LAYOUT_PX: Final = 32
"""Side at which layouts are compared: which colours stand where counts, not their grain."""

See: TypeAlias = Callable[[Mapping[str, Path], Judge], Mapping[str, npt.NDArray[np.float32]]]
"""From pictures by their identity to how a judge sees them: a vector each."""


def measure_alike(first: Path, second: Path) -> float:
    """Return how alike the layouts of two pictures are: the correlation of their colours, 1 for the same picture."""
    return float(_read_layout(first) @ _read_layout(second))


def count_copied(images: Mapping[str, Path], looks: tuple[Reference, ...]) -> int:
    """Return how many pictures are one of those of the look."""
    return sum(any(measure_alike(image, look.path) >= COPIED for look in looks) for image in images.values())


def find_like(
    images: Mapping[str, Path], bases: Mapping[str, Path], looks: tuple[Reference, ...], eye: Judge, see: See
) -> frozenset[str] | None:
    """Return which of `images` (by identity) are nearer to the look than all of `bases` are.

    None when the eye cannot tell: each picture of the look, held against the others of it, should pass the same test.
    """
    seen, given = see({**bases, **images}, eye), _look_at(looks, eye)
    before = np.stack([seen[base] for base in bases])
    told = 0
    for index, own in enumerate(given if len(given) > 1 else ()):
        towards = np.delete(given, index, axis=0).mean(axis=0)
        told += float(own @ towards) > float((before @ towards).max())
    if told < TOLD * len(given):
        return None
    towards = given.mean(axis=0)
    nearest = float((before @ towards).max())
    return frozenset(identity for identity in images if float(seen[identity] @ towards) > nearest)


@lru_cache(maxsize=64)
def _look_at(looks: tuple[Reference, ...], eye: Judge) -> npt.NDArray[np.float32]:
    """How an eye sees pictures, a row each."""
    with ExitStack() as stack:
        return embed_images([stack.enter_context(Image.open(look.path)) for look in looks], eye)


@lru_cache(maxsize=4_000)
def _read_layout(path: Path) -> npt.NDArray[np.float32]:
    with Image.open(path) as file:
        small = file.convert("RGB").resize((LAYOUT_PX, LAYOUT_PX), Image.Resampling.BOX)
    colours = np.asarray(small, dtype=np.float32)
    centred: npt.NDArray[np.float32] = (colours - colours.mean(axis=(0, 1))).ravel()
    centred /= max(float(np.linalg.norm(centred)), 1e-6)
    return centred
