"""Training runs for tests: the overtrained LoRA at stages of its training, and files that only differ."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_runtime.lora.names import clean_name
from lora_runtime.lora.training import Checkpoint, TrainingRun
from lora_runtime.pocket import lora_path
from tests.drawing_backend import make_lora

STAGES: Mapping[int, float] = MappingProxyType({250: 0.3, 500: 0.6, 1000: 0.85, 1500: 1.0, 2250: 1.6, 3000: 2.4})
"""Step -> how much of the overtrained LoRA's change is there: B grows with training."""


def write_training(folder: Path, stages: Mapping[int, float] = STAGES) -> Path:
    """Write the overtrained LoRA at stages of its training, as AI-Toolkit names them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = lora_path("overtrained")
    tensors = load_file(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    for step, share in stages.items():
        grown = {key: tensor * share if _is_b(key) else tensor for key, tensor in tensors.items()}
        save_file(grown, folder / f"my_style_{step:09}.safetensors", metadata=metadata)
    return folder


def _is_b(key: str) -> bool:
    return "lora_B" in key or "lora_up" in key


def make_drawn_run(labels: Sequence[str], *, problems: Mapping[str, str] = MappingProxyType({})) -> TrainingRun:
    """A training run of LoRAs of one layer; `problems` are those that do not fit."""
    return TrainingRun(
        name="my-style",
        checkpoints=tuple(
            Checkpoint(label=label, problem=problems[label])
            if label in problems
            else Checkpoint(
                label=label, lora=replace(make_lora(f"drawn-{label}"), name=clean_name(f"my-style-{label}"))
            )
            for label in labels
        ),
    )
