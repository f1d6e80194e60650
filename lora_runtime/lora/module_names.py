"""What a key of a file says: which module of the transformer, which part of its layer, of which adapter.

A key is *wrapper* + *module* + *part*. Only the module is looked up, in BFL's own names and in diffusers', with dots
and underscores folded (`MODULES`). What stands in front of it is whatever the training code put there (`pipe.dit.`,
`base_model.model.`, `lora_unet__`): any words that name no other part of a pipeline. What stands inside it comes from
torch's own wrappers (`_orig_mod`, `module`). A part may carry the name that PEFT gave the adapter.

So a new spelling of a trainer needs no line here; a module's further name is one row of a table.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

Part: TypeAlias = Literal["A", "B", "alpha", "w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b"]

DEFAULT = "default"
"""PEFT's name of an adapter that nobody named."""

_SEPARATOR = r"[._]+"
_ADAPTER = r"(?:\.(?P<adapter>(?!bias$|weight$)[^.]+?))??"
_PARTS = tuple(
    re.compile(mark)
    for mark in (
        rf"[._]lora(?:_linear_layer|_layer)?[._](?P<side>A|B|a|b|down|up){_ADAPTER}(?:[._]weight)?$",
        rf"[._]lokr_(?P<factor>w[12](?:_[ab])?){_ADAPTER}(?:\.weight)?$",
        rf"[._](?:lora_|network_)?(?P<alpha>alpha){_ADAPTER}$",
    )
)
_SIDES: Mapping[str, Part] = {"A": "A", "a": "A", "down": "A", "B": "B", "b": "B", "up": "B"}

_TORCH_WRAPPER = re.compile(
    r"(?<![A-Za-z0-9])_?(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module|flat_module|module|base_layer)"
    r"(?=[._]|$)[._]*"
)
"""Source: torch.compile (`_orig_mod`), DDP and DataParallel (`module`), FSDP, activation checkpointing, PEFT."""

TEXT_ENCODER = re.compile(
    r"(?:^|[._])(?:te\d?|prior_te|text_encoders?|text_model|text_projection|cond_stage_model|conditioner|clip(?:_[lgh])?"
    r"|t5(?:xxl)?|umt5|llm|language_model|qwen\d?(?:_?vl|_?\d+b)*|mistral\d*|gemma\d*|llama\d*|bundle_emb)[._]"
    r"|(?:^|[._])(?:layers[._]\d+[._](?:self_attn|mlp[._](?:gate|up|down)_proj|input_layernorm|post_attention)"
    r"|encoder[._](?:layers|block)[._]\d+|embed_tokens|lm_head)"
)
"""Keys of a text encoder, by the words that lead to it or by the insides of Qwen3, CLIP and T5."""

_OTHER_PART = re.compile(
    r"(?:^|[._])(?:vae|first_stage_model|controlnet|control|encoder|decoder|discriminator|critic|image_proj|ip_adapter"
    r"|vision|audio|transformer_?\d+|blocks|layers|attentions)(?=[._]|$)"
)
"""Words in front of a module's name that make it a module of something else."""

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
_FURTHER: Mapping[str, tuple[str, ...]] = {
    "attn.to_qkv": _DOUBLE["img_attn.qkv"],  # diffusers, q, k and v fused
    "attn.to_added_qkv": _DOUBLE["txt_attn.qkv"],
    "attn.to_out": _DOUBLE["img_attn.proj"],  # MLX has no list of one layer
    **{  # OneTrainer's names for the thirds of BFL's fused layers
        f"{stream}_attn.qkv.{index}": (name,)
        for stream in ("img", "txt")
        for index, name in enumerate(_DOUBLE[f"{stream}_attn.qkv"])
    },
}
"""Further names in double blocks."""


def fold(name: str) -> str:
    """Return `name` in lower case with one underscore between its words."""
    return re.sub(_SEPARATOR, "_", name).strip("_").lower()


BFL_ADALN = fold("final_layer.adaLN_modulation.1")
"""BFL stores shift before scale, diffusers scale before shift: the halves of B change places."""


