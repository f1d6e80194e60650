"""The lab on PostgreSQL instead of SQLite: the same schema, the same sweep, the same table."""

import threading
from collections.abc import Iterator
from decimal import Decimal

import pytest

from evaluation.grid import make_spec
from evaluation.report.columns import make_table
from evaluation.store.store import Store
from evaluation.sweep import CellEnded, resume_sweep, run_sweep
from lora_runtime.errors import RenderFailed
from lora_runtime.settings import settings
from lora_runtime.storage.database import Database
from tests.drawing_backend import STYLE, DrawingBackend
from tests.postgres import make_database

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(postgres: str) -> str:
    return make_database(postgres)


@pytest.fixture
def store(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("DATABASE_URL", url)
    settings.cache_clear()
    opened = Store.open(settings())
    yield opened
    opened.close()


def test_several_processes_may_start_on_an_empty_database(url: str) -> None:
    opened: list[Database] = []
    threads = [threading.Thread(target=lambda: opened.append(Database(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    for database in opened:
        database.close()


def test_a_sweep_is_kept_resumed_rated_and_read_back(store: Store) -> None:
    spec = make_spec(
        DrawingBackend(),
        loras=[STYLE],
        prompts=["a red fox"],
        strengths="0-1 [3]",
        seeds=[2**32 - 1],
        width=64,
        height=64,
    )
    broken = DrawingBackend(fails=lambda request: RenderFailed("It broke.") if request.strength == 1 else None)
    for _ in run_sweep(spec, backend=broken, store=store):
        pass
    (run,) = store.runs(limit=10)
    assert [cell.state for cell in store.cells(run.id)] == ["done", "done", "failed"]

    ended = [e for e in resume_sweep(run.id, backend=DrawingBackend(), store=store) if isinstance(e, CellEnded)]
    assert [event.status for event in ended].count("done") == 1

    store.rate(run.id, 2, 4, "quite good: naïve 狐")
    table = make_table(store.cells(run.id))
    assert list(table["strength"].map(lambda each: Decimal(str(each)))) == [Decimal(0), Decimal("0.5"), Decimal(1)]
    assert list(table["rating"].dropna()) == [4]
    assert table["seed"].map(int).tolist() == [2**32 - 1] * 3
