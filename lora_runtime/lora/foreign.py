"""Which other model a file is for, by what only that model has: names of modules, and their sizes.

A misfit is never called another model: one is named only where more of the file is that model's alone than is klein's
alone. What both have (attention of one width under one name) says nothing.
Source: the transformers of diffusers and ComfyUI, and the trainers' own names for them.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lora_runtime.catalogue import WEIGHTS, Shape
from lora_runtime.lora.contents import Contents, Module
from lora_runtime.lora.file import LoraFile
from lora_runtime.lora.formats import measure
from lora_runtime.lora.module_names import Place, read_stem
from lora_runtime.lora.sizes import ATTENTION, find_size

_Size = tuple[int, int]


def _names(text: str) -> re.Pattern[str]:
    """Marks in which `_` stands for a dot as well, and `~` for an underscore alone."""
    return re.compile(text.replace("_", "[._]").replace("~", "_"))


_NEVER = _names("(?!)")


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """Another model, and its marks.

    `own`: names of modules that no other model has. `shared`: that several have and klein has not, which count where a
    matrix has one of the `widths`. `tails`: modules that are called as klein's, as (out, in) in multiples of the first
    width, in `blocks` (double, single); `shape`: the same where it is another FLUX.2.
    """

    name: str
    own: re.Pattern[str] = _NEVER
    shared: re.Pattern[str] = _NEVER
    widths: tuple[int, ...] = ()
    tails: Mapping[str, _Size] = field(default_factory=dict)
    blocks: tuple[int, int] = (0, 0)
    shape: Shape | None = None


_FLUX1_NAMES = _names(
    r"(img|txt)_mod_lin|single_blocks_\d+_modulation_lin|vector_in|norm1(_context)?_linear|time_text_embed|guidance_in"
    r"|single_transformer_blocks_\d+_(norm_linear|proj_mlp|proj_out|attn_to_[qkv])$"
    r"|(?<!single_)transformer_blocks_\d+_ff(_context)?_net|processor_(qkv|proj)_lora"
)
_FLUX1_TAILS: Mapping[str, _Size] = {
    **ATTENTION, "attn.to_qkv_mlp_proj": (7, 1), "attn.to_out": (1, 5), "ff.linear_in": (4, 1),
    "ff_context.linear_in": (4, 1), "ff.linear_out": (1, 4), "ff_context.linear_out": (1, 4),
}  # fmt: skip
"""Under BFL's names, which are klein's too: its MLP is no SwiGLU."""
_FLUX1 = Foreign(
    name="FLUX.1",
    own=_names(
        r"processor_(qkv|proj)_lora|vector_in|time_text_embed|(img|txt)_mod_lin$|single_blocks_\d+_modulation_lin$"
    ),
    shared=_FLUX1_NAMES,
    widths=(3072,),
    tails=_FLUX1_TAILS,
    blocks=(19, 38),
)
_UNET = _names(r"(down|up|input|output)_blocks_\d+|mid_block|middle_block")

FOREIGN = (  # of two that fit alike the first is named
    Foreign(
        name="FLUX.2 [dev]",
        own=_names("time_guidance_embed_guidance_embedder"),
        shared=_names("guidance_in"),
        widths=(6144,),
        shape=Shape(hidden=6144, text=15360, latent=128, double_blocks=8, single_blocks=48),
    ),
    Foreign(
        name="FLUX.3 [klein]",
        own=_names(
            r"mode_blocks|single_transformer_blocks_\d+_attn_to_out_0|early_stream_modulations|x_embedders"
            r"|single_blocks_\d+_([qkv]_proj|attn_out|mlp_in|mlp_out)"
        ),
        shared=_names(
            r"single_transformer_blocks_([01]?\d|2[0-7])_(attn_to_[qkv]$|ff_linear)|single_stream_modulations"
        ),
        widths=(3072,),
    ),
    _FLUX1,
    replace(_FLUX1, name="Chroma", own=_names("distilled_guidance_layer")),
    Foreign(
        name="Qwen-Image",
        own=_names(r"(img|txt)_mod_1$|transformer_blocks_\d+_(img|txt)_mlp_net"),
        widths=(3072,),
        tails=ATTENTION,
        blocks=(60, 0),
    ),
    Foreign(
        name="Z-Image",
        own=_names(r"layers_\d+_(attention_|feed_forward_|adaln_modulation)|(noise|context)_refiner|cap_embedder"),
    ),
    Foreign(name="ERNIE-Image", own=_names(r"layers_\d+_self_attention_")),
    Foreign(name="Stable Diffusion (1.5 or SDXL)", shared=_UNET),
    Foreign(
        name="SDXL",
        own=_names(
            r"attentions_\d+_transformer_blocks_[1-9]|(put_blocks_\d+|middle_block)_1_transformer_blocks_[1-9]"
            "|add_embedding"
        ),
        shared=_UNET,
    ),
    Foreign(
        name="Stable Diffusion 3",
        own=_names("joint_blocks"),
        shared=_names(r"(?<!single_)transformer_blocks_\d+_(attn_|ff_net|ff_context_net|norm1)"),
        widths=(1536, 2432),
    ),
    Foreign(name="Cosmos or Anima", own=_names(r"blocks_\d+_((self|cross)_attn_\w+_proj|adaln_modulation)")),
    Foreign(
        name="Wan", own=_names(r"blocks_\d+_((self|cross)_attn_[qkvo]$|ffn_)|(?<!transformer~)blocks_\d+_attn[12]_to")
    ),
    Foreign(
        name="HunyuanVideo",
        own=_names(r"double_blocks_\d+_(img|txt)_(attn_[qkv]$|mlp_fc)|individual_token_refiner"),
    ),
    Foreign(name="HiDream", own=_names("(double|single)_stream_blocks")),
    Foreign(name="LTX-Video or PixArt", own=_names(r"(?<!\d_)transformer~blocks_\d+_attn[12]_")),
)


def find_foreign(file: LoraFile, contents: Contents, modules: Sequence[Module]) -> str | None:
    """Return the model, other than klein, that a file of these `modules` is for; None when that cannot be told."""
    sizes = {module.place.module: (module.place, _size(file, module)) for module in modules}
    klein = {name for name, (place, size) in sizes.items() if _is_klein(place, size)}
    stems = _list_stems(file, contents, klein)
    best: tuple[bool, int] = (False, 0)
    found = None
    for model in FOREIGN:
        its = {name for name, (place, size) in sizes.items() if _has(model, place.targets[0], size)}
        marked = {stem for stem, sides in stems.items() if _is_marked(model, stem, sides)}
        alone = len(marked | (its - klein))
        score = (any(model.own.search(stem) for stem in stems), alone)
        if alone > len(klein - its) and alone >= len(klein) and score > best:
            best, found = score, model.name
    return found


def _size(file: LoraFile, module: Module) -> _Size | None:
    """(out, in) of each diffusers module that a module of the file stands for."""
    size = measure(file, module)
    return None if size is None else (size[0] // len(module.place.targets), size[1])


def _is_klein(place: Place, size: _Size | None) -> bool:
    return any(find_size(place.targets[0], weights.shape) == size for weights in WEIGHTS.values() if size is not None)


def _list_stems(file: LoraFile, contents: Contents, klein: Collection[str]) -> dict[str, set[int]]:
    """What the file adapts and klein has not: folded names, with the sides of their tensors."""
    stems: dict[str, set[int]] = {}
    for key in contents.unmatched:
        stems.setdefault(read_stem(key), set()).update(file.tensors[key].shape)
    for key, name in contents.names.items():
        if name.place.module not in klein:
            stems.setdefault(name.place.module, set()).update(file.tensors[key].shape)
    return stems


def _is_marked(model: Foreign, stem: str, sides: Collection[int]) -> bool:
    if model.own.search(stem):
        return True
    fits = not model.widths or any(width in sides for width in model.widths)
    return fits and model.shared.search(stem) is not None


def _has(model: Foreign, target: str, size: _Size | None) -> bool:
    """Whether the model has a module that is called as this one of klein, of this size."""
    if size is None:
        return False
    if model.shape is not None:
        return find_size(target, model.shape) == size
    blocks, _, rest = target.partition(".")
    index, _, tail = rest.partition(".")
    if tail not in model.tails or "blocks" not in blocks:
        return False
    (out, in_), width = model.tails[tail], model.widths[0]
    count = model.blocks[0 if blocks == "transformer_blocks" else 1]
    return int(index) < count and size == (out * width, in_ * width)
