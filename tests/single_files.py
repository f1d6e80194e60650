"""BFL's single files of a transformer, written from a diffusers folder: names, fused q k v, and FP8 as BFL lays it out.

Independent of the code under test: the inverse of the published conversion, block by block.
Source: github.com/black-forest-labs/flux2 (names); the header of FLUX.2-klein-4b-fp8 (FP8).
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

TOP = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "proj_out": "final_layer.linear",
}
DOUBLE = {
    "img_attn.proj.weight": "attn.to_out.0.weight",
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "img_mlp.0.weight": "ff.linear_in.weight",
    "img_mlp.2.weight": "ff.linear_out.weight",
    "txt_attn.proj.weight": "attn.to_add_out.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
    "txt_mlp.0.weight": "ff_context.linear_in.weight",
    "txt_mlp.2.weight": "ff_context.linear_out.weight",
}
FUSED = {
    "img_attn.qkv.weight": ("attn.to_q.weight", "attn.to_k.weight", "attn.to_v.weight"),
    "txt_attn.qkv.weight": ("attn.add_q_proj.weight", "attn.add_k_proj.weight", "attn.add_v_proj.weight"),
}
SINGLE = {
    "linear1.weight": "attn.to_qkv_mlp_proj.weight",
    "linear2.weight": "attn.to_out.weight",
    "norm.query_norm.scale": "attn.norm_q.weight",
    "norm.key_norm.scale": "attn.norm_k.weight",
}


def read_transformer(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a diffusers folder's transformer."""
    state: dict[str, torch.Tensor] = {}
    for path in sorted((folder / "transformer").glob("*.safetensors")):
        state |= load_file(path)
    return state


def rename(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' names to BFL's; q, k, v become one matrix, and the output's shift and scale change places."""
    state = dict(state)
    named = {f"{theirs}.weight": state.pop(f"{ours}.weight") for ours, theirs in TOP.items()}
    scale, shift = state.pop("norm_out.linear.weight").chunk(2)
    named["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
    for key in sorted({key.split(".")[1] for key in state if key.startswith("transformer_blocks.")}):
        for theirs, ours in DOUBLE.items():
            named[f"double_blocks.{key}.{theirs}"] = state.pop(f"transformer_blocks.{key}.{ours}")
        for theirs, three in FUSED.items():
            parts = [state.pop(f"transformer_blocks.{key}.{ours}") for ours in three]
            named[f"double_blocks.{key}.{theirs}"] = torch.cat(parts)
    for key in sorted({key.split(".")[1] for key in state}):
        for theirs, ours in SINGLE.items():
            named[f"single_blocks.{key}.{theirs}"] = state.pop(f"single_transformer_blocks.{key}.{ours}")
    assert not state, f"tensors without a BFL name: {sorted(state)}"
    return {key: tensor.contiguous() for key, tensor in named.items()}


def write_bf16(path: Path, folder: Path) -> Path:
    """`flux-2-klein-….safetensors` of the transformer in `folder`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(rename(read_transformer(folder)), path)
    return path


def write_fp8(path: Path, folder: Path, *, format_name: str = "float8_e4m3fn") -> Path:
    """`flux-2-klein-…-fp8.safetensors`: linear layers of the blocks in FP8 with one scale a tensor and one an input."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layers, state = {}, {}
    for key, tensor in rename(read_transformer(folder)).items():
        if not key.startswith(("double_blocks.", "single_blocks.")) or tensor.ndim < 2:
            state[key] = tensor
            continue
        layer = key.removesuffix(".weight")
        scale = tensor.float().abs().max() / torch.finfo(torch.float8_e4m3fn).max
        state[key] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        state[f"{layer}.weight_scale"] = scale
        state[f"{layer}.input_scale"] = torch.tensor(0.5)
        layers[layer] = {"format": format_name}
    save_file(state, path, metadata={"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})})
    return path


def round_state(folder: Path) -> dict[str, torch.Tensor]:
    """What `write_fp8` keeps of the weights, in diffusers' names and BF16: the other way to the same numbers."""
    state = read_transformer(folder)
    fused = list(FUSED.values())
    for key, tensor in list(state.items()):
        if "transformer_blocks." not in key or tensor.ndim < 2:
            continue
        together = [tensor]
        block, _, name = key.partition(".attn.") if ".attn." in key else (key, "", "")
        for three in fused:
            if f"attn.{name}" in three and key.startswith("transformer_blocks."):
                together = [state[f"{block}.{other}"] for other in three]
        scale = max(part.float().abs().max() for part in together) / 448
        state[key] = tensor
        state[f"scale of {key}"] = scale
    scales = {key.removeprefix("scale of "): state.pop(key) for key in list(state) if key.startswith("scale of ")}
    for key, scale in scales.items():
        rounded = (state[key].float() / scale).to(torch.float8_e4m3fn)
        state[key] = (rounded.float() * scale).to(torch.bfloat16)
    return state
