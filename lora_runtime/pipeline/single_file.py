"""BFL's single files: the transformer alone, under BFL's names, in BF16 or FP8.

Their FP8 files keep one scale per tensor (`weight_scale`, a number) and one per input (`input_scale`). diffusers'
loader expects a scale per row, and fails on the number when it splits the fused q, k and v; so the number is repeated
for every row first. The input's scale is left out: activations are scaled per token, which needs no calibration.
Source: the layout of FLUX.2-klein-4b-fp8; diffusers/quantizers/bfl/bfl_quantizer.py.
"""

import json
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import BFLQuantizationConfig, Flux2Transformer2DModel
from safetensors import SafetensorError, safe_open

from lora_runtime.errors import Unavailable

_MARK: Final = "single_stream_modulation.lin.weight"
"""A name that every FLUX.2 transformer of BFL's has, and nothing else does."""

_FORMAT: Final = "float8_e4m3fn"

_TOP: Final = (
    "img_in", "txt_in", "time_in.in_layer", "time_in.out_layer", "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.lin", "single_stream_modulation.lin", "final_layer.linear",
    "final_layer.adaLN_modulation.1",
)  # fmt: skip
_NORMS: Final = ("norm.query_norm.scale", "norm.key_norm.scale")
_ATTENTION: Final = ("qkv.weight", "proj.weight", *_NORMS)
_DOUBLE: Final = (
    *(f"{stream}_attn.{name}" for stream in ("img", "txt") for name in _ATTENTION),
    *(f"{stream}_mlp.{index}.weight" for stream in ("img", "txt") for index in (0, 2)),
)
_SINGLE: Final = ("linear1.weight", "linear2.weight", *_NORMS)


def load_transformer(path: Path, folder: Path, dtype: torch.dtype) -> Any:
    """Load BFL's file at `path` with the config of `folder/transformer`; FP8 stays FP8, the rest becomes `dtype`.

    Raises:
        Unavailable: The file is damaged, not whole, or holds something else.
    """
    state = _read(path)
    _require_whole(set(state), path, folder)
    fp8 = any(key.endswith(".weight_scale") for key in state)
    if fp8:
        state = _scale_per_row(state)
    try:
        transformer: Any = Flux2Transformer2DModel.from_single_file(
            state,
            config=str(folder),
            subfolder="transformer",
            torch_dtype=dtype,
            quantization_config=BFLQuantizationConfig(compute_dtype=dtype) if fp8 else None,
            local_files_only=True,
        )
    except (ValueError, KeyError, RuntimeError, IndexError) as error:
        raise Unavailable(f"{path} does not fit the model of {folder}: {error}. Put the right file there.") from error
    return transformer


def _require_whole(names: set[str], path: Path, folder: Path) -> None:
    """Every tensor of a model with the blocks of `folder`'s config must be there, and none beside them."""
    config = Flux2Transformer2DModel.load_config(str(folder), subfolder="transformer", local_files_only=True)
    expected = {f"{name}.weight" for name in _TOP}
    expected |= {f"double_blocks.{i}.{name}" for i in range(config["num_layers"]) for name in _DOUBLE}
    expected |= {f"single_blocks.{i}.{name}" for i in range(config["num_single_layers"]) for name in _SINGLE}
    missing = sorted(expected - names)
    foreign = sorted(name for name in names - expected if not name.endswith(("weight_scale", "input_scale")))
    if missing:
        raise Unavailable(
            f"{path} is not whole: {len(missing)} of {len(expected)} tensors are missing, for example {missing[0]}. "
            "Download it again."
        )
    if foreign:
        raise Unavailable(
            f"{path} does not fit the model of {folder}: it has {len(foreign)} tensors more, for example {foreign[0]}. "
            "Put the right file there."
        )


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The file's tensors, mapped from the disk and not copied."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            metadata = file.metadata() or {}
            if _MARK not in names:
                raise Unavailable(f"{path} is no FLUX.2 transformer in BFL's names. Put the right file there.")
            formats = _list_formats(metadata, path)
            if formats - {_FORMAT}:
                raise Unavailable(
                    f"{path} holds {', '.join(sorted(formats))} weights, which do not run here. Choose the fp8 file."
                )
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise Unavailable(f"{path} is damaged: {error}. Download it again.") from error


def _list_formats(metadata: dict[str, str], path: Path) -> set[str]:
    """The number formats of the quantised layers, as the header tells them."""
    text = metadata.get("_quantization_metadata")
    if text is None:
        return set()
    try:
        return {layer["format"] for layer in json.loads(text)["layers"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unavailable(
            f"{path} is damaged: its _quantization_metadata cannot be read. Download it again."
        ) from error


def _scale_per_row(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    changed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".weight_scale") and tensor.ndim == 0:
            rows = state[name.removesuffix("_scale")].shape[0]
            changed[name] = tensor.float().repeat(rows)
        elif not name.endswith(".input_scale"):
            changed[name] = tensor
    return changed
