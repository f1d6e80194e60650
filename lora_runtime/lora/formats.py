"""Key spellings as tables: whatever trainer wrote the file, its layers under diffusers' module names.

A key is *prefix* + *module* + *suffix*. Prefixes and suffixes differ by trainer (`SPELLINGS`, `PARTS`), modules by
dialect (BFL's own names or diffusers', dotted or underscored: `MODULES`). Dots and underscores are folded before the
lookup, so one table serves all of them. Adding a spelling is one row.

BFL fuses q, k and v into one matrix. A fused LoRA is split by rows of B; A serves all three.
alpha/rank, rsLoRA and alpha patterns become one number per layer, `Layer.scale`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from lora_runtime.errors import LoraUnreadable, LoraUnsupported
from lora_runtime.lora.file import LoraFile, read_array

Part = Literal["A", "B", "alpha"]


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """How a family of trainers begins its keys."""

    prefix: str
    name: str


SPELLINGS = (  # the first prefix that fits wins, so longer ones stand first
    Spelling(prefix="base_model.model.transformer.", name="PEFT"),
    Spelling(prefix="base_model.model.", name="PEFT"),
    Spelling(prefix="diffusion_model.", name="BFL / AI-Toolkit"),
    Spelling(prefix="model.diffusion_model.", name="BFL / AI-Toolkit"),
    Spelling(prefix="transformer.", name="diffusers / PEFT"),
    Spelling(prefix="lora_transformer_", name="OneTrainer"),
    Spelling(prefix="lora_unet_", name="kohya"),
    Spelling(prefix="", name="bare"),
)

PARTS: Mapping[str, Part] = MappingProxyType(
    {
        ".lora_A.weight": "A",
        ".lora_B.weight": "B",
        ".lora_A.default.weight": "A",
        ".lora_B.default.weight": "B",
        ".lora_down.weight": "A",
        ".lora_up.weight": "B",
        ".alpha": "alpha",
    }
)

REFUSED: Mapping[str, str] = MappingProxyType(  # part of the key -> what it is
    {
        "dora_scale": "a DoRA, whose magnitudes do not scale with a strength",
        "lora_magnitude_vector": "a DoRA, whose magnitudes do not scale with a strength",
        "hada_": "a LoHa",
        "lokr_": "a LoKr",
        "oft_": "an OFT adapter",
        ".diff": "a full weight difference",
        "lora_mid": "a Tucker-decomposed LoRA",
    }
)

IGNORED_PREFIXES = ("text_encoder.", "text_encoders.", "lora_te_", "lora_te1_", "lora_te2_")
"""Klein's text encoder is never adapted here; such layers are dropped with a notice."""

