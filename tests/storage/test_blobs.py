"""Blobs: whole or nothing, once, and clear about a full disk."""

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_runtime.errors import NotFound, StorageFailed
from lora_runtime.storage.blobs import Blobs


def test_the_name_is_the_digest(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    key = blobs.put(b"picture", suffix=".png")
    assert key == hashlib.sha256(b"picture").hexdigest() + ".png"
    assert blobs.path(key).read_bytes() == b"picture"
    assert key in blobs


def test_the_same_bytes_are_stored_once(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    assert blobs.put(b"same") == blobs.put([b"sa", b"me"])
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_a_stream_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        Blobs(tmp_path).put(broken())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFailed, match=r"No space left.*KLEIN_LAB_HOME"):
        Blobs(tmp_path).put(b"picture")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_missing_blob(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"abc\.png"):
        Blobs(tmp_path).path("abc.png")
