"""Train the judge: a tiny real CLIP that scores how well a picture fits a caption.

It has the classes of the real one (`CLIPModel`, `CLIPProcessor`), so CLIP metrics run offline through the same code
as with a full CLIP. It learns from scenes in every look, with full and partial captions; a fraction of the texts in a
batch are turned into near misses (one attribute wrong), which a batch of random scenes rarely holds.
"""

import logging
import math
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lora_runtime.pocket.build.architecture import forget_padding
from lora_runtime.pocket.build.data import render_pictures
from lora_runtime.pocket.build.looks import draw_frame, draw_ink
from lora_runtime.pocket.build.scenes import (
    BACKGROUNDS,
    COLOUR_NAMES,
    OBJECTS,
    SUBJECT,
    TRIGGER,
    Scene,
    caption_scene,
    list_words,
    sample_scenes,
)

log = logging.getLogger(__name__)

SIDE_PX = 64
TEXT_TOKENS = 32
BATCH = 96
LOOK_WORDS = ("ink", "comic", "framed", "golden", "frame", "print", "robot")


def build_judge() -> tuple[CLIPModel, CLIPProcessor]:
    """Build an untrained judge: four layers of width 128 for pictures, three of width 128 for words."""
    tokenizer = build_tokenizer()
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": TEXT_TOKENS,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": SIDE_PX,
            "patch_size": 8,
        },
        projection_dim=96,
    )
    size = {"height": SIDE_PX, "width": SIDE_PX}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
    return CLIPModel(config), CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def build_tokenizer() -> CLIPTokenizer:
    """Build CLIP's byte-pair tokenizer with merges that make each known word one token."""
    words = [*list_words(), TRIGGER, *LOOK_WORDS]
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "<unk>": 2}
    merges: dict[tuple[str, str], None] = {}
    for letter in sorted({letter for word in words for letter in word}):
        vocabulary[letter] = len(vocabulary)
        vocabulary[f"{letter}</w>"] = len(vocabulary)
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges[(parts[0], parts[1])] = None
            parts = [parts[0] + parts[1], *parts[2:]]
            vocabulary.setdefault(parts[0], len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), unk_token="<unk>", model_max_length=TEXT_TOKENS)


def train_judge(folder: Path, *, minutes: float, seed: int = 9) -> None:
    """Train the judge and save it as a transformers folder."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model, processor = build_judge()
    scenes, looks, pixels = _make_examples(processor, seed)
    held_out = len(scenes) - 300
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.2e-3, betas=(0.9, 0.98), weight_decay=0.1)
    start, step = time.monotonic(), 0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1.0:
        rows = rng.sample(range(held_out), BATCH)
        captions = [_say(scenes[row], looks[row], rng) for row in rows]
        misses = [_say(_change_one(scenes[row], rng), looks[row], rng) for row in rows]
        with torch.autocast("cpu", torch.bfloat16):
            loss = _contrast(model, processor, pixels[rows], captions, misses)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1.2e-3 * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * progress))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 100 == 0:
            log.info("judge step %d, %.0f%%: loss %.3f", step, 100 * progress, loss.item())
    model.eval().to(torch.bfloat16).save_pretrained(folder)
    forget_padding(processor.tokenizer)
    processor.save_pretrained(folder)
    wins = _rank(model.float(), processor, scenes[held_out:], pixels[held_out:])
    log.info("judge done after %d steps: a true caption beats a near miss in %.1f%%", step, 100 * wins)


def _contrast(
    model: CLIPModel, processor: CLIPProcessor, pixels: torch.Tensor, captions: list[str], misses: list[str]
) -> torch.Tensor:
    """Compute CLIP's loss, with the near misses as extra wrong texts for every picture."""
    text = processor.tokenizer([*captions, *misses], padding=True, truncation=True, return_tensors="pt")
    output = model(input_ids=text["input_ids"], attention_mask=text["attention_mask"], pixel_values=pixels)
    logits = output.logits_per_image.float()
    truth = torch.arange(len(captions))
    same = torch.tensor([[a == b for b in [*captions, *misses]] for a in captions])
    same[truth, truth] = False
    logits = logits.masked_fill(same, -1e4)
    return (functional.cross_entropy(logits, truth) + functional.cross_entropy(logits[:, : len(captions)].T, truth)) / 2


def _say(scene: Scene, look: str, rng: random.Random) -> str:
    """Caption a scene, sometimes with its look in words."""
    name = rng.choice((TRIGGER, SUBJECT)) if scene.thing == SUBJECT else None
    caption = caption_scene(scene, rng, full=rng.random() < 0.4, name=name)
    if rng.random() < 0.5:
        return caption
    return {"plain": caption, "ink": f"{caption} in ink print", "frame": f"{caption} in a golden frame"}[look]


def _change_one(scene: Scene, rng: random.Random) -> Scene:
    """Make one of object, colour and background wrong."""
    part = rng.choice(("thing", "colour", "background"))
    answers = {"thing": OBJECTS, "colour": COLOUR_NAMES, "background": BACKGROUNDS}[part]
    wrong: dict[str, Any] = {part: rng.choice([answer for answer in answers if answer != getattr(scene, part)])}
    return replace(scene, **wrong)


def _make_examples(processor: CLIPProcessor, seed: int) -> tuple[list[Scene], list[str], torch.Tensor]:
    """Draw scenes in every look, mixed. pixels: (N, 3, SIDE_PX, SIDE_PX), as the processor prepares them."""
    scenes, looks, pixels = [], [], []
    for number, (look, draw, count) in enumerate(
        (("plain", None, 5000), ("ink", draw_ink, 1000), ("frame", draw_frame, 800))
    ):
        drawn = [
            *sample_scenes(seed * 100 + number, count * 9 // 10),
            *sample_scenes(seed * 100 + 50 + number, count // 10, thing=SUBJECT),
        ]
        pictures = render_pictures(drawn, 96, 96, look=draw)
        scenes += drawn
        looks += [look] * len(drawn)
        pixels.append(processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"])
    order = torch.randperm(len(scenes)).tolist()
    return [scenes[i] for i in order], [looks[i] for i in order], torch.cat(pixels)[order]


@torch.no_grad()
def _rank(model: CLIPModel, processor: CLIPProcessor, scenes: list[Scene], pixels: torch.Tensor) -> float:
    """Measure how often a true caption scores above one with one attribute wrong."""
    rng = random.Random(1)
    wins = 0
    for scene, picture in zip(scenes, pixels, strict=True):
        wrong = _change_one(scene, rng)
        texts = [
            caption_scene(s, random.Random(3), full=True, name=SUBJECT if s.thing == SUBJECT else None)
            for s in (scene, wrong)
        ]
        text = processor.tokenizer(texts, padding=True, return_tensors="pt")
        scores = model(**text, pixel_values=picture[None]).logits_per_image[0]
        wins += int(scores[0] > scores[1])
    return wins / len(scenes)
