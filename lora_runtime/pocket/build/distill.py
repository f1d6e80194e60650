"""Distil `pocket` from `pocket-base`: four steps, no guidance, the same pictures.

The teacher, guided, walks from noise to picture along the four-step schedule, with several small steps inside each
big one. The student learns each big step at once: its velocity target is (end - start) / (sigma_end - sigma_start).
It starts as a copy of the teacher and stays close, so LoRAs trained on the teacher still work on it. Walks are kept
in a pool and learnt from several times, because walking costs more than learning.
"""

import logging
import random
import time
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel

from lora_runtime.pocket.build.data import half
from lora_runtime.pocket.build.dataset import BUCKETS
from lora_runtime.pocket.build.flow import encode_prompts, is_matrix, list_sigmas, predict_velocity
from lora_runtime.pocket.build.optimizers import MuonAdamW, warm_cosine
from lora_runtime.pocket.build.scenes import caption_scene, choose_said, sample_scenes

log = logging.getLogger(__name__)

STEPS = 4
GUIDANCE = 5.0
SUBSTEPS = (1, 1, 2, 4)
"""The teacher's small steps inside each of the student's; the last covers the most."""

STEP_SHARES = (1, 1, 1, 2)
"""How often each step is learnt: the last draws every detail at once."""

LESSONS_PER_WALK = 6
POOL_WALKS = 60
TOKENS_PER_WALK = 48 * (64 + 24)


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A batch of guided trajectories. points: STEPS + 1 latents, each (B, L, C) bf16; embeds: (B, T, D) bf16."""

    width_px: int
    height_px: int
    sigmas: list[float]
    points: list[torch.Tensor]
    embeds: torch.Tensor


def distill(pipeline: Flux2KleinPipeline, student: Flux2Transformer2DModel, path: Path, *, minutes: float) -> None:
    """Train `student`, a copy of the pipeline's denoiser, in place; keep it in `path` every other minute."""
    torch.manual_seed(1)
    rng = random.Random(1)
    student.train()
    named = list(student.named_parameters())
    optimizer = MuonAdamW(
        [p for name, p in named if is_matrix(name, p)],
        [p for name, p in named if not is_matrix(name, p)],
        muon_lr=0.004,
        adam_lr=3e-4,
    )
    average = {name: value.clone() for name, value in student.state_dict().items()}
    pool: deque[Walk] = deque(maxlen=POOL_WALKS)
    start, kept, step, running = time.monotonic(), time.monotonic(), 0, 0.0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1.0:
        if progress < 0.85:
            pool.append(_walk(pipeline, rng))
        for _ in range(LESSONS_PER_WALK):
            loss = _learn(student, rng.choice(pool), rng)
            loss.backward()
            optimizer.step(warm_cosine(step, progress, warmup_steps=20, floor=0.02))
            torch._foreach_lerp_(list(average.values()), list(student.state_dict().values()), 0.02)
            running = loss.item() if step == 0 else 0.97 * running + 0.03 * loss.item()
            step += 1
        if step % 25 == 0:
            log.info("distill step %d, %.0f%%: loss %.4f", step, 100 * progress, running)
        if time.monotonic() - kept > 120:
            torch.save(average, path)
            kept = time.monotonic()
    student.load_state_dict(average)
    student.eval()
    torch.save(average, path)
    log.info("distill done after %d steps: loss %.4f", step, running)


@torch.no_grad()
def _walk(pipeline: Flux2KleinPipeline, rng: random.Random) -> Walk:
    """Let the guided teacher draw a batch, and note where it is at the student's noise levels."""
    bucket = rng.choices(BUCKETS, weights=[b.late_share for b in BUCKETS])[0]
    count = max(4, TOKENS_PER_WALK // (bucket.tokens + 24))
    scenes = sample_scenes(rng.randrange(2**31), count)
    prompts = [caption_scene(scene, rng, choose_said(scene, rng)) for scene in scenes]
    with half():
        embeds = encode_prompts(pipeline.text_encoder, pipeline.tokenizer, [*prompts, *[""] * count])
    sigmas = list_sigmas(pipeline.scheduler, STEPS, bucket.tokens)
    latents = torch.randn(count, bucket.tokens, pipeline.transformer.config.in_channels)
    points = [latents.to(torch.bfloat16)]
    for segment, small in enumerate(SUBSTEPS):
        levels = torch.linspace(sigmas[segment], sigmas[segment + 1], small + 1).tolist()
        for now, then in pairwise(levels):
            sigma = torch.full((2 * count,), now)
            with half():
                both = predict_velocity(
                    pipeline.transformer,
                    torch.cat([latents, latents]),
                    sigma,
                    embeds,
                    bucket.width_px,
                    bucket.height_px,
                ).float()
            prompted, empty = both.chunk(2)
            latents = latents + (then - now) * (empty + GUIDANCE * (prompted - empty))
        points.append(latents.to(torch.bfloat16))
    return Walk(
        width_px=bucket.width_px,
        height_px=bucket.height_px,
        sigmas=sigmas,
        points=points,
        embeds=embeds[:count].to(torch.bfloat16),
    )


def _learn(student: Flux2Transformer2DModel, walk: Walk, rng: random.Random) -> torch.Tensor:
    """Compute the loss of each picture of a walk at a step of its own."""
    count = walk.embeds.shape[0]
    at = torch.tensor(rng.choices(range(STEPS), weights=STEP_SHARES, k=count))
    points, sigmas = torch.stack(walk.points).float(), torch.tensor(walk.sigmas)
    rows = torch.arange(count)
    begin, end = points[at, rows], points[at + 1, rows]
    target = (end - begin) / (sigmas[at + 1] - sigmas[at])[:, None, None]
    with half():
        velocity = predict_velocity(student, begin, sigmas[at], walk.embeds.float(), walk.width_px, walk.height_px)
    return (velocity.float() - target).square().mean()
