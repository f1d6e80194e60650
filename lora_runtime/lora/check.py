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
from lora_runtime.errors import InvalidInput, LoraMismatch, LoraUnreadable
from lora_runtime.lora.contents import Contents, choose_adapter, group_modules, sort_keys
from lora_runtime.lora.file import FloatArray, LoraFile, read_array, read_file
from lora_runtime.lora.foreign import find_foreign
from lora_runtime.lora.formats import Kronecker, Layer, Layers, read_layers
from lora_runtime.lora.names import MAX_TRIGGER, check_trigger
from lora_runtime.lora.sizes import find_size
from lora_runtime.lora.spellings import warn_diffusers
from lora_runtime.lora.whole_model import refuse_whole_model
from lora_runtime.written import quote

_TRIGGER_KEYS = ("modelspec.trigger_phrase", "trigger_phrase", "TrainedWords", "trainedWords", "instance_prompt")
"""Where trainers put the trigger phrase, in the order other tools look; `ss_tag_frequency` comes last."""

_NO_PHRASE = f"Its trigger phrase is left out: it is not one line of at most {MAX_TRIGGER} characters. Write your own."
_CHOOSE = "Choose a LoRA that was trained on a klein base model."
_Rows: TypeAlias = npt.NDArray[np.float64]
_FLOAT32_PEAKS = (1e-9, 1e9)
"""Largest numbers of a matrix between which float32 holds sums of their squares."""
_LARGEST = 1e30
"""A scale or change of weights above this one ends in infinities in bf16."""


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


def check_file(path: Path, *, adapter: str | None = None) -> Report:
    """Read `path` and say which weights of the catalogue it fits; `adapter` names one where it holds several.

    Raises:
        NotFound, LoraUnreadable, LoraUnsupported: See `file.py`, `contents.py` and `formats.py`. LoraUnreadable also
            when a matrix holds NaN or infinity, or when every B is zero and the LoRA would change nothing.
        LoraMismatch: It fits none of them.
        InvalidInput: It has no such adapter.
    """
    file, contents = read_contents(path, adapter=adapter)
    found = read_layers(file, contents)
    fits = tuple(name for name, weights in WEIGHTS.items() if not find_problems(found, weights.shape))
    if not fits or not found.layers:
        raise LoraMismatch(_describe_misfit(file, contents, found))
    phrase = read_trigger_phrase(file)
    unfit = phrase is None and _find_trigger_phrase(file) != ""
    return Report(
        file=file,
        spelling=found.spelling,
        fits=fits,
        layers=found.layers,
        ranks=tuple(sorted({layer.rank for layer in found.layers if layer.rank is not None})),
        scales=tuple(sorted({layer.scale for layer in found.layers})),
        norms=_measure_norms(file, found.layers),
        trained_on=_read_trained_on(file),
        trigger_phrase=phrase,
        notices=(*found.notices, *warn_diffusers(found.layers), *([_NO_PHRASE] if unfit else ())),
    )


def read_contents(path: Path, *, adapter: str | None = None) -> tuple[LoraFile, Contents]:
    """Return one adapter of `path` and its keys, which are not yet layers.

    Raises:
        NotFound, LoraUnreadable, LoraUnsupported, InvalidInput: See `check_file`.
        LoraMismatch: It is a whole model, or a LoRA for another one.
    """
    file = read_file(path)
    contents = sort_keys(file)
    refuse_whole_model(file, contents)
    foreign = find_foreign(file, contents, group_modules(contents))
    if foreign is not None:
        raise LoraMismatch(
            f"{file.name} is a LoRA for {foreign}, which is another model than FLUX.2 [klein]. {_CHOOSE}"
        )
    return choose_adapter(file, contents, adapter)


