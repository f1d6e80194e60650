"""Does a picture show its prompt? Its true words are held against others: another object, colour or place.

A fall of a score says little, as a score means something else with every prompt. A rank does not: a picture shows its
prompt when the prompt as written fits it better than the same prompt with one word replaced. A prompt that names
nothing of the lists below is held against other whole prompts: those of the sweep's other scenes, and a few of our own.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from evaluation.judge.metrics.clip import measure_prompt_fit
from evaluation.judge.metrics.embeddings import Vectors, is_known, read_prompt
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


def measure_margins(images: Vectors, texts: tuple[str, ...], judge: Judge) -> list[float]:
    """Return for each picture (B, D) by how much the first text beats the best of the others; below 0 one wins."""
    logits = measure_prompt_fit(images, texts, judge)
    margins: list[float] = (logits[:, 0] - logits[:, 1:].max(axis=1)).tolist()
    return margins


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
