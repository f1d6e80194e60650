"""Serve the app for a browser test: the real one, or with `--drawing SECONDS` a deterministic backend that is slow.

The drawing backend appends a line to `rendered.log` in the home for every image, and fails where the prompt says "fail"
until a file `repaired` is there.
"""

import argparse
import shutil
from pathlib import Path

from drawing_backend import DrawingBackend, make_lora

import app
from evaluation.store import Store
from lora_runtime.blobs import Blobs
from lora_runtime.database import Database
from lora_runtime.errors import RenderFailed
from lora_runtime.server.api import build_routes, mount
from lora_runtime.server.run import open_blobs
from lora_runtime.server.service import Service
from lora_runtime.settings import settings
from lora_runtime.values import RenderRequest


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--drawing", type=float)
    chosen = parser.parse_args()
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
    page = app.build_app(backend, Store(database, Blobs(chosen.home / "blobs")), service)
    api = {"routes": [mount(build_routes(service))]}
    page.launch(**app.launch_options(chosen), app_kwargs=api, prevent_thread_lock=True)
    service.start()
    page.block_thread()


def keep_loras(folder: Path) -> None:
    """Real LoRA files for the pocket, as if they had been uploaded before."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("house-style", "other-style"):
        shutil.copyfile(make_lora(name).path, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main()
