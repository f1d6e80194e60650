"""Serve the app for a browser test: the real one, or with `--drawing SECONDS` a deterministic backend that is slow.

The drawing backend appends a line to `rendered.log` in the home for every image. It fails where the prompt says "fail"
until a file `repaired` is there, and waits while `held` is.
"""

import argparse
import shutil
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI

import app
from evaluation.store.store import Store
from lora_runtime.errors import RenderFailed
from lora_runtime.registry.local import open_blobs
from lora_runtime.server.service import Service
from lora_runtime.settings import settings
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database
from lora_runtime.values import RenderRequest
from tests.drawing_backend import DrawingBackend, make_lora


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--drawing", type=float)
    parser.add_argument("--prefix", help="serve under this path, as behind a proxy")
    chosen = parser.parse_args()
    prefix = chosen.prefix
    if chosen.drawing is None:
        app.main()
        return
    home = settings().home
    keep_loras(home / "loras")

    def fails(request: RenderRequest) -> RenderFailed | None:
        if "fail" in request.prompt and request.strength and not (home / "repaired").exists():
            return RenderFailed("The device gave up on this image. Free some memory and retry.")
        return None

    backend = DrawingBackend(delay_s=chosen.drawing, fails=fails, log=home / "rendered.log")
    chosen = settings()
    database = Database(chosen.sqlalchemy_url())
    service = Service(backend=backend, database=database, blobs=open_blobs(chosen), settings=chosen)
    store = Store(database, Blobs(chosen.home / "blobs"))
    under_way = app.open_sweeps({backend.name: backend}, store, chosen)
    page = app.build_app(backend, store, service, under_way)
    if prefix:
        blobs = str((chosen.home / "blobs").resolve())
        outside = FastAPI()
        outside.get("/")(lambda: "The lab is below.")
        under = gr.mount_gradio_app(outside, page, path=prefix, allowed_paths=[blobs], ssr_mode=False)
        uvicorn.run(under, host=chosen.host, port=chosen.port, log_level="error")
        return
    app.launch(page, service)
    service.start()
    app.wait_for_goodbye(page)
    under_way.close()


def keep_loras(folder: Path) -> None:
    """Real LoRA files for the pocket, as if they had been uploaded before."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("house-style", "other-style"):
        shutil.copyfile(make_lora(name).path, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main()
