"""What the controls of the answer's benchmark are made of: LoRAs that are none, and the right words."""

from decimal import Decimal
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from evaluation.judge.answer import Answer
from lora_runtime.pocket import lora_path


def scale_lora(lora: str, factor: float, folder: Path) -> str:
    """Return a copy of a LoRA that acts `factor` times as strongly."""
    path = folder / f"{lora}_x{factor:g}.safetensors"
    if not path.exists():
        tensors = load_file(lora_path(lora))
        save_file({key: value * factor if _is_up(key) else value for key, value in tensors.items()}, path)
    return str(path)


def make_noise(lora: str, folder: Path) -> str:
    """Return a LoRA of random numbers, each of its tensors with the norm of the true one."""
    path = folder / f"{lora}_noise.safetensors"
    if not path.exists():
        generator = torch.Generator().manual_seed(0)
        save_file({key: _randomize(value, generator) for key, value in load_file(lora_path(lora)).items()}, path)
    return str(path)


def _randomize(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if value.dim() < 2:
        return value
    drawn = torch.randn(value.shape, generator=generator)
    scaled: torch.Tensor = drawn * value.float().norm() / drawn.norm()
    return scaled.to(value.dtype)


def _is_up(key: str) -> bool:
    return "lora_B" in key or "lora_up" in key


def is_right(name: str, strengths: str, found: Answer) -> bool:
    """Whether a control got its word; three times the style is right up to 0.4, 0.4 of it from 2 on."""
    if name == "style x3":
        return found.word == "try_lower" or (found.best is not None and found.best <= Decimal("0.4"))
    if name == "style x0.4":
        return found.word == "try_higher" or (found.best is not None and found.best >= 2)
    words = {
        "style x-1": ("no_strength_does_both", "cannot_tell"),
        "overtrained x-1": ("no_strength_does_both", "cannot_tell"),
        "style x50": ("try_lower",),
        "style x0.01": ("does_nothing",),
        "style x0.0001": ("does_nothing",),
        "noise of the same norm": ("does_nothing", "cannot_tell"),
        "subject without its trigger": ("cannot_tell", "does_nothing"),
    }
    return found.word in words.get(name, ("base_does_not_draw_this",))
