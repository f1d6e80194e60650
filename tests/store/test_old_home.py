"""A log that was written before its cells had columns: each row says what its plan says."""

import sqlite3
from pathlib import Path

from evaluation.grid import plan
from evaluation.log import read_keys, read_log_table, read_page
from evaluation.log_search import LogView
from evaluation.report.columns import make_table
from evaluation.store.read import make_row
from evaluation.store.rows import RunCellRow
from evaluation.store.store import Store
from lora_runtime.settings import settings

OLD = Path(__file__).parent.parent / "golden" / "log_of_2f2a595.sql"
"""Four runs as commit 2f2a595 kept them: two LoRAs; two seeds, in the spec of a still older version, one image failed;
with the trigger phrase and without; the base model alone."""

COLUMNS = [column.name for column in RunCellRow.__table__.columns if column.name not in ("error", "deleted")]


def test_a_home_of_before_opens_with_every_row_in_place(home: Path) -> None:
    home.mkdir(exist_ok=True)
    with sqlite3.connect(home / "lab.sqlite3") as database:
        database.executescript(OLD.read_text())
        for (blob,) in database.execute("SELECT blob FROM cells"):
            (home / "blobs" / blob[:2]).mkdir(parents=True, exist_ok=True)
            (home / "blobs" / blob[:2] / blob).touch()
    database.close()
    store = Store.open(settings())
    runs = store.runs()
    assert sorted(len(store.cells(run.id)) for run in runs) == [1, 2, 4, 6]
    with store.database.session() as session:
        for run in runs:
            for cell in plan(run.spec):
                kept = session.get_one(RunCellRow, (run.id, cell.position))
                new = make_row(run.id, cell)
                assert {name: getattr(kept, name) for name in COLUMNS} == {name: getattr(new, name) for name in COLUMNS}
    assert len(read_keys(store, LogView())) == 11, "two runs show one image"
    keys = read_keys(store, LogView(), every=True)
    assert len(keys) == 12, "one was deleted"
    known = make_table(store.records(keys))
    found = read_log_table(store, keys)
    same = ["run", "position", "lora", "strength", "prompt", "seed", "rating", "note", "clip", "origin", "created"]
    assert found[same].equals(known[same])
    for text, shown in (("BÄR", 4), ("memory", 1), ("schön scharf", 1), ("without", 0), ("ohwx", 1)):
        assert read_page(store, LogView(text=text)).shown == shown, text
    store.close()
