"""How long does the Comparison tab think about a keystroke when 20,000 images were rendered?

The log is filled with runs of five LoRAs, then asked as the page asks: words typed letter by letter, a column sorted, a
filter, groups. A keystroke is the query, the filters with their counts, and the HTML of the first rows. `cpu_ms` is the
processor's time, which other work on the machine does not lengthen.
"""

import contextlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from sqlalchemy import insert

from evaluation.axes import SweepSpec, Target
from evaluation.grid import Cell, plan
from evaluation.judge.metrics import METRICS
from evaluation.log import read_page
from evaluation.log_search import LogView
from evaluation.report.draw import draw
from evaluation.store.rows import CellRow, RatingRow, ScoreRow
from evaluation.store.store import Store
from evaluation.strengths import parse_strengths
from evaluation.tabs.comparison_form import view_bar, view_log
from lora_runtime.judges import name_judge
from lora_runtime.settings import settings
from lora_runtime.values import LoraRef

ROWS: Final = 20_000
REPEATS: Final = 7
NOUNS: Final = ("fox", "owl", "bear", "boat", "house", "tree", "robot", "rocket", "lamp", "teapot", "balloon", "otter")
PLACES: Final = ("in the snow", "on the beach", "at night", "under water", "in a city", "in the desert")
_TARGET: Final = Target(backend="local", weights="pocket", precision="fp32", digest="0", steps=4, guidance=1.0)
_SPEC: Final = SweepSpec(
    targets=(_TARGET,), loras=(), prompts=("a cat",), seeds=(0,), strengths=parse_strengths("0"), width=256, height=256
)


def run(console: Console) -> list[dict[str, Any]]:
    """Measure; print a table and return its rows."""
    with tempfile.TemporaryDirectory(prefix="klein-log-") as home:
        os.environ["KLEIN_LAB_HOME"] = home
        settings.cache_clear()
        with contextlib.closing(Store.open(settings())) as store:
            filled = _fill(store)
            rows = [_time(store, what, view) for what, view in _list_views()]
            rows.append(_time(store, "the first one after a run began", LogView(), before=partial(_begin, store)))
            rows.append(_time(store, "the first one at all", LogView(), before=store.plans.forget))
    table = Table(f"over {filled:,} images", "rows shown", "ms", "ms of the processor")
    for row in rows:
        table.add_row(row["what"], f"{row['shown']:,}", f"{row['ms']:.0f}", f"{row['cpu_ms']:.0f}")
    console.print(table)
    return rows


def _list_views() -> list[tuple[str, LogView]]:
    prompt = f"a red {NOUNS[0]} {PLACES[0]}"
    return [
        ("nothing typed", LogView()),
        *((f"search {word!r}", LogView(text=word)) for word in ("r", "ro", "rocket", "rocket snow", "zebra")),
        ("search 'r', sorted by SSIM", LogView(text="r", sort="ssim")),
        ("the oldest image first", LogView(descending=False)),
        ("search 'r', a LoRA chosen", LogView(text="r", chosen={"lora": f"{1:064x}"})),
        ("search 'r', grouped by LoRA", LogView(text="r", group="lora")),
        ("one prompt chosen", LogView(chosen={"prompt": prompt})),
    ]


def _begin(store: Store) -> None:
    store.create_run(_SPEC, plan(_SPEC))


def _time(store: Store, what: str, view: LogView, *, before: Callable[[], None] = lambda: None) -> dict[str, Any]:
    wall, cpu = [], []
    for _ in range(REPEATS + 1):
        before()
        started, worked = time.perf_counter(), time.process_time()
        page = read_page(store, view)
        draw("log-bar.html", bar=view_bar(page))
        draw("log.html", log=view_log(page))
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - worked)
    ms, cpu_ms = (round(statistics.median(each[1:]) * 1e3, 1) for each in (wall, cpu))
    return {"what": what, "total": page.total, "shown": page.shown, "ms": ms, "cpu_ms": cpu_ms}


def _fill(store: Store) -> int:
    """Log runs of 5 to 9 strengths on 1 to 8 seeds until there are enough images; return how many there are."""
    chance, kept = random.Random(7), set[str]()
    loras = [LoraRef(name=f"style-{n}", path=Path("/none"), sha256=f"{n:064x}") for n in range(5)]
    while len(kept) < ROWS:
        prompt = f"a {chance.choice(('red', 'green', 'blue'))} {chance.choice(NOUNS)} {chance.choice(PLACES)}"
        own = replace(
            _SPEC,
            loras=(chance.choice(loras),),
            prompts=(prompt,),
            seeds=tuple(chance.sample(range(200), chance.choice((1, 1, 2, 8)))),
            strengths=parse_strengths(f"0-1.2 [{chance.randint(5, 9)}]"),
        )
        cells = plan(own)
        store.create_run(own, cells)
        _keep(store, cells, kept, chance)
    return len(kept)


def _keep(store: Store, cells: Sequence[Cell], kept: set[str], chance: random.Random) -> None:
    """An image for each cell that has none yet, with its scores; some are rated."""
    new = [cell for cell in cells if cell.identity not in kept]
    kept |= {cell.identity for cell in new}
    images = [
        {
            "identity": cell.identity, "blob": f"{cell.identity}.png", "request": "{}", "weights": "pocket",
            "precision": "fp32", "width": 256, "height": 256, "steps": 4, "seconds": 0.5,
            "provenance": {"device": "cpu", "batch_size": "4"}, "created": datetime.now(UTC).replace(tzinfo=None),
        }
        for cell in new
    ]  # fmt: skip
    own = [(cell.identity, cell.identity, "clip", name_judge("pocket") or "") for cell in new]
    compared = [(cell.identity, cell.base, metric, "") for cell in new if cell.request.strength for metric in METRICS]
    scores = [
        {"identity": identity, "base": base, "metric": metric, "judge": judge, "value": chance.random()}
        for identity, base, metric, judge in own + compared
    ]
    rated = [
        {"identity": cell.identity, "organization": "local", "rating": chance.randint(1, 5), "note": "seen"}
        for cell in new
        if chance.random() < 0.05
    ]
    with store.database.session() as session:
        for table, values in ((CellRow, images), (ScoreRow, scores), (RatingRow, rated)):
            if values:
                session.execute(insert(table), values)
