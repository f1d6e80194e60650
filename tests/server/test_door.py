"""A web page of another site gets nothing from any route of the port, whatever it calls itself; programs go on."""

import http.client
import json
import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import pytest
from gradio_client import handle_file
from starlette.datastructures import Headers

from lora_runtime.server.door import find_stranger
from tests.api_server import run_server
from tests.app_server import closed_loops, connect, serve  # noqa: F401 - a fixture
from tests.drawing_backend import DrawingBackend, make_lora

# Gradio's own summary of its queue uses pandas as pandas 3 warns of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.queueing")

STRANGERS: dict[str, dict[str, str]] = {
    "a page of another site": {"origin": "https://evil.example"},
    "a name that was made to point here": {"host": "evil.example"},
    "both": {"host": "evil.example:7860", "origin": "http://evil.example:7860"},
    "a name that begins like ours": {"host": "localhost.evil.example"},
    "an origin that begins like ours": {"origin": "http://127.0.0.1.evil.example"},
    "a page without an origin": {"origin": "null"},
    "a proxy that nobody named": {"x-forwarded-host": "evil.example"},
    "a picture in a page of another site": {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
}


class Port:
    """A port, asked byte for byte: no library adds or leaves out a header."""

    def __init__(self, url: str) -> None:
        self.netloc = urlsplit(url).netloc

    def ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.netloc, timeout=60)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"host": self.netloc, "content-length": str(len(body)), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        try:
            reply = connection.getresponse()
            named = {name.lower(): value for name, value in reply.getheaders()}
            # A stream of events never ends: what it begins with is enough.
            endless = named.get("content-type", "").startswith("text/event-stream")
            return reply.status, named, b"" if endless else reply.read()
        finally:
            connection.close()


@pytest.fixture
def page(home: Path, closed_loops: None) -> Iterator[gr.Blocks]:  # noqa: F811
    with serve(home, DrawingBackend()) as page:
        yield page


