"""`vote` and `votes`: choosing blind at a terminal, and what is said afterwards."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.grid import plan
from evaluation.store.store import Store
from evaluation.sweep import Finished, run_sweep
from tests.drawing_backend import DrawingBackend, make_drawing_spec


@pytest.fixture
def run_id(store: Store) -> str:
    *_, finished = run_sweep(make_drawing_spec(), backend=DrawingBackend(), store=store)
    assert isinstance(finished, Finished)
    return finished.run_id


def test_somebody_votes_without_knowing_and_is_told_at_the_end(store: Store, run_id: str, tmp_path: Path) -> None:
    out = tmp_path / "shown"
    done = CliRunner().invoke(
        app, ["vote", run_id, "--voter", "ada", "--out", str(out), "--seed", "1"], input="l\nR\nx\nt\nn\nq\n"
    )
    assert done.exit_code == 0, done.output
    asking, told = done.output.split("4 votes by ada.")
    assert not any(word in asking for word in ("0.5", "base", "style", "strength"))
    assert "ada (4); neither: 1" in told
    assert "'x' is none of l, r, t, n, q." in done.output
    votes = store.votes([record.cell.identity for record in store.cells(run_id)])
    assert [vote.outcome for vote in votes] == ["left", "right", "tie", "neither"]
    for side in ("left", "right"):
        with Image.open(out / f"{side}.png") as image:
            assert (image.size, image.info) == ((64, 64), {})


def test_what_came_of_it_is_a_table_or_one_object(store: Store, run_id: str) -> None:
    base, half, full = (record.cell.identity for record in store.cells(run_id))
    empty = CliRunner().invoke(app, ["votes", run_id])
    assert "No votes yet." in empty.stdout
    for number in range(12):
        store.vote(base, full, "right", voter=f"voter {number % 2}")
        store.vote(half, full, "right", voter="ada")
        store.vote(base, half, "right", voter="ada")
    said = CliRunner().invoke(app, ["votes", run_id]).stdout
    lines = said.splitlines()
    assert lines[0] == "1 is liked best (36 votes of 3 voters)."
    assert [line.split()[0] for line in lines[2:5]] == ["1", "0.5", "0"]
    assert "Difference to base: better for the image taken in 0 of 36 votes" in said, "nearer to base is better there"
    assert max(map(len, lines)) <= 80
    (found,) = json.loads(CliRunner().invoke(app, ["votes", run_id, "--json"]).stdout)["votes"]
    assert (found["votes"], found["different"], found["best"]) == (36, True, ["1"])
    assert [one["strength"] for one in found["standings"]] == [1, 0.5, 0]
    assert found["voters"] == {"voter 0": 6, "ada": 24, "voter 1": 6}
    assert found["agreements"]["ssim"] == {"agreed": 0, "decided": 36}


def test_nothing_to_vote_on_is_a_sentence(store: Store) -> None:
    waiting = store.create_run(spec := make_drawing_spec(), plan(spec))
    for run_id, words in ((waiting, "no scene with two images"), ("run-0", "no run")):
        refused = CliRunner().invoke(app, ["vote", run_id])
        assert refused.exit_code == 1
        assert words in refused.stderr
