"""What a Ray cluster gains and costs: two nodes of one core each against one, one against this process, and one lost.

The pocket on real nodes of this machine, a sweep of 200 cells, rounds in turns, medians. Needs
`pip install -r requirements-cluster.txt`.
"""

import statistics
import tempfile
import time
from collections import Counter
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.requests import list_requests
from evaluation.grid import make_spec
from evaluation.store.store import Store
from evaluation.sweep import CellEnded, run_sweep
from lora_runtime.backends.base import Backend
from lora_runtime.backends.local import LocalBackend
from lora_runtime.backends.open import INSTALL, has_ray
from lora_runtime.catalogue import find_weights
from lora_runtime.lora.library import find_lora
from lora_runtime.requests import find_status
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database
from lora_runtime.values import Rendered
from tests.ray_nodes import Nodes, run_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_runtime.backends.cluster import ClusterBackend

CELLS: Final = 200
ROUNDS: Final = 5
SIZE_PX: Final = 64


def run(console: Console) -> dict[str, Any] | None:
    """Measure, print a table, return the numbers; None where Ray is not installed."""
    if not has_ray():
        console.print(f"cluster: Ray is not installed. Install it with: {INSTALL}")
        return None
    torch.set_num_threads(1)  # what one node has
    result: dict[str, Any] = {"cells": CELLS, "size": SIZE_PX, "rounds": ROUNDS}
    with run_nodes(1) as nodes, closing(LocalBackend()) as local:
        with _open(nodes, 1) as one:
            rates = _race({"local": local, "one node": one})
        nodes.add()
        with _open(nodes, 2) as two:
            rates |= _race({"two nodes": two})
            result |= {"images_per_s": rates, "lost": _lose(nodes, two)}
    result["two_against_one"] = round(rates["two nodes"] / rates["one node"], 3)
    result["overhead"] = round(rates["local"] / rates["one node"] - 1, 3)
    table = Table("engines", "images/s", title=f"A sweep of {CELLS} at {SIZE_PX} px, one core an engine")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.1f}")
    console.print(table)
    console.print(
        f"two against one: {result['two_against_one']:.2f}x; one node against this process: {result['overhead']:+.0%}; "
        f"one lost at half: {result['lost']['cells']} of {CELLS} cells, {result['lost']['twice']} twice"
    )
    return result


@contextmanager
def _open(nodes: Nodes, count: int) -> "Iterator[ClusterBackend]":
    from lora_runtime.backends.cluster import ClusterBackend

    with closing(ClusterBackend(nodes.address)) as backend:
        while sum(engine.state == "idle" for engine in backend.engines()) < count:
            time.sleep(0.2)
        yield backend


def _race(backends: dict[str, Backend]) -> dict[str, float]:
    """Images a second of each, in turns; the first round warms up."""
    rates: dict[str, list[float]] = {name: [] for name in backends}
    for number in range(ROUNDS + 1):
        for name, backend in backends.items():
            weights = find_weights("pocket")
            requests = [
                request
                for seed in range(CELLS // 8)
                for request in list_requests(
                    weights, find_status(backend).precision, SIZE_PX, lora=find_lora("style"), seed=seed
                )
            ]
            started = time.perf_counter()
            done = sum(isinstance(event, Rendered) for event in backend.render(requests))
            if done != CELLS:
                raise RuntimeError(f"{name} rendered {done} of {CELLS}.")
            if number:
                rates[name].append(CELLS / (time.perf_counter() - started))
    return {name: round(statistics.median(found), 2) for name, found in rates.items()}


def _lose(nodes: Nodes, backend: Backend) -> dict[str, int]:
    """Kill a node at half of a sweep; count the cells that have their image, and those that ended twice."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with closing(Store(Database(f"sqlite:///{home / 'lab.sqlite3'}"), Blobs(home / "blobs"))) as store:
            spec = make_spec(
                backend, loras=["style"], prompts=["a red cat"], strengths="0-1 [20]", seeds=range(CELLS // 20),
                width=SIZE_PX, height=SIZE_PX,
            )  # fmt: skip
            ended: Counter[int] = Counter()
            for event in run_sweep(spec, backend=backend, store=store):
                if isinstance(event, CellEnded):
                    ended[event.record.cell.position] += 1
                    if ended.total() == CELLS // 2:
                        nodes.kill(1)
            records = store.cells(event.run_id)  # type: ignore[union-attr]
    return {
        "cells": sum(record.state == "done" for record in records),
        "twice": sum(count > 1 for count in ended.values()),
    }
