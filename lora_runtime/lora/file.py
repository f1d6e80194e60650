"""Read the header of a safetensors file: keys, shapes, metadata, digest. No torch, and no trust.

The format is an 8-byte little-endian header length, a JSON header, then the raw tensors. The header is checked before
anything is allocated: sizes, types, ranges and overlaps. A damaged or foreign file ends in a sentence that names it.
Source: https://github.com/huggingface/safetensors#format

PEFT keeps alpha in an adapter_config.json beside the matrices. Such a pair is read as the one file that it becomes with
the settings in its header: that is what is hashed, and what `copy_file` writes.
"""

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lora_runtime.errors import LoraUnreadable, NotFound

MAX_HEADER_BYTES = 100_000_000
"""The bound that the safetensors library itself keeps."""

DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOAT_DTYPES: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Types a LoRA matrix may have, and numpy's name for their bytes."""

ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's settings: a file beside the matrices, or that file's text under this key of the metadata."""
ADAPTER_FILE = "adapter_model.safetensors"
"""PEFT's name for the matrices."""
_MAX_CONFIG_BYTES = 1_000_000
_MAX_DIMENSIONS = 8

FloatArray: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A tensor of the file: its type and shape, and its bytes `start` to `end` after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """What the header says, and the SHA-256 of the whole file, settings folded in."""

    path: Path
    sha256: str
    size_bytes: int
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def read_file(path: Path) -> LoraFile:
    """Read and verify the header of `path`, and hash the file.

    Raises:
        NotFound: There is no such file.
        LoraUnreadable: It is not a safetensors file, or it is damaged.
    """
    if not path.is_file():
        raise NotFound(f"There is no file {path}.")
    size = path.stat().st_size
    with path.open("rb") as file:
        raw = _read_header_bytes(file.read(8), file, path=path, size=size)
        header = _parse_header(raw, path)
        metadata = _read_metadata(header.get("__metadata__", {}), path)
        tensors = {key: _read_tensor(key, entry, path) for key, entry in header.items() if key != "__metadata__"}
        _check_layout(tensors, size - 8 - len(raw), path)
        settings = _read_settings(path)
        digest = hashlib.sha256(_encode_head(header, metadata | settings) if settings else _frame(raw))
        hashlib.file_digest(file, lambda: digest)
    return LoraFile(
        path=path, sha256=digest.hexdigest(), size_bytes=size, tensors=tensors, metadata=metadata | settings
    )


def copy_file(path: Path, target: Path) -> None:
    """Write `path`, a file that `read_file` takes, as one file: an adapter_config.json goes into its header."""
    settings = _read_settings(path)
    if not settings:
        shutil.copyfile(path, target)
        return
    with path.open("rb") as file, target.open("wb") as out:
        raw = _read_header_bytes(file.read(8), file, path=path, size=path.stat().st_size)
        header = _parse_header(raw, path)
        out.write(_encode_head(header, _read_metadata(header.get("__metadata__", {}), path) | settings))
        shutil.copyfileobj(file, out)


def find_config(path: Path) -> Path | None:
    """Return the adapter_config.json that belongs to `path`, if any.

    It does when `path` has PEFT's own name, or is alone in its folder.
    """
    config = path.parent / ADAPTER_CONFIG
    if not config.is_file():
        return None
    alone = path.name == ADAPTER_FILE or sum(1 for _ in path.parent.glob("*.safetensors")) == 1
    return config if alone else None


def read_array(file: LoraFile, key: str) -> FloatArray:
    """Return a tensor's values as float32, without torch (numpy knows no bf16: it is the upper half of a float32).

    Raises:
        LoraUnreadable: The tensor is not of a float type.
    """
    info = file.tensors[key]
    if info.dtype not in FLOAT_DTYPES:
        raise LoraUnreadable(
            f"{file.path.name}: {key!r} has type {info.dtype}; LoRA matrices are bf16, fp16 or fp32. Export it again."
        )
    with file.path.open("rb") as handle:
        header_bytes = int.from_bytes(handle.read(8), "little")
        handle.seek(8 + header_bytes + info.start)
        raw = handle.read(info.end - info.start)
    if info.dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").reshape(info.shape)
    return np.frombuffer(raw, FLOAT_DTYPES[info.dtype]).astype(np.float32).reshape(info.shape)