def require_fit(report: Report, weights: str, *, name: str | None = None) -> None:
    """Refuse a LoRA that was made for other weights than `weights`. The message calls it `name`, else as its file.

    Raises:
        LoraMismatch: The LoRA is for another base; the message names the weights to choose instead.
    """
    if weights in report.fits:
        return
    chosen = find_weights(weights)
    matching = sum(find_size(layer.module, chosen.shape) == _actual(layer) for layer in report.layers)
    raise LoraMismatch(
        f"{name or report.file.name}: {matching} of {len(report.layers)} layers match {chosen.label}; they fit "
        f"{_labels(report.fits)}. Choose {report.fits[0]}."
    )


def find_problems(found: Layers, shape: Shape) -> list[str]:
    """Return the keys and modules of a file that a transformer of `shape` cannot take."""
    return [
        *found.unmatched,
        *(layer.module for layer in found.layers if find_size(layer.module, shape) != _actual(layer)),
    ]


def find_nearest(found: Layers) -> Weights:
    """Return the weights that the fewest parts of the file do not fit."""
    return min(WEIGHTS.values(), key=lambda weights: len(find_problems(found, weights.shape)))


def read_trigger_phrase(file: LoraFile) -> str | None:
    """The trigger phrase by the keys trainers use; None when the file names none that a prompt can have."""
    try:
        return check_trigger(_find_trigger_phrase(file))
    except InvalidInput:
        return None


def _find_trigger_phrase(file: LoraFile) -> str:
    """What the file says, unchecked; empty for nothing."""
    for key in _TRIGGER_KEYS:
        text = file.metadata.get(key, "").strip()
        if text:
            return _join_words(text)
    try:
        buckets = json.loads(file.metadata.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return ""
    if not isinstance(buckets, dict):
        return ""
    # Only a lone tag is a trigger word; a whole caption vocabulary is not.
    tags = {tag.strip() for bucket in buckets.values() if isinstance(bucket, dict) for tag in bucket}
    return tags.pop() if len(tags) == 1 else ""


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
            array = read_array(file, key)
            arrays[key] = array.reshape(array.shape[:2])  # a 1x1 convolution is a matrix too
            if not np.isfinite(arrays[key]).all():
                raise LoraUnreadable(f"{file.name}: {quote(key)} holds NaN or infinity. The training diverged.")
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
    for layer in layers:
        norm = norms[layer.module]
        if not max(abs(layer.scale), norm) < _LARGEST:
            raise LoraUnreadable(
                f"{file.name} would change {layer.module} by {norm:.3g} (its scale is {layer.scale:.3g}): no training "
                "ends there. Export it again."
            )
    if not any(norms.values()):
        raise LoraUnreadable(
            f"{file.name} will change nothing: in every layer one of the matrices, or alpha, is zero. "
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


def _actual(layer: Layer) -> tuple[int, int]:
    return layer.out_features, layer.in_features


def _describe_misfit(file: LoraFile, contents: Contents, found: Layers) -> str:
    """Say what comes nearest and what does not fit."""
    name = file.name
    if not found.layers and contents.text_encoder and not found.unmatched:
        return f"{name} adapts a text encoder only, which nothing here would use. {_CHOOSE}"
    if not found.layers:
        example = quote(min(file.tensors)) if file.tensors else "none"
        return (
            f"{name} has no LoRA layer for FLUX.2 [klein] among its {len(file.tensors)} tensors "
            f"(the first is {example}). {_CHOOSE}"
        )
    nearest = find_nearest(found)
    problems = find_problems(found, nearest.shape)
    example = quote(problems[0])
    if len(problems) == len(found.unmatched):
        return (
            f"{name} is for {nearest.label}, but {len(problems)} of its tensors belong to no layer that a LoRA can "
            f"adapt, for example {example}; without them it would be another LoRA. Export it without norms and biases."
        )
    modules = len(found.layers) + len(found.unmatched)
    return (
        f"{name} fits no FLUX.2 [klein] model: nearest is {nearest.label}, where {len(problems)} of {modules} do not "
        f"fit, for example {example}. {_CHOOSE}"
    )


def _labels(names: Iterable[str]) -> str:
    records: list[Weights] = [WEIGHTS[name] for name in names]
    return ", ".join(record.label for record in records)
