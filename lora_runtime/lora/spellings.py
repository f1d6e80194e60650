"""How others write a LoRA: the names of its keys, a tensor to write, and what plain diffusers makes of a spelling.

diffusers' reader of kohya's names has no modulation in its table: it drops those layers with a line in a log. Its
reader of BFL's names takes the halves of the last adaLN as diffusers has them, though BFL has them the other way round.
Source: diffusers loaders/lora_conversion_utils.py, `_convert_kohya_flux2_lora_to_diffusers`,
`_convert_non_diffusers_flux2_lora_to_diffusers` and the same of LoKr.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from lora_runtime.errors import InvalidInput
from lora_runtime.lora.file import FloatArray, encode_array
from lora_runtime.lora.formats import Layer, LowRank
from lora_runtime.written import count_of, list_some

_MODULATION: Final = frozenset(
    {
        "double_stream_modulation_img.linear",
        "double_stream_modulation_txt.linear",
        "single_stream_modulation.linear",
        "norm_out.linear",
    }
)


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """How a trainer writes a layer: what stands before the module, whose names it has, and its two matrices.

    With an `alpha` beside them it is kohya's, where the module's dots are underscores.
    """

    wrapper: str
    bfl: bool
    a: str
    b: str
    alpha: bool = False

    def stem(self, module: str) -> str:
        """Return what a key of the module begins with."""
        return f"{self.wrapper}{module.replace('.', '_') if self.alpha else module}"


SPELLINGS: Final[Mapping[str, Spelling]] = MappingProxyType(
    {
        "diffusers": Spelling(wrapper="transformer.", bfl=False, a="lora_A", b="lora_B"),
        "ai-toolkit": Spelling(wrapper="diffusion_model.", bfl=True, a="lora_A", b="lora_B"),
        "kohya": Spelling(wrapper="lora_unet_", bfl=True, a="lora_down", b="lora_up", alpha=True),
    }
)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A tensor to write. `values` are read when it is its turn: a file may be larger than memory is free."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    values: Callable[[], FloatArray]


def find_spelling(name: str) -> Spelling:
    """Return the spelling of that name.

    Raises:
        InvalidInput: There is none.
    """
    if name not in SPELLINGS:
        raise InvalidInput(f"Spelling: {name!r} is none that is written. Choose {', '.join(SPELLINGS)}.")
    return SPELLINGS[name]


def encode_pieces(pieces: Sequence[Piece]) -> Iterator[bytes]:
    """Yield the bytes of tensors, one after the other."""
    for piece in pieces:
        yield encode_array(piece.values(), piece.dtype)


def warn_diffusers(layers: Sequence[Layer]) -> tuple[str, ...]:
    """Return what plain diffusers does not read of these layers as they are meant, in a sentence; nothing for most."""
    lost = [layer.module for layer in layers if _is_kohya(layer) and layer.module in _MODULATION]
    turned = [layer.module for layer in layers if layer.swap_halves and _find_key(layer).startswith("diffusion_model.")]
    said = []
    if lost:
        said.append(
            f"Plain diffusers leaves {count_of(len(lost), 'layer')} of this file out, {list_some(lost)}: its reader of "
            "kohya's names does not know the modulation. For diffusers, export it as diffusers."
        )
    if turned:
        said.append(
            f"Plain diffusers reads {list_some(turned)} of this file with its halves exchanged, as it does not know "
            "BFL's order of them. For diffusers, export it as diffusers."
        )
    return tuple(said)


def _is_kohya(layer: Layer) -> bool:
    return _find_key(layer).startswith("lora_unet_") and isinstance(layer.factors, LowRank)


def _find_key(layer: Layer) -> str:
    return layer.factors.a if isinstance(layer.factors, LowRank) else layer.factors.w1[0]
