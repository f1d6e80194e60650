from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
from drawing_backend import STYLE, SUBJECT, DrawingBackend

from evaluation.grid import make_spec
from evaluation.metrics import METRICS
from evaluation.store import Store
from evaluation.sweep import run_sweep
from evaluation.table import COLUMNS, filter_equal, filter_rated, filter_text, load_table, make_table, sort_table
from lora_runtime.errors import InvalidInput, NotFound, RenderFailed
from lora_runtime.settings import settings


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store.open(settings())
    yield store
    store.close()


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
    for shown in (filter_text(table, "fox"), filter_rated(table, 1), sort_table(table, "seed"), make_table([])):
        assert len(shown) == 0


def test_filters_keep_the_rows_they_name(store: Store) -> None:
    run_id = sweep(store, prompts=["a RED fox (v2) [x]", "a blue owl"])
    store.rate(run_id, 1, 5, "nice snow")
    store.rate(run_id, 4, 2)
    table = load_table(store)
    assert list(filter_text(table, "owl  BLUE")["position"]) == [3, 4, 5]
    assert list(filter_text(table, "(v2) [x]")["position"]) == [0, 1, 2]  # plain text, no pattern
    assert list(filter_text(table, "snow")["position"]) == [1]
    assert len(filter_text(table, "")) == 6
    assert len(filter_text(table, "owl fox")) == 0
    assert list(filter_equal(table, "strength", [0.7])["position"]) == [1, 4]
    assert len(filter_equal(table, "run", [run_id])) == 6
    assert list(filter_rated(table, 2)["position"]) == [1, 4]
    assert list(filter_rated(table, 3)["position"]) == [1]
    with pytest.raises(InvalidInput, match="no column 'size'"):
        filter_equal(table, "size", [1])


def test_sorting_puts_unknown_values_last(store: Store) -> None:
    run_id = sweep(store)
    store.rate(run_id, 1, 2)
    store.rate(run_id, 2, 4)
    table = load_table(store)
    assert list(sort_table(table, "rating")["position"]) == [1, 2, 0]
    assert list(sort_table(table, "rating", descending=True)["position"]) == [2, 1, 0]
    assert list(sort_table(table, "prompt", descending=True)["position"]) == [0, 1, 2]
    assert list(sort_table(table, "strength", descending=True)["position"]) == [2, 1, 0]
    assert isinstance(sort_table(table, "note"), pd.DataFrame)
    with pytest.raises(InvalidInput):
        sort_table(table, "size")
