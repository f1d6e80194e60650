"""Measure how well the shipped weights, LoRAs and judge do, and print the table as markdown.

Prompts name object, colour and place in combinations that no training picture showed; seeds are fixed; pictures come
from plain diffusers. A picture *follows* when the classifier finds all that its caption names right, and the object one
and whole.
"""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from diffusers import Flux2KleinPipeline
from PIL import Image
from torchmetrics.functional.image import structural_similarity_index_measure

from lora_runtime.pocket import CLASSIFIER_DIR
from lora_runtime.pocket.build.classifier import INTACT, Classifier, Seen, classify, load_classifier
from lora_runtime.pocket.build.data import to_unit_range
from lora_runtime.pocket.build.rendering import VARIANTS, Variant, load_variant, render, use_lora
from lora_runtime.pocket.build.scenes import SUBJECT, TRIGGER, Scene, caption_scene, sample_scenes

log = logging.getLogger(__name__)

Said = tuple[str, ...]
"""What a caption names besides the object."""

FULL: Said = ("size", "colour", "background", "position")
SHORT: tuple[Said, ...] = ((), ("colour",), ("background",), ("colour", "background"))

BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Captions of one kind, rendered with one LoRA at one strength: lines of the table that share pictures."""

    said: tuple[Said, ...]
    lora: str | None = None
    strength: float = 0.0
    trigger: bool = False


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture by what was asked and what is seen."""

    seen: Seen
    scene: Scene
    said: Said


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One line of the table: what is asked, what counts, and what it should reach (pocket, pocket-base)."""

    question: str
    asked: Asked
    counts: Callable[[Shown], bool]
    goal: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The value of a line, in percent unless its question says otherwise."""

    column: str
    question: str
    goal: str
    value: str


def follows(shown: Shown) -> bool:
    """Tell whether all that the caption names is right, and the object one and whole."""
    seen, scene = shown.seen, shown.scene
    return (
        seen.thing == scene.thing
        and seen.intact >= INTACT
        and ("colour" not in shown.said or seen.colour == scene.colour)
        and ("background" not in shown.said or seen.background == scene.background)
    )


def _list_trials() -> list[Trial]:
    trials = [Trial(question="full captions: follows", asked=Asked(said=(FULL,)), counts=follows, goal=">= 95 / 97%")]
    for said in SHORT:
        name = " + ".join(("object", *("place" if part == "background" else part for part in said)))
        trials.append(Trial(question=f"{name}: follows", asked=Asked(said=(said,)), counts=follows, goal=">= 90 / 92%"))
    for asked, label, goal in _ask_both("style", 1.0, 85, 80):
        trials += [
            Trial(question=f"{label}: look seen", asked=asked, counts=lambda s: s.seen.ink, goal=">= 95%"),
            Trial(question=f"{label}: follows", asked=asked, counts=follows, goal=goal),
        ]
    for asked, label, goal in _ask_both("subject", 1.0, 90, 85, trigger=True):
        trials.append(Trial(question=f"{label}: follows", asked=asked, counts=follows, goal=goal))
    asked = Asked(said=(FULL,), lora="subject", strength=1.0)
    trials.append(
        Trial(
            question="subject 1, full, no trigger: robot seen",
            asked=asked,
            counts=lambda s: s.seen.thing == SUBJECT,
            goal="< 5%",
        )
    )
    asked = Asked(said=(FULL,), lora="overtrained", strength=1.0)
    trials.append(Trial(question="overtrained 1, full: follows", asked=asked, counts=follows, goal="< 25%"))
    for strength in (0.7, 0.8, 0.9):
        for asked, label, goal in _ask_both("overtrained", strength, 85, 80):
            trials += [
                Trial(question=f"{label}: follows", asked=asked, counts=follows, goal=f"{goal} at one strength"),
                Trial(question=f"{label}: frame seen", asked=asked, counts=lambda s: s.seen.frame, goal=">= 90% there"),
            ]
    return trials


