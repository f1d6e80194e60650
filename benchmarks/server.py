"""What does the HTTP API cost, and do callers with different LoRAs share batches?

A server of its own process renders the pocket klein; callers are `RemoteBackend`s here. First requests and polls a
second, then images a second of 1, 8 and 24 callers with a LoRA each, never more than 24 tasks under way in all, so that
only the number of callers and of LoRAs differs; every LoRA is attached before. The same images straight from the engine
are the ceiling. While 24 callers render and a LoRA is uploaded again and again, one more polls. Last a crowd: as many
callers at once as are mostly sent away (429), and come again when they are told to.
"""

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.machine import time_once
from lora_runtime.backends.base import Backend
from lora_runtime.backends.local import LocalBackend
from lora_runtime.backends.remote import MAX_ACTIVE, Pace, RemoteBackend
from lora_runtime.lora.library import find_lora, path_of
from lora_runtime.registry.accounts import LOCAL, Accounts
from lora_runtime.registry.finetunes import Finetunes
from lora_runtime.registry.local import open_blobs
from lora_runtime.requests import find_status, make_request
from lora_runtime.settings import Settings
from lora_runtime.storage.database import Database
from lora_runtime.values import Failed, LoraRef, RenderRequest

CALLERS: Final = (1, 8, 24)
IMAGES: Final = 48
SUBMITS: Final = 96
POLLS: Final = 480
THREADS: Final = 8
CROWD: Final = 300
SIZE: Final = 64
PACE: Final = Pace(first_poll_s=0.1, longest_poll_s=0.5)


