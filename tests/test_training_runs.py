"""A training run is swept as one thing: on the command line, while it grows, and with the overtrained LoRA's stages."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.grid import make_spec
from evaluation.store.store import Store
from evaluation.training import Given, list_specs
from lora_runtime.catalogue import POCKET
from lora_runtime.lora.training import TrainingRun
from lora_runtime.settings import settings
from tests.drawing_backend import DrawingBackend
from tests.lora_files import make_adapter, write_bfl
from tests.training_runs import STAGES, write_training

SIZE = ["--width", "64", "--height", "64"]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> DrawingBackend:
    drawing = DrawingBackend()
    monkeypatch.setattr("lora_runtime.backends.local.LocalBackend", lambda: drawing)
    return drawing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four checkpoints of a training run; the third one is not whole."""
    found = tmp_path / "my-style"
    found.mkdir()
    for step in (500, 1000, 2000):
        write_step(found, step)
    (found / "x_step1500.safetensors").write_bytes((found / "x_step2000.safetensors").read_bytes()[:-50])
    return found


def write_step(folder: Path, step: int) -> None:
    write_bfl(folder / f"x_step{step}.safetensors", make_adapter(POCKET, seed=step))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["sweep", "--prompt", "a red fox", *SIZE, "--seed", "7", *map(str, arguments)])


def read(result: Result) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The cells that were printed, and the line with the answers."""
    *cells, answers = (json.loads(line) for line in result.stdout.splitlines())
    return cells, answers


@pytest.mark.parametrize("how", [["--lora"], ["--checkpoints"]])
def test_a_folder_of_checkpoints_is_swept_as_one_training_run(
    backend: DrawingBackend, folder: Path, tmp_path: Path, how: Sequence[str]
) -> None:
    out = tmp_path / "out"
    result = call(*how, folder, "--strengths", "0, 0.5, 1", "--json", "--out", out)
    assert result.exit_code == 0, result.output
    cells, answers = read(result)
    names = ["my-style-500", "my-style-1000", "my-style-2000"]
    assert [cell["lora"] for cell in cells if cell["strength"] == 1] == names
    assert len([request for request in backend.rendered if request.lora is None]) == 1, "one base image for all"
    assert [Path(cell["image"]).name for cell in cells if cell["strength"] == 1] == [
        f"checkpoint-0{number}-{step}_seed-7_strength-1.00.png"
        for number, step in enumerate((500, 1000, 2000), start=1)
    ]
    assert [answer["checkpoint"] for answer in answers["answer"]] == ["500", "1000", "2000"]
    assert answers["training"]["name"] == "my-style"
    with closing(Store.open(settings())) as store:
        training = store.runs(1)[0].spec.training
    assert training is not None
    assert [(stage.label, stage.problem != "") for stage in training.stages] == [
        ("500", False), ("1000", False), ("1500", True), ("2000", False)
    ]  # fmt: skip


def test_the_words_tell_what_was_not_rendered(backend: DrawingBackend, folder: Path) -> None:
    result = call("--checkpoints", folder, "--strengths", "0, 1")
    said = " ".join(result.stdout.split())
    assert "No checkpoint is named." in said
    assert "1500 was not rendered. x_step1500.safetensors has" in said


@pytest.mark.parametrize(
    ("more", "labels"),
    [(["--every", "2"], ["1000", "2000"]), (["--last", "1"], ["2000"]), (["--every", "2", "--last", "1"], ["2000"])],
)
def test_every_and_last_choose_checkpoints(
    backend: DrawingBackend, folder: Path, more: Sequence[str], labels: Sequence[str]
) -> None:
    (folder / "x_step1500.safetensors").unlink()
    write_step(folder, 1500)
    _, answers = read(call("--checkpoints", folder, *more, "--strengths", "0, 1", "--json"))
    assert [answer["checkpoint"] for answer in answers["answer"]] == labels


def test_files_are_a_training_run_in_their_order(backend: DrawingBackend, folder: Path) -> None:
    files = [f"--checkpoints={folder / f'x_step{step}.safetensors'}" for step in (2000, 500)]
    _, answers = read(call(*files, "--strengths", "0, 1", "--json"))
    assert [answer["checkpoint"] for answer in answers["answer"]] == ["500", "2000"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoints", "FOLDER", "--lora", "style"], "swept alone"),
        (["--lora", "FOLDER", "--lora", "style"], "swept alone"),
        (["--checkpoints", "nothing"], "There is no folder nothing"),
        (["--checkpoints", "FOLDER", "--checkpoints", "nothing"], "give one folder|Give one folder"),
        (["--checkpoints", "FOLDER", "--every", "0"], "Every: 0"),
        (["--lora", "style", "--watch"], "the one folder that the trainer writes to"),
    ],
)
def test_what_is_no_training_run_is_told(
    backend: DrawingBackend, folder: Path, arguments: Sequence[str], words: str
) -> None:
    result = call(*(str(folder) if word == "FOLDER" else word for word in arguments))
    assert result.exit_code == 1
    assert any(word in result.stderr for word in words.split("|")), result.stderr


def test_a_watched_folder_is_swept_again_with_each_new_checkpoint(folder: Path) -> None:
    cancel = threading.Event()

    def make(run: TrainingRun | None) -> Any:
        return make_spec(DrawingBackend(), training=run, prompts=["a red fox"], strengths="0, 1", seeds=[None])

    specs = list_specs(Given(checkpoints=[folder], watched=True, last=3), make, cancel, look_s=0.01)
    first = next(specs)
    assert [lora.name for lora in first.loras] == ["my-style-500", "my-style-1000", "my-style-2000"]
    write_step(folder, 2500)
    second = next(specs)
    assert [lora.name for lora in second.loras] == ["my-style-1000", "my-style-2000", "my-style-2500"]
    assert second.seeds == first.seeds, "the random seed is drawn once"
    cancel.set()
    assert list(specs) == []


def test_watch_goes_on_until_ctrl_c(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "evaluation", "sweep", "--checkpoints", folder, "--watch", "--prompt", "a red cat",
         "--strengths", "0, 1", "--seed", "7", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    with closing(process.stdout) as out, process:
        labels = []
        for line in out:
            if "answer" not in (said := json.loads(line)):
                continue
            labels.append([answer["checkpoint"] for answer in said["answer"]])
            if len(labels) == 2:
                process.send_signal(signal.SIGINT)
            else:
                write_step(folder, 2500)
        assert process.wait() in (0, 1)
    assert labels == [["500", "1000", "2000"], ["500", "1000", "2000", "2500"]]


@pytest.mark.slow
def test_the_stages_of_the_overtrained_lora_get_a_checkpoint_and_a_strength(tmp_path: Path) -> None:
    folder = write_training(tmp_path / "overtrained", {step: STAGES[step] for step in (500, 1500, 3000)})
    sure = ["--prompt", "a red cat in the snow", "--seed", "7", "--sure", "--strengths", "0, 0.4, 0.7", "--json"]
    result = CliRunner().invoke(app, ["sweep", "--checkpoints", str(folder), *sure])
    assert result.exit_code == 0, result.stderr
    found = read(result)[1]["training"]
    assert (found["word"], found["checkpoint"], found["strength"]) == ("use", "500", 0.7)
    assert found["copies_from"] == "3000"
    assert found["sentence"].startswith("Use checkpoint 500 at 0.7: 8 of 8 scenes pass every test there (68% to 100%).")
