"""`compare` and `report`: scores side by side within 80 columns, and runs as one file."""

import csv
import io
import json
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet
import pytest
from click.testing import Result
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.report.columns import list_columns, make_table
from evaluation.report.files import write_table
from evaluation.store.store import Store
from evaluation.sweep import Finished, run_sweep
from tests.drawing_backend import STYLE, SUBJECT, DrawingBackend, make_drawing_spec


def sweep(store: Store, backend: DrawingBackend | None = None, **changes: object) -> str:
    *_, finished = run_sweep(make_drawing_spec(**changes), backend=backend or DrawingBackend(), store=store)
    assert isinstance(finished, Finished)
    return finished.run_id


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def test_one_run_is_a_line_a_strength(store: Store) -> None:
    run_id = sweep(store, seeds=[7, 8], strengths="0, 0.7, 1")
    store.rate(run_id, 1, 5)
    store.rate(run_id, 4, 4)
    result = call("compare", run_id)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == f"A  {run_id} · style · 2 rows · a red fox"
    (half,) = [line for line in lines if line.startswith("0.7")]
    assert half.split()[4] == "4.5"
    said = " ".join(call("answer", run_id).stdout.split())
    assert said in " ".join(result.stdout.split()), "compare and answer say the same"


def test_a_sweep_that_cannot_be_trusted_gets_no_answer(store: Store) -> None:
    run_id = sweep(store, backend=DrawingBackend(acts=lambda strength: min(strength, Decimal("0.5"))))
    store.rate(run_id, 1, 5)
    for command in ("compare", "answer"):
        assert "No answer, as the verdict is red." in call(command, run_id).stdout
    assert json.loads(call("answer", run_id, "--json").stdout) == {"answer": []}


def test_prompt_sets_are_listed_kept_and_deleted(store: Store) -> None:
    assert "four scenes\n  {subject} on the beach" in call("prompts").stdout
    kept = call("prompts", "mine", "--prompt", "a cat in the snow", "--prompt", "a cat at night")
    assert kept.stdout == "Kept mine: {subject} in the snow; {subject} at night\n", kept.output
    assert call("prompts", "mine").stdout == "mine\n  {subject} in the snow\n  {subject} at night\n"
    assert call("prompts", "mine", "--prompt", "{subject}").stdout.startswith("Replaced mine")
    assert call("prompts", "mine", "--delete").stdout == "Deleted mine.\n"
    assert "There is no prompt set" in call("prompts", "mine").stderr


def test_eight_runs_fit_side_by_side(store: Store) -> None:
    runs = [sweep(store, seeds=[seed], prompts=["long words " * 30], strengths="0, 0.7") for seed in range(7)]
    runs.append(sweep(store, loras=[SUBJECT], strengths="0, 1"))
    result = call("compare", *runs)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    title = lines.index("SSIM to base")
    assert lines[title + 1].split() == ["strength", *"ABCDEFGH"]
    assert lines[title + 3].split()[-1] == "–", "H has no 0.7"
    assert call("compare", *runs, "run-9").exit_code == 1


def test_json_is_one_object(store: Store) -> None:
    run_id = sweep(store, strengths="0, 0.7, 1")
    store.rate(run_id, 1, 5)
    (found,) = json.loads(call("compare", run_id, "--json").stdout)["runs"]
    assert (found["run"], found["loras"], found["seeds"]) == (run_id, ["style"], [7])
    assert [row["strength"] for row in found["strengths"]] == [0, 0.7, 1]
    assert found["strengths"][0]["ssim"] == 1
    assert found["strengths"][1]["rating"] == 5
    assert found["strengths"][0]["rating"] is None
    assert found["strengths"][2]["clip"] is not None, "scored when it is asked for"
    line = call("answer", run_id, "--json").stdout
    assert line.count("\n") == 1
    assert json.loads(line)["answer"] == found["answer"]
    assert list(found["answer"][0]) == [
        "lora", "weights", "word", "low", "high", "best", "scenes", "passed", "interval", "judge", "votes", "sentence",
    ]  # fmt: skip


@pytest.mark.parametrize("ending", [".html", ".csv", ".jsonl", ".parquet"])
def test_runs_become_one_file(store: Store, tmp_path: Path, ending: str) -> None:
    runs = [sweep(store), sweep(store, loras=[SUBJECT], prompts=["=1+1 🦊"])]
    store.rate(runs[0], 1, 3, "fine")
    store.delete_cells([(runs[0], 2)])
    out = tmp_path / "new" / f"report{ending}"
    result = call("report", *runs, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert str(out) in result.stdout
    data = out.read_bytes()
    if ending == ".html":
        assert data.count(b"<img") == 5
    elif ending == ".csv":
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
        assert [row["prompt"] for row in rows] == ["a red fox"] * 2 + ["'=1+1 🦊"] * 3
    elif ending == ".jsonl":
        found = [json.loads(line) for line in data.decode().splitlines()]
        assert list(found[0]) == list(list_columns())
        assert [(row["strength"], row["rating"], row["prompt"]) for row in found[1:3]] == [
            (0.5, 3, "a red fox"),
            (0.0, None, "=1+1 🦊"),
        ]
    else:
        table = pyarrow.parquet.read_table(io.BytesIO(data))
        assert table.column_names == list(list_columns())
        assert table["rating"].to_pylist() == [None, 3, None, None, None]
        assert table["seed"].to_pylist() == [7] * 5


def test_a_parquet_has_the_same_types_without_rows(store: Store) -> None:
    empty = pyarrow.parquet.read_table(io.BytesIO(write_table(make_table([]), ".parquet")))
    run_id = sweep(store, seeds=[2**32 - 1], loras=[STYLE])
    full = pyarrow.parquet.read_table(io.BytesIO(write_table(make_table(store.cells(run_id)), ".parquet")))
    assert empty.schema == full.schema
    assert full["seed"].to_pylist() == [2**32 - 1] * 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "run-0"], "There is no run 'run-0'"),
        (["report", "run-0"], "There is no run 'run-0'"),
        (["report", "run-0", "--out", "report.pdf"], "ends in none of .html, .csv, .jsonl, .parquet"),
    ],
)
def test_an_error_is_one_sentence(arguments: list[str], said: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
