"""Write a LoRA anew: the same one at another strength, in any of the spellings that others read.

Where a spelling has an alpha of its own (kohya), the strength goes into it and the matrices stay as they were.
Elsewhere every reader takes alpha = rank: alpha and strength are multiplied into B in float32, and B is rounded to its
type.

BFL fuses q, k and v. Halves that share A are stacked again, as they were split; others stand in one matrix side by
side, A over A and B beside B, which is exact and three times the rank.
Source: diffusers `_convert_kohya_flux2_lora_to_diffusers`, which splits both; musubi-tuner `networks/lora_flux_2.py`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from lora_runtime.errors import InvalidInput
from lora_runtime.lora.check import Report
from lora_runtime.lora.difference import read_matrix
from lora_runtime.lora.export_lokr import is_lokr, list_lokr_pieces
from lora_runtime.lora.file import FloatArray, LoraFile, read_array, write_file
from lora_runtime.lora.formats import Layer, LowRank
from lora_runtime.lora.module_names import BFL_ADALN, find_bfl_name, fold
from lora_runtime.lora.spellings import Piece, Spelling, encode_pieces, find_spelling

ORIGIN: Final = "klein_lab.origin"
"""Where an export says what it was made of."""

_KEPT = ("ss_", "modelspec.", "training_info", "software", "name", "base_model")
"""What goes along of a header, by how it begins."""
_OLD = ("ss_network_", "modelspec.hash", "modelspec.architecture", "modelspec.trigger_phrase")
"""Of these what speaks of the old file's tensors, or is written anew."""

_VERSIONS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "klein-4b": ("flux_2_klein_4b", "Flux.2-klein-4b/lora"),
        "klein-9b": ("flux_2_klein_9b", "Flux.2-klein-9b/lora"),
        "pocket": ("flux_2_klein_pocket", "Flux.2-klein-pocket/lora"),
    }
)
"""What trainers call the base: ss_base_model_version and modelspec.architecture, the same for Base and distilled.

Source: musubi-tuner dataset/architectures.py, utils/sai_model_spec.py.
"""


def write_export(report: Report, path: Path, *, strength: float, spelling: str, widened: bool = False) -> None:
    """Write the LoRA of `report` to `path` so that 1 is what `strength` was; `widened` makes every matrix float32.

    Raises:
        InvalidInput: The strength is 0, or the spelling is none.
        LoraUnsupported: It is a LoKr that the spelling does not hold.
    """
    how = find_spelling(spelling)
    if strength == 0:
        raise InvalidInput("Strength: at 0 a LoRA changes nothing. Export it at another one.")
    modules: list[_Module] = []
    if is_lokr(report.layers):
        pieces = list_lokr_pieces(report, how, strength=strength, widened=widened)
    else:
        modules = [_Module(report.file, group, how, strength) for group in _group(report.layers, how)]
        pieces = [piece for module in modules for piece in module.pieces(widened=widened)]
    write_file(
        path,
        {piece.key: (piece.dtype, piece.shape) for piece in pieces},
        encode_pieces(pieces),
        _write_metadata(report, modules, how, strength=strength, title=path.stem),
    )


