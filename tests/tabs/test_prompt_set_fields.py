"""Prompt sets and pictures of the look on the Sweep tab, as plain calls of its handlers."""

from pathlib import Path

import pytest
from PIL import Image

from evaluation.prompt_sets import FOUR_SCENES
from evaluation.store.store import Store
from evaluation.tabs.likeness_fields import LikenessActs
from evaluation.tabs.page import Caller, Said
from evaluation.tabs.prompt_set_fields import PromptSetActs, PromptSetForm
from evaluation.tabs.sweep_fields import SweepFields
from evaluation.tabs.sweep_form import SweepForm, fill_form, make_form_spec
from lora_runtime.errors import InvalidInput, NotFound
from lora_runtime.registry.finetunes import Finetunes
from lora_runtime.registry.shelf import Shelf
from lora_runtime.registry.training_runs import TrainingRuns
from lora_runtime.storage.blobs import Blobs
from tests.drawing_backend import STYLE, DrawingBackend

CALLER, OTHER = Caller(session="one", organization="local"), Caller(session="two", organization="other")
SAID = Said()
FORM = PromptSetForm(lora="style", prompt="a red fox in the snow", strengths="0, 1", seed="7")


@pytest.fixture
def fields(store: Store, home: Path) -> SweepFields:
    shelf = Shelf(Finetunes(store.database, Blobs(home / "api"), max_bytes=10**7))
    return SweepFields({"drawing": DrawingBackend()}, store, shelf, TrainingRuns(store.database, shelf, home / "loras"))


def test_a_set_is_used_saved_deleted_and_brought_back(fields: SweepFields) -> None:
    act = PromptSetActs(fields)
    used = act.use(CALLER, FORM.model_copy(update={"prompt_set": FOUR_SCENES.name}), SAID)
    assert used["prompt"] == "a red fox on the beach"
    assert used["further_prompts"] == "a red fox in a forest\na red fox in the city\na red fox at night"
    assert used["prompt_set_delete"]["interactive"] is False, "it is built in"
    written = FORM.model_copy(update={"further_prompts": "a red fox at sea", "prompt_set_name": "mine"})
    saved = act.save(CALLER, written, SAID)
    assert saved["prompt_set"] == {"__type__": "update", "choices": ["four scenes", "mine"], "value": "mine"}
    assert "{subject} in the snow · {subject} at sea" in saved["prompt_set_hint"]
    chosen = FORM.model_copy(update={"prompt": "an owl at night", "prompt_set": "mine"})
    assert act.use(CALLER, chosen, SAID)["further_prompts"] == "an owl at sea"
    with pytest.raises(NotFound):
        act.use(OTHER, chosen, SAID)
    again = act.save(CALLER, FORM.model_copy(update={"prompt_set_name": "mine"}), SAID)
    assert "in place of the one that was there" in again["prompt_set_hint"]
    undo = FORM.model_copy(update={"prompt_set_undone": again["prompt_set_undone"]})
    act.undo(CALLER, undo, SAID)
    assert act.use(CALLER, chosen, SAID)["further_prompts"] == "an owl at sea"
    gone = act.delete(CALLER, chosen, SAID)
    assert gone["prompt_set"]["choices"] == ["four scenes"]
    act.undo(CALLER, FORM.model_copy(update={"prompt_set_undone": gone["prompt_set_undone"]}), SAID)
    assert fields.list_prompt_sets(CALLER, None)["prompt_set"]["choices"] == ["four scenes", "mine"]
    with pytest.raises(InvalidInput, match="is built in"):
        act.save(CALLER, FORM.model_copy(update={"prompt_set_name": "four scenes"}), SAID)


def test_pictures_of_the_look_are_kept_and_go_with_the_form(home: Path, tmp_path: Path) -> None:
    act = LikenessActs(Blobs(home / "blobs"))
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    for file, colour in zip(files, ("red", "blue"), strict=True):
        Image.new("RGB", (64, 64), colour).save(file)
    added = act.add(CALLER, {"likeness": [], "likeness_upload": [*map(str, files), str(files[0])]}, SAID)
    assert "2 pictures of the look. They must not be training pictures." in added["likeness_hint"]
    kept = tuple(added["likeness"])
    assert all(picture.path.is_relative_to(home / "blobs") for picture in kept)
    form = SweepForm(lora="style", prompt="a red fox", strengths="0, 1", seed="7", likeness=kept)
    spec = make_form_spec({"drawing": DrawingBackend()}, SweepForm.load(form.dump()), lambda name: STYLE)
    assert spec.likeness == kept
    assert fill_form(spec).likeness == kept
    assert "2 pictures" in act.show(CALLER, form, SAID)["likeness_hint"]
    assert act.clear(CALLER, {}, SAID)["likeness"] == []
    with pytest.raises(InvalidInput, match="at most 16 pictures"):
        act.add(CALLER, {"likeness": [*kept] * 8, "likeness_upload": [str(files[0])]}, SAID)
    kept[0].path.unlink()
    with pytest.raises(InvalidInput, match="has gone"):
        make_form_spec({"drawing": DrawingBackend()}, form, lambda name: STYLE)
