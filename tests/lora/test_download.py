"""LoRAs from the Hub and by URL, against a Hub on loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lora_runtime.catalogue import POCKET
from lora_runtime.errors import InvalidInput, LoraMismatch, LoraNotFetched, LoraUnreadable, NotFound
from lora_runtime.lora.download import HubSource, UrlSource, parse_source
from lora_runtime.lora.library import path_of, report_of
from lora_runtime.registry.accounts import LOCAL
from lora_runtime.registry.local import fetch_lora, open_registry
from lora_runtime.settings import settings
from tests.hub_double import Hub, serve_hub
from tests.lora_files import make_adapter, write_bfl, write_diffusers


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serve_hub() as hub:
        point_at(hub.url, monkeypatch)
        hub.repos["ann/klein-style"] = {"README.md": b"# style", "watercolor.safetensors": lora_bytes(tmp_path)}
        yield hub


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What huggingface_hub makes of HF_ENDPOINT when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def lora_bytes(tmp_path: Path, seed: int = 0) -> bytes:
    return write_bfl(tmp_path / f"made-{seed}.safetensors", make_adapter(POCKET, seed=seed)).read_bytes()


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("ann/klein", HubSource(repo="ann/klein")),
        ("ann/klein@v2", HubSource(repo="ann/klein", revision="v2")),
        ("ann/klein/a.safetensors", HubSource(repo="ann/klein", path="a.safetensors")),
        ("ann/klein@v2/sub/a.safetensors", HubSource(repo="ann/klein", revision="v2", path="sub/a.safetensors")),
        ("hf://ann/klein/a.safetensors", HubSource(repo="ann/klein", path="a.safetensors")),
        ("https://huggingface.co/ann/klein", HubSource(repo="ann/klein")),
        ("https://hf.co/ann/klein/", HubSource(repo="ann/klein")),
        ("https://huggingface.co/ann/klein/tree/main/sub", HubSource(repo="ann/klein", path="sub")),
        ("https://huggingface.co/ann/klein/blob/main/a.safetensors", HubSource(repo="ann/klein", path="a.safetensors")),
        ("https://huggingface.co/ann/klein/resolve/abc/a.safetensors?download=true",
         HubSource(repo="ann/klein", revision="abc", path="a.safetensors")),
        ("https://huggingface.co/ann/klein/blob/refs%2Fpr%2F1/a%20b.safetensors",
         HubSource(repo="ann/klein", revision="refs/pr/1", path="a b.safetensors")),
        ("https://example.org/a.safetensors", UrlSource(url="https://example.org/a.safetensors")),
        ("style", None), ("./style", None), ("../a/b", None), ("/a/b/c", None), ("loras/a.safetensors", None),
        ("C:\\loras\\a", None),
    ],
)  # fmt: skip
def test_what_a_source_may_look_like(text: str, source: object) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("http://example.org/a.safetensors", "not an https address"),
        ("ftp://example.org/a.safetensors", "not an https address"),
        ("file:///etc/passwd", "not an https address"),
        ("https://huggingface.co/datasets/ann/klein", "not the address of a model"),
        ("https://[bad", "not a web address"),
        ("https://example.org:99999/a", "not a web address"),
        ("https://exa mple.org/a", "not a web address"),
        ("https://huggingface.co/ann", "not the address of a model"),
        ("https://huggingface.co/ann/klein/blob/", "breaks off"),
    ],
)
def test_addresses_that_hold_no_lora(text: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        fetch_lora(text)


@settings_of_hypothesis(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=60), st.text("abc/:@.%[]#?~-", max_size=30).map("https://".__add__)))
def test_any_text_is_a_source_or_none_or_refused(text: str) -> None:
    try:
        source = parse_source(text)
    except InvalidInput:
        return
    assert source is None or str(source)


def test_a_repository_with_one_lora_is_kept_and_found_again_without_asking(hub: Hub, home: Path) -> None:
    ref = fetch_lora("ann/klein-style")
    assert path_of(ref).read_bytes() == hub.repos["ann/klein-style"]["watercolor.safetensors"]
    with open_registry() as finetunes:
        kept = finetunes.find(LOCAL, "watercolor")
    assert (kept.lora, kept.weights, kept.source) == (ref, "pocket", "Owned")
    asked = len(hub.asked)
    address = f"{hub.url}/ann/klein-style/blob/main/watercolor.safetensors"
    for text in ("ann/klein-style", "ann/klein-style/watercolor.safetensors", address, "watercolor"):
        assert fetch_lora(text) == ref
    assert asked == len(hub.asked)
    assert not list((home / "api").glob(".*")), "nothing on its way is left"


def test_two_loras_of_one_name_are_told_apart(hub: Hub, tmp_path: Path) -> None:
    hub.repos["bob/klein-style"] = {"watercolor.safetensors": lora_bytes(tmp_path, seed=1)}
    first, second = fetch_lora("ann/klein-style"), fetch_lora("bob/klein-style")
    assert second.name == "watercolor-2"
    assert first.sha256 != second.sha256
    assert fetch_lora(second.name) == second


def test_peft_settings_come_along(hub: Hub, tmp_path: Path) -> None:
    path = write_diffusers(tmp_path / "p.safetensors", make_adapter(POCKET, rank=4), prefix="base_model.model.")
    config = json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}).encode()
    hub.repos["ann/raw-peft"] = {"adapter_model.safetensors": path.read_bytes(), "adapter_config.json": config}
    ref = fetch_lora("ann/raw-peft")
    assert ref.name == "raw-peft"
    assert report_of(ref).scales == (2.0,)


def test_several_files_are_listed(hub: Hub, tmp_path: Path) -> None:
    steps = {f"step/{step}.safetensors": lora_bytes(tmp_path, seed=step) for step in (100, 200)}
    hub.repos["ann/many"] = {**steps, "last.safetensors": lora_bytes(tmp_path)}
    with pytest.raises(NotFound, match=r"3 \.safetensors files.*ann/many/step/100\.safetensors, ann/many/step/200"):
        fetch_lora("ann/many")
    with pytest.raises(NotFound, match=r"ann/many/step on the Hub has 2 "):
        fetch_lora("ann/many/step")
    with pytest.raises(NotFound, match=r"has no step/300\.safetensors\. It has: ann/many/step/100"):
        fetch_lora("ann/many/step/300.safetensors")
    assert fetch_lora("ann/many/step/200.safetensors").name == "200"


def test_missing_gated_and_empty(hub: Hub) -> None:
    hub.gated.add("ann/secret")
    hub.repos["ann/empty"] = {"README.md": b""}
    with pytest.raises(LoraNotFetched, match=r"ann/secret is gated.*hf auth login"):
        fetch_lora("ann/secret")
    with pytest.raises(NotFound, match=r"no ann/nothing on the Hub, or it is private.*not a file of this machine"):
        fetch_lora("ann/nothing")
    with pytest.raises(NotFound, match="the revision or file is not"):
        fetch_lora("ann/klein-style@v9")
    with pytest.raises(NotFound, match=r"has no \.safetensors file"):
        fetch_lora("ann/empty")


def test_too_large_is_refused_before_the_download(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLEIN_LAB_LORA_MAX_BYTES", "1000")
    settings.cache_clear()
    with pytest.raises(LoraNotFetched, match="KLEIN_LAB_LORA_MAX_BYTES"):
        fetch_lora("ann/klein-style")
    assert not [line for line in hub.asked if line.startswith("GET ann/")]


def test_what_would_not_load_is_not_kept(hub: Hub, tmp_path: Path, home: Path) -> None:
    save_file({"diffusion_model.vector_in.lora_A.weight": torch.ones(1, 1)}, tmp_path / "flux1.safetensors")
    hub.repos["ann/flux1"] = {"flux1.safetensors": (tmp_path / "flux1.safetensors").read_bytes()}
    hub.repos["ann/pickle"] = {"evil.safetensors": b"\x80\x04\x95" + bytes(100)}
    with pytest.raises(LoraMismatch, match=r"FLUX\.1"):
        fetch_lora("ann/flux1")
    with pytest.raises(LoraUnreadable, match="pickle"):
        fetch_lora("ann/pickle")
    assert not list((home / "api").iterdir())


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_hub() as hub:
        gone = hub.url
    point_at(gone, monkeypatch)
    with pytest.raises(LoraNotFetched, match="could not be reached"):
        fetch_lora("ann/klein-style")
    with pytest.raises(LoraNotFetched, match="could not be reached"):
        fetch_lora(f"{gone.replace('127.0.0.1', 'localhost')}/a.safetensors")


def test_by_url(hub: Hub, tmp_path: Path) -> None:
    hub.plain = {"My LoRA.safetensors": lora_bytes(tmp_path), "download": lora_bytes(tmp_path, seed=1)}
    base = hub.url.replace("127.0.0.1", "localhost")  # another host than the Hub's
    assert fetch_lora(f"{base}/plain/My%20LoRA.safetensors?token=secret").name == "my-lora"
    assert fetch_lora(f"{base}/plain/download").name == "from-civitai"
    asked = len(hub.asked)
    assert fetch_lora(f"{base}/plain/download").name == "from-civitai"
    assert len(hub.asked) == asked
    kept = [path for path in settings().home.rglob("*") if path.is_file()]
    assert any(path.suffix == ".sqlite3" for path in kept)
    assert not any(b"token=secret" in path.read_bytes() for path in kept)


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("nothing", NotFound, "nothing at"),
        ("private", LoraNotFetched, "HTTP 401.*download the file with a browser"),
        ("page.html", LoraNotFetched, "web page"),
        ("large", LoraNotFetched, "larger than the 0 MB"),
    ],
)
def test_urls_that_give_no_lora(
    hub: Hub, name: str, error: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KLEIN_LAB_LORA_MAX_BYTES", "1000")
    settings.cache_clear()
    hub.plain = {"private": b"", "page.html": b"<html>", "large": bytes(2000)}
    hub.hides_length = True  # so that the limit is kept while reading
    with pytest.raises(error, match=says):
        fetch_lora(f"{hub.url.replace('127.0.0.1', 'localhost')}/plain/{name}?token=secret")


def test_a_redirect_may_not_leave_https(hub: Hub) -> None:
    hub.redirects["plain/hop"] = f"http://{hub.url.removeprefix('http://').replace('127.0.0.1', '127.0.0.2')}/plain/x"
    with pytest.raises((InvalidInput, LoraNotFetched)):
        fetch_lora(f"{hub.url.replace('127.0.0.1', 'localhost')}/plain/hop")


def test_inspect_of_a_hub_id(hub: Hub, home: Path) -> None:
    """The whole way, as a user types it: HF_ENDPOINT is the environment variable of huggingface_hub."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "KLEIN_LAB_HOME": str(home)}
    command = [sys.executable, "-m", "lora_runtime", "inspect", "--json"]
    done = subprocess.run([*command, "ann/klein-style"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["ok"], report["base"], report["matched"]) == (True, ["pocket", "pocket-base"], 5)
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    for argument, status in (("ann/klein-style", 0), ("ann/other", 1)):
        done = subprocess.run([*command, argument], capture_output=True, text=True, env=offline, check=False)
        assert done.returncode == status, done.stderr
    assert "HF_HUB_OFFLINE" in json.loads(done.stdout)["problems"][0]
    assert load_file(path_of(fetch_lora("watercolor")))
