"""Read the header of a safetensors file: keys, shapes, metadata, digest. No torch, and no trust.

The format is an 8-byte little-endian header length, a JSON header, then the raw tensors. The header is checked before
anything is allocated: sizes, types, ranges and overlaps. A damaged or foreign file ends in a sentence that names it.
What the safetensors library would not load later is refused here: Python's JSON takes more than its own.
Source: https://github.com/huggingface/safetensors#format

PEFT keeps alpha in an adapter_config.json beside the matrices. Such a pair is read as the one file that it becomes with
the settings in its header, and one adapter of several as the file that it becomes alone: that is what is hashed, and
what `copy_file` writes.
"""

import contextlib
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from lora_runtime.errors import LoraUnreadable, NotFound
from lora_runtime.lora.other_files import HEAD_BYTES, tell_other_file
from lora_runtime.written import quote, shorten

MAX_HEADER_BYTES = 16 * 1024**2
"""Headers of real files stay below 10 MB, a trainer's whole vocabulary of captions included."""
MAX_TENSORS = 20_000
"""A LoKr on every layer of FLUX.2 [dev] has 2,000; whoever writes more has written no LoRA."""
MAX_NAMES = 1_000_000
"""Characters of all names together: five times those of such a LoKr."""

DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOAT_DTYPES: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Types a LoRA matrix may have, and numpy's name for their bytes."""
NUMBER_DTYPES: Mapping[str, str] = {
    **FLOAT_DTYPES,
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1",
}  # fmt: skip
"""Types a single number such as alpha may have."""

ENDINGS = (".safetensors", ".safetensor", ".sft")
"""How the names of such files end, in any case; files of our own end in the first."""

ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's settings: a file beside the matrices, or that file's text under this key of the metadata."""
ADAPTER_FILE = "adapter_model.safetensors"
"""PEFT's name for the matrices."""
_MAX_CONFIG_BYTES = 1_000_000
_MAX_DIMENSIONS = 8
_MAX_SIDE = 1 << 48
_MAX_KEY = 256
_CHUNK_BYTES = 1 << 20

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
    """What the header says, and the SHA-256 of the whole file, settings folded in.

    `verbatim`: the bytes on the disk are the file; else it has another header, and only the tensors that are here.
    """

    path: Path
    sha256: str
    size_bytes: int
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    verbatim: bool = True

    @property
    def name(self) -> str:
        """What to call it in a sentence."""
        return shorten(self.path.name)


def read_file(path: Path) -> LoraFile:
    """Read and verify the header of `path`, and hash the file.

    Raises:
        NotFound: There is no such file.
        LoraUnreadable: It is not a safetensors file, or it is damaged.
    """
    if not path.is_file():
        raise NotFound(f"There is no file {shorten(str(path), 200)}.")
    name, size = shorten(path.name), path.stat().st_size
    with _open(path) as handle:
        head = handle.read(HEAD_BYTES)
        handle.seek(0)
        raw = _read_header_bytes(handle.read(8), handle, head=head, name=name, size=size)
    header = _parse_header(raw, name)
    metadata = _read_metadata(header.get("__metadata__", {}), name)
    if sum(map(len, header)) > MAX_NAMES:
        raise LoraUnreadable(f"{name} has more than {MAX_NAMES} characters of names. Export it with shorter ones.")
    tensors = {key: _read_tensor(key, entry, name) for key, entry in header.items() if key != "__metadata__"}
    _check_layout(tensors, size - 8 - len(raw), name)
    _ask_the_library(path, name)
    settings = _read_settings(path)
    file = LoraFile(
        path=path,
        sha256="",
        size_bytes=size,
        tensors=tensors,
        metadata=metadata | settings,
        verbatim=not settings,
    )
    return _hashed(file)


def keep_tensors(file: LoraFile, keys: Collection[str]) -> LoraFile:
    """Return the file that `file` becomes with the tensors `keys` alone."""
    kept = {key: tensor for key, tensor in file.tensors.items() if key in keys}
    return _hashed(replace(file, tensors=kept, verbatim=False))


def copy_file(file: LoraFile, target: Path) -> None:
    """Write `file` as one file; its SHA-256 is that of `file`."""
    with target.open("wb") as out:
        for piece in stream_file(file):
            out.write(piece)


def stream_file(file: LoraFile) -> Iterator[bytes]:
    """Yield the bytes of the file, piece by piece."""
    if file.verbatim:
        with _open(file.path) as handle:
            while chunk := handle.read(_CHUNK_BYTES):
                yield chunk
        return
    tensors = sorted(file.tensors.items(), key=lambda item: (item[1].start, item[1].end))
    yield _encode_head(tensors, file.metadata)
    for _, info in tensors:
        yield from _read_bytes(file, info)


