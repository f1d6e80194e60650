"""The scenes the denoiser learns from: rendered once for each size, encoded once, captioned anew at every step.

A `Bucket` is one picture size. Most scenes are square and 128 px; the others teach the model that the canvas may be
any multiple of 16 from 64 to 256. Files live in the work folder and are reused when they are there.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2

from lora_runtime.pocket.build.data import Look, render_pictures
from lora_runtime.pocket.build.scenes import (
    BACKGROUNDS,
    COLOUR_NAMES,
    Scene,
    caption_scene,
    choose_said,
    locate_object,
    sample_scenes,
)
from lora_runtime.pocket.build.vae import encode_latents

log = logging.getLogger(__name__)

TOKEN_PX = 16

EMPTY_SHARE = 0.1
"""Of the prompts, which guidance needs."""

OBJECT_WEIGHT = 3.0
"""How much more a token counts that shows the object: shapes are what a small denoiser learns last."""


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """One picture size, how many scenes it has, and its share of the training steps early and late."""

    width_px: int
    height_px: int
    scenes: int
    early_share: float
    late_share: float

    @property
    def name(self) -> str:
        """Width x height, as in file names."""
        return f"{self.width_px}x{self.height_px}"

    @property
    def tokens(self) -> int:
        """Image tokens of one picture."""
        return self.width_px * self.height_px // TOKEN_PX**2


BUCKETS = (
    Bucket(width_px=128, height_px=128, scenes=6_000, early_share=0.80, late_share=0.72),
    Bucket(width_px=64, height_px=64, scenes=1_500, early_share=0.06, late_share=0.04),
    Bucket(width_px=96, height_px=96, scenes=1_500, early_share=0.14, late_share=0.05),
    Bucket(width_px=192, height_px=128, scenes=700, early_share=0.0, late_share=0.04),
    Bucket(width_px=128, height_px=192, scenes=700, early_share=0.0, late_share=0.04),
    Bucket(width_px=96, height_px=160, scenes=600, early_share=0.0, late_share=0.03),
    Bucket(width_px=256, height_px=128, scenes=400, early_share=0.0, late_share=0.02),
    Bucket(width_px=192, height_px=192, scenes=450, early_share=0.0, late_share=0.03),
    Bucket(width_px=256, height_px=256, scenes=300, early_share=0.0, late_share=0.03),
)


OPEN_PARTS: dict[str, tuple[str, ...]] = {"colour": COLOUR_NAMES, "background": BACKGROUNDS}
"""What a caption may leave open. Then the noise decides (`flow.draw_noise`): each answer has a channel of its own."""

SAID = -1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step learns from.

    latents: (B, tokens, channels); weights: (B, tokens), what each token counts; answers: (B, parts), for each of
    `OPEN_PARTS` the scene's answer, or `SAID` where the caption leaves nothing open.
    """

    latents: torch.Tensor
    captions: list[str]
    weights: torch.Tensor
    answers: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class LatentSet:
    """Encoded scenes of one size. latents: (N, tokens, channels) bf16, normalised and packed."""

    width_px: int
    height_px: int
    scenes: Sequence[Scene]
    latents: torch.Tensor
    name: str | None = None
    """What captions call the object instead of its own word (a LoRA's trigger)."""

    def sample(self, count: int, rng: random.Random) -> Batch:
        """Draw scenes with a fresh caption each."""
        rows = [rng.randrange(len(self.scenes)) for _ in range(count)]
        scenes = [self.scenes[row] for row in rows]
        said = [choose_said(scene, rng) if rng.random() > EMPTY_SHARE else None for scene in scenes]
        return Batch(
            latents=self.latents[rows].to(torch.get_default_device()).float(),
            captions=[
                "" if parts is None else caption_scene(scene, rng, parts, name=self.name)
                for scene, parts in zip(scenes, said, strict=True)
            ],
            weights=torch.stack([weigh_tokens(scene, self.width_px, self.height_px) for scene in scenes]),
            answers=torch.tensor(
                [_list_answers(scene, parts or frozenset()) for scene, parts in zip(scenes, said, strict=True)]
            ),
        )


def _list_answers(scene: Scene, said: frozenset[str]) -> list[int]:
    return [SAID if part in said else answers.index(getattr(scene, part)) for part, answers in OPEN_PARTS.items()]


def weigh_tokens(scene: Scene, width_px: int, height_px: int) -> torch.Tensor:
    """Weigh the tokens of a picture, (tokens,): `OBJECT_WEIGHT` where the object's square lies, 1 elsewhere."""
    x, y, side = locate_object(scene, width_px, height_px)
    weights = torch.ones(height_px // TOKEN_PX, width_px // TOKEN_PX)
    first_row, first_column = max(0, y) // TOKEN_PX, max(0, x) // TOKEN_PX
    weights[first_row : -(-(y + side) // TOKEN_PX), first_column : -(-(x + side) // TOKEN_PX)] = OBJECT_WEIGHT
    return weights.flatten()


def list_scenes(bucket: Bucket) -> list[Scene]:
    """List a bucket's scenes; the seed is its size, so no two buckets share them."""
    return list(sample_scenes(bucket.width_px * 1000 + bucket.height_px, bucket.scenes))


def render_buckets(folder: Path, *, workers: int = 2) -> None:
    """Draw every bucket into `folder`, skipping those already there."""
    folder.mkdir(parents=True, exist_ok=True)
    for bucket in BUCKETS:
        path = folder / f"{bucket.name}.npy"
        if not path.exists():
            pictures = render_pictures(list_scenes(bucket), bucket.width_px, bucket.height_px, workers=workers)
            partial = path.with_suffix(".partial.npy")
            np.save(partial, pictures)
            partial.rename(path)
            log.info("drew %d scenes of %s", bucket.scenes, bucket.name)


def load_buckets(folder: Path, vae: AutoencoderKLFlux2) -> list[LatentSet]:
    """Encode every drawn bucket once; later calls read the latents back."""
    sets = []
    for bucket in BUCKETS:
        path = folder / f"{bucket.name}.latents.pt"
        if not path.exists():
            torch.save(encode_latents(vae, torch.as_tensor(np.load(folder / f"{bucket.name}.npy"))), path)
            log.info("encoded %s", bucket.name)
        sets.append(
            LatentSet(
                width_px=bucket.width_px,
                height_px=bucket.height_px,
                scenes=list_scenes(bucket),
                latents=torch.load(path),
            )
        )
    return sets


def make_set(
    vae: AutoencoderKLFlux2,
    scenes: Sequence[Scene],
    width_px: int,
    height_px: int,
    *,
    look: Look | None = None,
    name: str | None = None,
) -> LatentSet:
    """Draw and encode scenes at once, for the small sets a LoRA needs."""
    pictures = torch.as_tensor(render_pictures(scenes, width_px, height_px, look=look))
    return LatentSet(
        width_px=width_px,
        height_px=height_px,
        scenes=scenes,
        latents=encode_latents(vae, pictures),
        name=name,
    )
