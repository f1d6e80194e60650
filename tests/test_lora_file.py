"""The header reader against files that lie."""

import contextlib
import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lora_runtime.catalogue import POCKET
from lora_runtime.errors import LoraError, LoraUnreadable, NotFound
from lora_runtime.lora.check import check_file
from lora_runtime.lora.file import read_file
from tests.lora_files import make_lokr, write_lokr


def write_raw(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(start: int, end: int, *, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(2, 3), "y": torch.ones(4, dtype=torch.bfloat16)}, path, metadata={"k": "v"})
    file = read_file(path)
    assert {key: tensor.shape for key, tensor in file.tensors.items()} == {"x": (2, 3), "y": (4,)}
    assert file.metadata == {"k": "v"}
    assert file.size_bytes == path.stat().st_size
    assert len(file.sha256) == 64


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        ({"x": entry(0, 8), "y": entry(4, 12)}, bytes(12), "overlaps"),
        ({"x": entry(0, 8), "y": entry(12, 16)}, bytes(16), "gap"),
        ({"x": entry(0, 8)}, bytes(4), "cut off"),
        ({"x": entry(0, 8)}, bytes(12), "12 bytes of tensors"),
        ({"x": entry(0, 8, shape=[3])}, bytes(8), "damaged"),
        ({"x": entry(0, 8, shape=[-2])}, bytes(8), "impossible shape"),
        ({"x": entry(0, 8, dtype="C64")}, bytes(8), "unknown type"),
        ({"x": 5}, b"", "no dtype"),
        ({"__metadata__": {"a": 1}}, b"", "metadata"),
        (b'{"x": 1, "x": 2}', b"", "twice"),
        (b"{not json", b"", "not JSON"),
        (b"[]", b"", "not a JSON object"),
        (b"[" * 5000, b"", "not JSON"),
    ],
)
def test_each_lie_has_its_own_sentence(tmp_path: Path, header: object, data: bytes, says: str) -> None:
    path = write_raw(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(LoraUnreadable, match=says):
        read_file(path)


@pytest.mark.parametrize("length", [0, 1, 10_000, 2**63])
def test_absurd_header_length(tmp_path: Path, length: int) -> None:
    with pytest.raises(LoraUnreadable, match="cut off"):
        read_file(write_raw(tmp_path / "bad.safetensors", {}, length=length))


@pytest.mark.parametrize(("prefix", "says"), [(b"PK\x03\x04", "zip archive"), (b"\x80\x04\x95", "Python pickle")])
def test_pickles_and_zips_are_refused_by_name(tmp_path: Path, prefix: bytes, says: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(prefix + bytes(100))
    with pytest.raises(LoraUnreadable, match=says):
        read_file(path)


@pytest.mark.parametrize("length", [0x80, 0x180, 0x4B50])
def test_header_lengths_that_look_like_a_pickle_or_a_zip(tmp_path: Path, length: int) -> None:
    header = json.dumps({"x": entry(0, 8)}).encode()
    path = write_raw(tmp_path / "a.safetensors", header.ljust(length), bytes(8))
    assert list(read_file(path).tensors) == ["x"]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nowhere\.safetensors"):
        read_file(tmp_path / "nowhere.safetensors")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_is_one_of_our_errors_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever bytes change or go missing, nothing but our own errors comes out."""
    path = tmp_path / "a.safetensors"
    if not path.exists():
        write_lokr(path, make_lokr(POCKET, rank=2), alpha=1.0)
        shutil.copyfile(path, tmp_path / "whole")
    raw = bytearray((tmp_path / "whole").read_bytes())
    header_bytes = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, header_bytes - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    path.write_bytes(raw)
    with contextlib.suppress(LoraError):
        check_file(path)
