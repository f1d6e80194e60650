"""Does a picture show its prompt? Its true words are held against others: another object, colour or place.

A fall of a score says little, as a score means something else with every prompt. A rank does not: a picture shows its
prompt when the prompt as written fits it better than the same prompt with one word replaced. A prompt that names
nothing of the lists below is held against other whole prompts: those of the sweep's other scenes, and a few of our own.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from PIL import Image

from evaluation.judge.metrics.clip import measure_prompt_fit
from evaluation.judge.metrics.embeddings import embed_images, is_known, read_prompt
from lora_runtime.judges import Judge

COLOURS: Final = (
    *("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "white"),
    *("black", "grey", "gold", "silver"),
)
PLACES: Final = (
    *("meadow", "beach", "desert", "snow", "forest", "city", "night", "underwater"),
    *("kitchen", "mountains", "street", "studio", "stage", "library"),
)
OBJECTS: Final = (
    *("cat", "bunny", "owl", "fish", "snail", "mushroom", "cactus", "house", "boat", "rocket", "balloon", "teapot"),
    *("dog", "horse", "bird", "car", "bicycle", "tree", "flower", "chair", "cup", "man", "woman", "child"),
)
KINDS: Final = (OBJECTS, COLOURS, PLACES)
"""Words of one kind exclude each other. A judge is asked only for those that it knows."""

OTHERS: Final = (
    "a cat in the snow",
    "a boat on the beach",
    "a house in a forest",
    "a fish underwater",
    "a rocket at night",
    "a teapot in the city",
    "a mushroom in a meadow",
    "a cactus in the desert",
)
"""Whole prompts that are not the one asked for."""

KEPT: Final = -2.0
"""A margin, in logits, down to which a prompt still counts as shown: another text is e^2 = 7 times likelier there."""

DRAWN: Final = -1.0
NAMED: Final = 0.5
"""The margin of a base image that shows its prompt; more is asked where only whole prompts can be held against it."""

BATCH: Final = 16
"""Pictures that are looked at at once."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a judge is asked of a scene's pictures: the prompt as it reads it, first, then texts that say other things.

    `drawn` is the margin from which a base image counts as showing the prompt.
    """

    texts: tuple[str, ...]
    drawn: float


def ask(prompt: str, others: Sequence[str], judge: Judge) -> Question | None:
    """Find what to hold `prompt` against; `others` are the prompts of other scenes. None when it says nothing."""
    read = read_prompt(prompt, judge)
    if not read:
        return None
    found = [text for kind in KINDS for text in _swap(read, kind, judge)]
    drawn = DRAWN
    if not found:
        # A judge that does not know the words cannot say that a picture shows them.
        drawn = NAMED if is_known(read, judge) else math.inf
        found = [other for each in (*others, *OTHERS) if (other := read_prompt(each, judge)) != read]
    return Question(texts=(read, *dict.fromkeys(found)), drawn=drawn)


def measure_margins(images: Sequence[Path], texts: tuple[str, ...], judge: Judge) -> list[float]:
    """Return for each picture by how much the first text beats the best of the others; below 0 another one wins."""
    missing = [image for image in dict.fromkeys(images) if (image, texts, judge.id) not in _margins]
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        for image, scores in zip(batch, _compare(batch, texts, judge), strict=True):
            _keep(image, texts, judge, scores[0] - max(scores[1:]))
    return [_margins[image, texts, judge.id] for image in images]


def _compare(images: Sequence[Path], texts: Sequence[str], judge: Judge) -> list[list[float]]:
    found: list[list[float]] = measure_prompt_fit(
        embed_images([_open(each) for each in images], judge), texts, judge
    ).tolist()
    return found


def _swap(prompt: str, kind: Sequence[str], judge: Judge) -> list[str]:
    """The prompt with each of its words of one kind replaced by every other; an object is left out too."""
    known = [word for word in kind if is_known(word, judge)]
    swapped = []
    for word in known:
        pattern = re.compile(rf"\b{word}\b")
        if pattern.search(prompt):
            swapped += [pattern.sub(other, prompt) for other in known if other != word]
            if kind is OBJECTS:
                swapped.append(" ".join(pattern.sub("", prompt).split()))
    return [text for text in swapped if text]


@lru_cache(maxsize=64)
def _open(path: Path) -> Image.Image:
    with Image.open(path) as file:
        return file.convert("RGB")


_margins: dict[tuple[Path, tuple[str, ...], str], float] = {}
MAX_MARGINS: Final = 20_000


def _keep(image: Path, texts: tuple[str, ...], judge: Judge, margin: float) -> None:
    """Remember a margin; files of images never change, so it holds as long as the program runs."""
    while len(_margins) >= MAX_MARGINS:
        _margins.pop(next(iter(_margins)))
    _margins[image, texts, judge.id] = margin
