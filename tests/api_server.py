"""A real server on a loopback port, for the tests of the API and of whoever speaks to it."""

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from lora_runtime.backends.base import Backend
from lora_runtime.server.api import build_routes
from lora_runtime.server.service import Service
from lora_runtime.settings import Settings
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Server:
    """A running server and the service behind it."""

    url: str
    service: Service

    def ask(
        self, method: str, path: str, body: object = None, *, key: str | None = None, headers: Mapping[str, str] = {}
    ) -> Reply:
        """Send JSON (or bytes) to a path or a whole URL."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(path if "://" in path else self.url + path, data=data, method=method)
        request.add_header("content-type", "application/json")
        for name, value in {**({"x-key": key} if key else {}), **headers}.items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return Reply(reply.status, reply.headers, reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, error.headers, error.read())

    def wait(self, polling_url: str, *, seconds: float = 120) -> dict[str, Any]:
        """Poll until the task has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            body: dict[str, Any] = self.ask("GET", polling_url).json
            if body["status"] != "Pending":
                return body
            time.sleep(0.05)
        raise AssertionError(f"still pending after {seconds} s")


@contextlib.contextmanager
def serve(api: FastAPI) -> Iterator[str]:
    """Serve an application on a free loopback port until the end of the block."""
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=0, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def run_server(backend: Backend, home: Path, **settings: Any) -> Iterator[Server]:
    """Run the API on `backend` with everything it keeps in `home`."""
    chosen = Settings(home=home, **settings)
    database = Database(chosen.sqlalchemy_url())
    service = Service(backend=backend, database=database, blobs=Blobs(home / "api"), settings=chosen)
    with serve(build_routes(service)) as url:
        yield Server(url, service)
    database.close()
