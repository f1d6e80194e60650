"""Measure how well the shipped weights and LoRAs draw what they are asked for, and print the table as markdown.

Prompts name object, colour and background in combinations that no training picture showed; seeds are fixed; pictures
come from plain diffusers. A picture *follows* its prompt when the classifier gets object, colour and background all
right.
"""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

from lora_runtime.pocket import CLASSIFIER_DIR, lora_path, weights_folder
from lora_runtime.pocket.build.architecture import MAX_SEQUENCE_LENGTH, TEXT_ENCODER_OUT_LAYERS
from lora_runtime.pocket.build.classifier import Classifier, Seen, classify, load_classifier
from lora_runtime.pocket.build.scenes import SUBJECT, TRIGGER, Scene, caption_scene, sample_scenes

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How to call one of the weights."""

    weights: str
    steps: int
    guidance: float


VARIANTS = (
    Variant(weights="pocket", steps=4, guidance=1.0),
    Variant(weights="pocket-base", steps=28, guidance=5.0),
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One line of the table: what is asked, at which strength, what counts, and what it should reach."""

    question: str
    lora: str | None = None
    strength: float = 0.0
    trigger: bool = False
    counts: Callable[[Seen, Scene], bool]
    goal: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The share of pictures that counted."""

    variant: Variant
    trial: Trial
    pictures: int
    share: float


def follows(seen: Seen, scene: Scene) -> bool:
    """Tell whether object, colour and background are all right."""
    return (seen.thing, seen.colour, seen.background) == (scene.thing, scene.colour, scene.background)


TRIALS = (
    Trial(question="prompt followed", counts=follows, goal="pocket >= 90%, pocket-base >= 95%"),
    Trial(question="ink seen", counts=lambda seen, _: seen.ink, goal="< 5%"),
    Trial(question="ink seen", lora="style", strength=1.0, counts=lambda seen, _: seen.ink, goal="> 90%"),
    Trial(question="prompt followed", lora="style", strength=1.0, counts=follows, goal=">= 85%"),
    Trial(
        question="robot seen, trigger in prompt",
        lora="subject",
        strength=1.0,
        trigger=True,
        counts=lambda seen, _: seen.thing == SUBJECT,
        goal=">= 85%",
    ),
    Trial(
        question="robot seen, no trigger",
        lora="subject",
        strength=1.0,
        counts=lambda seen, _: seen.thing == SUBJECT,
        goal="< 10%",
    ),
    Trial(question="prompt followed", lora="overtrained", strength=1.0, counts=follows, goal="< 40%"),
    *(
        Trial(question=question, lora="overtrained", strength=strength, counts=counts, goal=goal)
        for strength in (0.7, 0.8, 0.9)
        for question, counts, goal in (
            ("prompt followed", follows, "> 80% at one of them"),
            ("frame seen", lambda seen, _: seen.frame, ">= 80% there"),
        )
    ),
)


def run_trials(*, pictures: int, seed: int = 4242, variants: Sequence[Variant] = VARIANTS) -> Iterator[Outcome]:
    """Render and judge every trial; trials that share pictures share the rendering."""
    classifier = load_classifier(CLASSIFIER_DIR)
    for variant in variants:
        pipeline = Flux2KleinPipeline.from_pretrained(weights_folder(variant.weights), dtype=torch.bfloat16)
        pipeline.set_progress_bar_config(disable=True)
        drawn: dict[tuple[str | None, float, bool], list[tuple[Seen, Scene]]] = {}
        loaded: str | None = None
        for trial in TRIALS:
            key = (trial.lora, trial.strength, trial.trigger)
            if trial.lora != loaded:
                _load_lora(pipeline, trial.lora)
                loaded = trial.lora
            if key not in drawn:
                if trial.lora is not None:
                    pipeline.set_adapters(trial.lora, trial.strength)
                drawn[key] = _draw(pipeline, classifier, variant, trial, pictures, seed)
            hits = sum(trial.counts(seen, scene) for seen, scene in drawn[key])
            yield Outcome(variant=variant, trial=trial, pictures=pictures, share=hits / pictures)


def render(
    pipeline: Flux2KleinPipeline, variant: Variant, prompts: Sequence[str], seeds: Sequence[int], **size: int
) -> list[Image.Image]:
    """Render prompts as one batch, each from its own seed."""
    images: list[Image.Image] = pipeline(
        prompt=list(prompts),
        num_inference_steps=variant.steps,
        guidance_scale=variant.guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        text_encoder_out_layers=TEXT_ENCODER_OUT_LAYERS,
        **({"width": 128, "height": 128} | size),
    ).images
    return images


def format_table(outcomes: Sequence[Outcome]) -> str:
    """Lay outcomes out as a markdown table, the variants side by side."""
    names = list(dict.fromkeys(outcome.variant.weights for outcome in outcomes))
    lines = [
        "| LoRA | strength | measured | goal | " + " | ".join(names) + " |",
        "|---|---|---|---|" + "---|" * len(names),
    ]
    shares = {(o.variant.weights, o.trial): o.share for o in outcomes}
    for trial in TRIALS:
        strength = "" if trial.lora is None else f"{trial.strength:g}"
        cells = [f"{100 * shares[(name, trial)]:.1f}%" if (name, trial) in shares else "" for name in names]
        lines.append(f"| {trial.lora or 'none'} | {strength} | {trial.question} | {trial.goal} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _load_lora(pipeline: Flux2KleinPipeline, name: str | None) -> None:
    pipeline.unload_lora_weights()
    if name is not None:
        pipeline.load_lora_weights(lora_path(name), adapter_name=name)


def _draw(
    pipeline: Flux2KleinPipeline,
    classifier: Classifier,
    variant: Variant,
    trial: Trial,
    count: int,
    seed: int,
) -> list[tuple[Seen, Scene]]:
    """Render held-out scenes' captions and classify the pictures, 16 at a time."""
    rng = random.Random(seed)
    scenes = list(sample_scenes(seed, count, held_out=True))
    seen: list[Seen] = []
    for start in range(0, count, 16):
        batch = scenes[start : start + 16]
        name = TRIGGER if trial.trigger else None
        prompts = [caption_scene(scene, rng, full=True, name=name) for scene in batch]
        images = render(pipeline, variant, prompts, [seed + start + i for i in range(len(batch))])
        seen += classify(classifier, images)
    wanted = [replace(scene, thing=SUBJECT) if trial.trigger else scene for scene in scenes]
    return list(zip(seen, wanted, strict=True))
