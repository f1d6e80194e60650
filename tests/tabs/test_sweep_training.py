"""A training run in the form of the Sweep tab: dropped, described, counted, swept, and found again."""

import os
from pathlib import Path
from typing import Any

import pytest

from evaluation.tabs.page import Caller
from evaluation.tabs.sweep_form import SweepForm, count_cells, fill_form, make_form_spec
from lora_runtime.catalogue import POCKET, find_weights
from lora_runtime.errors import InvalidInput
from lora_runtime.registry.accounts import LOCAL
from tests.drawing_backend import DrawingBackend
from tests.lora_files import make_adapter, write_bfl
from tests.tabs.test_sweep_run import CALLER, FORM, OTHER, SAID, Tab, merge, tab  # noqa: F401

STEPS = (500, 1000, 1500)


@pytest.fixture
def dropped(tab: Tab, tmp_path: Path) -> dict[str, Any]:  # noqa: F811
    """What the page shows after three checkpoints and a broken one were dropped at once."""
    paths = [write_bfl(tmp_path / f"x_step{step}.safetensors", make_adapter(POCKET, seed=step)) for step in STEPS]
    paths.append(tmp_path / "x_step2000.safetensors")
    paths[-1].write_bytes(paths[0].read_bytes()[:-50])
    return dict(tab.fields.upload(CALLER, {"upload": [str(path) for path in paths]}, SAID))


def test_files_dropped_at_once_are_one_entry_of_the_field(tab: Tab, dropped: dict[str, Any]) -> None:  # noqa: F811
    assert dropped["lora"]["value"] == "x"
    names = [label for label, _ in dropped["lora"]["choices"]]
    assert "x (4 checkpoints)" in names
    assert "x-500" not in names, "its checkpoints are not listed beside it"
    assert "x-500" in [value for _, value in dropped["more_loras"]["choices"]]
    assert "Kept as the training run “x (4 checkpoints)”." in dropped["upload_hint"]
    assert "2000: x_step2000.safetensors" in dropped["upload_hint"]


def test_the_form_says_which_checkpoints_and_how_many_images(tab: Tab, dropped: dict[str, Any]) -> None:  # noqa: F811
    page = FORM.model_copy(update={"lora": "x", "every": 2})
    shown = tab.fields.describe_lora(CALLER, page, SAID)
    assert all(shown[name]["visible"] for name in ("every", "last"))
    assert "Checkpoints 1000, 2000. 1 of them cannot be rendered" in shown["lora_hint"]
    assert not tab.fields.describe_lora(CALLER, FORM, SAID)["every"]["visible"]
    assert count_cells(page, checkpoints=4) == (2, 3)
    assert SweepForm.read({"every": 0, "last": 0}).every is None, "a field that has just appeared says 0"
    assert count_cells(page.model_copy(update={"every": None, "last": 3}), checkpoints=4) == (3, 3)


def test_a_training_run_is_swept_and_its_form_found_again(tab: Tab, dropped: dict[str, Any]) -> None:  # noqa: F811
    shown = tab.run(FORM.model_copy(update={"lora": "x"}))
    run = tab.store.run(shown["run_id"])
    assert run.spec.training is not None
    assert [stage.label for stage in run.spec.training.stages] == ["500", "1000", "1500", "2000"]
    assert "9 of 9" in shown["status"]
    assert fill_form(run.spec).lora == "x"
    opened = tab.runs.open(CALLER, {"earlier": run.id}, SAID)
    assert opened["lora"]["value"] == "x"
    elsewhere = tab.runs.open(Caller(session="b", organization="others"), {"earlier": run.id}, SAID)
    assert "Its LoRA “x” is not among yours" in elsewhere["status"]


