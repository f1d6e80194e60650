"""`python -m lora_runtime`: generate and inspect, as a user types them."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lora_runtime.__main__ import app
from lora_runtime.catalogue import POCKET
from tests.header_files import klein, lora, write
from tests.lora_files import make_adapter, make_lokr, write_kohya, write_lokr

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


def test_inspect_has_exactly_these_keys(tmp_path: Path) -> None:
    path = write_kohya(tmp_path / "a.safetensors", make_adapter(POCKET))
    for argument in (str(path), "nothing"):
        report = json.loads(runner.invoke(app, ["inspect", argument, "--json"]).stdout)
        assert list(report) == [
            "ok", "format", "base", "trained_on", "rank", "alpha", "trigger_phrase", "matched", "unmatched", "notices",
            "problems", "sha256", "norms",
        ]  # fmt: skip


def test_inspect_shows_the_sentence_first_and_ten_keys_at_most(tmp_path: Path) -> None:
    strange = lora({f"norm_{number}": (4, 4) for number in range(100)})
    path = write(tmp_path / "a.safetensors", lora(klein(256, 2, 4)) | strange)
    result = runner.invoke(app, ["inspect", str(path)])
    assert result.exit_code == 1
    first, *rest = result.stdout.splitlines()
    assert first.startswith("a.safetensors is for pocket klein, but 200 of its tensors belong to no layer")
    (unmatched,) = [line for line in rest if line.startswith("unmatched")]
    assert unmatched.count("transformer.norm_") == 10
    assert unmatched.endswith("and 190 more")


def test_an_adapter_is_chosen_on_the_command_line(tmp_path: Path) -> None:
    one, two = (
        lora(klein(256, 2, 4), parts=(f"lora_A.{name}.weight", f"lora_B.{name}.weight")) for name in ("one", "two")
    )
    path = str(write(tmp_path / "a.safetensors", one | two))
    assert "holds 2 adapters: one, two" in runner.invoke(app, ["inspect", path]).stdout
    report = json.loads(runner.invoke(app, ["inspect", path, "--adapter", "two", "--json"]).stdout)
    assert (report["ok"], report["matched"]) == (True, 3)
    add = ["finetunes", "add", path, "--name", "mine", "--base", "pocket"]
    assert "holds 2 adapters: one, two" in runner.invoke(app, add).stderr
    assert runner.invoke(app, [*add, "--adapter", "two"]).exit_code == 0
    assert report["sha256"] in runner.invoke(app, ["finetunes", "show", "mine"]).stdout
    alone = runner.invoke(app, ["generate", "--prompt", "a cat", "--adapter", "two", "--out", str(tmp_path / "x.png")])
    assert "--adapter names an adapter in the file of --lora" in alone.stderr


def test_inspect_of_a_misfit_says_what_it_can(tmp_path: Path) -> None:
    path = write_kohya(tmp_path / "a.safetensors", make_adapter(POCKET))
    tensors = load_file(path)
    tensors["lora_unet_single_blocks_9_linear1.lora_down.weight"] = torch.ones(2, POCKET.hidden)
    tensors["lora_unet_single_blocks_9_linear1.lora_up.weight"] = torch.ones(9 * POCKET.hidden, 2)
    tensors["lora_unet_double_blocks_0_img_attn_norm.scale"] = torch.ones(2)
    save_file(tensors, path)
    result = runner.invoke(app, ["inspect", str(path), "--json"])
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (report["ok"], report["format"], report["rank"], report["matched"]) == (False, "kohya", [2, 4], 5)
    assert report["unmatched"] == [
        "lora_unet_double_blocks_0_img_attn_norm.scale", "single_transformer_blocks.9.attn.to_qkv_mlp_proj",
    ]  # fmt: skip
    assert report["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(report["problems"]) == 1


def test_inspect_of_a_name_a_folder_and_a_lokr(tmp_path: Path) -> None:
    folder = tmp_path / "my-lokr"
    folder.mkdir()
    write_lokr(folder / "a.safetensors", make_lokr(POCKET), alpha=1e10)
    reports = []
    for argument in ("style", str(folder)):
        result = runner.invoke(app, ["inspect", argument, "--json"])
        assert result.exit_code == 0, result.stdout
        reports.append(json.loads(result.stdout))
    style, lokr = reports
    assert (style["ok"], style["base"]) == (True, ["pocket", "pocket-base"])
    assert (lokr["format"], lokr["rank"], lokr["alpha"], lokr["matched"]) == ("BFL / AI-Toolkit LoKr", [], [], 5)
    assert set(lokr["norms"]) == {"double 0", "double 1", "single 0"}


@pytest.mark.parametrize(("strength", "warned"), [("0.75", False), ("-7.5", True)])
def test_generate_writes_a_png_with_its_arguments(tmp_path: Path, strength: str, warned: bool) -> None:
    lora = write_kohya(tmp_path / "a.safetensors", make_adapter(POCKET))
    out = tmp_path / "deep" / "cat.png"
    options = [
        "--prompt",
        "a red cat",
        "--lora",
        str(lora),
        f"--strength={strength}",
        "--width",
        "64",
        "--height",
        "80",
    ]
    result = runner.invoke(app, ["generate", *options, "--seed", "7", "--out", str(out)])
    assert result.exit_code == 0, result.output
    with Image.open(out) as image:
        image.load()
        assert image.size == (64, 80)
        cell = json.loads(image.info["klein_lab"])
    assert (cell["strength"], cell["seed"], cell["lora"]) == (float(strength), 7, "a")
    assert ("Strength -7.5 is outside -2 to 2" in result.stderr) is warned


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--strength", "abc"], "not a number"),
        (["--strength", "19", "--lora", "LORA"], "from -15 to 15"),
        (["--strength", "nan", "--lora", "LORA"], "'nan' is not a number"),
        (["--seed", str(2**32 + 7)], "would give the image of seed 7"),
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
