"""Input images: in every spelling, within the limits, and never from where callers must not reach."""

import base64
import http.client
import http.server
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from lora_runtime.backends.local import LocalBackend
from lora_runtime.errors import InvalidInput
from lora_runtime.server.outbound import Outbound
from lora_runtime.server.workers import tidy
from tests.api_server import Server, run_server
from tests.drawing_backend import DrawingBackend

URL = "/v1/flux-2-klein-pocket"


def make_image(image_format: str = "PNG", size: tuple[int, int] = (96, 80), colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format=image_format)
    return buffer.getvalue()


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Site(http.server.BaseHTTPRequestHandler):
    """A web site with an image, and with traps."""

    def do_GET(self) -> None:
        pages = {
            "/image": (200, "image/png", make_image()),
            "/page": (200, "text/html", b"<html>"),
            "/text-as-image": (200, "image/png", b"<html>"),
            "/large": (200, "image/png", bytes(20_000_001)),
            "/moved": (302, "/image", b""),
            "/loop": (302, "/loop", b""),
        }
        status, kind, body = pages.get(self.path.partition("?")[0], (404, "text/plain", b"no"))
        self.send_response(status)
        self.send_header("location" if status == 302 else "content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except ConnectionError:  # the client had enough
            self.close_connection = True

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def server(home: Path) -> Iterator[Server]:
    with run_server(DrawingBackend(), home, allow_private_networks=True) as server:
        yield server


def test_every_spelling_reaches_the_backend_in_order(server: Server, site: str) -> None:
    images = [make_image("PNG"), make_image("JPEG", colour="green"), make_image("WEBP", colour="blue")]
    body = {
        "prompt": "the cat of image 1",
        "input_image": encode(images[0]),
        "input_image_2": f"data:image/jpeg;base64,{encode(images[1])}",
        "input_image_3": encode(images[2])[:40] + "\n" + encode(images[2])[40:],
        "input_image_4": f"{site}/moved",
    }
    accepted = server.ask("POST", URL, body).json
    assert accepted["input_mp"] == 0.03
    assert accepted["cost"] == pytest.approx(0.2), "the input images are one more megapixel"
    assert server.wait(accepted["polling_url"])["status"] == "Ready"
    backend = server.service.backend
    assert isinstance(backend, DrawingBackend)
    (request,) = backend.rendered
    assert [reference.path.read_bytes() for reference in request.references] == [*images, make_image()]
    assert (request.width, request.height) == (96, 80), "the first image's size"


def test_the_pocket_reads_input_images(local_backend: LocalBackend, home: Path) -> None:
    with run_server(local_backend, home) as server:
        bodies = [{"prompt": "a cat", "seed": 1, "width": 64, "height": 64, "output_format": "png"}]
        bodies.append({**bodies[0], "input_image": encode(make_image(size=(64, 64)))})
        ended = [server.wait(server.ask("POST", URL, body).json["polling_url"]) for body in bodies]
        assert [task["status"] for task in ended] == ["Ready", "Ready"]
        first, second = (
            Image.open(io.BytesIO(server.ask("GET", task["result"]["sample"]).body)).tobytes() for task in ended
        )
    assert first != second


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("not base64!", "neither base64"),
        (encode(b"no image"), "no whole PNG"),
        (encode(make_image("BMP")), "no whole PNG"),
        (encode(make_image()[:-30]), "no whole PNG"),
        (encode(make_image(size=(32, 96))), "64 px at least"),
        (encode(bytes(20_000_010)), "more than 20 MB"),
        ("SITE/page", "is text/html, not image/"),
        ("SITE/text-as-image", "no whole PNG"),
        ("SITE/large", "more than 20 MB"),
        ("SITE/nothing?token=secret", "/nothing answered 404"),
        ("SITE/loop", "could not be fetched"),
        ("http://127.0.0.1:9/x", "could not be fetched"),
        ("http://no-such-host.invalid/x", "could not be fetched"),
        ("http://[::1", "could not be fetched"),
        ("file:///etc/passwd", "neither base64"),
    ],
)
def test_each_bad_image_names_its_field(server: Server, site: str, image: str, says: str) -> None:
    body = {"prompt": "a cat", "input_image": encode(make_image()), "input_image_2": image.replace("SITE", site)}
    reply = server.ask("POST", URL, body)
    assert reply.status == 422
    (problem,) = reply.json["detail"]
    assert problem["loc"] == ["body", "input_image_2"]
    assert says in problem["msg"]
    assert "secret" not in problem["msg"]
    assert server.service.tasks.active("local") == 0


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "169.254.169.254", "10.0.0.1", "[fe80::1]"]
)
def test_private_networks_are_out_of_reach(home: Path, site: str, host: str) -> None:
    port = site.rpartition(":")[2]
    with run_server(DrawingBackend(), home) as server:
        reply = server.ask("POST", URL, {"prompt": "a cat", "input_image": f"http://{host}:{port}/image"})
    assert reply.status == 422
    assert "not a public address" in reply.json["detail"][0]["msg"]


def test_a_redirect_is_checked_as_well(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first hop counts as public; where it leads does not."""
    answers = [True, False, False]
    monkeypatch.setattr("lora_runtime.server.outbound.is_public", lambda _address: answers.pop(0))
    outbound = Outbound(allow_private=False)
    with pytest.raises(InvalidInput, match="not a public address"):
        outbound.fetch(f"{site}/moved", max_bytes=1000, content_type="image/")
    outbound.close()


def test_input_images_are_kept_only_as_long_as_they_are_needed(server: Server) -> None:
    service = server.service
    accepted = server.ask("POST", URL, {"prompt": "a cat", "input_image": encode(make_image())}).json
    server.wait(accepted["polling_url"])
    (file,) = service.blobs.folder.rglob("*.reference")
    seen = tidy(service.tasks, service.finetunes, service.blobs, frozenset())
    assert seen == frozenset(), "it is too new"
    os.utime(file, (1, 1))
    seen = tidy(service.tasks, service.finetunes, service.blobs, seen)
    assert seen == {file.name}
    assert file.is_file()
    assert tidy(service.tasks, service.finetunes, service.blobs, seen) == frozenset()
    assert not file.exists()


def test_a_body_is_never_larger_than_four_images(server: Server) -> None:
    connection = http.client.HTTPConnection(server.url.partition("://")[2])
    connection.putrequest("POST", URL)
    connection.putheader("content-type", "application/json")
    connection.putheader("content-length", "108000000")
    connection.endheaders()
    reply = connection.getresponse()
    assert reply.status == 413
    assert b"which is the limit" in reply.read()
    connection.close()
