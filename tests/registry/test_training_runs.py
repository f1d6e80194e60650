"""Training runs of an organization: files that were dropped at once, and folders that a trainer writes to."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from evaluation.store.store import Store
from lora_runtime.errors import InvalidInput, NotFound
from lora_runtime.lora.training import TrainingRun, read_folder
from lora_runtime.pocket import TRAINING
from lora_runtime.registry.accounts import LOCAL
from lora_runtime.registry.finetune import Source
from lora_runtime.registry.finetunes import Finetunes
from lora_runtime.registry.shelf import Shelf
from lora_runtime.registry.training_runs import TrainingRuns
from lora_runtime.storage.blobs import Blobs
from tests.drawing_backend import make_lora


@pytest.fixture
def finetunes(store: Store, home: Path) -> Finetunes:
    return Finetunes(store.database, Blobs(home / "api"), max_bytes=10**7)


@pytest.fixture
def runs(store: Store, home: Path, finetunes: Finetunes) -> TrainingRuns:
    return TrainingRuns(store.database, Shelf(finetunes), home / "loras")


def drop(folder: Path, names: Sequence[str]) -> list[Path]:
    """Files as an upload leaves them: each in a folder of its own, whose name says nothing."""
    paths = []
    for number, name in enumerate(names):
        paths.append(folder / f"{number}fc0ffee" / f"{name}.safetensors")
        paths[-1].parent.mkdir(parents=True)
        shutil.copyfile(str(make_lora(f"{folder.name}-{number}").path), paths[-1])
    return paths


def list_names(runs: TrainingRuns, organization: str) -> list[str]:
    return [each.name for each in runs.list(organization)]


def test_files_that_are_dropped_at_once_are_one_training_run(runs: TrainingRuns, tmp_path: Path) -> None:
    paths = drop(tmp_path, ["x_000001500", "x_000000500", "x"])
    paths.append(tmp_path / "x_000001000.safetensors")
    paths[-1].write_bytes(b"half")
    kept = runs.keep(LOCAL, paths)
    assert kept.name == "x"
    assert [each.lora.name for each in kept.checkpoints if each.lora] == ["x-500", "x-1500", "x-end"]
    assert [(each.label, each.lora is not None) for each in kept.checkpoints] == [
        ("500", True), ("1000", False), ("1500", True), ("end", True)
    ]  # fmt: skip
    listed = runs.list(LOCAL)[0]
    assert (listed.name, listed.count, len(listed.files)) == ("x", 4, 3)
    assert runs.find(LOCAL, "x") == kept
    assert runs.choose(LOCAL, "x") == kept
    assert list_names(runs, "others") == [TRAINING.name]
    with pytest.raises(NotFound):
        runs.choose("others", "x")


def test_files_of_one_name_stay_apart(runs: TrainingRuns, tmp_path: Path) -> None:
    kept = runs.keep(LOCAL, drop(tmp_path, ["pytorch_lora_weights", "pytorch_lora_weights"]))
    assert [each.label for each in kept.checkpoints] == ["file 1", "file 2"]
    assert [each.lora.name for each in kept.checkpoints if each.lora] == [
        "pytorch_lora_weights-file-1", "pytorch_lora_weights-file-2"
    ]  # fmt: skip
    chinese = runs.keep(LOCAL, drop(tmp_path / "more", ["我的风格_000000500", "我的风格_000001000"]))
    assert chinese.name == "我的风格"
    assert [each.lora.name for each in chinese.checkpoints if each.lora] == ["我的风格-500", "我的风格-1000"]


def test_a_name_is_taken_once(runs: TrainingRuns, tmp_path: Path) -> None:
    first = runs.keep(LOCAL, drop(tmp_path / "a", ["style_500", "style_1000"]))
    second = runs.keep(LOCAL, drop(tmp_path / "b", ["style_500", "style_1000"]))
    assert (first.name, second.name) == ("style-2", "style-3"), "style is a LoRA"


def test_what_was_deleted_is_told_and_an_empty_run_is_gone(
    runs: TrainingRuns, finetunes: Finetunes, tmp_path: Path
) -> None:
    kept = runs.keep(LOCAL, drop(tmp_path, ["x_500", "x_1000"]))
    first, second = (each.lora.name for each in kept.checkpoints if each.lora)
    finetunes.remove(LOCAL, first)
    found = runs.find(LOCAL, "x")
    assert found is not None
    assert [each.problem for each in found.checkpoints] == ["Its finetune was deleted.", ""]
    finetunes.remove(LOCAL, second)
    assert list_names(runs, LOCAL) == [TRAINING.name]


def test_nothing_is_kept_where_nothing_fits(runs: TrainingRuns, tmp_path: Path) -> None:
    paths = [tmp_path / f"x_{step}.safetensors" for step in (500, 1000)]
    for path in paths:
        path.write_bytes(b"nothing")
    with pytest.raises(InvalidInput, match="None of the 2 files can be rendered"):
        runs.keep(LOCAL, paths)
    assert list_names(runs, LOCAL) == [TRAINING.name]


def test_a_folder_that_a_trainer_writes_to_is_for_whoever_sits_here(runs: TrainingRuns, home: Path) -> None:
    folder = home / "loras" / "My Run"
    folder.mkdir(parents=True)
    assert list_names(runs, LOCAL) == [TRAINING.name]
    for number, step in enumerate((500, 1000)):
        shutil.copyfile(str(make_lora(f"stage-{number}").path), folder / f"x_step{step}.safetensors")
    listed = runs.list(LOCAL)[0]
    assert (listed.name, listed.count, listed.folder) == ("my-run", 2, folder)
    found = runs.find(LOCAL, "my-run")
    assert found is not None
    assert [each.label for each in found.checkpoints] == ["500", "1000"]
    assert list_names(runs, "visitor-1") == [TRAINING.name]


def test_the_bundled_training_run_is_for_all_and_gives_way_to_ones_own(runs: TrainingRuns, home: Path) -> None:
    found = runs.choose("visitor-1", TRAINING.name)
    assert isinstance(found, TrainingRun)
    assert found.folder is None, "it does not grow"
    assert [each.label for each in found.checkpoints if each.lora] == ["50", "100", "150", "200", "300", "400"]
    shutil.copytree(TRAINING, home / "loras" / TRAINING.name)
    assert list_names(runs, LOCAL) == [f"{TRAINING.name}-2", TRAINING.name]


def test_a_checkpoint_that_is_taken_from_a_folder_is_a_finetune_from_then_on(
    runs: TrainingRuns, finetunes: Finetunes, home: Path, tmp_path: Path
) -> None:
    folder = home / "loras" / "x"
    folder.mkdir(parents=True)
    shutil.copyfile(make_lora("stage").path, folder / "x_step500.safetensors")
    checkpoint = read_folder(folder).checkpoints[0].lora
    assert checkpoint
    assert runs.is_in_folder(LOCAL, checkpoint)
    taken = runs.take(LOCAL, checkpoint)
    assert taken.name == "x-500"
    assert taken == runs.take(LOCAL, checkpoint), "once"
    assert [each.id for each in finetunes.list(LOCAL, source=Source.OWNED)] == ["x-500"]
    assert not runs.is_in_folder("visitor-1", checkpoint)
    assert runs.take("visitor-1", checkpoint) == checkpoint
    bundled = runs.choose("visitor-1", TRAINING.name)
    assert isinstance(bundled, TrainingRun)
    first = bundled.checkpoints[0].lora
    assert first
    assert runs.take("visitor-1", first).sha256 == first.sha256
    assert [each.id for each in finetunes.list("visitor-1", source=Source.OWNED)] == [first.name]
