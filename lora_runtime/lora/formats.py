"""Key spellings as tables: whatever trainer wrote the file, its layers under diffusers' module names.

A key is *prefix* + *module* + *suffix*. Prefixes and suffixes differ by trainer (`SPELLINGS`, `PARTS`), modules by
dialect (BFL's own names or diffusers', dotted or underscored: `MODULES`). Dots and underscores are folded before the
lookup, so one table serves all of them. Adding a spelling is one row.

A layer is a LoRA (B @ A) or a LoKr (kron(w1, w2)). BFL fuses q, k and v into one matrix: a fused layer is split by rows
of its product. alpha/rank, rsLoRA and patterns become one number per layer (`scales.py`).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from lora_runtime.errors import LoraUnreadable, LoraUnsupported
from lora_runtime.lora.file import LoraFile
from lora_runtime.lora.scales import Scales

Part = Literal["A", "B", "alpha", "w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b"]


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
    Spelling(prefix="lycoris_", name="LyCORIS"),
    Spelling(prefix="", name="bare"),
)

_KRONECKER_PARTS: tuple[Part, ...] = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")
_LOW_RANK_PARTS: Mapping[str, Part] = MappingProxyType(
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
PARTS: Mapping[str, Part] = MappingProxyType(
    {
        **_LOW_RANK_PARTS,
        **{f".lokr_{part}": part for part in _KRONECKER_PARTS},
        **{f".lokr_{part}.default": part for part in _KRONECKER_PARTS},
    }
)
"""How keys end, PEFT's `.default` adapter name included."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A kind of adapter that is not rendered: the keys that give it away, its name, and what to do."""

    mark: re.Pattern[str]
    what: str
    remedy: str = "Export it as a plain LoRA or LoKr."


REFUSED = (
    Refused(
        mark=re.compile(r"dora_scale|lora_magnitude_vector"),
        what="a DoRA: its magnitudes make the effect anything but proportional to a strength",
        remedy="Train without DoRA, or extract the trained difference as a plain LoRA.",
    ),
    Refused(mark=re.compile(r"\.hada_"), what="a LoHa"),
    Refused(mark=re.compile(r"\.b?oft_"), what="an OFT adapter"),
    Refused(
        mark=re.compile(r"\.lora_mid\b|\.lokr_t2\b"), what="an adapter of convolutions (Tucker), which klein has not"
    ),
    Refused(mark=re.compile(r"\.(ia3_l|vera_lambda_|glora_|hra_|a1|b1)\b"), what="an adapter that is no LoRA"),
    Refused(
        mark=re.compile(r"\.lora_(B|up)(\.default)?\.bias$"),
        what="a LoRA with biases, which its strength would not reach",
        remedy="Train with lora_bias off.",
    ),
    Refused(
        mark=re.compile(r"\.(diff|diff_b|set_weight|w_norm|b_norm)$"),
        what="a full weight difference, or has one beside its LoRA layers",
        remedy="Extract a LoRA from it, and leave out norms and biases.",
    ),
)

IGNORED = re.compile(r"(base_model\.model\.)?(text_encoders?\.|(lora|lycoris)_te\d?_|te\d?\.|text_encoder_\d\.)")
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
    r"(?P<kind>double_blocks|transformer_blocks|single_blocks|single_transformer_blocks)_(?P<index>[0-9]{1,3})_"
)
_BLOCK_TABLE = {
    "double_blocks": ("double", "transformer_blocks"),
    "transformer_blocks": ("double", "transformer_blocks"),
    "single_blocks": ("single", "single_transformer_blocks"),
    "single_transformer_blocks": ("single", "single_transformer_blocks"),
}


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """B @ A. Keys of the file: `a` (rank, in), `b` (out, rank)."""

    a: str
    b: str


@dataclass(frozen=True, kw_only=True)
class Kronecker:
    """kron(w1, w2). Keys of the file: one for a factor that is stored whole, two whose product it is.

    w1: (p, q) and w2: (m, n) make a (p * m, q * n) matrix.
    """

    w1: tuple[str, ...]
    w2: tuple[str, ...]


