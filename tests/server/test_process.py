"""The server as a process of its own: started, killed, started again."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from lora_runtime.registry.accounts import Accounts
from lora_runtime.storage.database import Database

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def started(home: Path, port: int, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m lora_runtime serve` on `home`, once it answers."""
    environment = {**os.environ, "KLEIN_LAB_HOME": str(home), "KLEIN_LAB_DEVICE": "cpu", **variables}
    command = [sys.executable, "-m", "lora_runtime", "serve", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        for _ in range(1200):
            with contextlib.suppress(urllib.error.URLError):
                ask(port, "/v1/credits")
                break
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(port: int, path: str, body: object = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    url = path if "://" in path else f"http://127.0.0.1:{port}{path}"
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        answer: dict[str, Any] = json.load(reply)
        return answer


def results(port: int, accepted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [ask(port, task["polling_url"]) for task in accepted]


@pytest.mark.slow
def test_killed_in_the_middle_of_50_tasks_all_50_end_and_each_is_billed_once(home: Path) -> None:
    port = free_port()
    body = {"prompt": "a red cat", "width": 64, "height": 64, "finetune_id": "official/style", "output_format": "png"}
    with started(home, port, KLEIN_LAB_MAX_ACTIVE_TASKS="50", KLEIN_LAB_WORKERS="4") as process:
        accepted = [ask(port, "/v1/flux-2-klein-pocket-finetuned", {**body, "seed": seed}) for seed in range(50)]
        while not sum(ended["status"] == "Ready" for ended in results(port, accepted)) >= 5:
            time.sleep(0.05)
        process.kill()
        process.wait()
    database = Database(f"sqlite:///{home / 'lab.sqlite3'}")
    billed, _ = Accounts(database).spent("local")
    assert 5 <= billed < 50, "it was killed in the middle"
    with started(home, port):
        for _ in range(2400):
            ended = results(port, accepted)
            if all(task["status"] != "Pending" for task in ended):
                break
            time.sleep(0.1)
        assert [task["status"] for task in ended] == ["Ready"] * 50
        assert [task["result"]["seed"] for task in ended] == list(range(50))
        for task in ended:
            with urllib.request.urlopen(task["result"]["sample"]) as reply:
                assert reply.read(4) == b"\x89PNG"
    assert Accounts(database).spent("local") == (50, Decimal("5.0"))
    assert len(list((home / "api").rglob("*.png"))) == 50
    database.close()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_stopped_server_ends_soon_and_goes_on_at_the_next_start(home: Path) -> None:
    port = free_port()
    with started(home, port, KLEIN_LAB_WORKERS="2") as process:
        body = {"prompt": "a cat", "width": 64, "height": 64}
        accepted = [ask(port, "/v1/flux-2-klein-pocket", {**body, "seed": seed}) for seed in range(12)]
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGTERM)
        assert f"http://127.0.0.1:{port}/v1/docs".encode() in output
        assert b"Traceback" not in errors
    with started(home, port):
        for task in accepted:
            while (ended := ask(port, task["polling_url"]))["status"] == "Pending":
                time.sleep(0.1)
            assert ended["status"] == "Ready"
