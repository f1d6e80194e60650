"""How the dealing scales, simulated: callers at random, LoRAs of very different popularity, 1 to 1,000 GPUs.

The engines are simulated, the dealing is ours (`backends/dealing.py`). An engine takes its time from a measured batch
curve (results/cpu-batch.json) scaled to `IMAGE_S` for one image alone; attaching a LoRA takes `ATTACH_S`, measured on a
true-size 4B (results/cpu-attach.json). Callers come as a Poisson process at `LOAD` of what all engines could render in
full batches; the LoRA of each is drawn from `LORAS` by Zipf's law. Each GPU keeps `KEPT` LoRAs attached. *Affine* deals
by our rules, *random* gives each request to any engine that has room.
"""

import heapq
import itertools
import json
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any, Final, Literal, TypeAlias

from rich.console import Console
from rich.table import Table

from lora_runtime.backends.dealing import Call, DealtJob, Seat, choose_deal
from lora_runtime.values import LoraRef, RenderRequest

Dealing: TypeAlias = Literal["affine", "random"]

CURVE: Final = Path(__file__).parent / "results" / "cpu-batch.json"
CURVE_PX: Final = 256
"""The size of the curve that saturates soonest, as a GPU at 1024 px does."""

GPUS: Final = (1, 10, 100, 1000)
IMAGE_S: Final = 0.35
ATTACH_S: Final = 0.28
ROWS: Final = 8
LOAD: Final = 0.5
LORAS: Final = 1000
ZIPF: Final = 1.1
KEPT: Final = 20
REQUESTS_A_GPU: Final = 15
LEAST: Final = 2000
ROWS_A_TASK: Final = 3
"""Transactions of a task: submitted, begun, ended."""

COMMITS_S: Final = 1500
"""Transactions a second of a PostgreSQL on one fast disk, on paper; a task's claim shares one with others."""


def run(console: Console) -> dict[str, Any]:
    """Simulate, print a table, return the numbers."""
    curve = read_curve()
    table = Table(
        "GPUs", "dealing", "images/s", "wait p50", "wait p99", "attach rate", title=f"Zipf {ZIPF} over {LORAS} LoRAs"
    )
    found = []
    for gpus in GPUS:
        for dealing in ("affine", "random"):
            result = simulate(gpus, dealing, curve)
            found.append({"gpus": gpus, "dealing": dealing, **result})
            table.add_row(
                str(gpus), dealing, f"{result['images_per_s']:.0f}", f"{result['p50_s']:.2f} s",
                f"{result['p99_s']:.2f} s", f"{result['attach_rate']:.0%}",
            )  # fmt: skip
    console.print(table)
    most = COMMITS_S / ROWS_A_TASK
    per_gpu = LOAD * ROWS / curve(ROWS)
    console.print(
        f"On paper: a PostgreSQL of {COMMITS_S} commits/s takes {most:.0f} tasks/s, what {most / per_gpu:.0f} such "
        f"GPUs render at a load of {LOAD:.0%}; beyond that, tasks have to share commits or be split over databases."
    )
    return {
        "image_s": IMAGE_S, "attach_s": ATTACH_S, "rows": ROWS, "load": LOAD, "loras": LORAS, "zipf": ZIPF,
        "kept": KEPT, "simulated": found, "postgres_tasks_per_s": round(most), "postgres_gpus": round(most / per_gpu),
    }  # fmt: skip


def read_curve() -> Callable[[int], float]:
    """Return the seconds of a batch by its rows: as measured, between two measured sizes on the line between them."""
    rows = [each for each in json.loads(CURVE.read_text())["results"]["batch"] if each["size"] == CURVE_PX]
    alone = rows[0]["images_per_s"]
    points = [(each["rows"], IMAGE_S * each["rows"] * alone / each["images_per_s"]) for each in rows]

    def seconds(count: int) -> float:
        for (low, before), (high, after) in itertools.pairwise(points):
            if count <= high:
                return float(before + (after - before) * (count - low) / (high - low))
        raise ValueError(f"The curve ends before {count} rows.")

    return seconds