Factors: TypeAlias = LowRank | Kronecker


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One adapted diffusers module: delta weight = scale * product of `factors`, (out_features, in_features).

    A fused file feeds several layers from one product: this layer then is part `part` of `parts` equal groups of its
    rows. `swap_halves` exchanges the halves of the rows. `rank` is None for a LoKr of two whole factors.
    """

    module: str
    factors: Factors
    rank: int | None
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
        LoraUnsupported: The file is a DoRA, LoHa, OFT or full difference.
        LoraUnreadable: A layer lacks one of its matrices, or they do not fit each other.
    """
    _refuse_other_kinds(file)
    modules: dict[str, dict[Part, str]] = {}
    own_names: dict[str, str] = {}
    spellings: Counter[str] = Counter()
    unmatched: list[str] = []
    dropped = 0
    for key in sorted(file.tensors):
        if IGNORED.match(key):
            dropped += 1
            continue
        split = _split_key(key)
        if split is None:
            unmatched.append(key)
            continue
        spelling, module, part, own_name = split
        if part in modules.setdefault(module, {}):
            raise LoraUnreadable(
                f"{file.path.name} has two matrices for {own_name}: {modules[module][part]!r} and {key!r}."
            )
        modules[module][part] = key
        own_names[module] = own_name
        spellings[spelling] += 1
    scales = Scales(file)
    layers = [
        layer
        for module, keys in modules.items()
        for layer in _make_layers(file, module, keys, own_names[module], scales)
    ]
    _refuse_twice(file, layers)
    notices = [f"{dropped} text-encoder tensors are left out: only the transformer is adapted."] if dropped else []
    if "PEFT" in spellings and not scales.stated and not any("alpha" in keys for keys in modules.values()):
        notices.append("PEFT keeps alpha in adapter_config.json, which is not here: alpha = rank is assumed.")
    kind = " LoKr" if any(isinstance(layer.factors, Kronecker) for layer in layers) else ""
    return Layers(
        spelling=f"{spellings.most_common(1)[0][0]}{kind}" if spellings else "unknown",
        layers=tuple(sorted(layers, key=lambda layer: layer.module)),
        unmatched=tuple(unmatched),
        notices=tuple(notices),
    )


def _refuse_other_kinds(file: LoraFile) -> None:
    for kind in REFUSED:
        key = next((key for key in sorted(file.tensors) if kind.mark.search(key)), None)
        if key is not None:
            raise LoraUnsupported(f"{file.path.name} is {kind.what} ({key!r}). {kind.remedy}")


def _refuse_twice(file: LoraFile, layers: Sequence[Layer]) -> None:
    """Two spellings of one module in one file: which of them counts, nobody can say."""
    for module, count in Counter(layer.module for layer in layers).items():
        if count > 1:
            raise LoraUnreadable(
                f"{file.path.name} adapts {module} {count} times, under several names. Export it with one spelling."
            )


def _split_key(key: str) -> tuple[str, str, Part, str] | None:
    """`key` -> (spelling, folded module name, part, the file's own module name), or None when no table knows it."""
    suffix = next((suffix for suffix in PARTS if key.endswith(suffix)), None)
    if suffix is None:
        return None
    stem = key.removesuffix(suffix)
    spelling = next(spelling for spelling in SPELLINGS if stem.startswith(spelling.prefix))
    own_name = stem.removeprefix(spelling.prefix)
    folded = _fold(own_name)
    return (spelling.name, folded, PARTS[suffix], own_name) if _targets(folded) else None


def _targets(folded: str) -> tuple[str, ...]:
    """The diffusers modules that a folded name stands for; empty when it is unknown."""
    block = _BLOCK.match(folded)
    if block is None:
        return MODULES["top"].get(folded, ())
    kind, blocks = _BLOCK_TABLE[block["kind"]]
    return tuple(f"{blocks}.{int(block['index'])}.{name}" for name in MODULES[kind].get(folded[block.end() :], ()))


