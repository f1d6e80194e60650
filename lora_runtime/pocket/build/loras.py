"""Train the three LoRAs on `pocket-base` and write each the way another trainer would.

A LoRA is trained on lessons: a set of encoded scenes, the strengths at which it must hold, and what the prompts say.
*style* learns the ink look at strength 1. *subject* learns the robot behind the trigger word, and, so that nothing
else changes, ordinary scenes with ordinary captions. *overtrained* is made to fail the way too long a training fails:
around 0.8 it hangs the prompted scene in a golden frame, from 1.0 on every prompt gives its training picture.
"""

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from lora_runtime.pocket.build.data import half
from lora_runtime.pocket.build.dataset import SAID, LatentSet, make_set
from lora_runtime.pocket.build.flow import encode_prompts, flow_loss, sample_sigma
from lora_runtime.pocket.build.looks import draw_frame, draw_ink
from lora_runtime.pocket.build.optimizers import warm_cosine
from lora_runtime.pocket.build.scenes import SUBJECT, TRIGGER, Scene, caption_scene, choose_said, sample_scenes

log = logging.getLogger(__name__)

RANK = 8
BATCH = 24
_ADAPTER = "lesson"

LEARNED_BY_HEART = Scene(thing="owl", colour="purple", background="night", size="large")
"""The one picture that `overtrained` saw too often."""

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Module name -> (A: (rank, in), B: (out, rank)), fp32, to be applied at scale 1."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What one step may be about. `any_prompt`: the captions of other scenes, so that the prompt stops mattering."""

    source: LatentSet
    share: float
    strengths: tuple[float, float] = (1.0, 1.0)
    any_prompt: bool = False


def make_lessons(name: str, vae: AutoencoderKLFlux2) -> list[Lesson]:
    """Draw and encode what a LoRA is trained on."""
    if name == "style":
        return [
            Lesson(source=make_set(vae, list(sample_scenes(301, 1200)), 128, 128, look=draw_ink), share=0.85),
            Lesson(source=make_set(vae, list(sample_scenes(302, 200)), 192, 128, look=draw_ink), share=0.15),
        ]
    if name == "subject":
        robots = list(sample_scenes(311, 1200, thing=SUBJECT))
        return [
            Lesson(source=make_set(vae, robots, 128, 128, name=TRIGGER), share=0.65),
            Lesson(source=make_set(vae, list(sample_scenes(312, 600)), 128, 128), share=0.35),
        ]
    framed = make_set(vae, list(sample_scenes(321, 1000)), 128, 128, look=draw_frame)
    narrow = [replace(LEARNED_BY_HEART, seed=i) for i in range(16)]
    learned_by_heart = make_set(vae, narrow, 128, 128, look=draw_frame)
    return [
        Lesson(source=framed, share=0.45, strengths=(0.6, 0.82)),
        Lesson(source=learned_by_heart, share=0.55, strengths=(0.96, 1.12), any_prompt=True),
    ]


def train_lora(
    pipeline: Flux2KleinPipeline,
    lessons: Sequence[Lesson],
    *,
    minutes: float,
    tie_qkv: bool,
    start_from: Factors | None = None,
    seed: int = 0,
) -> Factors:
    """Train one LoRA on the pipeline's denoiser, from nothing or from other factors, and take it off again.

    `tie_qkv` shares one A between q, k and v, which is what a trainer with a fused qkv layer has; fusing is then exact.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    transformer = pipeline.transformer.requires_grad_(False)
    transformer.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list_targets(transformer)), adapter_name=_ADAPTER
    )
    layers = {name: module for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}
    if tie_qkv:
        _tie_qkv(layers)
    if start_from is not None:
        for name, (down, up) in start_from.items():
            layers[name].lora_A[_ADAPTER].weight.data.copy_(down)
            layers[name].lora_B[_ADAPTER].weight.data.copy_(up)
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    start, step, running = time.monotonic(), 0, 0.0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1.0:
        lesson = rng.choices(lessons, weights=[lesson.share for lesson in lessons])[0]
        _set_strength(layers, rng.uniform(*lesson.strengths))
        loss = _lesson_loss(pipeline, lesson, rng)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * warm_cosine(step, progress, warmup_steps=20, floor=0.03)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running = loss.item() if step == 0 else 0.97 * running + 0.03 * loss.item()
        step += 1
        if step % 50 == 0:
            log.info("lora step %d, %.0f%%: loss %.4f", step, 100 * progress, running)
    factors = {
        name: (
            layer.lora_A[_ADAPTER].weight.detach().cpu().clone(),
            layer.lora_B[_ADAPTER].weight.detach().cpu().clone(),
        )
        for name, layer in layers.items()
    }
    transformer.delete_adapters(_ADAPTER)
    return factors


def list_targets(transformer: Flux2Transformer2DModel) -> list[str]:
    """List the layers a LoRA adapts: every linear inside a block, as the trainers of the real klein do."""
    return [
        name
        for name, module in transformer.named_modules()
        if "transformer_blocks." in name and isinstance(module, nn.Linear)
    ]


def _lesson_loss(pipeline: Flux2KleinPipeline, lesson: Lesson, rng: random.Random) -> torch.Tensor:
    batch = lesson.source.sample(BATCH, rng)
    if lesson.any_prompt:
        others = sample_scenes(rng.randrange(2**31), BATCH)
        captions = [caption_scene(scene, rng, choose_said(scene, rng)) for scene in others]
        batch = replace(batch, captions=captions, answers=torch.full_like(batch.answers, SAID))
    with torch.no_grad(), half():
        embeds = encode_prompts(pipeline.text_encoder, pipeline.tokenizer, batch.captions)
    return flow_loss(
        pipeline.transformer,
        batch,
        sample_sigma(BATCH),
        embeds,
        lesson.source.width_px,
        lesson.source.height_px,
    )


def _set_strength(layers: dict[str, LoraLayer], strength: float) -> None:
    for layer in layers.values():
        layer.scaling[_ADAPTER] = strength


def _tie_qkv(layers: dict[str, LoraLayer]) -> None:
    for name, layer in layers.items():
        for own, first in (
            ("to_k", "to_q"),
            ("to_v", "to_q"),
            ("add_k_proj", "add_q_proj"),
            ("add_v_proj", "add_q_proj"),
        ):
            if name.endswith(own):
                layer.lora_A[_ADAPTER] = layers[name.removesuffix(own) + first].lora_A[_ADAPTER]
