from collections.abc import Iterator

import pytest

from evaluation.store.presets import MAX_NAME, MAX_PRESETS, Preset, Presets
from evaluation.store.store import Store
from lora_runtime.errors import InvalidInput, NotFound
from lora_runtime.settings import settings


@pytest.fixture
def presets() -> Iterator[Presets]:
    store = Store.open(settings())
    yield Presets(store.database)
    store.close()


def test_a_preset_is_kept_replaced_and_deleted(presets: Presets) -> None:
    assert presets.save("local", "  my   style ", "{}") is None
    assert presets.save("local", "coarse", '{"seed": "1"}') is None
    assert [preset.name for preset in presets.list("local")] == ["coarse", "my style"]
    assert presets.save("local", "my style", '{"seed": "2"}') == Preset(name="my style", form="{}")
    assert presets.find("local", "my style").form == '{"seed": "2"}'
    gone = presets.delete("local", "my style")
    with pytest.raises(NotFound, match="my style"):
        presets.find("local", "my style")
    presets.save("local", gone.name, gone.form)
    assert presets.find("local", "my style") == gone


def test_nobody_sees_the_presets_of_others(presets: Presets) -> None:
    presets.save("visitor-1", "mine", "1")
    presets.save("visitor-2", "mine", "2")
    assert [preset.form for preset in presets.list("visitor-1")] == ["1"]
    presets.delete("visitor-2", "mine")
    assert presets.find("visitor-1", "mine").form == "1"
    with pytest.raises(NotFound):
        presets.delete("visitor-2", "mine")


@pytest.mark.parametrize("name", ["", "  ", "x" * (MAX_NAME + 1), "a\0b"])
def test_a_name_must_be_one(presets: Presets, name: str) -> None:
    with pytest.raises(InvalidInput, match="Preset"):
        presets.save("local", name, "{}")


def test_there_is_an_end_to_presets(presets: Presets) -> None:
    for number in range(MAX_PRESETS):
        presets.save("local", f"preset {number}", "{}")
    presets.save("local", "preset 0", "again")
    with pytest.raises(InvalidInput, match="Delete one"):
        presets.save("local", "one more", "{}")
