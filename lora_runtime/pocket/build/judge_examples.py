"""What the judge learns from: drawings in every look, whole and broken, and what the models draw with the LoRAs.

Nobody looks at the rendered ones: what they show follows from how they were made. With a LoRA at a strength that it
holds, a picture shows its prompt; `overtrained` beyond 1 shows its training picture whatever the prompt says; far
beyond any sensible strength there is no object left. The strengths between, where it depends, are left out.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lora_runtime.pocket.build.data import Look, render_pictures
from lora_runtime.pocket.build.looks import draw_frame, draw_ink
from lora_runtime.pocket.build.loras import LEARNED_BY_HEART
from lora_runtime.pocket.build.rendering import VARIANTS, load_variant, render, use_lora
from lora_runtime.pocket.build.scenes import SUBJECT, TRIGGER, Scene, caption_scene, choose_said, sample_scenes

log = logging.getLogger(__name__)

SIDE_PX = 128
RENDER_BATCH = 24


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture, (SIDE_PX, SIDE_PX, 3) uint8, and what is known of it.

    said: of "colour", "background", "size" and "position", those that are as the scene has them. has_object: whether
    its object is there, whole.
    """

    picture: np.ndarray
    scene: Scene
    said: frozenset[str]
    has_object: bool


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pictures to render: from one of the weights, with a LoRA between two strengths; what they then show."""

    lora: str | None = None
    strengths: tuple[float, float] = (0.0, 0.0)
    trigger: bool = False
    shows: Scene | None = None
    has_object: bool = True
    share: float


SOURCES = (
    Source(share=0.22),
    Source(lora="style", strengths=(0.2, 1.2), share=0.18),
    Source(lora="style", strengths=(2.8, 4.0), has_object=False, share=0.10),
    Source(lora="subject", strengths=(0.0, 1.1), share=0.08),
    Source(lora="subject", strengths=(0.9, 1.3), trigger=True, has_object=False, share=0.10),
    Source(lora="overtrained", strengths=(0.2, 0.75), share=0.14),
    Source(lora="overtrained", strengths=(1.05, 1.5), shows=LEARNED_BY_HEART, share=0.12),
    Source(lora="overtrained", strengths=(2.8, 4.0), has_object=False, share=0.06),
)


def draw_examples(count: int, seed: int) -> list[Example]:
    """Draw plain, inked and framed scenes, a third of them broken, a tenth of the subject, which has no word."""
    examples = []
    for broken, portion in ((False, 0.67), (True, 0.33)):
        for number, (look, share) in enumerate(((None, 0.64), (draw_ink, 0.2), (draw_frame, 0.16))):
            total = round(count * portion * share)
            base = seed * 1000 + broken * 100 + number
            known = list(sample_scenes(base, total * 9 // 10))
            subject = list(sample_scenes(base + 50, total // 10, thing=SUBJECT))
            examples += _draw(known, look, broken=broken, has_object=not broken)
            examples += _draw(subject, look, broken=broken, has_object=False)
    return examples


def render_examples(count: int, seed: int) -> list[Example]:
    """Render what `SOURCES` lists, nine in ten with `pocket`, the rest with `pocket-base` in half its steps."""
    examples: list[Example] = []
    for variant, portion, steps in zip(VARIANTS, (0.9, 0.1), (4, 14), strict=True):
        pipeline = load_variant(variant)
        for number, source in enumerate(SOURCES):
            use_lora(pipeline, source.lora)
            scenes = list(sample_scenes(seed + number, max(4, round(count * portion * source.share))))
            rng = random.Random(seed + number)
            for start in range(0, len(scenes), RENDER_BATCH):
                if source.lora is not None:
                    pipeline.set_adapters(source.lora, rng.uniform(*source.strengths))
                batch = scenes[start : start + RENDER_BATCH]
                said = [choose_said(scene, rng) for scene in batch]
                name = TRIGGER if source.trigger else None
                prompts = [
                    caption_scene(scene, rng, parts, name=name) for scene, parts in zip(batch, said, strict=True)
                ]
                seeds = [rng.randrange(2**31) for _ in batch]
                images = render(pipeline, replace(variant, steps=steps), prompts, seeds)
                for scene, parts, image in zip(batch, said, images, strict=True):
                    examples.append(
                        Example(
                            picture=np.asarray(image),
                            scene=source.shows or scene,
                            said=_ALL if source.shows else parts,
                            has_object=source.has_object,
                        )
                    )
        log.info("rendered with %s", variant.weights)
    return examples


def keep_examples(examples: Sequence[Example], path: Path) -> None:
    """Keep examples in a file of our own making."""
    torch.save(list(examples), path)


def load_examples(path: Path) -> list[Example]:
    """Load what `keep_examples` kept."""
    examples: list[Example] = torch.load(path, weights_only=False)
    return examples


_ALL = frozenset({"size", "colour", "background", "position"})


def _draw(scenes: Sequence[Scene], look: Look | None, *, broken: bool, has_object: bool) -> list[Example]:
    pictures = render_pictures(scenes, SIDE_PX, SIDE_PX, look=look, broken=broken)
    return [
        Example(
            picture=picture,
            scene=scene,
            said=_ALL,
            has_object=has_object,
        )
        for scene, picture in zip(scenes, pictures, strict=True)
    ]
