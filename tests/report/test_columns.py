from typing import Any

import pytest

from evaluation.grid import make_spec
from evaluation.judge.metrics import METRICS
from evaluation.report.columns import COLUMNS, load_table, make_table
from evaluation.store.store import Store
from evaluation.sweep import run_sweep
from lora_runtime.errors import NotFound, RenderFailed
from tests.drawing_backend import STYLE, SUBJECT, DrawingBackend


def sweep(store: Store, **changes: Any) -> str:
    asked = {"loras": [STYLE], "prompts": ["a red fox"], "strengths": "0, 0.7, 1", "seeds": [7], **changes}
    backend = DrawingBackend(fails=lambda request: RenderFailed("It broke.") if request.seed == 13 else None)
    spec = make_spec(backend, width=64, height=64, **asked)
    for _ in run_sweep(spec, backend=backend, store=store):
        pass
    return store.runs(1)[0].id


def test_one_row_a_cell_newest_run_first(store: Store) -> None:
    first = sweep(store, loras=[STYLE, SUBJECT])
    second = sweep(store, seeds=[13])
    table = load_table(store)
    assert list(table.columns) == list(COLUMNS)
    assert list(table.columns[:2]) == ["run", "position"]
    assert list(table["run"]) == [second] * 3 + [first] * 6
    assert list(table["position"]) == [0, 1, 2, 0, 1, 2, 3, 4, 5]
    assert list(table["state"]) == ["failed"] * 3 + ["done"] * 6
    assert list(table["strength"][:3]) == [0.0, 0.7, 1.0]
    assert list(table["lora"][3:]) == ["style"] * 3 + ["subject"] * 3
    assert table["error"][0] == "It broke."
    assert table["image"][0] is None
    assert load_table(store, run_id=first).equals(table[3:].reset_index(drop=True))
    assert set(load_table(store, limit=1)["run"]) == {second}
    with pytest.raises(NotFound):
        load_table(store, run_id="run-0")


def test_a_metric_is_a_column(store: Store) -> None:
    table = load_table(store, run_id=sweep(store))
    assert all(table[name].notna().all() for name in METRICS)


def test_no_runs_no_rows(store: Store) -> None:
    table = load_table(store)
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == len(make_table([])) == 0


def test_a_deleted_row_is_in_no_table_but_its_own_runs(store: Store) -> None:
    run_id = sweep(store)
    store.delete_cells([(run_id, 1)])
    assert list(load_table(store)["position"]) == [0, 2]
    assert list(load_table(store, run_id=run_id)["position"]) == [0, 1, 2]