def encode_array(array: FloatArray, dtype: str) -> bytes:
    """Return the values as bytes of a float type of the format, each rounded to the nearest, ties to even."""
    if dtype == "BF16":  # the upper half of a float32
        bits = np.ascontiguousarray(array, "<f4").view("<u4")
        rounded: bytes = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
        return rounded
    with np.errstate(over="ignore", under="ignore"):  # told later: what is read back is compared
        return array.astype(FLOAT_DTYPES[dtype]).tobytes()


def write_file(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], values: Iterator[bytes], metadata: Mapping[str, str]
) -> None:
    """Write a file of `tensors`, key -> (type, shape), whose bytes come in the same order, and sync it to the disk."""
    position, infos = 0, []
    for key, (dtype, shape) in tensors.items():
        end = position + math.prod(shape) * DTYPE_BYTES[dtype]
        infos.append((key, TensorInfo(dtype=dtype, shape=shape, start=position, end=end)))
        position = end
    with path.open("wb") as out:
        out.write(_encode_head(infos, metadata))
        for piece in values:
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())


def has_ending(name: str) -> bool:
    """Whether a file of this name says that it is safetensors; `.SAFETENSORS` and `.sft` do."""
    return name.lower().endswith(ENDINGS)


def list_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, by name."""
    return sorted(path for path in folder.glob("*") if has_ending(path.name))


def find_config(path: Path) -> Path | None:
    """Return the adapter_config.json that belongs to `path`, if any.

    It does when `path` has PEFT's own name, or is alone in its folder.
    """
    config = path.parent / ADAPTER_CONFIG
    if not config.is_file():
        return None
    alone = path.name == ADAPTER_FILE or len(list_files(path.parent)) == 1
    return config if alone else None


def read_array(file: LoraFile, key: str) -> FloatArray:
    """Return a tensor's values as float32, without torch.

    Raises:
        LoraUnreadable: The tensor is not of a float type.
    """
    info = file.tensors[key]
    if info.dtype not in FLOAT_DTYPES:
        raise LoraUnreadable(
            f"{file.name}: {quote(key)} has type {info.dtype}; LoRA matrices are bf16, fp16 or fp32. Export it again."
        )
    with np.errstate(over="ignore"):  # what a float32 cannot hold becomes infinity, which is told later
        array: FloatArray = _read_values(file, info).astype(np.float32)
    return array


def read_number(file: LoraFile, key: str) -> float:
    """Return the one number of a tensor of any numeric type, however many dimensions it has.

    Raises:
        LoraUnreadable: It holds more than one number, none, or one that is not finite.
    """
    info = file.tensors[key]
    if math.prod(info.shape) != 1 or info.dtype not in NUMBER_DTYPES:
        raise LoraUnreadable(
            f"{file.name}: {quote(key)} should be one number, but has shape {list(info.shape)} and type {info.dtype}. "
            "Export it again."
        )
    number = float(_read_values(file, info).item())
    if not math.isfinite(number):
        raise LoraUnreadable(f"{file.name}: {quote(key)} is {number}. Export the LoRA again.")
    return number


def is_zero(file: LoraFile, key: str) -> bool:
    """Whether a tensor holds nothing but zeros, in whatever type."""
    info = file.tensors[key]
    if info.dtype in NUMBER_DTYPES:
        return not _read_values(file, info).any()
    return not any(b"".join(_read_bytes(file, info)))


def _read_values(file: LoraFile, info: TensorInfo) -> Any:
    """A tensor in numpy's own type for it (numpy knows no bf16: it is the upper half of a float32)."""
    raw = np.frombuffer(b"".join(_read_bytes(file, info)), NUMBER_DTYPES[info.dtype])
    if info.dtype == "BF16":
        raw = (raw.astype("<u4") << 16).view("<f4")
    return raw.reshape(info.shape)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """A file to read; what the disk says against it becomes a sentence."""
    try:
        with path.open("rb") as handle:
            yield handle
    except OSError as error:
        raise LoraUnreadable(f"{shorten(path.name)} could not be read: {error.strerror}. Choose it again.") from error


