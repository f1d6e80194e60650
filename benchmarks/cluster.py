"""What a Ray cluster gains and costs: two nodes of one core each against one, one against this process, and one lost.

The pocket on real nodes of this machine, a sweep of 200 cells, rounds in turns, medians. What two engines gain at most
here is measured too, by two processes without Ray: cores may share what is behind them. Whose time the processors spent
says what Ray and who deals take of it. Needs `pip install -r requirements-cluster.txt`.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.requests import STRENGTHS, list_requests
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
    from lora_runtime.backends.cluster import ClusterBackend

CELLS: Final = 200
ROUNDS: Final = 3
SIZE_PX: Final = 64
LOST_PX: Final = 128
"""Of the sweep during which a node is lost: at 64 px both would have all that is left when half of it has ended."""


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
            before, started = _read_times(nodes), time.perf_counter()
            rates |= _race({"two nodes": two})
            took = time.perf_counter() - started
            spent = {name: round((at - before[name]) / took, 3) for name, at in _read_times(nodes).items()}
            result |= {"lost": _lose(nodes, two)}
    rates["two processes"] = _race_processes()
    result |= {"images_per_s": rates, "cores_of_two_nodes": spent}
    result["two_against_one"] = round(rates["two nodes"] / rates["one node"], 3)
    result["two_processes_against_local"] = round(rates["two processes"] / rates["local"], 3)
    result["overhead"] = round(rates["local"] / rates["one node"] - 1, 3)
    table = Table("engines", "images/s", title=f"A sweep of {CELLS} at {SIZE_PX} px, one core an engine")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.1f}")
    console.print(table)
    console.print(
        f"two nodes against one: {result['two_against_one']:.2f}x; two processes without Ray against one: "
        f"{result['two_processes_against_local']:.2f}x; one node against this process: {result['overhead']:+.0%}; "
        f"one lost at half: {result['lost']['cells']} of {CELLS} cells, {result['lost']['twice']} twice"
    )
    console.print("cores that two nodes keep busy: " + ", ".join(f"{name} {busy:.2f}" for name, busy in spent.items()))
    return result


@contextmanager
def _open(nodes: Nodes, count: int) -> "Iterator[ClusterBackend]":
    from lora_runtime.backends.cluster import ClusterBackend

    with closing(ClusterBackend(nodes.address)) as backend:
        found = backend.engines()
        if sum(engine.state == "idle" for engine in found) != count:
            raise RuntimeError(f"There are not {count} engines: {found}")
        yield backend


def _race(backends: dict[str, Backend]) -> dict[str, float]:
    """Images a second of each, in turns; the first round warms up."""
    rates: dict[str, list[float]] = {name: [] for name in backends}
    for number in range(ROUNDS + 1):
        for name, backend in backends.items():
            took = _render(backend)
            if number:
                rates[name].append(CELLS / took)
    return {name: round(statistics.median(found), 2) for name, found in rates.items()}


def _render(backend: Backend) -> float:
    """Seconds of a sweep."""
    precision, lora = find_status(backend).precision, find_lora("style")
    requests = [
        request
        for seed in range(CELLS // len(STRENGTHS))
        for request in list_requests(find_weights("pocket"), precision, SIZE_PX, lora=lora, seed=seed)
    ]
    started = time.perf_counter()
    done = sum(isinstance(event, Rendered) for event in backend.render(requests))
    if done != CELLS:
        raise RuntimeError(f"{done} of {CELLS} were rendered.")
    return time.perf_counter() - started


def _race_processes() -> float:
    """Images a second of two processes of one core each that know nothing of each other, rendering at the same time."""
    context = multiprocessing.get_context("spawn")
    start, found = context.Barrier(2), context.SimpleQueue()
    processes = [context.Process(target=_render_beside, args=(start, found)) for _ in range(2)]
    for process in processes:
        process.start()
    rates: list[float] = [found.get() for _ in processes]
    for process in processes:
        process.join()
    return round(sum(rates), 2)


def _render_beside(start: Barrier, found: "multiprocessing.SimpleQueue[float]") -> None:
    torch.set_num_threads(1)
    with closing(LocalBackend()) as backend:
        _render(backend)
        took = []
        for _ in range(ROUNDS):
            start.wait()
            took.append(_render(backend))
        found.put(CELLS / statistics.median(took))


def _read_times(nodes: Nodes) -> Counter[str]:
    """Seconds of processor time so far, by what it was spent on."""
    spent: Counter[str] = Counter()
    for process in [*nodes.processes(), psutil.Process()]:
        with suppress(psutil.Error):
            times = process.cpu_times()
            spent[_name(process)] += times.user + times.system
    return spent


def _name(process: psutil.Process) -> str:
    if process.pid == psutil.Process().pid:
        return "this process"
    if "ray::_Engine" in " ".join(process.cmdline()):
        return "engines"
    return {"raylet": "raylets", "gcs_server": "GCS"}.get(process.name(), "Ray's agents")


def _lose(nodes: Nodes, backend: Backend) -> dict[str, int]:
    """Kill a node at half of a sweep; count the cells that have their image, and those that ended twice."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with closing(Store(Database(f"sqlite:///{home / 'lab.sqlite3'}"), Blobs(home / "blobs"))) as store:
            spec = make_spec(
                backend, loras=["style"], prompts=["a red cat"], strengths="0-1 [20]", seeds=range(CELLS // 20),
                width=LOST_PX, height=LOST_PX,
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