def run(console: Console) -> list[dict[str, Any]]:
    """Measure everything; print tables and return their rows."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        loras = _make_loras(home, max(CALLERS))
        with contextlib.closing(LocalBackend()) as local:
            requests = _requests(local, loras)
            rows = [_measure_callers("engine", 1, lambda: contextlib.nullcontext(local), requests[1], loras)]
        with _serve(home, loras) as url:
            for callers in CALLERS:
                connect = partial(_connect, url, MAX_ACTIVE // callers, loras)
                rows.append(_measure_callers("server", callers, connect, requests[callers], loras))
            rates = [*_measure_rates(url), _measure_polls_at_load(url, loras, requests[max(CALLERS)])]
        with _serve(home / "crowd", loras, max_active=MAX_ACTIVE) as url:
            rows.append(_measure_crowd(url))
    one = rows[1]["images_per_s"]
    table = Table("from", "callers with a LoRA each", "images/s", "against one caller")
    for row in rows:
        row["ratio"] = round(row["images_per_s"] / one, 3)
        table.add_row(row["source"], str(row["callers"]), f"{row['images_per_s']:.1f}", f"{row['ratio']:.2f}x")
    console.print(table)
    rate_table = Table("call", "connections", "calls/s", "median ms")
    for row in rates:
        rate_table.add_row(row["call"], str(row["connections"]), f"{row['per_s']:.0f}", f"{row['median_ms']:.1f}")
    console.print(rate_table)
    console.print(f"99 of 100 polls at load took at most {rates[-1]['p99_ms']} ms")
    return rows + rates


@contextlib.contextmanager
def _connect(url: str, max_active: int, loras: Sequence[LoraRef]) -> Iterator[Backend]:
    known = {lora.sha256: lora.name for lora in loras}
    backend = RemoteBackend(url, None, finetunes=known, max_active=max_active, pace=PACE)
    with contextlib.closing(backend):
        yield backend


def _requests(backend: Backend, loras: Sequence[LoraRef]) -> dict[int, list[list[RenderRequest]]]:
    """The same number of images for each number of callers, split among them."""
    first = make_request(
        find_status(backend), prompt="a red cat in the meadow", lora=loras[0], seed=0, width=SIZE, height=SIZE
    )
    return {
        callers: [
            [
                replace(first, lora=loras[caller], seed=seed, strength=Decimal(seed % 8 + 1) / 8)
                for seed in range(IMAGES // callers)
            ]
            for caller in range(callers)
        ]
        for callers in CALLERS
    }


def _measure_callers(
    source: str,
    callers: int,
    connect: Callable[[], contextlib.AbstractContextManager[Backend]],
    requests: Sequence[Sequence[RenderRequest]],
    loras: Sequence[LoraRef],
) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        backends = [stack.enter_context(connect()) for _ in range(callers)]
        _render(backends[0], [replace(requests[0][0], lora=lora) for lora in loras])
        pairs = zip(backends, requests, strict=True)
        calls = [partial(_render, backend, own) for backend, own in pairs]
        seconds = time_once(partial(_in_threads, calls))
    return {"source": source, "callers": callers, "images": IMAGES, "images_per_s": round(IMAGES / seconds, 2)}


def _render(backend: Backend, requests: Sequence[RenderRequest]) -> None:
    for event in backend.render(requests):
        if isinstance(event, Failed):
            raise event.error


def _measure_rates(url: str) -> list[dict[str, Any]]:
    """Requests and polls a second, on one connection and on several; the server renders meanwhile."""
    body = {"prompt": "a red cat", "finetune_id": "lora-0", "width": SIZE, "height": SIZE, "output_format": "png"}
    ids: list[str] = []

    def submit(client: httpx.Client) -> None:
        answer = client.post("/v1/flux-2-klein-pocket-finetuned", json=body)
        ids.append(answer.raise_for_status().json()["id"])

    def poll(client: httpx.Client) -> None:
        client.get("/v1/get_result", params={"id": ids[0]}).raise_for_status()

    rows = []
    for call, count, function in (("submit", SUBMITS, submit), ("poll", POLLS, poll)):
        for connections in (1, THREADS):
            spent: list[float] = []

            caller = partial(_call, url, function, count // connections, spent)
            seconds = time_once(partial(_in_threads, [caller] * connections))
            median_ms = round(1000 * sorted(spent)[len(spent) // 2], 2)
            rows.append(
                {"call": call, "connections": connections, "per_s": round(count / seconds, 1), "median_ms": median_ms}
            )
    return rows


def _measure_polls_at_load(
    url: str, loras: Sequence[LoraRef], requests: Sequence[Sequence[RenderRequest]]
) -> dict[str, Any]:
    """How long polls take while others render and upload: the median, and 99 of 100."""
    done, spent, uploads = threading.Event(), list[float](), itertools.count()
    data = path_of(loras[0]).read_bytes()

    def upload() -> None:
        with httpx.Client(base_url=url, timeout=60, headers={"content-type": "application/octet-stream"}) as client:
            while not done.is_set():
                asked = {"finetune_id": f"upload-{next(uploads)}", "base_model": "pocket"}
                client.post("/v1/lab/upload_finetune", params=asked, content=data).raise_for_status()

    def poll() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            body = {"prompt": "a red cat", "width": SIZE, "height": SIZE}
            task_id = client.post("/v1/flux-2-klein-pocket", json=body).raise_for_status().json()["id"]
            while not done.is_set():
                spent.append(time_once(lambda: client.get("/v1/get_result", params={"id": task_id})))
                time.sleep(0.05)

    def render() -> None:
        try:
            _measure_callers("server", len(requests), partial(_connect, url, 1, loras), requests, loras)
        finally:
            done.set()

    seconds = time_once(partial(_in_threads, [upload, poll, render]))
    spent.sort()
    median_ms, p99_ms = (round(1000 * spent[int(len(spent) * part)], 2) for part in (0.5, 0.99))
    return {
        "call": "poll while 24 render and one uploads",
        "connections": 1,
        "per_s": round(len(spent) / seconds, 1),
        "median_ms": median_ms,
        "p99_ms": p99_ms,
        "polls": len(spent),
        "uploads": next(uploads),
    }


def _measure_crowd(url: str) -> dict[str, Any]:
    """An image for each of `CROWD` callers, who ask again when they are told to."""
    body = {"prompt": "a red cat", "finetune_id": "lora-0", "width": SIZE, "height": SIZE}
    refused = itertools.count()

    def ask(client: httpx.Client) -> None:
        while (answer := client.post("/v1/flux-2-klein-pocket-finetuned", json=body)).status_code == 429:
            next(refused)
            time.sleep(float(answer.headers["retry-after"]))
        asked = {"id": answer.raise_for_status().json()["id"]}
        while (state := client.get("/v1/get_result", params=asked).raise_for_status().json())["status"] == "Pending":
            time.sleep(PACE.longest_poll_s)
        client.get(state["result"]["sample"]).raise_for_status()

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    with httpx.Client(base_url=url, timeout=60, limits=limits) as client:
        ask(client)
        seconds = time_once(partial(_in_threads, [partial(ask, client)] * CROWD))
    return {
        "source": "crowd",
        "callers": CROWD,
        "images": CROWD,
        "images_per_s": round(CROWD / seconds, 2),
        "refused": next(refused),
    }


def _call(url: str, function: Callable[[httpx.Client], None], calls: int, spent: list[float]) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        for _ in range(calls):
            spent.append(time_once(partial(function, client)))


def _in_threads(functions: Sequence[Callable[[], None]]) -> None:
    errors: list[Exception] = []

    def guard(function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that measures
            errors.append(error)

    threads = [threading.Thread(target=guard, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _make_loras(home: Path, count: int) -> list[LoraRef]:
    """As many different files: the bundled style, its B matrices a little larger each time."""
    with safe_open(find_lora("style").path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
    refs = []
    for number in range(count):
        path = home / f"lora-{number}.safetensors"
        save_file(
            {key: tensor * (1 + number / 20) if ".lora_B." in key else tensor for key, tensor in tensors.items()},
            path,
            metadata=metadata,
        )
        refs.append(find_lora(str(path)))
    return refs


@contextlib.contextmanager
def _serve(home: Path, loras: Sequence[LoraRef], max_active: int = MAX_ACTIVE + 2 * SUBMITS) -> Iterator[str]:
    """A server with all LoRAs registered, in a process of its own."""
    lab = Settings(home=home / "lab")
    with contextlib.closing(Database(lab.sqlalchemy_url())) as database:
        Accounts(database).add_organization(LOCAL)
        registry = Finetunes(database, open_blobs(lab), max_bytes=lab.lora_max_bytes)
        for lora in loras:
            registry.add_file(LOCAL, path_of(lora), name=lora.name, weights="pocket")
    environment = {
        **os.environ,
        "KLEIN_LAB_HOME": str(lab.home),
        "KLEIN_LAB_MAX_ACTIVE_TASKS": str(max_active),
        "KLEIN_LAB_WORKERS": str(MAX_ACTIVE),
        "PORT": str(_free_port()),
    }
    command = [sys.executable, "-m", "lora_runtime", "serve"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{environment['PORT']}"
    try:
        _wait_for(url, server)
        yield url
    finally:
        server.terminate()
        server.wait()


def _wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    while server.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"{url}/v1/credits").raise_for_status()
            return
        time.sleep(0.2)
    raise RuntimeError("the server did not start")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
