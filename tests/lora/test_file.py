"""The header reader against files that lie."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lora_runtime.catalogue import POCKET
from lora_runtime.errors import LoraError, LoraUnreadable, NotFound
from lora_runtime.lora.check import check_file
from lora_runtime.lora.file import MAX_HEADER_BYTES, MAX_TENSORS, read_file
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


HEADER = json.dumps({"x": entry(0, 8), "é": entry(8, 16)}, ensure_ascii=False)
ONLY_PYTHON_READS = {
    "a byte order mark": HEADER.encode("utf-8-sig"),
    "UTF-16": HEADER.encode("utf-16"),
    "UTF-32": HEADER.encode("utf-32-le"),
    "half a surrogate": HEADER.replace("x", r"\ud800").encode(),
    "half a surrogate in the metadata": HEADER.replace("{", r'{"__metadata__": {"a": "\udfff"}, ', 1).encode(),
    "bool offsets": HEADER.replace("[0, 8]", "[false, 8]").encode(),
    "a bool side": HEADER.replace('"shape": [2]', '"shape": [true]').encode(),
    "float offsets": HEADER.replace("[0, 8]", "[0.0, 8.0]").encode(),
    "a float side": HEADER.replace('"shape": [2]', '"shape": [2.0]').encode(),
    "numbers of 4,000 digits": HEADER.replace("8]", "8" * 4000 + "]").encode(),
    "numbers of 5,000 digits": HEADER.replace("8]", "8" * 5000 + "]").encode(),
    "NaN": HEADER.replace("{", '{"__metadata__": {}, "nan": NaN, ', 1).encode(),
    "an infinite extra": HEADER.replace('"dtype"', '"extra": Infinity, "dtype"').encode(),
    "words after the end": HEADER.encode() + b"//",
}


@pytest.mark.parametrize("name", ONLY_PYTHON_READS)
def test_a_header_that_only_python_reads_is_refused(tmp_path: Path, name: str) -> None:
    path = write_raw(tmp_path / "bad.safetensors", ONLY_PYTHON_READS[name], bytes(16))
    with pytest.raises(LoraUnreadable) as raised:
        read_file(path)
    assert len(str(raised.value)) < 300
    with pytest.raises(SafetensorError), safe_open(path, "numpy"):
        pass


def test_what_is_taken_is_what_the_library_takes(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.safetensors", HEADER.encode() + b"  \n", bytes(16))
    assert list(read_file(path).tensors) == ["x", "é"]
    with safe_open(path, "numpy") as opened:
        assert set(opened.keys()) == {"x", "é"}


def test_too_many_tensors_are_refused_before_they_are_read(tmp_path: Path) -> None:
    def write(count: int) -> Path:
        names = ",".join(f'"{number}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for number in range(count))
        return write_raw(tmp_path / f"{count}.safetensors", f"{{{names}}}".encode())

    assert len(read_file(write(MAX_TENSORS)).tensors) == MAX_TENSORS
    path = write(MAX_TENSORS + 1)
    path.write_bytes(path.read_bytes()[:-1] + b"!")  # not even JSON: nobody looked
    with pytest.raises(LoraUnreadable, match="more than 20000 tensors"):
        read_file(path)


def test_too_many_characters_of_names(tmp_path: Path) -> None:
    names = {f"{number:_>200}": entry(0, 0, shape=[0]) for number in range(5001)}
    with pytest.raises(LoraUnreadable, match="more than 1000000 characters of names"):
        read_file(write_raw(tmp_path / "a.safetensors", names))


def test_a_header_larger_than_any_trainers(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.safetensors", b"{" + b" " * MAX_HEADER_BYTES + b"}")
    with pytest.raises(LoraUnreadable, match=r"has a header of 16777218 bytes; at most 16777216"):
        read_file(path)


def tar() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as opened:
        info = tarfile.TarInfo("output/flux_train_replicate/lora.safetensors")
        info.size = 4
        opened.addfile(info, io.BytesIO(b"abcd"))
    return archive.getvalue()


def zipped(name: str) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(name, "abcd")
    return archive.getvalue()


OTHER_FILES: dict[str, tuple[bytes, str]] = {
    "tar": (tar(), "is a tar archive.*Unpack it"),
    "zip": (zipped("lora.safetensors"), "is a zip archive.*Unpack it"),
    "a checkpoint of PyTorch": (zipped("archive/data.pkl"), "Python pickle.*Convert it"),
    "gzip": (gzip.compress(b"x" * 1000), "is a packed archive.*Unpack it"),
    "xz": (lzma.compress(b"x" * 1000), "is a packed archive.*Unpack it"),
    "bzip2": (bz2.compress(b"x" * 1000), "is a packed archive.*Unpack it"),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64,
        "pointer of Git LFS.*git lfs pull",
    ),
    "a web page": (
        b"<!DOCTYPE html><html><title>Sign in</title>" + b"x" * 500,
        "is a web page, not the file.*logged in",
    ),
    "a page without a doctype": (b"\n  <html lang=en>", "is a web page"),
    "an error in XML": (
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "answer in XML, not the file",
    ),
    "an error in JSON": (
        b'{"error":"Unauthorized","message":"Log in to download it"}',
        "is not the file but a server's answer: 'Log in",
    ),
    "an error in JSON with a detail": (
        b'{"detail": "Not Found"}',
        "is not the file but a server's answer: 'Not Found'",
    ),
    "a long answer": (b'{"message": "No. ", "x": "' + b"y" * 9999, "is not the file but a server's answer: 'No. '"),
    "an answer of nothing": (b"{}", "is not the file but a server's answer in JSON"),
    "a list": (b'[{"a": 1}]', "is not the file but a server's answer in JSON"),
    "GGUF": (b"GGUF\x03\0\0\0", "is a GGUF file"),
    "an image": (b"\x89PNG\r\n\x1a\n" + b"0" * 100, "is an image"),
    "a text": (b"Access denied\nTry again", "is a text.*'Access denied'"),
    "nothing": (b"", "is empty: it has 0 bytes"),
    "zeros": (bytes(4096), "begins with zeros.*Download it again"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_another_file_is_named_with_its_remedy(tmp_path: Path, name: str) -> None:
    content, says = OTHER_FILES[name]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(LoraUnreadable, match=f"^a\\.safetensors {says}|^a\\.safetensors is .*{says}"):
        read_file(path)


def test_long_names_are_quoted_in_part(tmp_path: Path) -> None:
    for key, says in (("k" * 256, "unknown type"), ("k" * 100_000, "is a name of 100000 characters")):
        path = write_raw(tmp_path / f"{'n' * 200}.safetensors", {key: entry(0, 8, dtype="X" * 9999)}, bytes(8))
        with pytest.raises(LoraUnreadable, match=says) as raised:
            read_file(path)
        assert len(str(raised.value)) < 400


def test_a_name_is_shown_in_print(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a\nb.safetensors", {"x\0\u202e": entry(0, 8, dtype="C64")}, bytes(8))
    with pytest.raises(LoraUnreadable) as raised:
        read_file(path)
    assert str(raised.value).isprintable()
    assert r"a\nb.safetensors: 'x\x00\u202e'" in str(raised.value)


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
