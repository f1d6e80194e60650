"""Our own routes: what BFL's Dashboard does, over HTTP; and the API inside the app."""

import asyncio
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest

from lora_runtime.catalogue import KLEIN_4B, POCKET
from lora_runtime.server.api import build_routes, mount
from lora_runtime.server.service import Service
from lora_runtime.settings import Settings
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database
from tests.api_server import Reply, Server, run_server
from tests.drawing_backend import DrawingBackend
from tests.lora_files import make_adapter, write_diffusers

FILE = {"content-type": "application/octet-stream"}


@pytest.fixture
def server(home: Path) -> Iterator[Server]:
    with run_server(DrawingBackend(), home, lora_max_bytes=1_000_000) as server:
        yield server


@pytest.fixture
def lora(tmp_path: Path) -> bytes:
    return write_diffusers(tmp_path / "a.safetensors", make_adapter(POCKET, rank=2)).read_bytes()


def upload(server: Server, data: bytes, query: str = "finetune_id=mine&base_model=pocket", *, key: str = "") -> Reply:
    return server.ask("POST", f"/v1/lab/upload_finetune?{query}", data, headers=FILE, key=key)


def test_an_uploaded_lora_renders(server: Server, lora: bytes) -> None:
    reply = upload(server, lora, "finetune_id=mine&base_model=pocket&trigger_phrase=TOK")
    assert reply.status == 200, reply.body
    details = reply.json["finetune_details"]
    assert (details["finetune_id"], details["source"], details["trigger_phrase"]) == ("mine", "Owned", "TOK")
    assert details["size_bytes"] == len(lora)
    body = {"prompt": "TOK", "finetune_id": "mine", "width": 64, "height": 64}
    accepted = server.ask("POST", f"/v1/{details['endpoint']}", body).json
    assert server.wait(accepted["polling_url"])["status"] == "Ready"


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ("finetune_id=My+Lora&base_model=pocket", 422, "Lowercase letters"),
        ("finetune_id=x&base_model=klein-4b", 422, "x.safetensors: 0 of"),
        ("finetune_id=x&base_model=sdxl", 404, "no weights named"),
        ("finetune_id=x&base_model=pocket&precision=bf16", 422, "leave the precision out"),
        ("finetune_id=x", 422, "Field required"),
        ("finetune_id=..%2Fx&base_model=pocket", 422, "Lowercase letters"),
    ],
)
def test_what_does_not_fit_is_not_registered(server: Server, lora: bytes, query: str, status: int, says: str) -> None:
    reply = upload(server, lora, query)
    assert (reply.status, says in reply.body.decode()) == (status, True), reply.body
    assert server.ask("GET", "/v1/lab/finetunes?source=owned").json == {"finetunes": []}


def test_an_upload_is_limited_while_it_streams(server: Server) -> None:
    reply = upload(server, bytes(1_000_001))
    assert reply.status == 422
    assert "KLEIN_LAB_LORA_MAX_BYTES" in reply.json["detail"][0]["msg"]
    assert list(server.service.blobs.folder.iterdir()) == []


def test_a_web_pages_form_cannot_upload(server: Server, lora: bytes) -> None:
    reply = server.ask(
        "POST", "/v1/lab/upload_finetune?finetune_id=x&base_model=pocket", lora, headers={"content-type": "text/plain"}
    )
    assert reply.status == 415
    assert "application/octet-stream" in reply.json["detail"]


def test_a_name_is_taken_once(server: Server, lora: bytes) -> None:
    assert upload(server, lora).status == 200
    again = upload(server, lora)
    assert (again.status, again.json["detail"]) == (
        409, "local already has a finetune named 'mine'. Choose another name.",
    )  # fmt: skip


def test_edit_grant_and_revoke(server: Server, lora: bytes) -> None:
    acme, zenith = (server.service.accounts.create_key(name)[1] for name in ("acme", "zenith"))
    upload(server, lora, key=acme)
    edited = server.ask(
        "POST",
        "/v1/lab/edit_finetune",
        {"finetune_id": "mine", "base_model": "flux-2-pocket-base", "trigger_phrase": "sks"},
        key=acme,
    )
    assert edited.json["finetune_details"]["endpoint"] == "flux-2-klein-pocket-base-finetuned"
    cleared = server.ask("POST", "/v1/lab/edit_finetune", {"finetune_id": "mine", "trigger_phrase": ""}, key=acme)
    assert cleared.json["finetune_details"]["trigger_phrase"] is None
    for value, kept in ((0.75, 0.75), ("", None)):
        body = {"finetune_id": "mine", "recommended_strength": value}
        details = server.ask("POST", "/v1/lab/edit_finetune", body, key=acme).json["finetune_details"]
        assert details["recommended_strength"] == kept
    too_much = {"finetune_id": "mine", "recommended_strength": 3}
    assert server.ask("POST", "/v1/lab/edit_finetune", too_much, key=acme).status == 422
    grant = {"finetune_id": "mine", "organization_id": "zenith"}
    granted = server.ask("POST", "/v1/lab/grant_finetune", grant, key=acme)
    assert granted.json["finetune_details"]["granted_to"] == ["zenith"]
    (shared,) = server.ask("GET", "/v1/lab/finetunes?source=shared", key=zenith).json["finetunes"]
    assert (shared["finetune_id"], shared["source"], shared["granted_to"]) == ("acme/mine", "Third party", [])
    foreign = {"finetune_id": "acme/mine", "trigger_phrase": "x"}
    assert server.ask("POST", "/v1/lab/edit_finetune", foreign, key=zenith).status == 403
    assert server.ask("POST", "/v1/lab/revoke_finetune", grant, key=acme).status == 200
    assert server.ask("GET", "/v1/lab/finetunes?source=shared", key=zenith).json == {"finetunes": []}
    assert server.ask("POST", "/v1/lab/edit_finetune", foreign, key=zenith).status == 404
    for path in ("edit_finetune", "grant_finetune", "revoke_finetune"):
        assert server.ask("POST", f"/v1/lab/{path}", grant).status == 403


