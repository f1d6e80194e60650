"""Sweeps, callers, stops and lost machines on two real Ray nodes."""

import json
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
from gradio_client import Client
from PIL import Image

from evaluation.grid import make_spec
from evaluation.store.store import Store
from evaluation.sweep import CellEnded, Finished, resume_sweep, run_sweep
from lora_runtime.backends.base import Backend
from lora_runtime.backends.local import LocalBackend
from lora_runtime.backends.remote import Pace, RemoteBackend
from lora_runtime.errors import Cancelled, InvalidInput, Unavailable
from lora_runtime.lora.library import find_lora, read_lora
from lora_runtime.references import read_reference
from lora_runtime.requests import find_status, make_request
from lora_runtime.settings import settings
from lora_runtime.values import Failed, Progress, Rendered, RenderRequest
from tests.api_server import run_server
from tests.app_server import closed_loops as closed_loops
from tests.app_server import serve
from tests.cluster.waiting import PATIENCE_S, open_cluster, wait_for_engines
from tests.ray_nodes import ROOT, Nodes

if TYPE_CHECKING:
    from lora_runtime.backends.cluster import ClusterBackend

pytestmark = pytest.mark.cluster


def make_requests(backend: Backend, count: int, **fields: object) -> list[RenderRequest]:
    status, style = find_status(backend), find_lora("style")
    asked = {"prompt": "a red cat", "width": 64, "height": 64, "lora": style, **fields}
    return [
        make_request(status, seed=seed // 5, strength=Decimal(seed % 5) / 4, **asked)  # type: ignore[arg-type]
        for seed in range(count)
    ]


def pixels(event: object) -> np.ndarray:
    assert isinstance(event, Rendered), event
    return np.asarray(event.image)


def ends(backend: Backend, requests: Sequence[RenderRequest]) -> list[Rendered | Failed]:
    events = [event for event in backend.render(requests) if not isinstance(event, Progress)]
    return sorted(events, key=lambda event: event.index)


def test_both_machines_render_the_pixels_of_this_one(cluster: "ClusterBackend", local_backend: LocalBackend) -> None:
    found = ends(cluster, make_requests(cluster, 200))
    assert [event.index for event in found] == list(range(200))
    engines = Counter(event.provenance["engine"] for event in found if isinstance(event, Rendered))
    assert len(engines) == 2, engines
    assert {engine.name for engine in cluster.engines()} == engines.keys()
    for request in make_requests(cluster, 4):  # alone: a batch of another size rounds otherwise
        (there,), (here,) = ends(cluster, [request]), ends(local_backend, [request])
        assert np.array_equal(pixels(there), pixels(here))


def test_files_travel_by_content_and_are_kept_there(
    cluster: "ClusterBackend", local_backend: LocalBackend, nodes: Nodes, tmp_path: Path
) -> None:
    path = Path(shutil.copy(find_lora("subject").path or "", tmp_path / "mine.safetensors"))
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "ref.png")
    lora, reference = read_lora(path), read_reference(tmp_path / "ref.png")
    (request,) = make_requests(cluster, 1, lora=lora, references=[reference])
    request = replace(request, strength=Decimal("0.8"))
    expected = pixels(ends(local_backend, [request])[0])
    assert np.array_equal(pixels(ends(cluster, [request])[0]), expected)
    shelves = [home / "cluster" for home in nodes.homes]
    there = {file.parent.name for shelf in shelves for file in shelf.rglob("*") if file.is_file()}
    assert {lora.sha256, reference.sha256} <= there
    for shelf in shelves:  # somebody tidies up
        for file in [*shelf.rglob("*.safetensors"), *shelf.rglob("*.png")]:
            file.unlink()
    assert np.array_equal(pixels(ends(cluster, [request])[0]), expected)


def test_stopped_within_a_step_on_both(cluster: "ClusterBackend") -> None:
    cancel = threading.Event()
    requests = make_requests(cluster, 200, width=128, height=128)
    ended = []
    for event in cluster.render(requests, cancel=cancel):
        cancel.set()
        if not isinstance(event, Progress):
            ended.append(event)
    assert sorted(event.index for event in ended) == list(range(200))
    assert {type(event.error) for event in ended if isinstance(event, Failed)} == {Cancelled}
    assert isinstance(ends(cluster, make_requests(cluster, 1))[0], Rendered)


def test_a_sweep_here_and_there_is_one(cluster: "ClusterBackend", local_backend: LocalBackend, store: Store) -> None:
    spec = make_spec(
        cluster, loras=["style"], prompts=["a red cat"], strengths="0-1 [5]", seeds=[1, 2], width=64, height=64
    )
    cancel = threading.Event()
    run_id = ""
    for event in run_sweep(spec, backend=cluster, store=store, cancel=cancel):
        if isinstance(event, CellEnded):
            run_id = event.record.run_id
            cancel.set()
    events = list(resume_sweep(run_id, backend=local_backend, store=store))
    assert isinstance(events[-1], Finished)
    records = store.cells(run_id)
    assert {record.state for record in records} == {"done"}
    assert any(record.provenance.get("engine") for record in records)
    assert events[-1].verdict.ok, events[-1].verdict


