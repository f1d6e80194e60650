"""Is scoring felt? A sweep as the app runs it, against the bare renders of the same requests, in turns.

`images_s` is how long until the last image is there, scored against its base image and kept; `bare_s` is what the
backend alone takes. Between them stand files that are synced, rows that are committed, and `scoring_s`, what scoring
every image against its base image takes. `answer_s` is what follows the last image: the verdict, how the judge sees
every image, and the answer. The judge is warm, as in an app that has run a sweep before.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from evaluation.grid import SweepSpec, make_spec, plan
from evaluation.identity import rendered_request
from evaluation.judge.measure import judge_run
from evaluation.judge.metrics import score_image
from evaluation.prompt_sets import make_sure
from evaluation.store.store import Store
from evaluation.sweep import CellEnded, Finished, run_sweep
from lora_runtime.backends.local import LocalBackend
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database
from lora_runtime.values import RenderRequest

ROUNDS = {"one scene of 7": 7, "4 x 2 scenes of 7": 2}


def run(console: Console) -> list[dict[str, Any]]:
    """Measure a quick sweep and one that makes sure; print a table and return its rows."""
    table = Table("sweep", "images", "bare s", "images s", "scoring s", "answer s", "answer, slowest s")
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(LocalBackend()) as backend,
        closing(Store(Database(f"sqlite:///{folder}/lab.db"), Blobs(Path(folder) / "blobs"))) as store,
    ):
        _sweep(backend, store, _make(backend, 0, sure=False))
        for number, (name, rounds) in enumerate(ROUNDS.items()):
            row = {"sweep": name, **_measure(backend, store, rounds, sure=number > 0)}
            rows.append(row)
            table.add_row(*(str(value) for value in row.values()))
    console.print(table)
    return rows


def _measure(backend: LocalBackend, store: Store, rounds: int, *, sure: bool) -> dict[str, Any]:
    """Medians over rounds, each with a seed of its own, so that nothing is kept from before."""
    bare, images, scorings, answers, count = [], [], [], [], 0
    for number in range(rounds):
        seed = 100 * (1 + sure) + 10 * number
        spec, other = (_make(backend, seed + shift, sure=sure) for shift in (0, 5))
        requests = _list_requests(other)
        count = len(requests)
        bare.append(_render(backend, requests))
        shown, answered = _sweep(backend, store, spec)
        scorings.append(_score(store))
        images.append(shown)
        answers.append(answered)
    return {
        "images": count,
        "bare_s": round(statistics.median(bare), 2),
        "images_s": round(statistics.median(images), 2),
        "scoring_s": round(statistics.median(scorings), 2),
        "answer_s": round(statistics.median(answers), 2),
        "answer_slowest_s": round(max(answers), 2),
    }


def _make(backend: LocalBackend, seed: int, *, sure: bool) -> SweepSpec:
    spec = make_spec(backend, loras=["style"], prompts=["a red cat in the snow"], strengths="0-1.2 [7]", seeds=[seed])
    return make_sure(spec, ()) if sure else spec


def _list_requests(spec: SweepSpec) -> list[RenderRequest]:
    """What a sweep renders: its cells, and the LoRA attached at strength 0 as a control."""
    cells = plan(spec)
    return [cells[0].request, *(rendered_request(cell.request, cell.target) for cell in cells)]


def _render(backend: LocalBackend, requests: Sequence[RenderRequest]) -> float:
    start = time.perf_counter()
    for _ in backend.render(requests):
        pass
    return time.perf_counter() - start


def _score(store: Store) -> float:
    """Seconds that the scores of the newest run's images take, files opened again as the sweep does."""
    records = store.cells(store.runs(1)[0].id)
    bases = {record.cell.identity: record.image for record in records}
    start = time.perf_counter()
    for record in records:
        base = bases[record.cell.base]
        if record.image and base:
            with Image.open(record.image) as image, Image.open(base) as base_image:
                score_image(image, base_image)
    return time.perf_counter() - start


def _sweep(backend: LocalBackend, store: Store, spec: SweepSpec) -> tuple[float, float]:
    """Seconds until the last image, and from there to the answer."""
    start = shown = time.perf_counter()
    for event in run_sweep(spec, backend=backend, store=store):
        if isinstance(event, CellEnded):
            shown = time.perf_counter()
        if isinstance(event, Finished):
            judge_run(store, event.run_id)
    return shown - start, time.perf_counter() - shown
