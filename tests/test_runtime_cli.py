"""`python -m lora_runtime`: generate and inspect, as a user types them."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from lora_runtime.__main__ import app
from lora_runtime.catalogue import POCKET
from tests.lora_files import make_adapter, write_kohya

runner = CliRunner()


def test_inspect_reports_a_good_file(tmp_path: Path) -> None:
    path = write_kohya(tmp_path / "a.safetensors", make_adapter(POCKET, rank=4), alpha_over_rank=0.5)
    result = runner.invoke(app, ["inspect", str(path), "--json"])
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert report["ok"] is True
    assert (report["format"], report["base"], report["rank"], report["alpha"]) == (
        "kohya", ["pocket", "pocket-base"], [4], [2.0],
    )  # fmt: skip
    assert report["matched"] == 5
    assert set(report["norms"]) == {"double 0", "double 1", "single 0"}
    plain = runner.invoke(app, ["inspect", str(path)])
    assert "kohya" in plain.stdout
    assert "double 0" in plain.stdout


def test_inspect_of_a_bad_file_has_the_same_keys_and_status_1(tmp_path: Path) -> None:
    good = write_kohya(tmp_path / "a.safetensors", make_adapter(POCKET))
    save_file({"x": torch.ones(1)}, tmp_path / "bad.safetensors")
    reports = [runner.invoke(app, ["inspect", str(path), "--json"]) for path in (good, tmp_path / "bad.safetensors")]
    assert [result.exit_code for result in reports] == [0, 1]
    first, second = (json.loads(result.stdout) for result in reports)
    assert first.keys() == second.keys()
    assert "no LoRA layer" in second["problems"][0]


def test_generate_writes_a_png_with_its_arguments(tmp_path: Path) -> None:
    lora = write_kohya(tmp_path / "a.safetensors", make_adapter(POCKET))
    out = tmp_path / "deep" / "cat.png"
    options = ["--prompt", "a red cat", "--lora", str(lora), "--strength", "0.75", "--width", "64", "--height", "80"]
    result = runner.invoke(app, ["generate", *options, "--seed", "7", "--out", str(out)])
    assert result.exit_code == 0, result.output
    with Image.open(out) as image:
        image.load()
        assert image.size == (64, 80)
        cell = json.loads(image.info["klein_lab"])
    assert (cell["strength"], cell["seed"], cell["lora"]) == (0.75, 7, "a")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--strength", "abc"], "not a number"),
        (["--strength", "9", "--lora", "LORA"], "from -4 to 4"),
        (["--strength", "nan", "--lora", "LORA"], "from -4 to 4"),
        (["--width", "100"], "nearest is 96"),
        (["--seed", "-5"], "not from 0"),
        (["--precision", "int4"], "fp8, bf16, fp32"),
        (["--weights", "sdxl"], "no weights named 'sdxl'"),
        (["--weights", "klein-4b", "--lora", "LORA"], "not on this machine"),
        (["--lora", "nothing"], "no LoRA named 'nothing'"),
        (["--prompt", " "], "at least one word"),
        (["--guidance", "3"], "distilled"),
        (["--steps", "0"], "from 1 to 100"),
    ],
)
def test_each_bad_option_is_one_sentence(tmp_path: Path, options: list[str], says: str) -> None:
    lora = write_kohya(tmp_path / "a.safetensors", make_adapter(POCKET))
    given = [str(lora) if word == "LORA" else word for word in options]
    prompt = [] if "--prompt" in given else ["--prompt", "a cat"]
    result = runner.invoke(app, ["generate", *prompt, *given, "--out", str(tmp_path / "x.png")])
    assert result.exit_code == 1
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x.png").exists()
