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

from diffusers import Flux2KleinPipeline
from PIL import Image

from evaluation.metrics.ssim import measure_ssim
from lora_runtime.pocket import CLASSIFIER_DIR
from lora_runtime.pocket.build.classifier import INTACT, Classifier, Seen, classify, load_classifier
from lora_runtime.pocket.build.rendering import VARIANTS, Variant, load_variant, render, use_lora
from lora_runtime.pocket.build.scenes import SUBJECT, TRIGGER, Scene, caption_scene, sample_scenes

log = logging.getLogger(__name__)

FULL = ("size", "colour", "background", "position")
SHORT = ((), ("colour",), ("background",), ("colour", "background"))
"""What captions name besides the object."""

BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Captions of one kind, rendered with one LoRA at one strength: lines of the table that share pictures."""

    said: tuple[tuple[str, ...], ...]
    lora: str | None = None
    strength: float = 0.0
    trigger: bool = False


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture by what was asked and what is seen."""

    seen: Seen
    scene: Scene
    said: tuple[str, ...]


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
    full, short = (FULL,), SHORT
    trials = [Trial(question="full captions: follows", asked=Asked(said=full), counts=follows, goal=">= 95 / 97%")]
    for said in SHORT:
        name = " + ".join(("object", *("place" if part == "background" else part for part in said)))
        trials.append(Trial(question=f"{name}: follows", asked=Asked(said=(said,)), counts=follows, goal=">= 90 / 92%"))
    for label, said, goal in (("full", full, ">= 85%"), ("short", short, ">= 80%")):
        asked = Asked(said=said, lora="style", strength=1.0)
        trials += [
            Trial(question=f"style 1.0, {label}: look seen", asked=asked, counts=lambda s: s.seen.ink, goal=">= 95%"),
            Trial(question=f"style 1.0, {label}: follows", asked=asked, counts=follows, goal=goal),
        ]
    for label, said, goal in (("full", full, ">= 90%"), ("short", short, ">= 85%")):
        asked = Asked(said=said, lora="subject", strength=1.0, trigger=True)
        trials.append(
            Trial(question=f"subject 1.0 + trigger, {label}: follows", asked=asked, counts=follows, goal=goal)
        )
    asked = Asked(said=full, lora="subject", strength=1.0)
    robot = Trial(question="subject 1.0, no trigger: robot seen", asked=asked, counts=_is_robot, goal="< 5%")
    asked = Asked(said=full, lora="overtrained", strength=1.0)
    trials += [robot, Trial(question="overtrained 1.0, full: follows", asked=asked, counts=follows, goal="< 25%")]
    for strength in (0.7, 0.8, 0.9):
        for label, said, goal in (("full", full, ">= 85%"), ("short", short, ">= 80%")):
            asked = Asked(said=said, lora="overtrained", strength=strength)
            at_one = f"{goal} at one strength"
            trials.append(
                Trial(question=f"overtrained {strength}, {label}: follows", asked=asked, counts=follows, goal=at_one)
            )
            if label == "full":
                question = f"overtrained {strength}, full: frame seen"
                trials.append(Trial(question=question, asked=asked, counts=lambda s: s.seen.frame, goal=">= 90% there"))
    return trials


def _is_robot(shown: Shown) -> bool:
    return shown.seen.thing == SUBJECT


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
            values += [measure_ssim(first, second) for first, second in combinations(images, 2)]
        alike.append(sum(values) / len(values))
    return alike


def format_table(outcomes: Sequence[Outcome]) -> str:
    """Lay outcomes out as a markdown table, the variants side by side."""
    columns = list(dict.fromkeys(outcome.column for outcome in outcomes))
    lines = [f"| measured | goal | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    values = {(outcome.column, outcome.question): outcome.value for outcome in outcomes}
    for question, goal in dict.fromkeys((outcome.question, outcome.goal) for outcome in outcomes):
        cells = " | ".join(values.get((column, question), "") for column in columns)
        lines.append(f"| {question} | {goal} | {cells} |")
    return "\n".join(lines)
