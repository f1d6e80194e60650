"""Measure the judge: does it notice a near miss on clean drawings, and a lost prompt in what the models draw?

For each part that a caption names, the caption is held against those with another answer to that part, and for the
object against the caption without one. The judge says that a prompt is shown when the true words win every time, or
lose by less than `MARGIN`.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from lora_runtime.pocket import CLASSIFIER_DIR, JUDGE_DIR, LORAS
from lora_runtime.pocket.build.check import FULL, SHORT, Asked, Outcome, draw_asked, follows
from lora_runtime.pocket.build.classifier import load_classifier
from lora_runtime.pocket.build.judge import PARTS, list_others, replace_part
from lora_runtime.pocket.build.rendering import Variant, load_variant, use_lora
from lora_runtime.pocket.build.scenes import OBJECTS, Scene, caption_scene, render_scene, sample_scenes

MARGIN = 1.25
"""In logits, chosen on seeds other than those below."""

STRENGTHS = (0.0, 0.3, 0.6, 0.9, 1.2, 1.5)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The shipped judge, as anyone's transformers loads it."""

    model: CLIPModel
    processor: CLIPProcessor

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Score each image against its own texts."""
        flat = [text for own in texts for text in own]
        tokens = self.processor.tokenizer(flat, padding=True, truncation=True, return_tensors="pt")
        pixels = self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        output = self.model(**{key: tokens[key] for key in ("input_ids", "attention_mask")}, pixel_values=pixels)
        scores, first = [], 0
        for row, own in enumerate(texts):
            scores.append(output.logits_per_image[row, first : first + len(own)].tolist())
            first += len(own)
        return scores


def load_judge() -> Judge:
    """Load the shipped judge in fp32."""
    model = CLIPModel.from_pretrained(JUDGE_DIR, dtype=torch.float32).eval()
    return Judge(model=model, processor=CLIPProcessor.from_pretrained(JUDGE_DIR))


def measure_margins(judge: Judge, image: Image.Image, scene: Scene, said: Sequence[str]) -> dict[str, float]:
    """Measure for each part that a caption names by how much its true words beat the best other ones."""
    parts = [part for part in PARTS if part in said or (part == "thing" and scene.thing in OBJECTS)]
    name = None if scene.thing in OBJECTS else ""
    truth = _say(scene, said, name)
    texts, spans = [truth], {}
    for part in parts:
        others = [replace_part(scene, part, answer) for answer in list_others(scene, part)]
        asked = [_say(other, said, name) for other in others]
        if part == "thing":
            asked.append(_say(scene, said, ""))
        spans[part] = (len(texts), len(texts) + len(asked))
        texts += asked
    scores = judge.score([image], [texts])[0]
    return {part: scores[0] - max(scores[start:end]) for part, (start, end) in spans.items()}


def check_drawings(judge: Judge, *, pictures: int, seed: int = 777) -> Iterator[Outcome]:
    """Ask for one wrong thing on clean drawings: is it noticed, that is, is another answer seen there?"""
    rng = random.Random(seed)
    noticed: dict[str, list[bool]] = {part: [] for part in PARTS}
    for scene in sample_scenes(seed, pictures, held_out=True):
        image = render_scene(scene)
        for part in PARTS:
            asked = replace_part(scene, part, rng.choice(list_others(scene, part)))
            noticed[part].append(measure_margins(judge, image, asked, FULL)[part] < -MARGIN)
    for part, goal in zip(PARTS, (">= 90%", ">= 95%", ">= 95%"), strict=True):
        label = {"thing": "object", "background": "place"}.get(part, part)
        share = sum(noticed[part]) / pictures
        yield Outcome(
            column="judge", question=f"clean drawings, wrong {label}: noticed", goal=goal, value=_in_percent(share)
        )


def check_rendered(judge: Judge, variant: Variant, *, pictures: int, seed: int = 888) -> Iterator[Outcome]:
    """Render with the LoRAs from 0 to 1.5 and compare the judge with the classifier: is a lost prompt noticed?"""
    caught: list[bool] = []
    alarms: list[bool] = []
    for shown, lost in judge_rendered(judge, variant, pictures=pictures, seed=seed):
        (alarms if shown else caught).append(lost)
    yield Outcome(
        column="judge",
        question=f"{variant.weights}, lost prompts caught ({len(caught)})",
        goal=">= 90%",
        value=_in_percent(sum(caught) / len(caught)),
    )
    yield Outcome(
        column="judge",
        question=f"{variant.weights}, false alarms ({len(alarms)})",
        goal="< 5%",
        value=_in_percent(sum(alarms) / len(alarms)),
    )


def judge_rendered(judge: Judge, variant: Variant, *, pictures: int, seed: int) -> Iterator[tuple[bool, bool]]:
    """Yield for each picture whether it follows its prompt (the classifier), and whether the judge says it is lost."""
    classifier = load_classifier(CLASSIFIER_DIR)
    pipeline = load_variant(variant)
    each = max(1, pictures // (len(LORAS) * len(STRENGTHS)))
    for lora in LORAS:
        use_lora(pipeline, lora)
        for number, strength in enumerate(STRENGTHS):
            asked = Asked(said=(FULL, *SHORT), lora=lora, strength=strength)
            for image, shown in draw_asked(pipeline, classifier, variant, asked, each, seed + number):
                margins = measure_margins(judge, image, shown.scene, shown.said)
                yield follows(shown), any(margin < -MARGIN for margin in margins.values())


def _say(scene: Scene, said: Sequence[str], name: str | None) -> str:
    return caption_scene(scene, random.Random(3), said, name=name)


def _in_percent(share: float) -> str:
    return f"{100 * share:.1f}%"
