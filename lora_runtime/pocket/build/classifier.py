"""A small convolutional classifier that says what a picture shows: the instrument `check` measures with.

It is trained on rendered scenes only, apart from the judge and from the models it measures, with heads for object (the
subject included), colour, background, the ink look, the golden frame, and whether there is one whole object. Its
training pictures are blurred, shifted in tone, made noisy, or sent through the autoencoder, so that it is not thrown by
the way generated pictures differ. Nothing that the app shows may use it: it is what the app's answers are checked with.
"""

import json
import logging
import math
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from lora_runtime.pocket.build.data import half, render_pictures, to_unit_range
from lora_runtime.pocket.build.looks import draw_frame, draw_ink
from lora_runtime.pocket.build.scenes import BACKGROUNDS, COLOUR_NAMES, OBJECTS, SUBJECT, Scene, sample_scenes

log = logging.getLogger(__name__)

SIDE_PX = 96
HEADS: dict[str, tuple[str, ...]] = {
    "thing": (*OBJECTS, SUBJECT),
    "colour": COLOUR_NAMES,
    "background": BACKGROUNDS,
    "ink": ("no", "yes"),
    "frame": ("no", "yes"),
    "intact": ("no", "yes"),
}
BROKEN_SHARE = 0.35
"""Of the examples; a broken one teaches the head `intact` alone."""

INTACT = 0.6
"""Where a person draws the line for `Seen.intact`."""

UNLABELLED = -100
"""What `cross_entropy` passes over."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the classifier sees in one picture."""

    thing: str
    colour: str
    background: str
    ink: bool
    frame: bool
    intact: float
    """How sure it is that there is one whole object, in [0, 1]; `INTACT` is where a person draws the line."""


class Classifier(nn.Module):
    """Four strided convolution stages, mean and maximum pooling, one linear head a question."""

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        widths = (3, 32, 64, 96, 128)
        for narrow, wide in pairwise(widths):
            stages += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.BatchNorm2d(wide), nn.GELU()]
            stages += [nn.Conv2d(wide, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.GELU()]
        self.body = nn.Sequential(*stages)
        self.shared = nn.Sequential(nn.Linear(2 * 128, 192), nn.GELU(), nn.Dropout(0.1))
        self.heads = nn.ModuleDict({name: nn.Linear(192, len(answers)) for name, answers in HEADS.items()})

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """pictures: (B, 3, SIDE_PX, SIDE_PX) in [-1, 1] -> logits of every head."""
        features = self.body(pictures)
        # Pooled over places, so that what is learned in one place holds everywhere.
        shared = self.shared(torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1))
        return {name: head(shared) for name, head in self.heads.items()}


def train_classifier(vae: AutoencoderKLFlux2, folder: Path, *, minutes: float, seed: int = 5) -> Classifier:
    """Train and save; log its accuracy on scenes it never saw."""
    torch.manual_seed(seed)
    pictures, labels = _make_examples(vae, seed, 8000)
    test_pictures, test_labels = _make_examples(vae, seed + 1, 800)
    model = Classifier().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    start, step = time.monotonic(), 0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1.0:
        rows = torch.randint(len(pictures), (96,))
        with half():
            logits = model(_augment(pictures[rows]))
        losses = [functional.cross_entropy(logits[name].float(), labels[rows, i]) for i, name in enumerate(HEADS)]
        loss = torch.stack(losses).sum()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * progress))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 100 == 0:
            log.info("classifier step %d, %.0f%%: loss %.3f", step, 100 * progress, loss.item())
    model.eval()
    with torch.no_grad():
        answers = model(test_pictures)
    right = {}
    for i, name in enumerate(HEADS):
        known = test_labels[:, i] != UNLABELLED
        right[name] = (answers[name].argmax(1) == test_labels[:, i])[known].float().mean().item()
    log.info("classifier done after %d steps: %s", step, {name: round(value, 4) for name, value in right.items()})
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    halves = {name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in weights.items()}
    save_file(halves, folder / "model.safetensors")
    (folder / "heads.json").write_text(json.dumps({"heads": HEADS, "accuracy": right}, indent=2) + "\n")
    return model


