import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.grid import make_spec
from evaluation.store.store import Store
from evaluation.sweep import CellEnded, run_sweep
from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import WEIGHTS
from lora_runtime.errors import NotFound, RenderFailed
from lora_runtime.lora.library import find_lora
from lora_runtime.png import read_metadata
from lora_runtime.registry.accounts import LOCAL
from lora_runtime.registry.local import open_registry
from lora_runtime.settings import settings
from lora_runtime.values import LoraRef
from tests.drawing_backend import STYLE, SUBJECT, DrawingBackend
from tests.lora_files import make_adapter, write_bfl

SWEEP = ["sweep", "--prompt", "a red fox", "--lora", "style", "--width", "64", "--height", "64"]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> DrawingBackend:
    """The command line, with a backend that draws."""
    drawing = DrawingBackend()

    def find(name: str) -> LoraRef:
        if name in ("style", "subject"):
            return {"style": STYLE, "subject": SUBJECT}[name]
        raise NotFound(f"There is no LoRA named {name!r}.\nKnown names: style, subject.")

    monkeypatch.setattr("lora_runtime.backends.local.LocalBackend", lambda: drawing)
    monkeypatch.setattr("lora_runtime.requests.fetch_lora", find)
    return drawing


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def lines(result: Result) -> list[dict[str, Any]]:
    """The cells; the last line of a sweep that ended is its answer."""
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return [line for line in found if "answer" not in line]


def run_id() -> str:
    store = Store.open(settings())
    newest = store.runs(1)[0].id
    store.close()
    return newest


