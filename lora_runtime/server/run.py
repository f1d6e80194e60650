"""Serve the API alone, without the app: `python -m lora_runtime serve`."""

import contextlib
import threading
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from lora_runtime.backends.base import Backend
from lora_runtime.registry.local import open_blobs
from lora_runtime.server.api import build_api
from lora_runtime.settings import Settings
from lora_runtime.storage.database import Database


def serve(backend: Backend, settings: Settings) -> None:
    """Serve until Ctrl-C or SIGTERM. What is under way then waits in the queue for the next start.

    Raises:
        StorageFailed: The home folder or the database cannot be written.
    """
    with _build(backend, settings) as api:
        # The first question to a backend imports torch; it need not wait for the first caller.
        threading.Thread(target=backend.models, name="klein-warm-up", daemon=True).start()
        # Proxy headers are read by the API itself, which has its own mind about who is local.
        uvicorn.run(api, host=settings.host, port=settings.port, proxy_headers=False, log_level="warning", ws="none")


@contextlib.contextmanager
def _build(backend: Backend, settings: Settings) -> Iterator[FastAPI]:
    database = Database(settings.sqlalchemy_url())
    try:
        yield build_api(backend=backend, database=database, blobs=open_blobs(settings), settings=settings)
    finally:
        backend.close()
        database.close()