_DOUBLE: Mapping[str, tuple[str, ...]] = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
_SINGLE: Mapping[str, tuple[str, ...]] = {
    "linear1": ("attn.to_qkv_mlp_proj",),
    "linear2": ("attn.to_out",),
}
_TOP: Mapping[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
    "double_stream_modulation_img.lin": ("double_stream_modulation_img.linear",),
    "double_stream_modulation_txt.lin": ("double_stream_modulation_txt.linear",),
    "single_stream_modulation.lin": ("single_stream_modulation.linear",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_BFL_ADALN = "final_layer_adaLN_modulation_1"
"""BFL stores shift before scale, diffusers scale before shift: the halves of B change places."""


def _fold(name: str) -> str:
    return name.replace(".", "_")


def _table(names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Both dialects, folded, to diffusers' names."""
    return {_fold(bfl): targets for bfl, targets in names.items()} | {
        _fold(target): (target,) for targets in names.values() for target in targets
    }


MODULES = MappingProxyType({"double": _table(_DOUBLE), "single": _table(_SINGLE), "top": _table(_TOP)})

_BLOCK = re.compile(
    r"(?P<kind>double_blocks|transformer_blocks|single_blocks|single_transformer_blocks)_(?P<index>\d+)_"
)
_BLOCK_TABLE = {
    "double_blocks": ("double", "transformer_blocks"),
    "transformer_blocks": ("double", "transformer_blocks"),
    "single_blocks": ("single", "single_transformer_blocks"),
    "single_transformer_blocks": ("single", "single_transformer_blocks"),
}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One LoRA layer of one diffusers module: delta weight = scale * B @ A.

    `key_a`: (rank, in) and `key_b`: (out, rank) are the file's keys. A fused file feeds several layers from one pair:
    this layer then is part `part` of `parts` equal groups of B's rows. `swap_halves` exchanges the halves of B's rows.
    """

    module: str
    key_a: str
    key_b: str
    rank: int
    scale: float
    in_features: int
    out_features: int
    part: int = 0
    parts: int = 1
    swap_halves: bool = False


@dataclass(frozen=True, kw_only=True)
class Layers:
    """A file as understood: its layers, the keys nothing could be made of, and what was left out on purpose."""

    spelling: str
    layers: tuple[Layer, ...]
    unmatched: tuple[str, ...]
    notices: tuple[str, ...]


def read_layers(file: LoraFile) -> Layers:
    """Understand the keys of `file`.

    Raises:
        LoraUnsupported: The file is a DoRA, LoHa, LoKr, OFT or full difference.
        LoraUnreadable: A layer has only one of its two matrices, or their ranks differ.
    """
    _refuse_other_kinds(file)
    pairs: dict[str, dict[Part, str]] = {}
    spellings: list[str] = []
    unmatched: list[str] = []
    dropped = 0
    for key in sorted(file.tensors):
        if key.startswith(IGNORED_PREFIXES):
            dropped += 1
            continue
        split = _split_key(key)
        if split is None:
            unmatched.append(key)
            continue
        spelling, module, part = split
        if part in pairs.setdefault(module, {}):
            raise LoraUnreadable(
                f"{file.path.name} has two matrices for {module}: {pairs[module][part]!r} and {key!r}."
            )
        pairs[module][part] = key
        spellings.append(spelling)
    scales = _Scales(file.metadata)
    layers = [layer for module, keys in pairs.items() for layer in _make_layers(file, module, keys, scales)]
    notices = [f"{dropped} text-encoder tensors are left out: only the transformer is adapted."] if dropped else []
    return Layers(
        spelling=max(set(spellings), key=spellings.count) if spellings else "unknown",
        layers=tuple(sorted(layers, key=lambda layer: layer.module)),
        unmatched=tuple(unmatched),
        notices=tuple(notices),
    )


def _refuse_other_kinds(file: LoraFile) -> None:
    for key in file.tensors:
        for mark, what in REFUSED.items():
            if mark in key:
                raise LoraUnsupported(
                    f"{file.path.name} is {what} ({key!r}). Only plain LoRA layers can be rendered at several "
                    "strengths in one batch. Export it as a plain LoRA."
                )


def _split_key(key: str) -> tuple[str, str, Part] | None:
    """`key` -> (spelling, folded module name, part), or None when no table knows it."""
    suffix = next((suffix for suffix in PARTS if key.endswith(suffix)), None)
    if suffix is None:
        return None
    stem = key.removesuffix(suffix)
    spelling = next(spelling for spelling in SPELLINGS if stem.startswith(spelling.prefix))
    folded = _fold(stem.removeprefix(spelling.prefix))
    return (spelling.name, folded, PARTS[suffix]) if _targets(folded) else None


def _targets(folded: str) -> tuple[str, ...]:
    """The diffusers modules that a folded name stands for; empty when it is unknown."""
    block = _BLOCK.match(folded)
    if block is None:
        return MODULES["top"].get(folded, ())
    kind, blocks = _BLOCK_TABLE[block["kind"]]
    return tuple(f"{blocks}.{int(block['index'])}.{name}" for name in MODULES[kind].get(folded[block.end() :], ()))


def _make_layers(file: LoraFile, module: str, keys: Mapping[Part, str], scales: "_Scales") -> list[Layer]:
    if "A" not in keys or "B" not in keys:
        lone = next(iter(keys.values()))
        raise LoraUnreadable(f"{file.path.name} has {lone!r} without its partner matrix. Export it again.")
    shape_a, shape_b = (file.tensors[keys[part]].shape for part in ("A", "B"))
    if len(shape_a) != 2 or len(shape_b) != 2 or shape_a[0] != shape_b[1] or shape_a[0] == 0:
        raise LoraUnreadable(
            f"{file.path.name}: the matrices of {module} do not fit each other: A is {list(shape_a)}, B is "
            f"{list(shape_b)}; A's rows must be B's columns."
        )
    targets = _targets(module)
    rank, out_features = shape_a[0], shape_b[0]
    if out_features % len(targets):
        raise LoraUnreadable(
            f"{file.path.name}: {keys['B']!r} has {out_features} rows, which do not split into q, k, v."
        )
    alpha = _read_alpha(file, keys["alpha"]) if "alpha" in keys else None
    return [
        Layer(
            module=target,
            key_a=keys["A"],
            key_b=keys["B"],
            rank=rank,
            scale=scales.scale(target, rank) if alpha is None else alpha / rank,
            in_features=shape_a[1],
            out_features=out_features // len(targets),
            part=part,
            parts=len(targets),
            swap_halves=module == _BFL_ADALN,
        )
        for part, target in enumerate(targets)
    ]


def _read_alpha(file: LoraFile, key: str) -> float:
    """The one number of an `.alpha` tensor."""
    array = read_array(file, key)
    if array.size != 1:
        raise LoraUnreadable(f"{file.path.name}: {key!r} should be one number, but has shape {list(array.shape)}.")
    return float(array.item())


class _Scales:
    """alpha/rank as the file's metadata states it (diffusers' `lora_adapter_metadata`); 1 when it says nothing."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        try:
            config: Any = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        except ValueError as error:
            raise LoraUnreadable(f"The file's lora_adapter_metadata is not JSON: {error}.") from error
        if not isinstance(config, dict):
            raise LoraUnreadable("The file's lora_adapter_metadata is not a JSON object.")
        self._config = {key.removeprefix("transformer."): value for key, value in config.items()}

    def scale(self, module: str, rank: int) -> float:
        alpha = self._pattern("alpha_pattern", module, self._config.get("lora_alpha"))
        if alpha is None:
            return 1.0
        return float(alpha) / (rank**0.5 if self._config.get("use_rslora") else rank)

    def _pattern(self, name: str, module: str, default: float | None) -> float | None:
        """PEFT's rule: a pattern is a regular expression that must match the end of the module's name."""
        patterns: Mapping[str, float] = self._config.get(name) or {}
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return default