def test_a_deletion_is_one_for_callers_and_can_be_taken_back(server: Server, lora: bytes) -> None:
    acme, zenith = (server.service.accounts.create_key(name)[1] for name in ("acme", "zenith"))
    upload(server, lora, key=acme)
    server.ask("POST", "/v1/lab/grant_finetune", {"finetune_id": "mine", "organization_id": "zenith"}, key=acme)
    mine, call = {"finetune_id": "mine"}, {"prompt": "x", "finetune_id": "acme/mine", "width": 64, "height": 64}
    accepted = server.ask("POST", "/v1/flux-2-klein-pocket-finetuned", call, key=zenith).json
    assert server.ask("POST", "/v1/delete_finetune", mine, key=acme).json["deleted_finetune_id"] == "mine"
    assert server.wait(accepted["polling_url"])["status"] == "Ready"
    for key, called in ((acme, "mine"), (zenith, "acme/mine")):
        assert called not in server.ask("GET", "/v1/my_finetunes", key=key).json["finetunes"]
        refused = server.ask("POST", "/v1/flux-2-klein-pocket-finetuned", {**call, "finetune_id": called}, key=key)
        assert refused.status == 404
    assert server.ask("POST", "/v1/delete_finetune", mine, key=acme).status == 404
    assert server.ask("POST", "/v1/lab/restore_finetune", {"finetune_id": "acme/mine"}, key=zenith).status == 404
    restored = server.ask("POST", "/v1/lab/restore_finetune", mine, key=acme)
    assert restored.json["finetune_details"]["granted_to"] == ["zenith"]
    assert server.ask("POST", "/v1/flux-2-klein-pocket-finetuned", call, key=zenith).status == 200


def test_the_list_has_filters(server: Server, lora: bytes) -> None:
    upload(server, lora)
    counts = {
        source: len(server.ask("GET", f"/v1/lab/finetunes?source={source}").json["finetunes"])
        for source in ("all", "owned", "shared", "official")
    }
    assert counts == {"all": 7, "owned": 1, "shared": 0, "official": 6}
    assert server.ask("GET", "/v1/lab/finetunes?source=other").status == 422


def test_examples_are_files_that_name_the_finetune(server: Server) -> None:
    for language, name in (("curl", "style.sh"), ("python", "style.py")):
        reply = server.ask("GET", f"/v1/lab/finetune_example?finetune_id=official/style&language={language}")
        assert reply.headers["content-disposition"] == f'attachment; filename="{name}"'
        assert "official/style" in reply.body.decode()
        assert f"{server.url}/v1/flux-2-klein-pocket-finetuned" in reply.body.decode()


def test_our_routes_are_marked_as_ours(server: Server) -> None:
    paths = server.ask("GET", "/v1/openapi.json").json["paths"]
    for path, operations in paths.items():
        for operation in operations.values():
            assert (operation["tags"] == ["Klein LoRA Lab"]) == path.startswith("/v1/lab/"), path


def test_a_klein_lora_waits_for_its_weights(server: Server, tmp_path: Path) -> None:
    data = write_diffusers(tmp_path / "k.safetensors", make_adapter(KLEIN_4B, rank=1)).read_bytes()
    details = upload(server, data, "finetune_id=k&base_model=klein-4b").json["finetune_details"]
    assert (details["endpoint"], details["precision"]) == ("flux-2-klein-4b-finetuned", "fp8")
    refused = server.ask("POST", "/v1/flux-2-klein-4b-finetuned", {"prompt": "x", "finetune_id": "k"})
    assert refused.status == 503


def test_the_api_lives_inside_the_app(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `app.py` mounts it: the page at /, the API below /v1 with its own paths and documentation."""
    made: list[asyncio.AbstractEventLoop] = []
    make = asyncio.new_event_loop

    def remember() -> asyncio.AbstractEventLoop:  # gradio.utils.safe_get_lock never closes its loops
        made.append(make())
        return made[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", remember)
    settings = Settings(home=home)
    database = Database(settings.sqlalchemy_url())
    service = Service(backend=DrawingBackend(), database=database, blobs=Blobs(home / "api"), settings=settings)
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Markdown("the page")
    api = {"routes": [mount(build_routes(service))]}
    _, url, _ = page.launch(app_kwargs=api, prevent_thread_lock=True, quiet=True, ssr_mode=False)
    service.start()
    server = Server(url.rstrip("/"), service)
    accepted = server.ask("POST", "/v1/flux-2-klein-pocket", {"prompt": "x", "width": 64, "height": 64}).json
    assert accepted["polling_url"].startswith(f"{server.url}/v1/get_result?id=")
    ended = server.wait(accepted["polling_url"])
    assert server.ask("GET", ended["result"]["sample"]).headers["content-type"] == "image/jpeg"
    assert b"/v1/openapi.json" in server.ask("GET", "/v1/docs").body
    assert "/v1/get_result" in server.ask("GET", "/v1/openapi.json").json["paths"]
    with urllib.request.urlopen(url) as reply:
        assert b"gradio" in reply.read()
    page.close()
    service.close()
    database.close()
    for loop in made:
        if not loop.is_running():
            loop.close()
    asyncio.set_event_loop(None)