def _make_layers(file: LoraFile, module: str, keys: Mapping[Part, str], own_name: str, scales: Scales) -> list[Layer]:
    """The layers of one module of the file: one, or three where q, k and v are fused."""
    targets = _targets(module)
    if any(part in keys for part in _KRONECKER_PARTS):
        factors, rank, out_features, in_features = _read_kronecker(file, keys, own_name)
    else:
        factors, rank, out_features, in_features = _read_low_rank(file, keys, own_name)
    if out_features % len(targets):
        raise LoraUnreadable(f"{file.path.name}: {own_name} has {out_features} rows, which do not split into q, k, v.")

    def scale(target: str) -> float:
        names = (target, own_name)
        if isinstance(factors, LowRank) and rank is not None:
            return scales.low_rank(names, rank, keys.get("alpha"))
        return scales.kronecker(names, rank, keys.get("alpha"))

    return [
        Layer(
            module=target,
            factors=factors,
            rank=rank,
            scale=scale(target),
            in_features=in_features,
            out_features=out_features // len(targets),
            part=part,
            parts=len(targets),
            swap_halves=module == _BFL_ADALN,
        )
        for part, target in enumerate(targets)
    ]


def _read_low_rank(file: LoraFile, keys: Mapping[Part, str], own_name: str) -> tuple[Factors, int | None, int, int]:
    """-> (factors, rank, out_features, in_features)."""
    if "A" not in keys or "B" not in keys:
        raise _lone(file, keys)
    rank, in_features = _matrix(file, keys["A"])
    out_features, columns = _matrix(file, keys["B"])
    if rank != columns or rank == 0:
        raise LoraUnreadable(
            f"{file.path.name}: the matrices of {own_name} do not fit each other: A is {[rank, in_features]}, B is "
            f"{[out_features, columns]}; A's rows must be B's columns."
        )
    return LowRank(a=keys["A"], b=keys["B"]), rank, out_features, in_features


def _read_kronecker(file: LoraFile, keys: Mapping[Part, str], own_name: str) -> tuple[Factors, int | None, int, int]:
    """-> (factors, rank, out_features, in_features)."""
    if "A" in keys or "B" in keys:
        raise LoraUnreadable(f"{file.path.name}: {own_name} is a LoRA and a LoKr at once. Export it again.")
    w1, w2 = _factor_keys(file, keys, ("w1", "w1_a", "w1_b")), _factor_keys(file, keys, ("w2", "w2_a", "w2_b"))
    (p, q), rank_1 = _factor_shape(file, w1, own_name)
    (m, n), rank_2 = _factor_shape(file, w2, own_name)
    rank = rank_2 if rank_2 is not None else rank_1
    return Kronecker(w1=w1, w2=w2), rank, p * m, q * n


def _factor_keys(file: LoraFile, keys: Mapping[Part, str], parts: tuple[Part, Part, Part]) -> tuple[str, ...]:
    """The keys of one Kronecker factor: whole, or the two whose product it is."""
    whole, left, right = parts
    found = [part for part in parts if part in keys]
    if found not in ([whole], [left, right]):
        raise _lone(file, keys)
    return tuple(keys[part] for part in found)


def _factor_shape(file: LoraFile, keys: tuple[str, ...], own_name: str) -> tuple[tuple[int, int], int | None]:
    """-> ((rows, columns), rank of the product or None)."""
    shapes = [_matrix(file, key) for key in keys]
    if len(shapes) == 1:
        return shapes[0], None
    (rows, rank), (columns_of_rank, columns) = shapes
    if rank != columns_of_rank or rank == 0:
        raise LoraUnreadable(
            f"{file.path.name}: factors of {own_name} do not fit each other: {list(shapes[0])} and {list(shapes[1])}."
        )
    return (rows, columns), rank


def _matrix(file: LoraFile, key: str) -> tuple[int, int]:
    """The shape of a matrix."""
    shape = file.tensors[key].shape
    if len(shape) != 2:
        raise LoraUnreadable(f"{file.path.name}: {key!r} should be a matrix, but has shape {list(shape)}.")
    return shape[0], shape[1]


def _lone(file: LoraFile, keys: Mapping[Part, str]) -> LoraUnreadable:
    lone = next(iter(keys.values()))
    return LoraUnreadable(f"{file.path.name} has {lone!r} without its partner matrix. Export it again.")
