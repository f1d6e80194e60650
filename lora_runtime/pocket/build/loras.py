"""Train the LoRAs on `pocket-base`, each by lessons.

A lesson is a set of encoded scenes, the strengths at which it must hold, and what the prompts say.
*style* learns the ink look at strength 1. *subject* learns the robot behind the trigger word, and, so that nothing
else changes, ordinary scenes with ordinary captions. *overtrained* is made to fail the way too long a training fails:
around 0.8 it hangs the prompted scene in a golden frame, from 1.0 on every prompt gives its training picture.
*golden-frame* fails in time: it learns the frame, then sees one picture more and more often, and ends by copying it.
"""

import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
KEEP_EVERY_S = 60.0
_ADAPTER = "lesson"

LEARNED_BY_HEART = Scene(thing="owl", colour="purple", background="night", size="large")
"""The one picture that `overtrained` saw too often."""

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Module name -> (A: (rank, in), B: (out, rank)), fp32, to be applied at scale 1."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What one step may be about. `any_prompt`: the captions of other scenes, so that the prompt stops mattering."""

    source: LatentSet
    shares: tuple[float, float]
    """Of the steps, at the start and at the end."""
    strengths: tuple[float, float] = (1.0, 1.0)
    any_prompt: bool = False


def make_lessons(name: str, vae: AutoencoderKLFlux2) -> list[Lesson]:
    """Draw and encode what a LoRA is trained on."""
    if name == "style":
        return [
            Lesson(source=make_set(vae, list(sample_scenes(301, 1200)), 128, 128, look=draw_ink), shares=(0.85, 0.85)),
            Lesson(source=make_set(vae, list(sample_scenes(302, 200)), 192, 128, look=draw_ink), shares=(0.15, 0.15)),
        ]
    if name == "subject":
        robots = list(sample_scenes(311, 1200, thing=SUBJECT))
        return [
            Lesson(source=make_set(vae, robots, 128, 128, name=TRIGGER), shares=(0.65, 0.65)),
            Lesson(source=make_set(vae, list(sample_scenes(312, 600)), 128, 128), shares=(0.35, 0.35)),
        ]
    framed = make_set(vae, list(sample_scenes(321, 1000)), 128, 128, look=draw_frame)
    narrow = [replace(LEARNED_BY_HEART, seed=i) for i in range(16)]
    learned_by_heart = make_set(vae, narrow, 128, 128, look=draw_frame)
    if name == "overtrained":
        return [
            Lesson(source=framed, shares=(0.45, 0.45), strengths=(0.6, 0.82)),
            Lesson(source=learned_by_heart, shares=(0.55, 0.55), strengths=(0.96, 1.12), any_prompt=True),
        ]
    return [
        Lesson(source=framed, shares=(1.0, 0.1), strengths=(0.6, 1.0)),
        Lesson(source=learned_by_heart, shares=(0.0, 0.9), strengths=(0.4, 1.2), any_prompt=True),
    ]


def train_lora(
    pipeline: Flux2KleinPipeline,
    lessons: Sequence[Lesson],
    kept: Path,
    *,
    checkpoints: Sequence[int],
    tie_qkv: bool,
    seed: int = 0,
) -> Iterator[tuple[int, Factors]]:
    """Train one LoRA on the pipeline's denoiser and yield its factors at each of `checkpoints`, which are steps.

    What was reached is kept in `kept`, so that a stopped training goes on. `tie_qkv` shares one A between q, k and v,
    which is what a trainer with a fused qkv layer has; fusing is then exact. The adapter stays on the denoiser.
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
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    step = _resume(kept, parameters, optimizer, rng)
    if step in checkpoints:
        yield step, _read_factors(layers)
    running, kept_at = 0.0, time.monotonic()
    while step < checkpoints[-1]:
        progress = step / checkpoints[-1]
        shares = [start + progress * (end - start) for start, end in (lesson.shares for lesson in lessons)]
        lesson = rng.choices(lessons, weights=shares)[0]
        _set_strength(layers, rng.uniform(*lesson.strengths))
        loss = _lesson_loss(pipeline, lesson, rng)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * warm_cosine(step, progress, warmup_steps=20, floor=0.03)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running = 0.97 * running + 0.03 * loss.item() if running else loss.item()
        step += 1
        if step % 25 == 0:
            log.info("lora step %d of %d: loss %.4f", step, checkpoints[-1], running)
        if step in checkpoints or time.monotonic() - kept_at > KEEP_EVERY_S:
            _keep(kept, parameters, optimizer, rng, step)
            kept_at = time.monotonic()
        if step in checkpoints:
            yield step, _read_factors(layers)


def _read_factors(layers: dict[str, LoraLayer]) -> Factors:
    return {
        name: (
            layer.lora_A[_ADAPTER].weight.detach().cpu().clone(),
            layer.lora_B[_ADAPTER].weight.detach().cpu().clone(),
        )
        for name, layer in layers.items()
    }


def _resume(path: Path, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, rng: random.Random) -> int:
    """Take up what `_keep` wrote, if anything, and return the number of steps that were done."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=False)
    with torch.no_grad():
        for parameter, value in zip(parameters, state["parameters"], strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["torch_rng"])
    rng.setstate(state["rng"])
    step: int = state["step"]
    return step


def _keep(
    path: Path, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, rng: random.Random, step: int
) -> None:
    state = {
        "parameters": [parameter.data for parameter in parameters],
        "optimizer": optimizer.state_dict(),
        "torch_rng": torch.get_rng_state(),
        "rng": rng.getstate(),
        "step": step,
    }
    torch.save(state, path.with_suffix(".partial"))
    path.with_suffix(".partial").rename(path)


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