def _group(layers: Sequence[Layer], how: Spelling) -> list[tuple[Layer, ...]]:
    """The layers by the module that the spelling has for them: one, or q, k and v of it as far as they are there."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(find_bfl_name(layer.module).name if how.bfl else layer.module, []).append(layer)
    return [tuple(sorted(group, key=lambda layer: find_bfl_name(layer.module).part)) for group in groups.values()]


class _Module:
    """One module of the new file, made of `layers`: B @ A of all of them, scale and strength included.

    `factor` is what alpha / rank will say; the rest is in B.
    """

    def __init__(self, file: LoraFile, layers: tuple[Layer, ...], how: Spelling, strength: float) -> None:
        self._file, self._layers, self._how, self._strength = file, layers, how, strength
        place = find_bfl_name(layers[0].module)
        self.name = place.name if how.bfl else layers[0].module
        self._parts = place.parts if how.bfl else 1
        scales = {layer.scale for layer in layers}
        self.factor = layers[0].scale * strength if how.alpha and len(scales) == 1 else 1.0
        first = read_array(file, _keys(layers[0]).a)
        # Each its own A: then their ranks stand side by side.
        self._shared = all(
            _keys(layer).a == _keys(layers[0]).a or np.array_equal(read_array(file, _keys(layer).a), first)
            for layer in layers[1:]
        )
        ranks = [layer.rank or 0 for layer in layers]
        self.rank = ranks[0] if self._shared else sum(ranks)

    def pieces(self, *, widened: bool) -> list[Piece]:
        """The tensors of the module."""
        how = self._how
        stem = how.stem(self.name)
        shape_a = (self.rank, self._layers[0].in_features)
        shape_b = (self._parts * self._layers[0].out_features, self.rank)
        type_a, type_b = ("F32", "F32") if widened else (self._type("a"), self._type("b"))
        alpha = np.asarray(self.factor * self.rank, np.float32)
        pieces = [
            Piece(key=f"{stem}.{how.a}.weight", dtype=type_a, shape=shape_a, values=self._stack_a),
            Piece(key=f"{stem}.{how.b}.weight", dtype=type_b, shape=shape_b, values=self._stack_b),
        ]
        return [*pieces, Piece(key=f"{stem}.alpha", dtype="F32", shape=(), values=lambda: alpha)][: 2 + how.alpha]

    def _type(self, side: str) -> str:
        """The widest of its layers' own; a float64 becomes float32, as it does when it is read."""
        types = {self._file.tensors[getattr(_keys(layer), side)].dtype for layer in self._layers}
        return types.pop() if len(types) == 1 and "F64" not in types else "F32"

    def _stack_a(self) -> FloatArray:
        layers = self._layers[:1] if self._shared else self._layers
        return np.concatenate([read_matrix(self._file, _keys(layer).a) for layer in layers])

    def _stack_b(self) -> FloatArray:
        """(parts * out, rank): rows of a part that is not there are zero."""
        out = self._layers[0].out_features
        whole = np.zeros((self._parts * out, self.rank), np.float32)
        column = 0
        for layer in self._layers:
            rank = layer.rank or 0
            row = find_bfl_name(layer.module).part * out if self._parts > 1 else 0
            rest = layer.scale * self._strength / self.factor
            whole[row : row + out, column : column + rank] = self._rows(layer) * np.float32(rest)
            column += 0 if self._shared else rank
        return whole

    def _rows(self, layer: Layer) -> FloatArray:
        """This layer's rows of its B, as diffusers orders them, or BFL where this spelling has BFL's names."""
        rows: FloatArray = np.split(read_matrix(self._file, _keys(layer).b), layer.parts)[layer.part]
        swapped = self._how.bfl and fold(self.name) == BFL_ADALN
        return np.roll(rows, len(rows) // 2, axis=0) if layer.swap_halves != swapped else rows


def _keys(layer: Layer) -> LowRank:
    if not isinstance(layer.factors, LowRank):
        raise TypeError(layer.module)
    return layer.factors


def _write_metadata(
    report: Report, modules: Sequence[_Module], how: Spelling, *, strength: float, title: str
) -> dict[str, str]:
    """What readers of a header look for, the trigger phrase among it, and what the file was made of."""
    kept = {
        key: text
        for key, text in report.file.metadata.items()
        if key.startswith(_KEPT) and not key.startswith(_OLD) and not key.endswith("alpha")
    }
    version, architecture = next(
        (found for name, found in _VERSIONS.items() if name in report.fits), ("flux_2_klein", "Flux.2-klein/lora")
    )
    metadata = {
        "format": "pt",
        "ss_base_model_version": version,
        "modelspec.title": title,
        **kept,
        "modelspec.architecture": architecture,
        ORIGIN: json.dumps({"sha256": report.file.sha256, "strength": strength}),
    }
    if report.trigger_phrase:
        metadata["modelspec.trigger_phrase"] = report.trigger_phrase
    ranks = {module.name: module.rank for module in modules}
    if not modules:
        return metadata  # PEFT's settings of a LoKr are what diffusers finds out from its shapes
    if how.alpha:
        metadata |= {"ss_network_module": "networks.lora_flux_2"} | _name_network(modules)
    elif not how.bfl:
        metadata["lora_adapter_metadata"] = json.dumps(_write_table(ranks))
    return metadata


def _name_network(modules: Sequence[_Module]) -> dict[str, str]:
    """Kohya's note of rank and alpha, where all layers have the same: only the alphas beside the matrices act."""
    pairs = {(module.rank, module.factor * module.rank) for module in modules}
    if len(pairs) != 1:
        return {}
    rank, alpha = pairs.pop()
    return {"ss_network_dim": str(rank), "ss_network_alpha": f"{alpha:.9g}"}


def _write_table(ranks: Mapping[str, int]) -> dict[str, object]:
    """PEFT's settings, with alpha = rank in every layer: PEFT needs patterns where ranks differ."""
    most = max(ranks.values(), key=list(ranks.values()).count)
    others = {name: rank for name, rank in ranks.items() if rank != most}
    table: dict[str, object] = {"r": most, "lora_alpha": most, "target_modules": sorted(ranks), "bias": "none"}
    if others:
        table |= {"rank_pattern": others, "alpha_pattern": others}
    return {f"transformer.{key}": value for key, value in table.items()}
