"""What the README promises exists: its files, its commands, its variables, its examples."""

import re
import shlex
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from evaluation.strengths import format_strengths, parse_strengths
from lora_runtime.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_the_tree_names_what_is_there() -> None:
    (tree,) = blocks("text")
    folder = ROOT
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0]
        indented = line.startswith("  ")
        for name in names.split(", "):
            assert ((folder if indented else ROOT) / name).exists(), f"the README's tree names {name}"
        if not indented:
            folder = ROOT / names


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).is_file(), target


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z]+)\b", README)) - {"rows", "the"}:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_strengths_table() -> None:
    rows = dict(re.findall(r"^\| `([^`]+)` \| ([^|]+) \|$", README, flags=re.MULTILINE))
    assert len(parse_strengths("0-1.2 [7]")) == 7
    assert "0-1.2 [7]" in rows
    assert parse_strengths("0.7-0.9 (+0.05)") == tuple(Decimal(x) for x in rows["0.7-0.9 (+0.05)"].split(", "))
    _, values, others = re.split(": |; as are ", rows["0.7-0.9"])
    for text in ("0.7-0.9", *re.findall("`([^`]+)`", others)):
        assert format_strengths(parse_strengths(text)) == values
    assert parse_strengths("0, .25, .., 1") == tuple(Decimal(x) for x in rows["0, .25, .., 1"].split(", "))


def test_every_variable_is_listed() -> None:
    for name, field in Settings.model_fields.items():
        variable = field.validation_alias or f"KLEIN_LAB_{name.upper()}"
        assert f"`{variable}`" in README, variable


@pytest.mark.parametrize("command", ["evaluation", "lora_runtime"])
def test_options_in_examples_exist(command: str) -> None:
    (script,) = (block for block in blocks("sh") if "-m evaluation" in block)
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if command not in words:
            continue
        sub = words[words.index(command) + 1]
        done = subprocess.run(
            [sys.executable, "-m", command, sub, "--help"], capture_output=True, text=True, check=True, cwd=ROOT,
            env={"PATH": "", "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
        )  # fmt: skip
        for word in words:
            assert not word.startswith("--") or word in done.stdout, f"{command} {sub} {word}"