def _read_header_bytes(prefix: bytes, file: Any, *, path: Path, size: int) -> bytes:
    length = int.from_bytes(prefix, "little")
    if len(prefix) == 8 and 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
        return bytes(file.read(length))
    # Only now: a header of 128 bytes begins with the same byte as a pickle.
    if prefix[:2] == b"PK" or prefix[:1] == b"\x80":
        kind = "a zip archive" if prefix[:2] == b"PK" else "a Python pickle"
        raise LoraUnreadable(
            f"{path.name} is {kind}, not a safetensors file. Such files can run code when opened, so they are "
            "refused. Convert it with the tool that made it, or download the .safetensors version."
        )
    raise LoraUnreadable(
        f"{path.name} is not a safetensors file, or it was cut off: its first 8 bytes announce a header of "
        f"{length} bytes and the file has {size}. Download or export it again."
    )


def _read_settings(path: Path) -> dict[str, str]:
    """adapter_config.json as metadata: its text, and the base model that it names."""
    config = find_config(path)
    if config is None:
        return {}
    if config.stat().st_size > _MAX_CONFIG_BYTES:
        raise LoraUnreadable(f"{config} is larger than 1 MB, so it is not what PEFT writes. Remove it.")
    try:
        text = config.read_text("utf-8")
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoraUnreadable(f"{config} is not JSON: {error}. Export the adapter again.") from error
    if not isinstance(values, dict):
        raise LoraUnreadable(f"{config} is not a JSON object. Export the adapter again.")
    base = values.get("base_model_name_or_path")
    return {ADAPTER_CONFIG: text} | ({"base_model": base} if isinstance(base, str) else {})


def _encode_head(header: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """The length and header of a safetensors file, padded to 8 bytes as the format asks."""
    raw = json.dumps(dict(header) | {"__metadata__": metadata}, separators=(",", ":"), sort_keys=True).encode()
    return _frame(raw + b" " * (-len(raw) % 8))


def _frame(raw: bytes) -> bytes:
    return len(raw).to_bytes(8, "little") + raw


def _parse_header(raw: bytes, path: Path) -> dict[str, Any]:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise LoraUnreadable(f"{path.name} names {twice!r} twice in its header. Export it again.")
        return result

    try:
        header = json.loads(raw, object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise LoraUnreadable(f"The header of {path.name} is not JSON: {error}. Download or export it again.") from error
    if not isinstance(header, dict):
        raise LoraUnreadable(f"The header of {path.name} is not a JSON object. Download or export it again.")
    return header


def _read_metadata(entry: Any, path: Path) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise LoraUnreadable(f"The metadata of {path.name} is not a table of texts. Export it again.")
    return entry


def _read_tensor(key: str, entry: Any, path: Path) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise LoraUnreadable(f"{path.name}: the entry of {key!r} has no dtype, shape and offsets. Export it again.")
    if dtype not in DTYPE_BYTES:
        raise LoraUnreadable(f"{path.name}: {key!r} has the unknown type {dtype!r}. Export it as bf16, fp16 or fp32.")
    sides = [side for side in shape if isinstance(side, int) and not isinstance(side, bool) and side >= 0]
    if len(sides) != len(shape) or len(shape) > _MAX_DIMENSIONS:
        raise LoraUnreadable(f"{path.name}: {key!r} has the impossible shape {shape[:9]}. Export it again.")
    if not 0 <= start <= end or end - start != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise LoraUnreadable(
            f"{path.name}: {key!r} claims {end - start} bytes for shape {shape} of {dtype}. The file is damaged."
        )
    return TensorInfo(dtype=dtype, shape=tuple(shape), start=start, end=end)


def _check_layout(tensors: Mapping[str, TensorInfo], data_bytes: int, path: Path) -> None:
    """Tensors must fill the data part without gap or overlap, as the format demands."""
    position = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != position:
            kind = "overlaps the one before it" if tensor.start < position else "leaves a gap before it"
            raise LoraUnreadable(f"{path.name}: {key!r} {kind}. The file is damaged.")
        position = tensor.end
    if position != data_bytes:
        raise LoraUnreadable(
            f"{path.name} has {data_bytes} bytes of tensors where its header describes {position}. "
            "It was cut off or damaged: download it again."
        )
