"""Downloads: what is said before the first byte, and what the Hub's refusals become. A Hub on loopback plays along."""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from typer.testing import CliRunner

from lora_runtime.__main__ import app
from lora_runtime.catalogue import find_weights
from lora_runtime.errors import InvalidInput, StorageFailed, Unavailable
from lora_runtime.pipeline import download as download_module
from lora_runtime.pipeline.download import plan_download, run_download
from lora_runtime.pipeline.find import find_parts
from lora_runtime.pipeline.memory import count_fp8_file, download_bytes


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, and nobody logged in."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**12, 0, 10**12))
    return folder


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hub does for one repository whose files are all `{}`, or with the status in `refusal`."""

    refusal: tuple[int, str] | None = None
    files = ("model_index.json", "transformer/config.json", "transformer/a.safetensors", "flux-2-klein-4b.safetensors",
             "flux-2-klein-4b-fp8.safetensors")  # fmt: skip
    fetched: list[str] = []  # noqa: RUF012 - one list for the handlers of all requests

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        body, kind = b"{}", "application/octet-stream"
        if self.refusal:
            self.send_response(self.refusal[0])
            self.send_header("X-Error-Code", self.refusal[1])
            self.end_headers()
            return
        if "/tree/" in self.path:
            entries = [{"type": "file", "path": name, "size": 2, "oid": "b" * 40} for name in self.files]
            body, kind = json.dumps(entries).encode(), "application/json"
        elif self.path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in self.files]
            body = json.dumps({"id": "someone/klein", "sha": "a" * 40, "siblings": siblings}).encode()
            kind = "application/json"
        elif self.command == "GET" and "/resolve/" in self.path:
            self.fetched.append(self.path.partition("/resolve/")[2].partition("/")[2])
        self.send_response(200)
        etag = hashlib.sha1(self.path.encode()).hexdigest()
        for name, value in (
            ("Content-Type", kind), ("Content-Length", str(len(body))), ("ETag", f'"{etag}"'),
            ("X-Repo-Commit", "a" * 40),
        ):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_HOME"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", url, raising=False)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    for fetch in ("snapshot_download", "hf_hub_download"):
        real = getattr(huggingface_hub, fetch)
        monkeypatch.setattr(
            huggingface_hub, fetch, lambda *args, real=real, **kwargs: real(*args, endpoint=url, **kwargs)
        )
    Hub.refusal = None
    Hub.fetched.clear()
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_size_is_that_of_the_published_files() -> None:
    # 7.75 GB transformer, 8.04 GB Qwen3-4B, 0.17 GB VAE; 18.16, 16.38 and 0.17 for 9B.
    assert download_bytes(find_weights("klein-4b")) == pytest.approx(15.96e9, rel=0.005)
    assert download_bytes(find_weights("klein-9b")) == pytest.approx(34.7e9, rel=0.005)
    # Byte counts of BFL's files on the Hub; the header and the norms are what is left out.
    assert count_fp8_file(find_weights("klein-4b")) == pytest.approx(4_070_624_520, rel=1e-4)
    assert count_fp8_file(find_weights("klein-9b")) == pytest.approx(9_433_061_528, rel=1e-4)


def test_what_is_in_the_way_is_said_before_the_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="nothing to download"):
        plan_download(find_weights("pocket"), "bf16")
    with pytest.raises(InvalidInput, match="not published at fp32"):
        plan_download(find_weights("klein-4b"), "fp32")
    with pytest.raises(Unavailable, match=r"Accept its licence \(FLUX Non-Commercial\).*hf auth login"):
        plan_download(find_weights("klein-9b"), "bf16")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert "gated" in plan_download(find_weights("klein-9b"), "bf16").describe()
    monkeypatch.setattr(download_module, "_free_disk", lambda _folder: 14 * 10**9)
    with pytest.raises(StorageFailed, match=r"needs 16\.0 GB, but the disk of .* has 14\.0 GB free"):
        plan_download(find_weights("klein-4b"), "bf16")
    assert plan_download(find_weights("klein-4b"), "fp8").size_bytes == pytest.approx(12.3e9, rel=0.01)


def test_only_what_is_needed_is_fetched_and_found(hub: type[Hub], cache: Path) -> None:
    run_download(plan_download(find_weights("klein-4b"), "bf16"))
    assert sorted(hub.fetched) == ["model_index.json", "transformer/a.safetensors", "transformer/config.json"]
    hub.fetched.clear()
    shutil.rmtree(cache)
    run_download(plan_download(find_weights("klein-4b"), "fp8"))
    assert sorted(hub.fetched) == [
        "flux-2-klein-4b-fp8.safetensors", "model_index.json", "transformer/config.json",
    ]  # fmt: skip
    parts = find_parts(find_weights("klein-4b"), "fp8")
    assert parts.folder.is_relative_to(cache)
    assert parts.transformer is not None
    assert parts.transformer.name == "flux-2-klein-4b-fp8.safetensors"


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((403, "GatedRepo"), "has not accepted its licence"),
        ((401, "RepoNotFound"), "Log in with"),
        ((503, ""), "could not be reached"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(hub: type[Hub], refusal: tuple[int, str], words: str) -> None:
    hub.refusal = refusal
    with pytest.raises(Unavailable, match=words):
        run_download(plan_download(find_weights("klein-4b"), "bf16"))


def test_the_command_asks_first(hub: type[Hub]) -> None:
    asked = CliRunner().invoke(app, ["download", "klein-4b"], input="n\n")
    assert asked.exit_code == 1
    assert "16.0 GB into" in asked.stdout
    assert "Licence: Apache-2.0." in asked.stdout
    assert not hub.fetched
    done = CliRunner().invoke(app, ["download", "klein-4b", "--yes"])
    assert done.exit_code == 0, done.output
    assert "klein-4b is here" in done.stdout
    refused = CliRunner().invoke(app, ["download", "klein-9b", "--yes"])
    assert refused.exit_code == 1
    assert "gated" in refused.stderr