class _Gpu:
    """A simulated engine: it begins what it has as one batch, attaches what it lacks, and is busy until it is done."""

    def __init__(self, number: int) -> None:
        self.seat = Seat(name=str(number), runs=frozenset({("klein-4b", "fp8")}), cache_bytes=KEPT)
        self.attached: OrderedDict[str, None] = OrderedDict()
        self.busy = False

    def begin(self, curve: Callable[[int], float]) -> tuple[list[DealtJob], int, float]:
        """Return the batch, how many LoRAs it attaches, and how long it takes."""
        batch = list(itertools.islice(self.seat.jobs, ROWS))
        new = 0
        for job in batch:
            job.begun = True
            assert job.lora is not None
            new += job.lora not in self.attached
            self.attached[job.lora] = None
            self.attached.move_to_end(job.lora)
        while len(self.attached) > KEPT:
            self.attached.popitem(last=False)
        self.busy = True
        return batch, new, curve(len(batch)) + new * ATTACH_S


def simulate(gpus: int, dealing: Dealing, curve: Callable[[int], float], *, seed: int = 1) -> dict[str, float]:
    """Return what callers see: waits in seconds, images a second, and the share of images that attached a LoRA."""
    rng = random.Random(seed)
    count = max(LEAST, REQUESTS_A_GPU * gpus)
    rate = LOAD * gpus * ROWS / curve(ROWS)
    weights = list(itertools.accumulate(1 / (rank + 1) ** ZIPF for rank in range(LORAS)))
    loras = [LoraRef(name=str(n), path=None, sha256=str(n)) for n in range(LORAS)]
    engines = [_Gpu(number) for number in range(gpus)]
    of_seat = {engine.seat: engine for engine in engines}
    for engine in engines:
        engine.seat.loaded["klein-4b", "fp8"] = None
    came: dict[DealtJob, float] = {}
    queue: list[DealtJob] = []
    waits: list[float] = []
    attaches, now, order = 0, 0.0, itertools.count()
    events: list[tuple[float, int, Any]] = []
    moment = 0.0
    for lora in rng.choices(loras, cum_weights=weights, k=count):
        moment += rng.expovariate(rate)
        heapq.heappush(events, (moment, next(order), _job(lora)))
    while events:
        now, _, what = heapq.heappop(events)
        if isinstance(what, DealtJob):
            came[what] = now
            queue.append(what)
        else:
            engine, batch, took = what
            engine.busy = False
            for job in batch:
                job.ended = True
                waits.append(now - came.pop(job))
            engine.seat.calls = [call for call in engine.seat.calls if call.left]
            engine.seat.measure(batch[0].key, took / len(batch))
        touched = _deal(queue, engines, dealing, rng, of_seat)
        for engine in {*touched, *([what[0]] if not isinstance(what, DealtJob) else [])}:
            if not engine.busy and any(engine.seat.jobs):
                batch, new, took = engine.begin(curve)
                attaches += new
                heapq.heappush(events, (now + took, next(order), (engine, batch, took)))
    waits.sort()
    return {
        "images_per_s": round(count / now, 1),
        "p50_s": round(waits[len(waits) // 2], 3),
        "p99_s": round(waits[int(len(waits) * 0.99)], 3),
        "attach_rate": round(attaches / count, 4),
    }


def _deal(
    queue: list[DealtJob], engines: Sequence[_Gpu], dealing: Dealing, rng: random.Random, of_seat: dict[Seat, _Gpu]
) -> set[_Gpu]:
    touched = set()
    while queue:
        if dealing == "affine":
            dealt = choose_deal(queue, list(of_seat))
        else:
            free = [engine.seat for engine in engines if engine.seat.room(queue[0].key) > 0]
            dealt = (rng.choice(free), (queue[0],)) if free else None
        if dealt is None:
            break
        seat, jobs = dealt
        seat.calls.append(Call(jobs=jobs))
        for job in jobs:
            seat.remember(job, 1)
            queue.remove(job)
        touched.add(of_seat[seat])
    return touched


def _job(lora: LoraRef) -> DealtJob:
    request = RenderRequest(
        weights="klein-4b", precision="fp8", prompt="a cat", seed=1, width=1024, height=1024, steps=4, guidance=1.0,
        lora=lora, strength=Decimal(1),
    )  # fmt: skip
    return DealtJob(index=0, request=request, events=SimpleQueue(), cancel=Event())
