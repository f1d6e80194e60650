"""Write a LoKr anew: a Kronecker product keeps its factors, and its scale and strength go into them or beside them.

Only what has the same product can be written: one of q, k and v fused stays fused (diffusers then fuses its own), and
three apart have no fused product. Where a factor is itself a product, BFL's names have an alpha beside it, as
AI-Toolkit and LyCORIS write it, and nothing is rounded; elsewhere the first factor is multiplied.
Source: diffusers `_convert_non_diffusers_flux2_lokr_to_diffusers`, `_bake_lokr_alpha_`; lycoris modules/lokr.py.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np

from lora_runtime.errors import LoraUnsupported
from lora_runtime.lora.check import Report
from lora_runtime.lora.difference import read_matrix
from lora_runtime.lora.file import FloatArray, LoraFile
from lora_runtime.lora.formats import Kronecker, Layer
from lora_runtime.lora.module_names import BFL_ADALN, find_bfl_name, fold
from lora_runtime.lora.spellings import Piece, Spelling

_FUSED: Final = {"attn.to_q": "attn.to_qkv", "attn.add_q_proj": "attn.to_added_qkv"}
"""The first of three layers in diffusers' names, and what diffusers calls all three when it has fused them."""


def is_lokr(layers: Sequence[Layer]) -> bool:
    """Return whether any of the layers is a Kronecker product."""
    return any(isinstance(layer.factors, Kronecker) for layer in layers)


def list_lokr_pieces(report: Report, how: Spelling, *, strength: float, widened: bool) -> list[Piece]:
    """Return the tensors of the LoKr of `report` in a spelling, at `strength`.

    Raises:
        LoraUnsupported: The spelling cannot hold it exactly, or no reader takes it.
    """
    name = report.file.name
    if how.alpha:
        raise LoraUnsupported(
            f"{name} is a LoKr, which diffusers does not read in kohya's names. Export it as ai-toolkit or diffusers."
        )
    if not all(isinstance(layer.factors, Kronecker) for layer in report.layers):
        raise LoraUnsupported(
            f"{name} has layers of a LoRA beside those of a LoKr, and diffusers reads one kind a file. Use it as it is "
            f"at strength {strength:g}."
        )
    return [
        piece
        for layer in report.layers
        if layer.part == 0  # the product of q, k and v is written once
        for piece in _list_pieces(report.file, layer, how, strength=strength, widened=widened)
    ]


def _list_pieces(file: LoraFile, layer: Layer, how: Spelling, *, strength: float, widened: bool) -> list[Piece]:
    factors = layer.factors
    if not isinstance(factors, Kronecker):
        raise TypeError(layer.module)
    module = _name_module(file, layer, how)
    stem, scale = how.stem(module), layer.scale * strength
    beside = how.bfl and layer.rank is not None
    swaps = layer.swap_halves != (how.bfl and fold(module) == BFL_ADALN)
    pieces = []
    for part, keys in (("lokr_w1", factors.w1), ("lokr_w2", factors.w2)):
        for at, key in enumerate(keys):
            first = part == "lokr_w1" and at == 0
            info = file.tensors[key]
            if first and swaps and info.shape[0] % 2:
                raise LoraUnsupported(
                    f"{file.name}: the halves of {layer.module} cannot change places in its product, as this spelling "
                    "needs. Export it in the names that it has."
                )
            factor, turned = (1.0 if beside else scale, swaps) if first else (1.0, False)
            pieces.append(
                Piece(
                    key=f"{stem}.{part}{('', '_a', '_b')[at + (len(keys) > 1)]}",
                    dtype="F32" if widened or info.dtype == "F64" else info.dtype,
                    shape=info.shape[:2],
                    values=partial(_read_factor, file, key, factor, turned),
                )
            )
    if beside:
        alpha = np.asarray(scale * (layer.rank or 0), np.float32)
        pieces.append(Piece(key=f"{stem}.alpha", dtype="F32", shape=(), values=lambda: alpha))
    return pieces


def _name_module(file: LoraFile, layer: Layer, how: Spelling) -> str:
    place = find_bfl_name(layer.module)
    if how.bfl and place.parts != layer.parts:
        raise LoraUnsupported(
            f"{file.name} is a LoKr with q, k and v apart, and BFL's fused names need one product of all three. "
            "Export it as diffusers."
        )
    if how.bfl:
        return place.name
    if layer.parts == 1:
        return layer.module
    first = next(name for name in _FUSED if layer.module.endswith(name))
    return layer.module.removesuffix(first) + _FUSED[first]


def _read_factor(file: LoraFile, key: str, factor: float, turned: bool) -> FloatArray:
    matrix = read_matrix(file, key) * np.float32(factor)
    return np.roll(matrix, len(matrix) // 2, axis=0) if turned else matrix
