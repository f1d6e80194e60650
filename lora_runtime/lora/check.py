"""A LoRA file against the catalogue: which base it was made for, what does not fit, and whether it can do anything.

Matrix sizes and block indices tell the base apart; no other fact of the file can. diffusers loads a file for a bigger
model in part and silently, so a single layer that does not fit is an error here.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from lora_runtime.catalogue import WEIGHTS, Shape, Weights, find_weights
from lora_runtime.errors import LoraMismatch, LoraUnreadable
from lora_runtime.lora.file import FloatArray, LoraFile, read_array, read_file
from lora_runtime.lora.formats import Kronecker, Layer, Layers, read_layers

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


_FOREIGN = (  # what only other models' LoRAs have in their keys
    (re.compile(r"content_mode_blocks|single_blocks[._]\d+[._]q_proj"), "FLUX.3 [klein]"),
    (
        re.compile(
            r"(img|txt)_mod[._]lin|modulation[._]lin|vector_in|ff[._]net[._]|proj_mlp"
            r"|single_transformer_blocks[._]\d+[._]attn[._]to_q|guidance_in"
        ),
        "FLUX.1",
    ),
)
_SHARED_MODULATION = re.compile(r"(double|single)_stream_modulation")
_Rows: TypeAlias = npt.NDArray[np.float64]
_FLOAT32_PEAKS = (1e-9, 1e9)
"""Largest numbers of a matrix between which float32 holds sums of their squares."""
_FLUX2_DEV = Shape(hidden=6144, text=15360, latent=128, double_blocks=8, single_blocks=48)
_FLUX1_ATTENTION = Shape(hidden=3072, text=4096, latent=64, double_blocks=19, single_blocks=0)
"""The part of FLUX.1 that has klein's names; its width is that of klein 4B."""
_FLUX1_WIDTHS = {"attn.to_qkv_mlp_proj": 7, "ff.linear_in": 4, "ff_context.linear_in": 4}
"""Module tail -> out / in of FLUX.1, whose MLP is no SwiGLU."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a LoRA file is. `layers` all fit `fits`; a report is made only of files that load whole.

    `ranks` is empty for a LoKr of whole factors, which has no rank.
    `norms` is the Frobenius norm of each layer's weight change at strength 1, scale included. `trained_on` says "base"
    or "distilled" where the trainer wrote it down: shapes cannot tell.
    """

    file: LoraFile
    spelling: str
    fits: tuple[str, ...]
    layers: tuple[Layer, ...]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    norms: Mapping[str, float]
    trained_on: Literal["base", "distilled"] | None
    trigger_phrase: str | None
    notices: tuple[str, ...]


def check_file(path: Path) -> Report:
    """Read `path` and say which weights of the catalogue it fits.

    Raises:
        NotFound, LoraUnreadable, LoraUnsupported: See `file.py` and `formats.py`. LoraUnreadable also when
            a matrix holds NaN or infinity, or when every B is zero and the LoRA would change nothing.
        LoraMismatch: It fits none of them.
    """
    file = read_file(path)
    found = read_layers(file)
    fits = tuple(name for name, weights in WEIGHTS.items() if not find_problems(found, weights.shape))
    if not fits or not found.layers:
        raise LoraMismatch(_describe_misfit(file, found))
    return Report(
        file=file,
        spelling=found.spelling,
        fits=fits,
        layers=found.layers,
        ranks=tuple(sorted({layer.rank for layer in found.layers if layer.rank is not None})),
        scales=tuple(sorted({layer.scale for layer in found.layers})),
        norms=_measure_norms(file, found.layers),
        trained_on=_read_trained_on(file),
        trigger_phrase=read_trigger_phrase(file),
        notices=found.notices,
    )


def require_fit(report: Report, weights: str, *, name: str | None = None) -> None:
    """Refuse a LoRA that was made for other weights than `weights`. The message calls it `name`, else as its file.

    Raises:
        LoraMismatch: The LoRA is for another base; the message names the weights to choose instead.
    """
    if weights in report.fits:
        return
    chosen = find_weights(weights)
    matching = sum(_expected(layer.module, chosen.shape) == _actual(layer) for layer in report.layers)
    raise LoraMismatch(
        f"{name or report.file.path.name}: {matching} of {len(report.layers)} layers match {chosen.label}; they fit "
        f"{_labels(report.fits)}. Choose {report.fits[0]}."
    )


