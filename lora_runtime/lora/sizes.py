"""How large each module of a FLUX.2 transformer is: what tells one base model's LoRA from another's."""

from collections.abc import Mapping

from lora_runtime.catalogue import Shape

ATTENTION: Mapping[str, tuple[int, int]] = dict.fromkeys(
    ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
     "attn.to_add_out"), (1, 1)
)  # fmt: skip
"""The attention of a double block: module tail -> (out, in) in multiples of the hidden width."""

_H_SHAPES: Mapping[str, tuple[int, int]] = {
    **ATTENTION,
    "ff.linear_in": (6, 1),
    "ff.linear_out": (1, 3),
    "ff_context.linear_in": (6, 1),
    "ff_context.linear_out": (1, 3),
    "attn.to_qkv_mlp_proj": (9, 1),
    "attn.to_out": (1, 4),
    "double_stream_modulation_img.linear": (6, 1),
    "double_stream_modulation_txt.linear": (6, 1),
    "single_stream_modulation.linear": (3, 1),
    "norm_out.linear": (2, 1),
    "time_guidance_embed.timestep_embedder.linear_2": (1, 1),
}


def find_size(module: str, shape: Shape) -> tuple[int, int] | None:
    """Return (out, in) of a diffusers module in a transformer of `shape`; None when it has no such module."""
    h = shape.hidden
    tops = {
        "x_embedder": (h, shape.latent),
        "context_embedder": (h, shape.text),
        "proj_out": (shape.latent, h),
        "time_guidance_embed.timestep_embedder.linear_1": (h, 256),
    }
    if module in tops:
        return tops[module]
    blocks, _, rest = module.partition(".")
    if blocks in ("transformer_blocks", "single_transformer_blocks"):
        index, _, tail = rest.partition(".")
        count = shape.double_blocks if blocks == "transformer_blocks" else shape.single_blocks
        if int(index) >= count:
            return None
    else:
        tail = module
    out, in_ = _H_SHAPES[tail]
    return out * h, in_ * h