def list_routes(routes: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every method and path of an application, those of what is mounted too; parameters are filled in."""
    for route in routes:
        path = prefix + re.sub(r"{[^}]*}", "x", getattr(route, "path", ""))
        router = getattr(route, "original_router", None)
        inner = router.routes if router is not None else getattr(route, "routes", None)
        if inner:
            yield from list_routes(inner, path)
        else:
            for method in sorted(getattr(route, "methods", None) or {"GET", "POST"}):
                yield method, path or "/"


def test_a_stranger_gets_nothing_from_any_route(page: gr.Blocks) -> None:
    port = Port(page.local_url)
    asked = sorted(set(list_routes(page.app.routes)))
    found = {path for _, path in asked}
    assert {"/config", "/gradio_api/upload", "/gradio_api/call/x", "/gradio_api/queue/join", "/gradio_api/mcp"} <= found
    v1 = [(method, f"/v1/{name}") for method in ("GET", "POST") for name in ("credits", "docs", "flux-2-klein-pocket",
          "get_result?id=x", "lab/upload_finetune", "results/x/sample.png")]  # fmt: skip
    mcp = [(method, "/gradio_api/mcp/") for method in ("GET", "POST")]
    for (who, headers), (method, path) in product(STRANGERS.items(), [*asked, *v1, *mcp]):
        status, answered, body = port.ask(method, path, headers)
        assert status == 403, (who, method, path, status, body[:200])
        assert "access-control-allow-origin" not in answered, (who, method, path)
        if method != "HEAD":
            assert json.loads(body).keys() == {"detail"}
            assert len(body) < 500


def test_a_preflight_of_another_site_is_refused(page: gr.Blocks) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for path in ("/gradio_api/upload", "/v1/lab/upload_finetune", "/config"):
        status, answered, _ = Port(page.local_url).ask("OPTIONS", path, headers)
        assert (status, "access-control-allow-origin" in answered) == (403, False), path


def test_an_upload_of_another_site_leaves_no_file(page: gr.Blocks) -> None:
    body = b'--b\r\ncontent-disposition: form-data; name="files"; filename="spy.bin"\r\n\r\nspy\r\n--b--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    port, cache = Port(page.local_url), Path(page.app.uploaded_file_dir)
    before = set(cache.rglob("*"))
    assert port.ask("POST", "/gradio_api/upload", {**headers, "origin": "https://evil.example"}, body)[0] == 403
    assert set(cache.rglob("*")) == before
    assert port.ask("POST", "/gradio_api/upload", {**headers, "origin": f"http://{port.netloc}"}, body)[0] == 200


def test_this_machine_goes_on(page: gr.Blocks) -> None:
    port = Port(page.local_url)
    number = port.netloc.rpartition(":")[2]
    for headers in (
        {},
        {"host": f"localhost:{number}", "origin": f"http://localhost:{number}"},
        {"host": f"lab.localhost:{number}"},
        {"origin": "http://127.0.0.1:6274"},  # the inspector of MCP, another port of this machine
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},  # a link to us
        {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"},
    ):
        for path in ("/config", "/v1/credits"):
            assert port.ask("GET", path, headers)[0] == 200, (path, headers)


def test_gradios_client_uploads_and_calls(page: gr.Blocks) -> None:
    client = connect(page.local_url)
    found = client.predict(file=handle_file(str(make_lora("sent").path)), api_name="/inspect")
    assert found["sha256"] == make_lora("sent").sha256
    client.close()


def test_a_proxy_that_is_named_goes_on(
    home: Path,
    closed_loops: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KLEIN_LAB_PUBLIC_URL", "https://Lab.example/klein/")
    with serve(home, DrawingBackend()) as page:
        port = Port(page.local_url)
        for headers in (
            {"host": "lab.example", "origin": "https://lab.example"},
            {"x-forwarded-host": "lab.example", "origin": "https://lab.example"},
        ):
            assert port.ask("GET", "/config", headers)[0] == 200, headers
        for headers in ({"host": "other.example"}, {"host": "lab.example", "origin": "https://other.example"}):
            assert port.ask("GET", "/config", headers)[0] == 403, headers
        status, _, body = port.ask("GET", "/v1/credits", {"host": "lab.example", "x-forwarded-host": "lab.example"})
        assert (status, b"keys create" in body) == (403, True), "who comes through it has no key"


def test_with_keys_the_api_is_asked_from_anywhere_and_needs_one(home: Path) -> None:
    with run_server(DrawingBackend(), home) as server:
        port, key = Port(server.url), server.service.accounts.create_key("acme")[1]
        away = {"host": "lab.example", "origin": "https://app.example"}
        assert port.ask("GET", "/v1/credits", {**away, "x-key": key})[0] == 200
        assert port.ask("GET", "/v1/credits", away)[0] == 403


@pytest.mark.parametrize(
    ("headers", "served"),
    [
        ({"host": "192.168.1.5:7860"}, True),
        ({"host": "192.168.1.5:7860", "origin": "http://192.168.1.5:7860"}, True),
        ({"host": "gpu-box:7860", "origin": "http://GPU-box:7860"}, True),
        ({"host": "app:7860", "x-forwarded-host": "lab.example", "origin": "https://lab.example"}, True),
        ({"host": "192.168.1.5:7860", "origin": "http://192.168.1.5:8000"}, False),
        ({"host": "192.168.1.5:7860", "origin": "https://evil.example"}, False),
        ({"host": "localhost:7860", "origin": "null"}, False),
        ({"host": "192.168.1.5:7860", "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}, False),
    ],
)
def test_on_a_port_that_others_reach_a_page_must_be_our_own(headers: dict[str, str], served: bool) -> None:
    assert (find_stranger(Headers(headers), local=False, public_url=None) is None) is served


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": ""},
        {"host": "["},
        {"host": "127.0.0.1, evil.example"},
        {"host": "0.0.0.0:7860"},
        {"host": "127.0.0.1", "origin": ""},
        {"host": "127.0.0.1", "origin": "http://["},
        {"host": "127.0.0.1", "origin": "file://localhost"},
    ],
)
def test_what_cannot_be_read_is_a_stranger(headers: dict[str, str]) -> None:
    assert find_stranger(Headers(headers), local=True, public_url=None) is not None
    assert find_stranger(Headers(headers), local=True, public_url="") is not None
