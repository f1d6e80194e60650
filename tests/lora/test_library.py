"""The library: the bundled LoRAs by name, any file or folder of this machine by its path."""

from pathlib import Path

import pytest

from lora_runtime.catalogue import POCKET
from lora_runtime.errors import InvalidInput, NotFound
from lora_runtime.lora.library import find_lora, list_bundled, make_name, refer_to, report_of
from tests.lora_files import make_adapter, write_bfl, write_diffusers


def test_the_bundled_loras_have_names() -> None:
    assert [ref.name for ref in list_bundled()] == ["style", "subject", "overtrained"]
    assert find_lora("style") == list_bundled()[0]
    with pytest.raises(NotFound, match="Bundled: style, subject, overtrained"):
        find_lora("nothing")


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-that-name/a", "a\0b", "", " ", "."])
def test_names_that_are_no_names(name: str) -> None:
    with pytest.raises(NotFound):
        find_lora(name)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write_bfl(tmp_path / "a.safetensors", make_adapter(POCKET))
    first = find_lora(str(path))
    write_diffusers(path, make_adapter(POCKET, seed=4))
    assert report_of(first).file.sha256 == find_lora(str(path)).sha256 != first.sha256
    path.unlink()
    with pytest.raises(NotFound, match="has gone"):
        report_of(first)


def test_a_finetune_elsewhere_has_an_id_and_no_file() -> None:
    there = refer_to("their-org/style")
    assert (there.finetune_id, there.path) == ("their-org/style", None)
    # What every cell of it that was ever rendered is known by.
    assert there.sha256 == "bf84f5fc857e0122e90612d169b117cc17ed5ee9cd95b40e7fa783fc08e7c077"
    with pytest.raises(NotFound, match="can only be rendered remotely"):
        report_of(there)


@pytest.mark.parametrize("ending", [".SAFETENSORS", ".Safetensors", ".sft", ".safetensor"])
def test_other_spellings_of_the_ending(tmp_path: Path, ending: str) -> None:
    path = write_bfl(tmp_path / f"My Style{ending}", make_adapter(POCKET))
    found = find_lora(str(path))
    assert found == find_lora(str(tmp_path))  # alone in its folder
    assert make_name(path.name) == found.name == "my-style"


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