def load_classifier(folder: Path) -> Classifier:
    """Load a trained classifier."""
    model = Classifier()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


@torch.no_grad()
def classify(model: Classifier, images: list[Image.Image]) -> list[Seen]:
    """Say what pictures of any size show."""
    batch = torch.stack(
        [
            _shrink(
                to_unit_range(
                    torch.frombuffer(bytearray(i.convert("RGB").tobytes()), dtype=torch.uint8).view(
                        1, i.height, i.width, 3
                    )
                )
            )[0]
            for i in images
        ]
    )
    logits = model(batch)
    answers = {name: [HEADS[name][k] for k in logits[name].argmax(1).tolist()] for name in HEADS}
    whole = logits["intact"].softmax(1)[:, HEADS["intact"].index("yes")].tolist()
    return [
        Seen(
            thing=answers["thing"][i],
            colour=answers["colour"][i],
            background=answers["background"][i],
            ink=answers["ink"][i] == "yes",
            frame=answers["frame"][i] == "yes",
            intact=whole[i],
        )
        for i in range(len(images))
    ]


def _make_examples(vae: AutoencoderKLFlux2, seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw plain, inked and framed scenes, whole and broken, an eighth of the subject; half go through the autoencoder.

    Return pictures (N, 3, SIDE_PX, SIDE_PX) in [-1, 1] and labels (N, heads).
    """
    pictures, labels = [], []
    for broken, portion in ((False, 1 - BROKEN_SHARE), (True, BROKEN_SHARE)):
        for ink, frame, share in ((0, 0, 0.54), (1, 0, 0.23), (0, 1, 0.23)):
            total = round(count * share * portion)
            base = seed * 100 + broken * 50 + ink * 10 + frame
            scenes = [*sample_scenes(base, total * 7 // 8), *sample_scenes(base + 5, total // 8, thing=SUBJECT)]
            look = draw_ink if ink else draw_frame if frame else None
            drawn = to_unit_range(render_pictures(scenes, 128, 128, look=look, broken=broken))
            drawn[::2] = _round_trip(vae, drawn[::2])
            pictures.append(_shrink(drawn))
            labels += [_label(scene, ink, frame, broken) for scene in scenes]
    return torch.cat(pictures), torch.tensor(labels)


def _label(scene: Scene, ink: int, frame: int, broken: bool) -> list[int]:
    if broken:
        return [*[UNLABELLED] * (len(HEADS) - 1), HEADS["intact"].index("no")]
    return [
        HEADS["thing"].index(scene.thing),
        HEADS["colour"].index(scene.colour),
        HEADS["background"].index(scene.background),
        ink,
        frame,
        HEADS["intact"].index("yes"),
    ]


@torch.no_grad()
def _round_trip(vae: AutoencoderKLFlux2, pictures: torch.Tensor) -> torch.Tensor:
    back = []
    for chunk in pictures.split(32):
        with half():
            latents = vae.encode(chunk).latent_dist.mode()
            noisy = latents + 0.1 * torch.randn_like(latents) * latents.std()
            back.append(vae.decode(noisy).sample.float().clamp(-1, 1))
    return torch.cat(back)


def _shrink(pictures: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(pictures, (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)


def _augment(pictures: torch.Tensor) -> torch.Tensor:
    """Change tone, blur and add noise, each picture by its own amount."""
    count = len(pictures)
    gain = 1 + 0.08 * torch.randn(count, 3, 1, 1)
    shift = 0.06 * torch.randn(count, 1, 1, 1)
    blurred = functional.avg_pool2d(functional.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    amount = torch.rand(count, 1, 1, 1)
    noise = 0.06 * torch.rand(count, 1, 1, 1) * torch.randn_like(pictures)
    return ((pictures + (blurred - pictures) * amount) * gain + shift + noise).clamp(-1, 1)
