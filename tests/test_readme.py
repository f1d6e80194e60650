"""What the README and the pages in docs/ promise exists: files, commands, variables, functions, examples."""

import re
import shlex
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from evaluation.strengths import format_strengths, parse_strengths
from tests.settings_page import PAGE, write_page

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def options_of(*command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", *command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT,
        env={"PATH": "", "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    ).stdout  # fmt: skip


def test_the_tree_names_what_is_there() -> None:
    (tree,) = blocks(CONTRIBUTING, "text")
    folder = ROOT
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0]
        indented = line.startswith("  ")
        for name in names.split(", "):
            assert ((folder if indented else ROOT) / name).exists(), f"the tree names {name}"
        if not indented:
            folder = ROOT / names


def test_the_walks_name_functions_that_are_there_in_files_that_are_there() -> None:
    hops = re.findall(r"^\| (\d+) \| `([^`]+)` \| (.+) \|$", CONTRIBUTING, flags=re.MULTILINE)
    assert len(hops) > 20
    assert max(int(number) for number, _, _ in hops) <= 13, "a walk goes through thirteen files at most"
    for _, file, says in hops:
        text = (ROOT / file).read_text()
        for name in re.findall(r"`(?:[A-Z]\w+\.)?([a-z_]+)`", says):
            assert f"def {name}(" in text, f"{file}: {name}"
    for file in re.findall(r"`((?:lora_runtime|evaluation|tests)/[\w/.]+)`", CONTRIBUTING):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_pictures_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert not [target for target in targets if not (target.startswith("http") or (page.parent / target).exists())]


def test_the_readme_links_to_every_page() -> None:
    assert all(f"docs/{page.name}" in README for page in (ROOT / "docs").glob("*.md"))


def test_the_settings_are_those_of_the_program() -> None:
    assert PAGE.read_text() == write_page(), "python -m tests.settings_page writes it anew"


def test_every_variable_that_a_page_names_is_a_setting() -> None:
    named = {name for page in PAGES for name in re.findall(r"\b(KLEIN_LAB_[A-Z_]+)", page.read_text())}
    assert named <= set(re.findall(r"`(KLEIN_LAB_\w+)`", PAGE.read_text()))


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?\bmake ([a-z]+)\b[`  ]", README + CONTRIBUTING)) - {"rows", "the"}:
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


def test_commands_and_options_in_examples_exist() -> None:
    seen: dict[tuple[str, str], str] = {}
    scaling = (ROOT / "docs" / "scaling.md").read_text()
    for line in "".join(blocks(README, "sh") + blocks(scaling, "sh")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "-m" not in words:
            continue
        module, sub = words[words.index("-m") + 1 :][:2]
        if (module, sub) not in seen:
            seen[module, sub] = options_of(module, sub)
        shown = seen[module, sub]
        for word in words:
            assert not word.startswith("--") or word in shown, f"{module} {sub} {word}"
    assert len(seen) >= 6


def test_the_commands_of_the_api_page_exist() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    named = re.findall(r"^\| (.+?) \|", text, flags=re.MULTILINE)
    for group in ("keys", "finetunes"):
        shown = options_of("lora_runtime", group)
        cells = " ".join(cell for cell in named if f"`{group} " in cell)
        for name in re.findall(rf"`(?:{group} )?([a-z]+)\b", cells):
            assert re.search(rf"\b{name}\b", shown), f"{group} {name}"