def test_a_training_run_is_an_axis_already(tab: Tab, dropped: dict[str, Any]) -> None:  # noqa: F811
    form = SweepForm(lora="x", prompt="a cat", strengths="0, 1", rows="lora", more_loras=("x-500",))
    with pytest.raises(InvalidInput, match="the training run x is swept alone"):
        make_form_spec({"drawing": DrawingBackend()}, form, lambda name: tab.fields.choose_lora(LOCAL, name))


def test_one_file_is_a_lora(tab: Tab, tmp_path: Path) -> None:  # noqa: F811
    path = write_bfl(tmp_path / "我的风格.safetensors", make_adapter(POCKET))
    shown = tab.fields.upload(CALLER, {"upload": [str(path)]}, SAID)
    assert shown["lora"]["value"] == "我的风格"
    assert tab.fields.upload(CALLER, {"upload": None}, SAID) == {"upload_hint": ""}


def write_step(folder: Path, step: int) -> Path:
    """A checkpoint that was written a while ago."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write_bfl(folder / f"x_step{step}.safetensors", make_adapter(POCKET, seed=step))
    os.utime(path, (1, 1))
    return path


def test_a_folder_that_grows_is_offered_to_go_on(tab: Tab, home: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / "output"
    for step in STEPS[:2]:
        write_step(folder, step)
    (home / "loras").mkdir(parents=True)
    (home / "loras" / "my-run").symlink_to(folder)
    form = FORM.model_copy(update={"lora": "my-run", "last": 2})
    page = FORM.model_copy(update={"run_id": tab.run(form)["run_id"]})
    offered = tab.extend.note(CALLER, page, SAID)
    assert offered["look"]["active"]
    assert offered["grown"]["visible"]
    assert not offered["sweep_new"]["interactive"]
    assert list(tab.extend.sweep_new(CALLER, page, SAID)) == [{}]
    write_step(folder, STEPS[2])
    half = write_step(folder, 1750)
    half.write_bytes(half.read_bytes()[:-50])
    os.utime(half, (1, 1))
    write_bfl(folder / "x_step9000.safetensors", make_adapter(POCKET, seed=9))  # written just now: it may go on
    seen = tab.extend.look(CALLER, page, SAID)
    assert (seen["sweep_new"]["value"], seen["due"]) == ("Sweep 1 new checkpoint", "")
    assert "New in the folder: 1500." in seen["grown_hint"]
    assert tab.extend.look(CALLER, page.model_copy(update={"watch": True}), SAID)["due"] == "1500"
    assert list(tab.extend.sweep_due(CALLER, page, SAID)) == [{}], "nobody wishes it"
    before = len(tab.backend.rendered)
    run = tab.store.run(
        merge(tab.show(tab.extend.sweep_due(CALLER, page.model_copy(update={"watch": True}), SAID)))["run_id"]
    )
    assert run.spec.training is not None
    assert [stage.label for stage in run.spec.training.stages] == ["1000", "1500"], "the last two, as at first"
    assert len(tab.backend.rendered) - before == 3, "two strengths and the control of the new one"
    assert fill_form(run.spec).last == 2
    assert not tab.extend.look(OTHER, page, SAID)["grown"]["visible"]
    assert not tab.extend.look(CALLER, FORM, SAID)["grown"]["visible"]


def test_a_checkpoint_that_does_not_fit_is_not_new_again_and_again(tab: Tab, home: Path) -> None:  # noqa: F811
    folder = home / "loras" / "my-run"
    path = write_step(folder, STEPS[0])
    page = FORM.model_copy(update={"run_id": tab.run(FORM.model_copy(update={"lora": "my-run"}))["run_id"]})
    write_bfl(folder / "x_step1000.safetensors", make_adapter(find_weights("klein-4b").shape, seed=1))
    (folder / "x_step1500.safetensors").write_bytes(path.read_bytes())  # trained no further
    for each in folder.iterdir():
        os.utime(each, (1, 1))
    seen = tab.extend.look(CALLER, page.model_copy(update={"watch": True}), SAID)
    assert (seen["due"], seen["sweep_new"]["interactive"]) == ("", False)