def test_a_lost_machine_loses_no_cell_and_comes_back(cluster: "ClusterBackend", nodes: Nodes, store: Store) -> None:
    spec = make_spec(
        cluster, loras=["style"], prompts=["a cat"], strengths="0-1 [20]", seeds=range(5), width=128, height=128
    )
    seen: Counter[int] = Counter()
    engines: set[str] = set()
    for event in run_sweep(spec, backend=cluster, store=store):
        if isinstance(event, CellEnded):
            assert event.status == "done", event
            seen[event.record.cell.position] += 1
            if len(engines) < 2:
                engines.add(event.record.provenance["engine"])
                if len(engines) == 2:
                    nodes.kill(-1)
    assert seen == dict.fromkeys(range(100), 1)
    records = store.cells(event.run_id)  # type: ignore[union-attr]
    rendered = Counter(record.provenance["engine"] for record in records)
    (left,) = wait_for_engines(cluster, 1)
    assert rendered.total() == 100
    assert 50 < rendered[left.name] < 100, "the other one had its share and was killed in the middle"
    nodes.add()
    names = {engine.name for engine in wait_for_engines(cluster, 2)}
    found = ends(cluster, make_requests(cluster, 200))
    assert {event.provenance["engine"] for event in found if isinstance(event, Rendered)} == names


@pytest.mark.usefixtures("cluster")
def test_a_program_is_on_one_cluster_at_a_time() -> None:
    with pytest.raises(Unavailable, match="to one at a time"):
        open_cluster("127.0.0.1:1")


def test_an_engine_that_dies_is_replaced(cluster: "ClusterBackend", nodes: Nodes) -> None:
    before = wait_for_engines(cluster, 2)
    engines = [process for process in nodes.processes() if "ray::_Engine" in " ".join(process.cmdline())]
    assert len(engines) == len(before)
    events = cluster.render(make_requests(cluster, 100, width=128, height=128))
    found = [next(events)]
    engines[0].kill()
    found += events
    assert Counter(type(event) for event in found if not isinstance(event, Progress)) == {Rendered: 100}
    assert len(wait_for_engines(cluster, 2)) == 2


def test_what_no_engine_can_run_is_said(cluster: "ClusterBackend") -> None:
    assert "klein-4b" in cluster.status("klein-4b", None).reason
    (event,) = ends(cluster, [replace(make_requests(cluster, 1)[0], weights="klein-4b", lora=None)])
    assert isinstance(event, Failed)
    assert isinstance(event.error, Unavailable)
    with pytest.raises(InvalidInput, match="fp16"):
        cluster.status("pocket", "fp16")  # type: ignore[arg-type]


def run_command(nodes: Nodes, *arguments: str, address: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of our commands as somebody who has set KLEIN_LAB_RAY to `address`, or not."""
    environment = {**nodes.environment(9), "KLEIN_LAB_HOME": str(settings().home)}
    if address:
        environment["KLEIN_LAB_RAY"] = address
    return subprocess.run(
        [sys.executable, "-m", *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
    )


def test_the_command_line_lists_engines_and_sweeps_on_them(nodes: Nodes, cluster: "ClusterBackend") -> None:
    listed = run_command(nodes, "lora_runtime", "cluster", "--json", address=nodes.address)
    assert listed.returncode == 0, listed.stderr
    names = {json.loads(line)["name"] for line in listed.stdout.splitlines()}
    assert names == {engine.name for engine in cluster.engines()}
    swept = run_command(
        nodes, "evaluation", "sweep", "--lora", "style", "--prompt", "a red cat", "--seed", "1", "--strengths", "0, 1",
        "--width", "64", "--height", "64", "--backend", "cluster", "--json", address=nodes.address,
    )  # fmt: skip
    lines = [json.loads(line) for line in swept.stdout.splitlines()]
    cells = [line for line in lines if "position" in line]
    assert len(cells) == 2, swept.stderr
    assert {cell["engine"] for cell in cells} <= names


def test_without_an_address_the_engines_are_those_of_this_machine_and_end_with_the_program(nodes: Nodes) -> None:
    others = set(nodes.processes())
    swept = run_command(
        nodes, "evaluation", "sweep", "--lora", "style", "--prompt", "a red cat", "--seed", "1", "--strengths", "0, 1",
        "--width", "64", "--height", "64", "--backend", "cluster", "--json",
    )  # fmt: skip
    cells = [line for line in map(json.loads, swept.stdout.splitlines()) if "position" in line]
    assert [bool(cell["engine"]) for cell in cells] == [True, True], swept.stderr
    psutil.wait_procs(set(nodes.processes()) - others, timeout=PATIENCE_S)
    assert not set(nodes.processes()) - others


def test_the_server_renders_on_them(cluster: "ClusterBackend", local_backend: LocalBackend, tmp_path: Path) -> None:
    with (
        run_server(cluster, tmp_path) as server,
        closing(RemoteBackend(server.url, None, pace=Pace(first_poll_s=0.05, longest_poll_s=0.2))) as remote,
    ):
        (request,) = make_requests(local_backend, 1)
        assert np.array_equal(pixels(ends(remote, [request])[0]), pixels(ends(local_backend, [request])[0]))
        found = ends(remote, make_requests(local_backend, 24))
        assert [type(event) for event in found] == [Rendered] * 24, found


@pytest.mark.usefixtures("closed_loops")
def test_the_app_sweeps_on_them_and_shows_where(cluster: "ClusterBackend", home: Path) -> None:
    with serve(home, cluster) as page:
        client = Client(page.local_url, verbose=False)
        rows = client.predict(
            lora="style", prompt="a red cat", strengths="0, 0.5, 1", seed=7, weights="pocket", api_name="/sweep"
        )
    engines = {engine.name for engine in cluster.engines()}
    assert len(rows) == 3
    assert {row["engine"] for row in rows} <= engines