def _table(names: Mapping[str, tuple[str, ...]], **further: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Both dialects, folded, to diffusers' names."""
    return (
        {fold(bfl): targets for bfl, targets in (*names.items(), *further.items())}
        | {fold(target): (target,) for targets in names.values() for target in targets}
    )  # fmt: skip


MODULES = MappingProxyType({"double": _table(_DOUBLE, **_FURTHER), "single": _table(_SINGLE), "top": _table(_TOP)})

_BLOCK = re.compile(
    rf"(?P<kind>single_transformer_blocks|transformer_blocks|double_blocks|single_blocks){_SEPARATOR}"
    rf"(?P<index>[0-9]{{1,3}}){_SEPARATOR}(?P<tail>.+)"
)
_BLOCK_TABLE = {
    "double_blocks": ("double", "transformer_blocks"),
    "transformer_blocks": ("double", "transformer_blocks"),
    "single_blocks": ("single", "single_transformer_blocks"),
    "single_transformer_blocks": ("single", "single_transformer_blocks"),
}
_TOP_NAME = re.compile(
    "(?:" + "|".join(_SEPARATOR.join(map(re.escape, name.split("_"))) for name in MODULES["top"]) + ")$", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A module of the transformer: folded, as diffusers' `targets`, and as the file writes it (`own`, its wrapper)."""

    module: str
    targets: tuple[str, ...]
    own: str
    wrapper: str


@dataclass(frozen=True, kw_only=True)
class Name:
    """What a key says. `adapter` is None where it belongs to every adapter of its module: an alpha without a name."""

    place: Place
    part: Part
    adapter: str | None


def read_name(key: str) -> Name | None:
    """Return what a key says; None when it is no part of a layer of the transformer."""
    found = _find_part(key)
    place = None if found is None else find_place(key[: found.start()])
    if found is None or place is None:
        return None
    part, named = _read_part(found), found["adapter"]
    return Name(place=place, part=part, adapter=named or (None if part == "alpha" else DEFAULT))


def read_stem(key: str) -> str:
    """Return the name of whatever a key is a part of, its wrapper included, in lower case with single separators."""
    found = _find_part(key)
    stem = key[: found.start()] if found is not None else key.rpartition(".")[0] or key
    return re.sub(r"([._])[._]+", r"\1", _TORCH_WRAPPER.sub("", stem)).strip("._").lower()


def find_place(stem: str) -> Place | None:
    """Return the module that a stem names; None when it names none of the transformer."""
    stem = _TORCH_WRAPPER.sub("", stem).rstrip("._")
    block = _BLOCK.search(stem)
    if block is not None:
        kind, blocks = _BLOCK_TABLE[block["kind"]]
        names = MODULES[kind].get(fold(block["tail"]), ())
        start, targets = block.start(), tuple(f"{blocks}.{int(block['index'])}.{name}" for name in names)
    else:
        top = _TOP_NAME.search(stem)
        start, targets = (0, ()) if top is None else (top.start(), MODULES["top"][fold(top[0])])
    dotted = block is None or stem[block.end("kind")] == "."
    if not targets or not _is_wrapper(stem[:start], dotted=dotted):
        return None
    return Place(module=fold(stem[start:]), targets=targets, own=stem[start:], wrapper=stem[:start].strip("._"))


@dataclass(frozen=True, kw_only=True)
class BflName:
    """What BFL calls a diffusers module: part `part` of the `parts` equal groups of rows of the module `name`."""

    name: str
    part: int
    parts: int


def find_bfl_name(target: str) -> BflName:
    """Return what BFL calls a module of a layer; the reverse of `find_place`."""
    blocks, index, tail = (*target.split(".", 2), "", "")[:3] if "blocks." in target else ("", "", target)
    names, prefix = {
        "transformer_blocks": (_DOUBLE, f"double_blocks.{index}."),
        "single_transformer_blocks": (_SINGLE, f"single_blocks.{index}."),
    }.get(blocks, (_TOP, ""))
    return next(
        BflName(name=f"{prefix}{bfl}", part=targets.index(tail), parts=len(targets))
        for bfl, targets in names.items()
        if tail in targets
    )


def name_spelling(wrapper: str, *, named: bool) -> str:
    """Return whose spelling a wrapper is, for a person; `named` says that PEFT's adapter name stands in the keys."""
    for mark, name in _SPELLINGS:
        if fold(wrapper).startswith(mark):
            return name
    return "PEFT" if named and not wrapper else wrapper or "bare"


_SPELLINGS = (
    ("base_model_model", "PEFT"),
    ("diffusion_model", "BFL / AI-Toolkit"),
    ("model_diffusion_model", "BFL / AI-Toolkit"),
    ("transformer", "diffusers / PEFT"),
    ("lora_transformer", "OneTrainer"),
    ("lora_unet", "kohya"),
    ("lycoris", "LyCORIS"),
)


def _find_part(key: str) -> re.Match[str] | None:
    return next((found for mark in _PARTS if (found := mark.search(key))), None)


def _read_part(found: re.Match[str]) -> Part:
    groups = found.groupdict()
    if groups.get("side"):
        return _SIDES[groups["side"]]
    return groups.get("factor") or "alpha"  # type: ignore[return-value]  # the pattern lists the parts


def _is_wrapper(text: str, *, dotted: bool) -> bool:
    """Whether `text` may stand in front of a module's name, which is written with dots or not.

    Source: kohya writes lora_<component>_<module>; everybody else nests modules, and then a dot ends each name.
    """
    last = text.rpartition(".")[2]
    if text and not text.endswith((".", "_")):
        return False
    if dotted and last and not re.match(r"(lora|lycoris)_|_+$", last):
        return False
    return _OTHER_PART.search(text) is None
