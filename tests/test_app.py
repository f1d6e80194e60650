"""The app as programs meet it: the /sweep contract, which endpoints there are, which files can be read."""

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path

import gradio as gr
import pytest
from bfl_doubles import KEY, BflDouble
from drawing_backend import DrawingBackend, make_lora
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

import app
from evaluation.grid import name_backends
from evaluation.store import Store
from lora_runtime.backends.base import Backend
from lora_runtime.backends.remote import RemoteBackend
from lora_runtime.blobs import Blobs
from lora_runtime.database import Database
from lora_runtime.server.run import open_blobs
from lora_runtime.server.service import Service
from lora_runtime.settings import settings

ENDPOINTS = {
    "describe_lora", "download_grid", "echo", "choose_rows", "choose_weights", "example_1", "example_2", "example_3",
    "insert_trigger", "enter", "load", "load_described", "load_speed", "load_weights", "log_click", "log_csv",
    "leave", "log_filter", "log_more", "log_refresh", "note", "open_run", "rate", "resume", "resume_noted", "resume_recover", "roll_seed",
    "run", "run_noted", "run_recover", "stop", "sweep", "sweep_again", "sweep_refresh", "upload",
}  # fmt: skip


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


@pytest.fixture
def page(home: Path, closed_loops: None) -> Iterator[gr.Blocks]:
    with serve(home, DrawingBackend()) as page:
        yield page


@contextlib.contextmanager
def serve(home: Path, backend: Backend | Mapping[str, Backend]) -> Iterator[gr.Blocks]:
    """The app on the network, with one kept LoRA."""
    (home / "loras").mkdir(parents=True)
    shutil.copyfile(make_lora("house-style").path, home / "loras" / "house-style.safetensors")
    chosen, database = settings(), Database(settings().sqlalchemy_url())
    store, backends = Store(database, Blobs(chosen.home / "blobs")), name_backends(backend)
    first = next(iter(backends.values()))
    service = Service(backend=first, database=database, blobs=open_blobs(chosen), settings=chosen)
    page = app.build_app(backends, store, service)
    options = {**app.launch_options(settings()), "server_port": None, "prevent_thread_lock": True}
    page.launch(**options)
    try:
        yield page
    finally:
        page.close()
        service.close()
        store.close()


def test_sweep_endpoint_returns_rows_with_the_files_that_were_written(page: gr.Blocks, home: Path) -> None:
    client = Client(page.local_url, verbose=False)
    rows = client.predict(
        lora="house-style", prompt="a red cat", strengths="0.5, 1", seed=7, weights="pocket", api_name="/sweep"
    )
    assert [row["strength"] for row in rows] == [0, 0.5, 1], "the base column is added"
    assert {row["status"] for row in rows} == {"done"}
    assert {(row["seed"], row["prompt"], row["lora"], row["weights"]) for row in rows} == {
        (7, "a red cat", "house-style", "pocket")
    }
    for row in rows:
        downloaded = Path(row["image"]).read_bytes()
        with Image.open(BytesIO(downloaded)) as image:
            assert json.loads(image.info["klein_lab"])["prompt"] == "a red cat"
        written = [path for path in (home / "blobs").rglob("*.png") if path.read_bytes() == downloaded]
        assert len(written) == 1, "the client must get the very bytes that were written"


def test_sweep_endpoint_has_named_typed_documented_parameters(page: gr.Blocks) -> None:
    info = Client(page.local_url, verbose=False).view_api(return_format="dict", print_info=False)
    assert set(info["named_endpoints"]) == {"/sweep"}, "everything else belongs to the page"
    parameters = {entry["parameter_name"]: entry for entry in info["named_endpoints"]["/sweep"]["parameters"]}
    types = {name: entry["python_type"]["type"] for name, entry in parameters.items()}
    assert types == {
        "lora": "str",
        "prompt": "str",
        "strengths": "str",
        "seed": "int",
        "weights": "str",
        "precision": "str",
        "backend": "str",
    }
    assert parameters["weights"]["parameter_default"] == "pocket"


def test_sweep_endpoint_renders_on_several_backends(home: Path, closed_loops: None) -> None:
    lora = make_lora("house-style")
    with BflDouble() as server:
        remote = RemoteBackend(server.origin, KEY, finetunes={lora.sha256: "their-style"})
        backends = {"local": DrawingBackend(), "remote": remote}
        with contextlib.closing(remote), serve(home, backends) as page:
            asked = {"lora": "house-style", "prompt": "a red cat", "strengths": "0, 1", "seed": 7}
            client = Client(page.local_url, verbose=False)
            rows = client.predict(**asked, backend="local,remote", api_name="/sweep")
            with pytest.raises(AppError, match="no backend 'cloud' here, only local, remote"):
                client.predict(**asked, backend="cloud", api_name="/sweep")
        assert {row["status"] for row in rows} == {"done"}
        assert [(row["backend"], row["strength"], row["cost"]) for row in rows] == [
            ("local", 0, None), ("local", 1, None), ("remote", 0, 4.5), ("remote", 1, 4.5),
        ]  # fmt: skip
        assert {body["finetune_id"] for body in server.bodies.values()} == {"their-style"}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("strengths", "0, abc", "character 4"),
        ("lora", "nobody", "There is no LoRA named 'nobody'"),
        ("lora", "/etc/passwd.safetensors", "There is no LoRA named"),
        ("prompt", "  ", "Prompt"),
        ("seed", -5, "Seed"),
        ("weights", "klein-100b", "klein-100b"),
    ],
)
def test_sweep_endpoint_says_what_is_wrong(page: gr.Blocks, field: str, value: object, words: str) -> None:
    request = {"lora": "house-style", "prompt": "a red cat", "strengths": "0, 1", "seed": 7, field: value}
    with pytest.raises(AppError, match=words):
        Client(page.local_url, verbose=False).predict(**request, api_name="/sweep")


def test_only_known_endpoints_exist_and_only_sweep_is_public(page: gr.Blocks) -> None:
    named = {fn.api_name for fn in page.fns.values() if fn.fn is not None and fn.api_name != "close"}
    assert named == ENDPOINTS
    assert {fn.api_name for fn in page.fns.values() if fn.api_visibility == "public"} == {"sweep"}


def test_files_outside_the_images_cannot_be_read(page: gr.Blocks, home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret.txt"
    outside.write_text("secret")
    for path in (
        outside,
        home / "lab.sqlite3",
        home / "blobs" / ".." / "lab.sqlite3",
        Path("/etc/passwd"),
        Path(app.__file__),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{page.local_url}gradio_api/file={path}")
        assert refused.value.code in (403, 404)
        refused.value.close()


def test_the_page_is_built_without_torch() -> None:
    code = "import sys, app; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(app.__file__).parent).returncode == 0
