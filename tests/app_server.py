"""The real app on the network, in the process of a test."""

import asyncio
import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import gradio as gr
import pytest

import app
from evaluation.grid import name_backends
from evaluation.store.store import Store
from lora_runtime.backends.base import Backend
from lora_runtime.registry.local import open_blobs
from lora_runtime.server.service import Service
from lora_runtime.settings import settings
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database
from tests.drawing_backend import make_lora


@pytest.fixture
def closed_loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the event loops that `gradio.utils.safe_get_lock` makes for each Blocks and never closes."""
    made: list[asyncio.AbstractEventLoop] = []
    make = asyncio.new_event_loop

    def remember() -> asyncio.AbstractEventLoop:
        made.append(make())
        return made[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", remember)
    yield
    for loop in made:
        if not loop.is_running():
            loop.close()
    asyncio.set_event_loop(None)


@contextlib.contextmanager
def serve(home: Path, backend: Backend | Mapping[str, Backend]) -> Iterator[gr.Blocks]:
    """The app on the network, with one kept LoRA."""
    (home / "loras").mkdir(parents=True)
    shutil.copyfile(make_lora("house-style").path, home / "loras" / "house-style.safetensors")
    chosen, database = settings(), Database(settings().sqlalchemy_url())
    store, backends = Store(database, Blobs(chosen.home / "blobs")), name_backends(backend)
    first = next(iter(backends.values()))
    service = Service(backend=first, database=database, blobs=open_blobs(chosen), settings=chosen)
    under_way = app.open_sweeps(backends, store, chosen)
    page = app.build_app(backends, store, service, under_way)
    app.launch(page, service, server_port=app.find_free_port())
    try:
        yield page
    finally:
        page.close()
        under_way.close()
        service.close()
        store.close()
