"""The library: by name, by path, and listed without reading every file again."""

import json
import os
from pathlib import Path

import pytest

from lora_runtime.catalogue import POCKET, WEIGHTS
from lora_runtime.errors import Conflict, InvalidInput, LoraUnreadable, NotFound
from lora_runtime.lora.index import recall
from lora_runtime.lora.library import find_lora, keep_lora, list_loras, make_name, report_of
from tests.lora_files import make_adapter, write_bfl, write_diffusers


def test_library_keeps_a_file_and_finds_it_again(tmp_path: Path, home: Path) -> None:
    path = write_bfl(tmp_path / "My LoRA.safetensors", make_adapter(POCKET))
    kept = keep_lora(path)
    assert (kept.name, kept.path.parent) == ("my-lora", home / "loras")
    assert keep_lora(path) == kept == find_lora("my-lora")
    assert kept in list_loras()
    other = write_bfl(tmp_path / "other.safetensors", make_adapter(POCKET, seed=1))
    with pytest.raises(Conflict, match="my-lora"):
        keep_lora(other, name="my-lora")
    with pytest.raises(InvalidInput, match="lowercase"):
        keep_lora(other, name="../evil")
    assert find_lora(str(other)).name == "other"


def test_library_says_which_names_there_are(home: Path) -> None:
    with pytest.raises(NotFound, match="Known names"):
        find_lora("nothing")


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-that-name/a", "a\0b", "", " ", "."])
def test_names_that_are_no_names(name: str, home: Path) -> None:
    with pytest.raises(NotFound):
        find_lora(name)


def test_listing_does_not_read_what_it_knows(tmp_path: Path, home: Path) -> None:
    kept = keep_lora(write_bfl(tmp_path / "a.safetensors", make_adapter(POCKET), metadata={"trigger_phrase": "ohwx"}))
    status = kept.path.stat()
    kept.path.write_bytes(bytes(status.st_size))  # unreadable, but of the same size and time
    os.utime(kept.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert kept in list_loras()
    assert find_lora("a") == kept
    assert kept.trigger_phrase == "ohwx"
    assert find_lora("a").fits == ("pocket", "pocket-base")
    write_diffusers(kept.path, make_adapter(POCKET, seed=4))
    changed = find_lora("a")
    assert changed.sha256 != kept.sha256
    assert report_of(changed).file.sha256 == changed.sha256
    kept.path.unlink()
    assert changed not in list_loras()


def test_a_new_base_in_the_catalogue_makes_the_index_old(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keep_lora(write_bfl(tmp_path / "a.safetensors", make_adapter(POCKET)))
    assert recall(kept.path, name="a") == kept
    monkeypatch.setattr("lora_runtime.lora.index.WEIGHTS", {**WEIGHTS, "pocket-2": WEIGHTS["pocket"]})
    assert recall(kept.path, name="a") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": {"stamp": [1, 2], "sha256": 5}}'])
def test_a_damaged_index_is_read_as_none(tmp_path: Path, home: Path, text: str) -> None:
    kept = keep_lora(write_bfl(tmp_path / "a.safetensors", make_adapter(POCKET)))
    (home / "loras" / "index.json").write_text(text)
    assert find_lora("a") == kept
    assert list(json.loads((home / "loras" / "index.json").read_text())) == ["a"]


def test_a_kept_file_that_is_damaged_is_left_out_and_named_when_asked_for(home: Path) -> None:
    (home / "loras").mkdir(parents=True)
    (home / "loras" / "bad.safetensors").write_bytes(b"x")
    assert "bad" not in [ref.name for ref in list_loras()]
    with pytest.raises(LoraUnreadable, match=r"bad\.safetensors"):
        find_lora("bad")


def test_a_file_put_there_by_hand_is_found_by_the_name_it_is_listed_under(home: Path) -> None:
    (home / "loras").mkdir(parents=True)
    write_bfl(home / "loras" / "My Style v2.safetensors", make_adapter(POCKET))
    for _ in range(2):
        (listed,) = (ref for ref in list_loras() if ref.path.parent == home / "loras")
        assert listed.name == "my-style-v2"
        assert find_lora("my-style-v2") == listed


@pytest.mark.parametrize("ending", [".SAFETENSORS", ".Safetensors", ".sft", ".safetensor"])
def test_other_spellings_of_the_ending(tmp_path: Path, home: Path, ending: str) -> None:
    path = write_bfl(tmp_path / f"My Style{ending}", make_adapter(POCKET))
    found = find_lora(str(path))
    assert found == find_lora(str(tmp_path))  # alone in its folder
    assert make_name(path.name) == found.name == "my-style"
    assert keep_lora(path).path == home / "loras" / "my-style.safetensors"
    path.rename(home / "loras" / f"other{ending}")
    assert "other" in [ref.name for ref in list_loras()]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x1f\x8b" + bytes(50), r"lora\.bin is a packed archive.*Unpack it"),
        (b"\x80\x04" + bytes(50), r"lora\.bin is a Python pickle.*Convert it"),
        (b"\x10\0\0\0\0\0\0\0{}", r"lora\.bin is not a \.safetensors file\. Convert it"),
    ],
)
def test_another_ending_is_told_by_what_is_in_it(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "lora.bin").write_bytes(content)
    with pytest.raises(InvalidInput, match=says):
        find_lora(str(tmp_path / "lora.bin"))