def test_one_strength_is_no_animation(backend: DrawingBackend, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call(*SWEEP, "--strengths", "0", "--seed", "7", "--out", str(out)).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["cells.csv", "grid.png", "seed-7_strength-0.00.png"]


def test_sweep_writes_cells_grid_and_table(backend: DrawingBackend, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call(*SWEEP, "--strengths", "0-1.2 [7]", "--seed", "7", "--out", str(out))
    assert result.exit_code == 0, result.output
    names = [f"seed-7_strength-{strength}.png" for strength in ("0.00", "0.20", "0.40", "0.60", "0.80", "1.00", "1.20")]
    assert sorted(path.name for path in out.iterdir()) == sorted(["cells.csv", "grid.png", "strengths.webp", *names])
    with (out / "cells.csv").open(newline="", encoding="utf-8-sig") as file:
        assert [row["strength"] for row in csv.DictReader(file)] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0", "1.2"]
    stamped = read_metadata(out / names[0])
    assert stamped is not None
    assert (stamped["lora"], stamped["strength"]) == ("style", 0)
    assert "strength" in result.stdout
    assert "verdict ok: Every strength acted" in result.stderr
    assert run_id() in result.stderr


@pytest.mark.parametrize(
    ("text", "values", "said"),
    [
        ("0.7–0.9", [0, 0.7, 0.75, 0.8, 0.85, 0.9], "A range without a count or a step is 5 values: 0.7-0.9 [5].\n"),
        (
            "-5,2,10",
            [-5, 0, 2, 10],
            "Strength -5 to 10 is outside -2 to 2: that is for sliders; most LoRAs break there.\n",
        ),
    ],
)
def test_what_was_assumed_and_what_is_unusual_is_said(
    backend: DrawingBackend, text: str, values: list[float], said: str
) -> None:
    result = call(*SWEEP, f"--strengths={text}", "--json")
    assert sorted(cell["strength"] for cell in lines(result)) == values
    assert said in result.stderr
    assert "outside" not in call(*SWEEP, "--strengths", "-2, 2").stderr


def test_json_is_one_object_a_cell_and_nothing_else(backend: DrawingBackend, tmp_path: Path) -> None:
    arguments = [*SWEEP, "--strengths", "0.7, 1", "--seed", "7", "--json", "--out", str(tmp_path)]
    result = call(*arguments)
    (answer,) = json.loads(result.stdout.splitlines()[-1])["answer"]
    assert (answer["lora"], answer["weights"], answer["scenes"] in (0, 1)) == ("style", "pocket", True)
    cells = lines(result)
    assert [cell["strength"] for cell in cells] == [0, 0.7, 1]
    assert {cell["status"] for cell in cells} == {"done"}
    assert cells[1] == {
        "run": run_id(),
        "position": 1,
        "weights": "pocket",
        "status": "done",
        "strength": 0.7,
        "seed": 7,
        "prompt": "a red fox",
        "lora": "style",
        "backend": "drawing",
        "precision": "fp32",
        "image": str(tmp_path / "seed-7_strength-0.70.png"),
        "seconds": 0.25,
        "engine": None,
        "cost": None,
        "request_id": None,
        "error": None,
    }
    again = call(*arguments)
    assert {cell["status"] for cell in lines(again)} == {"kept"}
    assert "verdict ok" in again.stderr


def test_several_precisions_make_rows(backend: DrawingBackend, tmp_path: Path) -> None:
    result = call(*SWEEP, "--strengths", "1", "--precision", "bf16,fp32", "--out", str(tmp_path), "--json")
    assert result.exit_code == 0, result.stderr
    assert [(cell["precision"], cell["strength"]) for cell in lines(result)] == [
        ("bf16", 0), ("bf16", 1), ("fp32", 0), ("fp32", 1),
    ]  # fmt: skip
    assert len({cell["image"] for cell in lines(result)}) == 4
    assert "same seed and strength: SSIM 1.000 on average" in result.stderr
    wrong = call(*SWEEP, "--precision", "int4")
    assert wrong.exit_code == 1
    assert "'int4' is none of fp8, bf16, fp32" in wrong.stderr


@pytest.mark.parametrize("out", [True, False])
def test_the_table_fits_into_eighty_columns(
    backend: DrawingBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    files = ["--out", str(tmp_path)] if out else []
    result = call(*SWEEP, "--strengths", "0, 0.7", "--seed", "7", "--seed", "8", *files)
    assert result.exit_code == 0, result.output
    rows = [line for line in result.stdout.splitlines() if " 0.70 " in line]
    assert len(rows) == 2
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert [row.split()[:5] for row in rows] == [["seed", seed, "0.70", "done", "0.25"] for seed in ("7", "8")]
    table = list(takewhile(lambda line: line[:1] in (" ", ""), result.stdout.splitlines()))
    assert len(table) <= 9, "no line may be broken"


def test_rows_with_the_trigger_phrase_and_without(
    backend: DrawingBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ohwx = replace(STYLE, trigger_phrase="ohwx")
    monkeypatch.setattr("lora_runtime.requests.fetch_lora", lambda _: ohwx)
    result = call(*SWEEP, "--compare-trigger", "--strengths", "1", "--no-base", "--out", str(tmp_path), "--json")
    assert [cell["prompt"] for cell in lines(result)] == ["ohwx a red fox", "a red fox"]
    assert [Path(cell["image"]).name.partition("_seed")[0] for cell in lines(result)] == [
        "with-trigger", "without-trigger",
    ]  # fmt: skip
    both = call(*SWEEP, "--weights", "pocket, pocket-base")
    assert "Not installed: run make" in both.stderr


def test_without_out_the_images_are_those_of_the_lab(backend: DrawingBackend, home: Path) -> None:
    (cell,) = lines(call(*SWEEP, "--strengths", "0.7", "--no-base", "--json"))
    assert Path(cell["image"]).is_relative_to(home / "blobs")
    assert Path(cell["image"]).is_file()


@pytest.mark.parametrize(
    ("more", "names"),
    [
        (["--seed", "1", "--seed", "2"], ["seed-1_strength-1.00.png", "seed-2_strength-1.00.png"]),
        (
            ["--seed", "1", "--prompt", "an owl"],
            ["prompt-01_seed-1_strength-1.00.png", "prompt-02_seed-1_strength-1.00.png"],
        ),
        (
            ["--seed", "1", "--lora", "subject"],
            ["lora-01-style_seed-1_strength-1.00.png", "lora-02-subject_seed-1_strength-1.00.png"],
        ),
    ],
)
def test_several_values_make_rows(backend: DrawingBackend, tmp_path: Path, more: list[str], names: list[str]) -> None:
    result = call(*SWEEP, *more, "--strengths", "1", "--no-base", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.glob("*_strength-*")) == names


def test_a_failed_cell_is_status_1_and_resume_mends_it(backend: DrawingBackend, tmp_path: Path) -> None:
    backend.fails = lambda request: RenderFailed("It\nbroke.") if request.strength == 1 else None
    result = call(*SWEEP, "--strengths", "0, 1", "--json")
    assert result.exit_code == 1
    assert [(cell["status"], cell["image"] is None, cell["error"]) for cell in lines(result)] == [
        ("done", False, None),
        ("failed", True, "It\nbroke."),
    ]
    assert f"resume {run_id()}" in result.stderr
    backend.fails = lambda request: None
    resumed = call("resume", run_id(), "--json", "--out", str(tmp_path))
    assert resumed.exit_code == 0
    assert [cell["status"] for cell in lines(resumed)] == ["kept", "done"]
    assert len(list(tmp_path.glob("*strength*.png"))) == 2


def test_a_red_verdict_is_status_1(backend: DrawingBackend) -> None:
    backend.acts = lambda strength: strength * 0
    result = call(*SWEEP, "--strengths", "0, 1")
    assert result.exit_code == 1
    assert "verdict RED: The LoRA had no effect." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--strengths", "0, x"], "character 4"),
        (["--strengths", ""], "character 1"),
        (["--lora", "nothing"], "There is no LoRA named 'nothing'. Known names: style, subject."),
        (["--width", "65"], "nearest is 64"),
        (["--lora", "subject", "--precision", "bf16,fp32"], "one axis beside strength and scenes"),
        (["--weights", "pocket-base"], "Not installed"),
    ],
)
def test_an_error_is_one_sentence(backend: DrawingBackend, arguments: list[str], said: str) -> None:
    result = call(*SWEEP, *arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_unknown_run_is_an_error(backend: DrawingBackend) -> None:
    result = call("resume", "run-0")
    assert (result.exit_code, "no run 'run-0'" in result.stderr) == (1, True)


def test_runs_lists_them(backend: DrawingBackend) -> None:
    call(*SWEEP, "--strengths", "0, 1")
    result = call("runs")
    assert result.exit_code == 0
    assert run_id() in result.stdout


_SLOW_SWEEP = """
import sys
from tests.drawing_backend import STYLE, DrawingBackend
import lora_runtime.backends.local
import lora_runtime.requests
from evaluation.__main__ import app

lora_runtime.backends.local.LocalBackend = lambda: DrawingBackend(delay_s=0.1)
lora_runtime.requests.find_lora = lambda name: STYLE
app(sys.argv[1:], prog_name="evaluation")
"""


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(backend: DrawingBackend, tmp_path: Path) -> None:
    arguments = [*SWEEP, "--strengths", "0-4 [40]", "--seed", "7", "--json", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", _SLOW_SWEEP, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate()
    assert process.returncode == 130, said
    done = [json.loads(line) for line in (first + rest).splitlines()]
    assert 1 <= len(done) < 40
    assert f"resume {done[0]['run']} --out {tmp_path / 'out'}" in said
    assert "Traceback" not in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "grid.png",
        "strengths.webp",
        "cells.csv",
        *(Path(cell["image"]).name for cell in done),
    }
    resumed = lines(call("resume", done[0]["run"], "--json"))
    assert [cell["status"] for cell in resumed].count("kept") == len(done)
    assert len(resumed) == 40


def test_help_needs_no_heavy_library() -> None:
    code = (
        "import sys, evaluation.__main__\n"
        "heavy = {'torch', 'pandas', 'sqlalchemy', 'gradio', 'diffusers', 'scipy', 'numpy', 'alembic'}\n"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or None)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert {"sweep", "resume", "runs"} <= set(call("--help").stdout.split())


@pytest.mark.slow
def test_the_real_engine_gives_the_command_line_and_the_library_the_same_pixels(
    local_backend: LocalBackend, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_runtime.backends.local.LocalBackend", lambda: local_backend)
    monkeypatch.setattr(LocalBackend, "close", lambda self: None)  # it belongs to the session
    file = write_bfl(tmp_path / "strong.safetensors", make_adapter(WEIGHTS["pocket"].shape, size=2.0))
    with open_registry() as finetunes:
        finetunes.add_file(LOCAL, file, name="strong", weights="pocket")
    arguments = ["sweep", "--prompt", "a red cat", "--lora", "strong", "--strengths", "0, 0.5, 1", "--seed", "7"]
    size = ["--width", "64", "--height", "64"]
    result = call(*arguments, *size, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "verdict ok: Every strength acted, and strength 0 is the base model." in result.stderr
    assert "strong at strength 0 equals the base image, pixel for pixel." in result.stderr

    monkeypatch.setenv("KLEIN_LAB_HOME", str(tmp_path / "elsewhere"))
    lora = find_lora(str(file))
    settings.cache_clear()
    store = Store.open(settings())
    spec = make_spec(
        local_backend, loras=[lora], prompts=["a red cat"], strengths="0, 0.5, 1", seeds=[7], width=64, height=64
    )
    ended = [e.record for e in run_sweep(spec, backend=local_backend, store=store) if isinstance(e, CellEnded)]
    assert len(ended) == 3
    for record in ended:
        assert record.image is not None
        name = f"seed-7_strength-{record.cell.request.strength:.2f}.png"
        with Image.open(record.image) as one, Image.open(tmp_path / name) as other:
            assert one.tobytes() == other.tobytes()
    store.close()
