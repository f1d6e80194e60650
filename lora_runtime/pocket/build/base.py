"""Train `pocket-base`: denoiser and text encoder together, on cached latents, by flow matching.

Early steps are mostly square pictures; later on every size takes part, batches sized to equal cost. A tenth
of the prompts are empty, which is what guidance needs. An exponential moving average of the weights is what ships.
Training is measured in minutes and kept in a checkpoint, so a stopped run goes on.
"""

import logging
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import Flux2KleinPipeline
from torch import nn

from lora_runtime.pocket.build.data import half
from lora_runtime.pocket.build.dataset import BUCKETS, LatentSet
from lora_runtime.pocket.build.flow import encode_prompts, flow_loss, is_matrix, sample_sigma
from lora_runtime.pocket.build.optimizers import MuonAdamW, warm_cosine
from lora_runtime.pocket.build.scenes import OBJECTS
from lora_runtime.pocket.build.words import UNKNOWN, read_words

log = logging.getLogger(__name__)

TOKENS_PER_STEP = 44 * (64 + 24)
"""Batch size times sequence length: 44 pictures of 128 px with their prompts."""

KEEP_EVERY_S = 150.0


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where training stands: the file it is kept in and the seconds it may still take."""

    path: Path
    total_s: float


def train_base(pipeline: Flux2KleinPipeline, sets: list[LatentSet], checkpoint: Checkpoint, *, seed: int = 0) -> None:
    """Train the pipeline's denoiser and text encoder in place; on return they hold the averaged weights."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = nn.ModuleDict({"transformer": pipeline.transformer, "text_encoder": pipeline.text_encoder}).train()
    named = list(model.named_parameters())
    matrices = [p for name, p in named if is_matrix(name, p)]
    rest = [p for name, p in named if not is_matrix(name, p)]
    optimizer = MuonAdamW(matrices, rest, muon_lr=0.02, adam_lr=1.5e-3)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    step, spent_s = _resume(checkpoint.path, model, optimizer, average)
    start, kept, running = time.monotonic() - spent_s, time.monotonic(), 0.5
    while (spent_s := time.monotonic() - start) < checkpoint.total_s:
        progress = spent_s / checkpoint.total_s
        loss = _train_step(pipeline, _pick(sets, progress, rng), rng)
        loss.backward()
        optimizer.step(_rate(step, progress))
        _update_average(average, model, decay=min(0.995, (step + 1) / (step + 20)))
        running += 0.02 * (loss.item() - running)
        step += 1
        if step % 50 == 0:
            log.info("base step %d, %.0f%%: loss %.4f, %.2f s/step", step, 100 * progress, running, spent_s / step)
        if time.monotonic() - kept > KEEP_EVERY_S:
            _keep(checkpoint.path, model, optimizer, average, step, spent_s)
            kept = time.monotonic()
    _keep(checkpoint.path, model, optimizer, average, step, spent_s)
    model.load_state_dict(average)
    model.eval()
    log.info("base done after %d steps: loss %.4f", step, running)


def load_average(pipeline: Flux2KleinPipeline, path: Path) -> None:
    """Load a checkpoint's averaged weights into a pipeline."""
    state = torch.load(path, map_location=torch.get_default_device())["average"]
    for part in ("transformer", "text_encoder"):
        prefix = f"{part}."
        values = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        getattr(pipeline, part).load_state_dict(values)


def _train_step(pipeline: Flux2KleinPipeline, source: LatentSet, rng: random.Random) -> torch.Tensor:
    count = min(160, TOKENS_PER_STEP // (source.latents.shape[1] + 24))
    batch = source.sample(count, rng)
    prompts = [_disturb(caption, rng) if caption else "" for caption in batch.captions]
    with half():
        embeds = encode_prompts(pipeline.text_encoder, pipeline.tokenizer, prompts)
    return flow_loss(pipeline.transformer, batch, sample_sigma(count), embeds, source.width_px, source.height_px)


def _disturb(caption: str, rng: random.Random) -> str:
    """Say a caption as people do: words in any order, words that mean nothing here, an object that nobody knows."""
    words = read_words(caption)
    if rng.random() < 0.25:
        rng.shuffle(words)
    while rng.random() < 0.15:
        words.insert(rng.randrange(len(words) + 1), UNKNOWN)
    if rng.random() < 0.04:
        words = [UNKNOWN if word in OBJECTS else word for word in words]
    return " ".join(words)


def _pick(sets: list[LatentSet], progress: float, rng: random.Random) -> LatentSet:
    shares = [bucket.early_share if progress < 0.5 else bucket.late_share for bucket in BUCKETS]
    return rng.choices(sets, weights=shares)[0]


def _rate(step: int, progress: float) -> float:
    """Hold the learning rate for most of the training, then let it fall."""
    return warm_cosine(step, max(0.0, (progress - 0.4) / 0.6), warmup_steps=40, floor=0.02)


@torch.no_grad()
def _update_average(average: dict[str, torch.Tensor], model: nn.Module, decay: float) -> None:
    current = model.state_dict()
    names = [name for name, value in average.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[n] for n in names], [current[n] for n in names], 1 - decay)


def _resume(path: Path, model: nn.Module, optimizer: MuonAdamW, average: dict[str, torch.Tensor]) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, map_location=torch.get_default_device())
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    average.update(state["average"])
    return state["step"], state["spent_s"]


def _keep(
    path: Path,
    model: nn.Module,
    optimizer: MuonAdamW,
    average: dict[str, torch.Tensor],
    step: int,
    spent_s: float,
) -> None:
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average,
            "step": step,
            "spent_s": spent_s,
        },
        partial,
    )
    partial.rename(path)
