from typing import Any

from evaluation.judge.metrics import METRICS
from evaluation.report.columns import list_columns, list_rows, make_table, show_record
from evaluation.store.records import CellRecord
from evaluation.store.store import Store
from evaluation.sweep import run_sweep
from lora_runtime.errors import RenderFailed
from tests.drawing_backend import STYLE, SUBJECT, DrawingBackend, make_drawing_spec


def sweep(store: Store, **changes: Any) -> tuple[CellRecord, ...]:
    backend = DrawingBackend(fails=lambda request: RenderFailed("It broke.") if request.seed == 13 else None)
    for _ in run_sweep(make_drawing_spec(strengths="0, 0.7, 1", **changes), backend=backend, store=store):
        pass
    return store.cells(store.runs(1)[0].id)


def test_one_row_a_cell_with_every_column(store: Store) -> None:
    table = make_table((*sweep(store, seeds=[13]), *sweep(store, loras=[STYLE, SUBJECT])))
    assert list(table.columns) == list(list_columns())
    assert list(table.columns[:2]) == ["run", "position"]
    assert list(table["position"]) == [0, 1, 2, 0, 1, 2, 3, 4, 5]
    assert list(table["state"]) == ["failed"] * 3 + ["done"] * 6
    assert list(table["strength"][:3]) == [0.0, 0.7, 1.0]
    assert list(table["lora"][3:]) == ["style"] * 3 + ["subject"] * 3
    rows = list_rows(table)
    assert (rows[0]["error"], rows[0]["image"], rows[0]["seed"]) == ("It broke.", None, 13)
    assert all(row[name] is not None for row in rows[3:] for name in METRICS)
    assert table.dtypes.equals(make_table([]).dtypes), "however few rows there are"


def test_programs_are_told_what_they_were(store: Store) -> None:
    told = show_record(sweep(store)[1])
    assert set(told) == {
        "run", "position", "strength", "lora", "prompt", "seed", "weights", "precision", "backend", "engine", "seconds",
        "cost", "request_id", "error",
    }  # fmt: skip
    assert (told["strength"], told["lora"], told["seed"]) == (0.7, "style", 7)