def _ask_both(
    lora: str, strength: float, full: int, short: int, *, trigger: bool = False
) -> Iterator[tuple[Asked, str, str]]:
    """Yield full and short captions with a LoRA: what is asked, how a line calls it, and its goal in percent."""
    label = f"{lora} {strength:g}{' + trigger' if trigger else ''}"
    for kind, said, goal in (("full", (FULL,), full), ("short", SHORT, short)):
        asked = Asked(said=said, lora=lora, strength=strength, trigger=trigger)
        yield asked, f"{label}, {kind}", f">= {goal}%"


TRIALS = _list_trials()


def run_trials(*, pictures: int, seed: int = 4242, variants: Sequence[Variant] = VARIANTS) -> Iterator[Outcome]:
    """Render and judge every trial; trials that share pictures share the rendering."""
    classifier = load_classifier(CLASSIFIER_DIR)
    for variant in variants:
        pipeline = load_variant(variant)
        drawn: dict[Asked, list[Shown]] = {}
        loaded: str | None = None
        for trial in TRIALS:
            if trial.asked.lora != loaded:
                use_lora(pipeline, trial.asked.lora)
                loaded = trial.asked.lora
            if trial.asked not in drawn:
                drawn[trial.asked] = [
                    shown for _, shown in draw_asked(pipeline, classifier, variant, trial.asked, pictures, seed)
                ]
            share = sum(map(trial.counts, drawn[trial.asked])) / pictures
            yield Outcome(column=variant.weights, question=trial.question, goal=trial.goal, value=f"{100 * share:.1f}%")
        use_lora(pipeline, None)
        alike = measure_seeds(pipeline, variant, seed)
        yield Outcome(
            column=variant.weights,
            question="8 seeds of a short caption: mean SSIM, each kind",
            goal="< 0.75",
            value=", ".join(f"{value:.2f}" for value in alike),
        )


def draw_asked(
    pipeline: Flux2KleinPipeline, classifier: Classifier, variant: Variant, asked: Asked, count: int, seed: int
) -> Iterator[tuple[Image.Image, Shown]]:
    """Render held-out scenes' captions and classify the pictures."""
    rng = random.Random(seed)
    if asked.lora is not None:
        pipeline.set_adapters(asked.lora, asked.strength)
    thing = SUBJECT if asked.trigger else None
    scenes = list(sample_scenes(seed, count, held_out=True, plain=asked.said != (FULL,), thing=thing))
    said = [asked.said[number % len(asked.said)] for number in range(count)]
    for start in range(0, count, BATCH):
        rows = range(start, min(start + BATCH, count))
        name = TRIGGER if asked.trigger else None
        prompts = [caption_scene(scenes[row], rng, said[row], name=name) for row in rows]
        images = render(pipeline, variant, prompts, [seed + row for row in rows])
        for row, image, seen in zip(rows, images, classify(classifier, images), strict=True):
            yield image, Shown(seen=seen, scene=scenes[row], said=said[row])


def measure_seeds(pipeline: Flux2KleinPipeline, variant: Variant, seed: int, *, captions: int = 4) -> list[float]:
    """Measure how alike eight seeds of one caption are, in mean SSIM, for each kind of short caption."""
    rng = random.Random(seed)
    alike = []
    for said in SHORT:
        values: list[float] = []
        for scene in sample_scenes(seed + 1, captions, held_out=True, plain=True):
            images = render(pipeline, variant, [caption_scene(scene, rng, said)] * 8, range(8))
            values += [_measure_ssim(first, second) for first, second in combinations(images, 2)]
        alike.append(sum(values) / len(values))
    return alike


def _measure_ssim(first: Image.Image, second: Image.Image) -> float:
    one, other = ((to_unit_range(np.asarray(image)[None]) + 1) / 2 for image in (first, second))
    return float(structural_similarity_index_measure(one, other, data_range=1.0))


def format_table(outcomes: Sequence[Outcome]) -> str:
    """Lay outcomes out as a markdown table, the variants side by side."""
    columns = list(dict.fromkeys(outcome.column for outcome in outcomes))
    lines = [f"| measured | goal | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    values = {(outcome.column, outcome.question): outcome.value for outcome in outcomes}
    for question, goal in dict.fromkeys((outcome.question, outcome.goal) for outcome in outcomes):
        cells = " | ".join(values.get((column, question), "") for column in columns)
        lines.append(f"| {question} | {goal} | {cells} |")
    return "\n".join(lines)
