"""Turn scenes into arrays on every core: pictures as (N, H, W, 3) uint8, captions as strings.

Rendering is seeded scene by scene, so the number of workers never changes the data.
"""

import multiprocessing
import random
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image

from lora_runtime.pocket.build.broken import draw_broken
from lora_runtime.pocket.build.scenes import Scene, render_scene

Look = Callable[[Image.Image, random.Random], Image.Image]


def render_pictures(
    scenes: Sequence[Scene],
    width_px: int,
    height_px: int,
    *,
    look: Look | None = None,
    broken: bool = False,
    workers: int = 2,
) -> np.ndarray:
    """Draw every scene, its object spoilt if `broken`, with a look over it if given."""
    draw = partial(_draw_array, width_px=width_px, height_px=height_px, look=look, broken=broken)
    if workers == 1:
        return np.stack([draw(scene) for scene in scenes])
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        return np.stack(pool.map(draw, scenes, chunksize=64))


def to_unit_range(pictures: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Turn (N, H, W, 3) uint8 into (N, 3, H, W) float32 in [-1, 1], the range of the VAE."""
    return torch.as_tensor(pictures, device=torch.get_default_device()).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def half() -> torch.autocast:
    """Compute in bf16 where that is enough, on the default device, which is where everything is trained."""
    return torch.autocast(torch.get_default_device().type, torch.bfloat16)


def _draw_array(scene: Scene, width_px: int, height_px: int, look: Look | None, broken: bool) -> np.ndarray:
    if broken:
        picture = draw_broken(scene, width_px, height_px, random.Random(scene.seed))
    else:
        picture = render_scene(scene, width_px, height_px)
    if look is not None:
        picture = look(picture, random.Random(scene.seed))
    return np.asarray(picture)
