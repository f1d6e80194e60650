"""A training run: which checkpoint is which, by names and headers of the trainers; and one that is still growing."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from lora_runtime.catalogue import POCKET
from lora_runtime.errors import InvalidInput, NotFound
from lora_runtime.lora.training import (
    is_training_run,
    is_whole,
    name_run,
    read_files,
    read_folder,
    watch,
)
from tests.lora_files import make_adapter, write_bfl

AI_TOOLKIT = [*(f"my_style_{step:09}" for step in (250, 500, 2750)), "my_style"]
KOHYA = ["style-v2-000005", "style-v2-000010", "style-v2"]


def write_all(folder: Path, names: Sequence[str], headers: Sequence[dict[str, str] | None] = ()) -> list[Path]:
    """A different LoRA under each name, written in the order given."""
    paths = []
    for seed, name in enumerate(names):
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bfl(path, make_adapter(POCKET, seed=seed), metadata=headers[seed] if headers else None)
        paths.append(path)
    return paths


@pytest.mark.parametrize(
    ("names", "labels", "run"),
    [
        (AI_TOOLKIT, ["250", "500", "2750", "end"], "my_style"),
        (KOHYA, ["5", "10", "end"], "style-v2"),
        (["x_step500", "x_step1500", "x_step10000"], ["500", "1500", "10000"], "x"),
        (["x-step00000500", "x-step00001000"], ["500", "1000"], "x"),
        (["x-e5", "x-e10", "x-e100"], ["epoch 5", "epoch 10", "epoch 100"], "x"),
        (["x-epoch-05-step-00500", "x-epoch-10-step-01000"], ["500", "1000"], "x"),
        (["checkpoint-500/lora", "checkpoint-1000/lora", "lora"], ["500", "1000", "end"], "lora"),
        (["klein4b_x_000000500", "klein4b_x"], ["500", "end"], "klein4b_x"),
        (["我的风格_000000500", "我的风格_000001500"], ["500", "1500"], "我的风格"),
        (["style2", "style10", "style9"], ["2", "9", "10"], "style"),
        (["style-early", "style-late", "style-mid"], ["early", "late", "mid"], "style"),
        (["my-style-v2"], ["my-style-v2"], "my-style-v2"),
        (["my-style_000001500"], ["1500"], "my-style_000001500"),
    ],
)
def test_checkpoints_are_ordered_and_called_by_what_differs(
    tmp_path: Path, names: list[str], labels: list[str], run: str
) -> None:
    paths = write_all(tmp_path / "run", names)
    found = read_files(paths[::-1])
    assert [checkpoint.label for checkpoint in found.checkpoints] == labels
    assert name_run(names) == run
    assert all(checkpoint.lora and not checkpoint.problem for checkpoint in found.checkpoints)


@pytest.mark.parametrize(
    "headers",
    [
        [{"ss_steps": "1500"}, {"ss_steps": "500"}],
        [{"training_info": json.dumps({"step": step, "epoch": 3})} for step in (1500, 500)],
        [{"global_step": "1500"}, {"global_step": "500"}],
    ],
)
def test_where_names_say_nothing_the_headers_order(tmp_path: Path, headers: list[dict[str, str] | None]) -> None:
    paths = write_all(tmp_path, ["blue", "red"], headers)
    assert [checkpoint.label for checkpoint in read_files(paths).checkpoints] == ["500", "1500"]


def test_a_folder_is_a_training_run_and_each_file_is_checked(tmp_path: Path) -> None:
    folder = tmp_path / "My Style"
    write_all(folder, AI_TOOLKIT)
    (folder / "my_style_000001000.safetensors").write_bytes((folder / "my_style.safetensors").read_bytes()[:-100])
    (folder / "optimizer.pt").write_bytes(b"no LoRA")
    run = read_folder(folder)
    assert is_training_run(folder)
    assert (run.name, run.folder) == ("my-style", folder)
    assert [checkpoint.label for checkpoint in run.checkpoints] == ["250", "500", "1000", "2750", "end"]
    assert [checkpoint.label for checkpoint in run.checkpoints if checkpoint.lora is None] == ["1000"]
    assert "cut off" in run.checkpoints[2].problem
    assert [c.lora.name for c in run.checkpoints if c.lora] == [
        "my-style-250",
        "my-style-500",
        "my-style-2750",
        "my-style-end",
    ]


def test_files_of_one_name_are_called_by_their_folders(tmp_path: Path) -> None:
    write_all(
        tmp_path,
        ["checkpoint-500/pytorch_lora_weights", "checkpoint-1000/pytorch_lora_weights", "pytorch_lora_weights"],
    )
    run = read_folder(tmp_path)
    assert [checkpoint.label for checkpoint in run.checkpoints] == ["500", "1000", "end"]
    two = read_files(write_all(tmp_path, ["阿/pytorch_lora_weights", "乙/pytorch_lora_weights"]))
    assert sorted(checkpoint.label for checkpoint in two.checkpoints) == ["乙", "阿"]


def test_every_and_last_are_counted_from_the_end(tmp_path: Path) -> None:
    run = read_files(write_all(tmp_path, [f"x_step{step}" for step in range(100, 1100, 100)]))

    def labels(**chosen: int) -> list[str]:
        return [checkpoint.label for checkpoint in run.select(**chosen).checkpoints]

    assert labels(every=2) == ["200", "400", "600", "800", "1000"]
    assert labels(every=2, last=3) == ["600", "800", "1000"]
    assert labels(last=20) == [str(step) for step in range(100, 1100, 100)]
    with pytest.raises(InvalidInput, match="Every: 0"):
        run.select(every=0)


def test_a_folder_without_checkpoints_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no \.safetensors file yet"):
        read_folder(tmp_path)
    with pytest.raises(NotFound, match="There is no folder"):
        read_folder(tmp_path / "gone")


def test_a_growing_folder_tells_each_checkpoint_once_it_is_whole(tmp_path: Path) -> None:
    done = write_all(tmp_path / "elsewhere", ["x_000000750"])[0].read_bytes()
    folder = tmp_path / "run"
    write_all(folder, ["x_000000250", "x_000000500"])
    half = folder / "x_000000750.safetensors"
    half.write_bytes(done[: len(done) // 2])
    assert not is_whole(half)
    cancel = threading.Event()
    runs = watch(folder, cancel, look_s=0.01)
    assert [checkpoint.label for checkpoint in next(runs).checkpoints] == ["250", "500"]
    half.write_bytes(done)
    assert is_whole(half)
    assert [checkpoint.label for checkpoint in next(runs).checkpoints] == ["250", "500", "750"]
    cancel.set()
    assert list(runs) == []