def find_problems(found: Layers, shape: Shape) -> list[str]:
    """Return the keys and modules of a file that a transformer of `shape` cannot take."""
    return [
        *found.unmatched,
        *(layer.module for layer in found.layers if _expected(layer.module, shape) != _actual(layer)),
    ]


def find_nearest(found: Layers) -> Weights:
    """Return the weights that the fewest parts of the file do not fit."""
    return min(WEIGHTS.values(), key=lambda weights: len(find_problems(found, weights.shape)))


def read_trigger_phrase(file: LoraFile) -> str | None:
    """The trigger phrase by the keys trainers use; None when the file names none."""
    for key in _TRIGGER_KEYS:
        text = file.metadata.get(key, "").strip()
        if text:
            return _join_words(text)
    try:
        buckets = json.loads(file.metadata.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(buckets, dict):
        return None
    # Only a lone tag is a trigger word; a whole caption vocabulary is not.
    tags = {tag.strip() for bucket in buckets.values() if isinstance(bucket, dict) for tag in bucket}
    return tags.pop() if len(tags) == 1 else None


def _join_words(text: str) -> str:
    """Trigger words as one phrase; some trainers write a JSON list."""
    try:
        words = json.loads(text) if text.startswith("[") else None
    except (ValueError, RecursionError):
        return text
    return ", ".join(map(str, words)) if isinstance(words, list) else text


def measure_blocks(report: Report) -> dict[str, float]:
    """The norm of the whole change per block ("double 0", "single 12", "top"), in the order of the model."""
    squares: dict[tuple[int, int], float] = {}
    for module, norm in report.norms.items():
        blocks, _, rest = module.partition(".")
        kind = ("transformer_blocks", "single_transformer_blocks").index(blocks) if "_blocks" in blocks else 2
        index = int(rest.partition(".")[0]) if kind < 2 else 0
        squares[kind, index] = squares.get((kind, index), 0.0) + norm**2
    names = ("double", "single", "top")
    return {
        f"{names[kind]} {index}" if kind < 2 else "top": math.sqrt(square)
        for (kind, index), square in sorted(squares.items())
    }


def _measure_norms(file: LoraFile, layers: Sequence[Layer]) -> dict[str, float]:
    """The Frobenius norm of each layer's weight change, without ever forming it."""
    arrays: dict[str, FloatArray] = {}

    def read(key: str) -> FloatArray:
        if key not in arrays:
            arrays[key] = read_array(file, key)
            if not np.isfinite(arrays[key]).all():
                raise LoraUnreadable(f"{file.path.name}: {key!r} holds NaN or infinity. The training diverged.")
        return arrays[key]

    grams: dict[str, FloatArray | _Rows] = {}

    def square(layer: Layer) -> float:
        """|product|^2 of the layer's rows, without the scale."""
        if isinstance(layer.factors, Kronecker):
            return float(_row_squares(layer, layer.factors, read).sum())
        a, b = layer.factors.a, layer.factors.b
        if a not in grams:
            grams[a] = _gram(read(a))
        # |B A|^2 = trace(B' B A A'); swapped halves have the same norm.
        return float((_gram(np.split(read(b), layer.parts)[layer.part].T) * grams[a]).sum(dtype=np.float64))

    norms = {layer.module: abs(layer.scale) * math.sqrt(max(0.0, square(layer))) for layer in layers}
    if not any(norms.values()):
        raise LoraUnreadable(
            f"{file.path.name} will change nothing: in every layer one of the matrices, or alpha, is zero. "
            "It was saved before training."
        )
    return norms


def _gram(rows: FloatArray) -> FloatArray | _Rows:
    """rows @ rows', in float64 where float32 could run over or under."""
    peak = float(np.abs(rows).max(initial=0))
    wide = rows if _FLOAT32_PEAKS[0] < peak < _FLOAT32_PEAKS[1] else rows.astype(np.float64)
    return wide @ wide.T


def _row_squares(layer: Layer, factors: Kronecker, read: Callable[[str], FloatArray]) -> _Rows:
    """|row|^2 of each row of this layer's product, without the scale: (out_features,).

    |b A|^2 = b (A A') b' for a row b of B, and the rows of kron(w1, w2) are all products of a row of w1 and one of w2.
    """

    def squares(*keys: str) -> _Rows:
        left, *rights = (read(key).astype(np.float64) for key in keys)
        image = left @ (rights[0] @ rights[0].T) if rights else left
        return np.asarray((image * left).sum(axis=1), dtype=np.float64)

    rows = np.outer(squares(*factors.w1), squares(*factors.w2)).ravel()
    return np.split(rows, layer.parts)[layer.part]


def _read_trained_on(file: LoraFile) -> Literal["base", "distilled"] | None:
    """What the trainer wrote about its model; only a name of klein with or without "base" counts."""
    for key in ("ss_sd_model_name", "ss_base_model_version", "base_model", "modelspec.architecture"):
        name = file.metadata.get(key, "").lower().replace("_", "-")
        if "klein" in name and "base" in name:
            return "base"
    said = (file.metadata.get(key, "").lower().replace("_", "-") for key in ("ss_sd_model_name", "base_model"))
    return "distilled" if any(re.search(r"flux-?\.?2-klein-\d", name) for name in said) else None


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


def _describe_misfit(file: LoraFile, found: Layers) -> str:
    """Say what it is for, where that can be told; else what comes nearest and what does not fit."""
    name = file.path.name
    remedy = "Choose a LoRA that was trained on a klein base model."
    foreign = next((model for mark, model in _FOREIGN if any(map(mark.search, _own_keys(file)))), None)
    foreign = foreign or _tell_by_sizes(found)
    if foreign is not None:
        return f"{name} is a LoRA for {foreign}, which is another model than FLUX.2 [klein]. {remedy}"
    if not found.layers and found.notices and not found.unmatched:
        return f"{name} adapts a text encoder only, which nothing here would use. {remedy}"
    if not found.layers:
        example = next(iter(sorted(file.tensors)), "none")
        return (
            f"{name} has no LoRA layer for FLUX.2 [klein] among its {len(file.tensors)} tensors "
            f"(the first is {example!r}). {remedy}"
        )
    nearest = find_nearest(found)
    problems = find_problems(found, nearest.shape)
    if len(problems) == len(found.unmatched):
        return (
            f"{name} is for {nearest.label}, but {len(problems)} of its tensors belong to no layer that a LoRA can "
            f"adapt, for example {problems[0]!r}; without them it would be another LoRA. Export it without norms and "
            "biases."
        )
    modules = len(found.layers) + len(found.unmatched)
    return (
        f"{name} fits no FLUX.2 [klein] model: nearest is {nearest.label}, where {len(problems)} of {modules} do not "
        f"fit, for example {problems[0]!r}. {remedy}"
    )


def _tell_by_sizes(found: Layers) -> str | None:
    """Another model of the family, told by sizes and block indices alone."""
    if not found.layers:
        return None
    if not find_problems(found, _FLUX2_DEV):
        return "FLUX.2 [dev]"
    for layer in found.layers:
        tail = layer.module.partition("_blocks.")[2].partition(".")[2]
        if layer.out_features == _FLUX1_WIDTHS.get(tail, 0) * layer.in_features:
            return "FLUX.1"
    return None if find_problems(found, _FLUX1_ATTENTION) else "FLUX.1"


def _own_keys(file: LoraFile) -> list[str]:
    """Keys that may tell another model: klein's own modulation looks like FLUX.1's to a pattern."""
    return [key for key in file.tensors if not _SHARED_MODULATION.search(key)]


def _labels(names: Iterable[str]) -> str:
    records: list[Weights] = [WEIGHTS[name] for name in names]
    return ", ".join(record.label for record in records)
