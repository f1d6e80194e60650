"""How far two LoRAs' changes of the weights are apart, without forming a change: by inner products, in float64.

A change is scale * B @ A, or scale * kron(w1, w2) for a LoKr. In decibels of the worst layer.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lora_runtime.lora.check import Report
from lora_runtime.lora.file import FloatArray, LoraFile, read_array
from lora_runtime.lora.formats import Kronecker, Layer, LowRank

_Doubles: TypeAlias = npt.NDArray[np.float64]


def measure_difference(before: Report, after: Report, *, strength: float) -> float:
    """Return how far the changes of weights are apart, in decibels of the worst layer; infinity for none.

    `before` counts at `strength`, `after` at 1. A layer that one of them lacks is zero there.
    """
    wanted = {layer.module: layer for layer in before.layers}
    made = {layer.module: layer for layer in after.layers}
    worst = 0.0
    for module in wanted.keys() | made.keys():
        own, other = wanted.get(module), made.get(module)
        if any(each is not None and isinstance(each.factors, Kronecker) for each in (own, other)):
            apart = _compare_products(before.file, own, after.file, other, strength)
        else:
            target = [_read_halves(before.file, own, strength)] if own else []
            less = [_read_halves(after.file, other, -1.0)] if other else []
            size, apart = _measure_sum(target), _measure_sum([*target, *less])
            apart = apart / size if size else apart
        worst = max(worst, apart)
    if not math.isfinite(worst):
        return -math.inf
    return -20 * math.log10(worst) if worst else math.inf


def read_matrix(file: LoraFile, key: str) -> FloatArray:
    """Return a matrix of a file; a 1x1 convolution is one too."""
    array = read_array(file, key)
    return array.reshape(array.shape[:2])


def _compare_products(
    file: LoraFile, own: Layer | None, other_file: LoraFile, other: Layer | None, strength: float
) -> float:
    """At most how far scale * kron(w1, w2) of one is from the other's, of its size; of fused ones the whole product.

    |kron(a, b) - kron(c, d)| <= |a - c| |b| + |c| |b - d|
    """
    if own is None or other is None:
        return math.inf
    (a, b), (c, d) = _read_factors(file, own), _read_factors(other_file, other)
    if (a.shape, b.shape, own.part, own.parts) != (c.shape, d.shape, other.part, other.parts):
        return math.inf
    if own.swap_halves != other.swap_halves:
        c = np.roll(c, len(c) // 2, axis=0)
    a, c = a * (own.scale * strength), c * other.scale
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    apart = float(np.linalg.norm(a - c) * np.linalg.norm(b)) + float(np.linalg.norm(c) * np.linalg.norm(b - d))
    return apart / size if size else apart


def _read_factors(file: LoraFile, layer: Layer) -> tuple[_Doubles, _Doubles]:
    if not isinstance(layer.factors, Kronecker):
        raise TypeError(layer.module)
    w1, w2 = (
        [read_matrix(file, key).astype(np.float64) for key in keys] for keys in (layer.factors.w1, layer.factors.w2)
    )
    return (w1[0] @ w1[1] if len(w1) > 1 else w1[0]), (w2[0] @ w2[1] if len(w2) > 1 else w2[0])


def _read_halves(file: LoraFile, layer: Layer, factor: float) -> tuple[FloatArray, FloatArray]:
    """(B, A) of a layer in diffusers' order, scale and `factor` in B."""
    keys = layer.factors
    if not isinstance(keys, LowRank):
        raise TypeError(layer.module)
    rows: FloatArray = np.split(read_matrix(file, keys.b), layer.parts)[layer.part]
    if layer.swap_halves:
        rows = np.roll(rows, len(rows) // 2, axis=0)
    return rows * np.float32(layer.scale * factor), read_matrix(file, keys.a)


def _measure_sum(halves: Sequence[tuple[FloatArray, FloatArray]]) -> float:
    """The Frobenius norm of the sum of all B @ A, which is never formed: |B A|^2 = trace(B' B A A'), in float64."""
    if not halves:
        return 0.0
    b = np.concatenate([b for b, _ in halves], axis=1).astype(np.float64)
    a = np.concatenate([a for _, a in halves]).astype(np.float64)
    return math.sqrt(max(0.0, float(((b.T @ b) * (a @ a.T)).sum())))
