"""`make` finds a Python that fits among those of a machine, and says in words what is missing where there is none."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
HERE = "{}.{}".format(*sys.version_info)

FITS = ""
TOO_OLD = "import sys; sys.version_info = (3, 10, 9, 'final', 0)"
TOO_NEW = "import sys; sys.version_info = (3, 15, 0, 'final', 0)"
WITHOUT_ENSUREPIP = "import sys; sys.modules['ensurepip'] = None"
"""What an interpreter of a machine is told about itself at its start: this one with another version, or with less."""


def make(folder: Path, pythons: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `make .venv/bin/python` on a machine whose PATH has these Pythons alone, by what they are told."""
    folder.mkdir(exist_ok=True)
    for name, told in pythons.items():
        (folder / f"of-{name}").mkdir()
        (folder / f"of-{name}" / "sitecustomize.py").write_text(told)
        program = folder / name
        program.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/of-{name} exec {sys.executable} "$@"\n')
        program.chmod(0o755)
    shutil.copy(ROOT / "Makefile", folder)
    command = [str(shutil.which("make")), "--no-print-directory", ".venv/bin/python", *arguments]
    environment = {"PATH": str(folder)} | {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def version_of(python: Path) -> str:
    asked = [str(python), "-c", "import sys, pip; print('{}.{}'.format(*sys.version_info))"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def test_another_python_that_fits_is_preferred_to_a_refusal(tmp_path: Path) -> None:
    made = make(tmp_path / "machine", {"python3": TOO_OLD, "python3.13": WITHOUT_ENSUREPIP, "python3.12": FITS})
    assert (made.returncode, made.stdout) == (0, "")
    assert version_of(tmp_path / "machine" / ".venv" / "bin" / "python") == HERE


@pytest.mark.parametrize(
    ("pythons", "says"),
    [
        ({}, "is needed, and none is here."),
        ({"python3": TOO_OLD}, "none is here; python3 is Python 3.10."),
        ({"python3": TOO_NEW, "python3.11": TOO_OLD}, "; python3 is Python 3.15; python3.11 is Python 3.10."),
        (
            {"python3": WITHOUT_ENSUREPIP},
            f"; python3 has no ensurepip (on Debian and Ubuntu: apt-get install python{HERE}-venv).",
        ),
        ({"python3": "raise SystemExit(1)"}, "; python3 does not run."),
    ],
)
def test_what_is_missing_is_said_in_words(tmp_path: Path, pythons: dict[str, str], says: str) -> None:
    made = make(tmp_path / "machine", pythons)
    assert made.returncode == 2
    assert made.stdout.startswith("Python 3.11 to 3.14 is needed, and none is here")
    assert says in made.stdout
    assert "make PYTHON=/path/to/python3 .venv/bin/python" in made.stdout
    assert not (tmp_path / "machine" / ".venv").exists()


def test_a_python_that_is_named_is_the_only_one_tried(tmp_path: Path) -> None:
    pythons = {"python3": FITS, "old": TOO_OLD}
    made = make(tmp_path / "machine", pythons, f"PYTHON={tmp_path}/machine/old")
    assert made.returncode == 2
    assert f"none is here; {tmp_path}/machine/old is Python 3.10." in made.stdout


def test_every_python_that_is_promised_is_tested() -> None:
    (minors,) = re.findall(r"^MINORS := ([\d ]+)$", MAKEFILE, flags=re.MULTILINE)
    promised = [f"3.{minor}" for minor in reversed(minors.split())]
    assert re.findall(r'"(3\.\d+)"', (ROOT / ".github" / "workflows" / "ci.yml").read_text()) == promised
    assert f"Python {promised[0]} to {promised[-1]} and `make`" in (ROOT / "README.md").read_text()
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert needed == f">={promised[0]},<3.{int(minors.split()[0]) + 1}"
