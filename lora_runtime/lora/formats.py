"""The layers of a file, whatever trainer wrote it, under diffusers' module names.

`names.py` reads the keys and `contents.py` sorts them; here the matrices of a module become a layer. A layer is a LoRA
(B @ A) or a LoKr (kron(w1, w2)). BFL fuses q, k and v into one matrix: a fused layer is split by rows of its product.
alpha/rank, rsLoRA and patterns become one number per layer (`scales.py`).
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lora_runtime.errors import LoraUnreadable, LoraUnsupported
from lora_runtime.lora.contents import Contents, Module, group_modules, refuse_doubles
from lora_runtime.lora.file import LoraFile
from lora_runtime.lora.module_names import BFL_ADALN, DEFAULT, Part, name_spelling
from lora_runtime.lora.scales import Scales
from lora_runtime.written import quote, shorten

_KRONECKER_PARTS: tuple[Part, ...] = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")


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
    Refused(mark=re.compile(r"[._]hada_"), what="a LoHa"),
    Refused(mark=re.compile(r"[._]b?oft_"), what="an OFT adapter"),
    Refused(
        mark=re.compile(r"[._]lora_mid\b|[._]lokr_t[12]\b"),
        what="an adapter of convolutions (Tucker), which klein has not",
    ),
    Refused(mark=re.compile(r"\.(ia3_l|vera_lambda_|glora_|hra_|a1|b1)\b"), what="an adapter that is no LoRA"),
    Refused(
        mark=re.compile(r"[._]lora[._](A|B|up|down)(\.[^.]+)?\.bias$"),
        what="a LoRA with biases, which its strength would not reach",
        remedy="Train with lora_bias off.",
    ),
    Refused(
        mark=re.compile(r"[._](diff|diff_b|set_weight|w_norm|b_norm)$|[._]modules_to_save[._]"),
        what="a full weight difference, or has one beside its LoRA layers",
        remedy="Extract a LoRA from it, and leave out norms and biases.",
    ),
    Refused(
        mark=re.compile(r"[._]scalar$"),
        what="a LyCORIS adapter with a trained factor beside its matrices, which some tools apply and others do not",
        remedy="Save it with a current LyCORIS, which multiplies it in.",
    ),
)


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


def read_layers(file: LoraFile, contents: Contents) -> Layers:
    """Make layers of the one adapter of a file.

    Raises:
        LoraUnsupported: The file is a DoRA, LoHa, OFT or full difference.
        LoraUnreadable: A layer lacks one of its matrices, or they do not fit each other.
    """
    _refuse_other_kinds(file, contents)
    refuse_doubles(file, contents)
    modules = group_modules(contents)
    scales = Scales(file)
    layers = [layer for module in modules for layer in _make_layers(file, module, scales)]
    _refuse_twice(file, layers)
    named = any(name.adapter not in (DEFAULT, None) for name in contents.names.values())
    spellings = Counter(name_spelling(name.place.wrapper, named=named) for name in contents.names.values())
    has_alphas = any("alpha" in module.parts for module in modules)
    notices = [*contents.notices, *scales.notices(has_alphas=has_alphas)]
    if "PEFT" in spellings and not scales.stated and not has_alphas:
        notices.append("PEFT keeps alpha in adapter_config.json, which is not here: alpha = rank is assumed.")
    kind = " LoKr" if any(isinstance(layer.factors, Kronecker) for layer in layers) else ""
    return Layers(
        spelling=shorten(f"{spellings.most_common(1)[0][0]}{kind}") if spellings else "unknown",
        layers=tuple(sorted(layers, key=lambda layer: layer.module)),
        unmatched=contents.unmatched,
        notices=tuple(notices),
    )


def measure(file: LoraFile, module: Module) -> tuple[int, int] | None:
    """Return (out, in) of a module as its matrices have it; None when they make no layer."""
    try:
        return _read_factors(file, module)[2:]
    except LoraUnreadable:
        return None


def _refuse_other_kinds(file: LoraFile, contents: Contents) -> None:
    for kind in REFUSED:
        key = next((key for key in contents.unmatched if kind.mark.search(key)), None)
        if key is not None:
            raise LoraUnsupported(f"{file.name} is {kind.what} ({quote(key)}). {kind.remedy}")


def _refuse_twice(file: LoraFile, layers: Sequence[Layer]) -> None:
    """Two spellings of one module in one file: which of them counts, nobody can say."""
    for module, count in Counter(layer.module for layer in layers).items():
        if count > 1:
            raise LoraUnreadable(
                f"{file.name} adapts {module} {count} times, under several names. Export it with one spelling."
            )


def _make_layers(file: LoraFile, module: Module, scales: Scales) -> list[Layer]:
    """The layers of one module of the file: one, or three where q, k and v are fused."""
    targets, own_name = module.place.targets, module.place.own
    factors, rank, out_features, in_features = _read_factors(file, module)
    if out_features % len(targets):
        raise LoraUnreadable(
            f"{file.name}: {shorten(own_name)} has {out_features} rows, which do not split into q, k and v. Export it "
            "again."
        )
    alpha = module.parts.get("alpha")

    def scale(target: str) -> float:
        names = (target, own_name)
        if isinstance(factors, LowRank) and rank is not None:
            return scales.low_rank(names, rank, alpha)
        return scales.kronecker(names, rank, alpha)

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
            swap_halves=module.place.module == BFL_ADALN,
        )
        for part, target in enumerate(targets)
    ]


def _read_factors(file: LoraFile, module: Module) -> tuple[Factors, int | None, int, int]:
    """-> (factors, rank, out_features, in_features)."""
    if any(part in module.parts for part in _KRONECKER_PARTS):
        return _read_kronecker(file, module.parts, module.place.own)
    return _read_low_rank(file, module.parts, module.place.own)


def _read_low_rank(file: LoraFile, keys: Mapping[Part, str], own_name: str) -> tuple[Factors, int | None, int, int]:
    """-> (factors, rank, out_features, in_features)."""
    if "A" not in keys or "B" not in keys:
        raise _lone(file, keys)
    rank, in_features = _matrix(file, keys["A"])
    out_features, columns = _matrix(file, keys["B"])
    if rank != columns or rank == 0:
        raise LoraUnreadable(
            f"{file.name}: the matrices of {shorten(own_name)} do not fit each other: A is {[rank, in_features]}, B is "
            f"{[out_features, columns]}; A's rows must be B's columns."
        )
    return LowRank(a=keys["A"], b=keys["B"]), rank, out_features, in_features


def _read_kronecker(file: LoraFile, keys: Mapping[Part, str], own_name: str) -> tuple[Factors, int | None, int, int]:
    """-> (factors, rank, out_features, in_features)."""
    if "A" in keys or "B" in keys:
        raise LoraUnreadable(f"{file.name}: {shorten(own_name)} is a LoRA and a LoKr at once. Export it again.")
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
            f"{file.name}: factors of {shorten(own_name)} do not fit each other: {list(shapes[0])} and "
            f"{list(shapes[1])}. Export it again."
        )
    return (rows, columns), rank


def _matrix(file: LoraFile, key: str) -> tuple[int, int]:
    """The shape of a matrix; a 1x1 convolution is one too."""
    shape = file.tensors[key].shape
    if len(shape) < 2 or math.prod(shape[2:]) != 1:
        raise LoraUnreadable(
            f"{file.name}: {quote(key)} should be a matrix, but has shape {list(shape)}. Export it again."
        )
    return shape[0], shape[1]


def _lone(file: LoraFile, keys: Mapping[Part, str]) -> LoraUnreadable:
    lone = next(iter(keys.values()))
    return LoraUnreadable(f"{file.name} has {quote(lone)} without its partner matrix. Export it again.")