def _read_bytes(file: LoraFile, info: TensorInfo) -> Iterator[bytes]:
    with _open(file.path) as handle:
        header_bytes = int.from_bytes(handle.read(8), "little")
        handle.seek(8 + header_bytes + info.start)
        left = info.end - info.start
        while left and (chunk := handle.read(min(left, _CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk


def _hashed(file: LoraFile) -> LoraFile:
    digest, size_bytes = hashlib.sha256(), 0
    for piece in stream_file(file):
        digest.update(piece)
        size_bytes += len(piece)
    return replace(file, sha256=digest.hexdigest(), size_bytes=size_bytes)


def _encode_head(tensors: Sequence[tuple[str, TensorInfo]], metadata: Mapping[str, str]) -> bytes:
    """The length and header of a file of these tensors in this order, padded to 8 bytes as the format asks."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for key, info in tensors:
        end = position + info.end - info.start
        header[key] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    padded = raw + b" " * (-len(raw) % 8)
    return len(padded).to_bytes(8, "little") + padded


def _read_header_bytes(prefix: bytes, file: BinaryIO, *, head: bytes, name: str, size: int) -> bytes:
    length = int.from_bytes(prefix, "little")
    if len(prefix) == 8 and 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
        raw = file.read(length)
        # Its length first: a header of 128 bytes begins with the same byte as a pickle.
        if raw[:1] == b"{" or tell_other_file(head, size) is None:
            return raw
    other = tell_other_file(head, size)
    if other is not None:
        raise LoraUnreadable(f"{name} {other}")
    if MAX_HEADER_BYTES < length <= size - 8:
        raise LoraUnreadable(
            f"{name} has a header of {length} bytes; at most {MAX_HEADER_BYTES} are taken. Export it with less of it."
        )
    raise LoraUnreadable(
        f"{name} is not a safetensors file, or it was cut off: its first 8 bytes announce a header of "
        f"{length} bytes and the file has {size}. Download or export it again."
    )


def _read_settings(path: Path) -> dict[str, str]:
    """adapter_config.json as metadata: its text, and the base model that it names."""
    config = find_config(path)
    if config is None:
        return {}
    shown = shorten(str(config), 200)
    if config.stat().st_size > _MAX_CONFIG_BYTES:
        raise LoraUnreadable(f"{shown} is larger than 1 MB, so it is not what PEFT writes. Remove it.")
    try:
        text = config.read_text("utf-8")
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoraUnreadable(f"{shown} is not JSON{_tell_place(error)}. Export the adapter again.") from error
    if not isinstance(values, dict):
        raise LoraUnreadable(f"{shown} is not a JSON object. Export the adapter again.")
    base = values.get("base_model_name_or_path")
    return {ADAPTER_CONFIG: text} | ({"base_model": base} if isinstance(base, str) else {})


def _parse_header(raw: bytes, name: str) -> dict[str, Any]:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise LoraUnreadable(f"{name} names {quote(twice)} twice in its header. Export it again.")
        return result

    if raw.count(b'"data_offsets"') > MAX_TENSORS:
        raise LoraUnreadable(f"{name} has more than {MAX_TENSORS} tensors, so it is no LoRA. Choose another file.")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise LoraUnreadable(
            f"The header of {name} is not JSON{_tell_place(error)}. Download or export it again."
        ) from error
    if not isinstance(header, dict):
        raise LoraUnreadable(f"The header of {name} is not a JSON object. Download or export it again.")
    return header


def _tell_place(error: Exception) -> str:
    """Where a text stops being JSON, as far as that is known."""
    return f" from character {error.pos} on" if isinstance(error, json.JSONDecodeError) else ""


def _read_metadata(entry: Any, name: str) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise LoraUnreadable(f"The metadata of {name} is not a table of texts. Export it again.")
    return entry


def _read_tensor(key: str, entry: Any, name: str) -> TensorInfo:
    if len(key) > _MAX_KEY:
        raise LoraUnreadable(f"{name}: {quote(key)} is a name of {len(key)} characters. Export it again.")
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]} if not (
            isinstance(start, bool) or isinstance(end, bool)
        ):
            pass
        case _:
            raise LoraUnreadable(f"{name}: the entry of {quote(key)} has no dtype, shape and offsets. Export it again.")
    if dtype not in DTYPE_BYTES:
        raise LoraUnreadable(
            f"{name}: {quote(key)} has the unknown type {quote(dtype)}. Export it as bf16, fp16 or fp32."
        )
    sides = [side for side in shape if isinstance(side, int) and not isinstance(side, bool) and 0 <= side < _MAX_SIDE]
    if len(sides) != len(shape) or len(shape) > _MAX_DIMENSIONS:
        raise LoraUnreadable(
            f"{name}: {quote(key)} has the impossible shape {shorten(str(shape[:9]))}. Export it again."
        )
    if not 0 <= start <= end or end - start != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise LoraUnreadable(
            f"{name}: {quote(key)} claims the bytes {quote(start, 24)} to {quote(end, 24)} for shape "
            f"{shorten(str(shape))} of {dtype}. The file is damaged: download it again."
        )
    return TensorInfo(dtype=dtype, shape=tuple(shape), start=start, end=end)


def _check_layout(tensors: Mapping[str, TensorInfo], data_bytes: int, name: str) -> None:
    """Tensors must fill the data part without gap or overlap, as the format demands."""
    position = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != position:
            kind = "overlaps the one before it" if tensor.start < position else "leaves a gap before it"
            raise LoraUnreadable(f"{name}: {quote(key)} {kind}. The file is damaged: download it again.")
        position = tensor.end
    if position != data_bytes:
        raise LoraUnreadable(
            f"{name} has {data_bytes} bytes of tensors where its header describes {position}. "
            "It was cut off or damaged: download it again."
        )


def _ask_the_library(path: Path, name: str) -> None:
    """What is listed must load: the library that will read the tensors has the last word on the header."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError, UnicodeError) as error:
        raise LoraUnreadable(
            f"{name}: the safetensors library does not take its header. Download it again, or export it with a current "
            "version of that library."
        ) from error
