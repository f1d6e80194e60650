"""Kill a server again and again under load and count what became of its tasks: `python -m tests.killed_servers --help`.

Each life of the server is a process of its own on one home folder: it takes tasks, renders them with a backend that
draws, eight at a time, and is ended by SIGKILL after a random number of them. The last one is left alone until every
task has ended; where a server stands beside those that are killed, on the same database and folder, that one is the
last. What must hold: no accepted task is lost, none is rendered or billed twice, none is given up.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy import select

from lora_runtime.registry.accounts import LOCAL, Accounts
from lora_runtime.registry.local import open_blobs
from lora_runtime.server.api import build_api
from lora_runtime.settings import Settings
from lora_runtime.storage.database import Database
from lora_runtime.storage.rows import TaskRow
from tests.drawing_backend import DrawingBackend

WORKERS = 8
DRAWS_S = 0.1
ACCEPTS = (1, 12)
"""How many tasks a life takes before it ends, while it renders those that it found."""


@dataclass
class Outcome:
    """What became of the tasks: those `accepted`, and those `unheard` that a server took and died before it said so."""

    kills: int = 0
    accepted: int = 0
    unheard: int = 0
    billed: int = 0
    files: int = 0
    under_way: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)


def serve(home: Path, port: int, database: str | None) -> None:
    """One life."""
    chosen = Settings(home=home, workers=WORKERS, max_active_tasks=10_000, DATABASE_URL=database)
    api = build_api(
        backend=DrawingBackend(delay_s=DRAWS_S),
        database=Database(chosen.sqlalchemy_url()),
        blobs=open_blobs(chosen),
        settings=chosen,
    )
    uvicorn.run(api, host="127.0.0.1", port=port, log_level="critical", ws="none")


def ask(port: int, path: str, body: object = None) -> dict[str, Any]:
    """Send JSON, or a file's bytes."""
    data, kind = (body, "octet-stream") if isinstance(body, bytes) else (json.dumps(body).encode(), "json")
    headers = {"content-type": f"application/{kind}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", None if body is None else data, headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        answer: dict[str, Any] = json.load(reply)
        return answer


@contextlib.contextmanager
def living(home: Path, database: str | None = None) -> Iterator[tuple[int, ForkServerProcess]]:
    """A server and its port, from its first answer to its death by SIGKILL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=serve, args=(home, port, database))
    process.start()
    try:
        for _ in range(6000):
            with contextlib.suppress(OSError):
                ask(port, "/v1/credits")
                break
            assert process.is_alive(), "the server did not start"
            time.sleep(0.02)
        yield port, process
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def submit(port: int, seeds: Iterator[int], accepted: list[str], over: threading.Event) -> None:
    """Submit until the server is gone."""
    with contextlib.suppress(OSError, ValueError):  # it dies in the middle of an answer too
        while not over.is_set():
            body = {"prompt": "a red cat", "seed": next(seeds), "width": 64, "height": 64, "output_format": "png"}
            accepted.append(ask(port, "/v1/flux-2-klein-pocket", body)["id"])
            over.wait(0.05)


def kill_servers(home: Path, *, kills: int, seed: int, url: str | None = None, beside: bool = False) -> Outcome:
    """Kill `kills` servers under load, let one finish, and count. `url` is the database, SQLite in `home` without it.

    With `beside` the one that finishes is there all the time, takes tasks too, and renders what the others leave.
    """
    pick, seeds, accepted, outcome = random.Random(seed), iter(range(1_000_000)), list[str](), Outcome(kills=kills)
    database = Database(url or f"sqlite:///{home / 'lab.sqlite3'}")
    with contextlib.ExitStack() as stack:
        standing = [stack.enter_context(living(home, url))[0]] if beside else []
        for _ in range(kills):
            over = threading.Event()
            with living(home, url) as (port, process):
                ports = [port, *standing]
                loaders = [threading.Thread(target=submit, args=(each, seeds, accepted, over)) for each in ports]
                enough = len(accepted) + pick.randint(*ACCEPTS)
                for loader in loaders:
                    loader.start()
                while len(accepted) < enough and all(loader.is_alive() for loader in loaders):
                    time.sleep(0.005)
                outcome.under_way += _count_held(database, process)
            over.set()
            for loader in loaders:
                loader.join()
        last = standing[0] if beside else stack.enter_context(living(home, url))[0]
        for _ in range(6000):
            with database.session() as session:
                if session.scalars(select(TaskRow.id).where(TaskRow.status == "Pending").limit(1)).first() is None:
                    break
            time.sleep(0.2)
        answers = [ask(last, f"/v1/get_result?id={task_id}") for task_id in accepted]
    with database.session() as session:
        rows = session.scalars(select(TaskRow)).all()
        outcome.statuses.update(row.status for row in rows)
        outcome.attempts.update(row.attempts for row in rows)
    outcome.statuses.update(answer["status"] for answer in answers if answer["status"] == "Task not found")
    outcome.accepted, outcome.unheard = len(accepted), len(rows) - len(accepted)
    outcome.billed = Accounts(database).spent(LOCAL)[0]
    outcome.files = len(list((home / "api").rglob("*.result.png")))
    database.close()
    return outcome


def _count_held(database: Database, process: ForkServerProcess) -> int:
    """Stop a process where it stands, and say how many tasks are its own."""
    os.kill(process.pid or 0, signal.SIGSTOP)
    held = select(TaskRow.id).where(TaskRow.status == "Pending", TaskRow.claimed_by.contains(f"/{process.pid}-"))
    with database.session() as session:
        return len(session.scalars(held).all())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", help="a SQLAlchemy URL of an empty database; SQLite without it")
    parser.add_argument("--beside", action="store_true", help="let another server stand beside those that are killed")
    asked = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        outcome = kill_servers(Path(home), kills=asked.kills, seed=asked.seed, url=asked.database, beside=asked.beside)
    print(json.dumps({**vars(outcome), "seconds": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main()
