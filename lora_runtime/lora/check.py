"""A LoRA file against the catalogue: which base it was made for, and what does not fit.

Everything comes from the header: matrix sizes and block indices tell the base apart. diffusers loads a file for a
bigger model in part and silently, so a single layer that does not fit is an error here.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lora_runtime.catalogue import WEIGHTS, Shape, Weights, find_weights
from lora_runtime.errors import LoraMismatch
from lora_runtime.lora.file import LoraFile, read_file
from lora_runtime.lora.formats import Layer, Layers, read_layers

_TRIGGER_KEYS = ("modelspec.trigger_phrase", "trigger_phrase", "TrainedWords", "trainedWords", "instance_prompt")
"""Where trainers put the trigger phrase, in the order other tools look; `ss_tag_frequency` comes last."""

_H_SHAPES = {  # module tail -> (out, in) in multiples of the hidden width
    "attn.to_q": (1, 1),
    "attn.to_k": (1, 1),
    "attn.to_v": (1, 1),
    "attn.to_out.0": (1, 1),
    "attn.add_q_proj": (1, 1),
    "attn.add_k_proj": (1, 1),
    "attn.add_v_proj": (1, 1),
    "attn.to_add_out": (1, 1),
    "ff.linear_in": (6, 1),
    "ff.linear_out": (1, 3),
    "ff_context.linear_in": (6, 1),
    "ff_context.linear_out": (1, 3),
    "attn.to_qkv_mlp_proj": (9, 1),
    "attn.to_out": (1, 4),
    "double_stream_modulation_img.linear": (6, 1),
    "double_stream_modulation_txt.linear": (6, 1),
    "single_stream_modulation.linear": (3, 1),
    "norm_out.linear": (2, 1),
    "time_guidance_embed.timestep_embedder.linear_2": (1, 1),
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a LoRA file is. `layers` all fit `fits`; a report is made only of files that load whole."""

    file: LoraFile
    spelling: str
    fits: tuple[str, ...]
    layers: tuple[Layer, ...]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    trigger_phrase: str | None
    notices: tuple[str, ...]


def check_file(path: Path) -> Report:
    """Read `path` and say which weights of the catalogue it fits.

    Raises:
        NotFound, LoraUnreadable, LoraUnsupported: See `file.py` and `formats.py`.
        LoraMismatch: It fits none of them.
    """
    file = read_file(path)
    found = read_layers(file)
    fits = tuple(name for name, weights in WEIGHTS.items() if not _problems(found, weights.shape))
    if not fits or not found.layers:
        raise LoraMismatch(_describe_misfit(file, found))
    return Report(
        file=file,
        spelling=found.spelling,
        fits=fits,
        layers=found.layers,
        ranks=tuple(sorted({layer.rank for layer in found.layers})),
        scales=tuple(sorted({layer.scale for layer in found.layers})),
        trigger_phrase=read_trigger_phrase(file),
        notices=found.notices,
    )


def check_lora(path: Path, weights: str) -> Report:
    """Like `check_file`, and the LoRA must fit `weights`.

    Raises:
        LoraMismatch: It is for another base; the message names the weights to choose instead.
    """
    report = check_file(path)
    require_fit(report, weights)
    return report


def require_fit(report: Report, weights: str) -> None:
    """See `check_lora`.

    Raises:
        LoraMismatch: The LoRA is for another base; the message names the weights to choose instead.
    """
    if weights in report.fits:
        return
    chosen = find_weights(weights)
    matching = sum(_expected(layer.module, chosen.shape) == _actual(layer) for layer in report.layers)
    raise LoraMismatch(
        f"{report.file.path.name}: {matching} of {len(report.layers)} layers match {chosen.label}; they fit "
        f"{_labels(report.fits)}. Choose {report.fits[0]}."
    )


def read_trigger_phrase(file: LoraFile) -> str | None:
    """The trigger phrase by the keys trainers use; None when the file names none."""
    for key in _TRIGGER_KEYS:
        text = file.metadata.get(key, "").strip()
        if text:
            return text
    try:
        buckets = json.loads(file.metadata.get("ss_tag_frequency", "{}"))
    except ValueError:
        return None
    if not isinstance(buckets, dict):
        return None
    # Only a lone tag is a trigger word; a whole caption vocabulary is not.
    tags = {tag.strip() for bucket in buckets.values() if isinstance(bucket, dict) for tag in bucket}
    return tags.pop() if len(tags) == 1 else None


def _expected(module: str, shape: Shape) -> tuple[int, int] | None:
    """(out, in) of a module in a transformer of `shape`; None when it has no such module."""
    h = shape.hidden
    tops = {
        "x_embedder": (h, shape.latent),
        "context_embedder": (h, shape.text),
        "proj_out": (shape.latent, h),
        "time_guidance_embed.timestep_embedder.linear_1": (h, 256),
    }
    if module in tops:
        return tops[module]
    blocks, _, rest = module.partition(".")
    if blocks in ("transformer_blocks", "single_transformer_blocks"):
        index, _, tail = rest.partition(".")
        count = shape.double_blocks if blocks == "transformer_blocks" else shape.single_blocks
        if int(index) >= count:
            return None
    else:
        tail = module
    out, in_ = _H_SHAPES[tail]
    return out * h, in_ * h


def _actual(layer: Layer) -> tuple[int, int]:
    return layer.out_features, layer.in_features


def _problems(found: Layers, shape: Shape) -> list[str]:
    """Keys and modules of the file that a transformer of `shape` cannot take."""
    return [
        *found.unmatched,
        *(layer.module for layer in found.layers if _expected(layer.module, shape) != _actual(layer)),
    ]


def _describe_misfit(file: LoraFile, found: Layers) -> str:
    """Say what does not fit, and what comes nearest."""
    name = file.path.name
    total = len(file.tensors)
    if not found.layers:
        example = next(iter(sorted(file.tensors)), "none")
        return (
            f"{name} has no LoRA layer for FLUX.2 [klein] among its {total} tensors (the first is {example!r}). "
            "Choose a LoRA that was trained on a klein base model."
        )
    nearest = min(WEIGHTS.values(), key=lambda weights: len(_problems(found, weights.shape)))
    problems = _problems(found, nearest.shape)
    modules = len(found.layers) + len(found.unmatched)
    return (
        f"{name} fits no FLUX.2 [klein] model: nearest is {nearest.label}, where {len(problems)} of {modules} do not "
        f"fit, for example {problems[0]!r}. Choose a LoRA that was trained on a klein base model."
    )


def _labels(names: Iterable[str]) -> str:
    records: list[Weights] = [WEIGHTS[name] for name in names]
    return ", ".join(record.label for record in records)
