"""BFL's own quick start, as its page has it: nothing changes but the host.

Source: docs.bfl.ai/flux_2/flux2_lora_inference, "Quick Start".
"""

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lora_runtime.catalogue import KLEIN_9B
from lora_runtime.snippets import Language, write_example
from lora_runtime.values import ModelStatus
from tests.api_server import Server, run_server
from tests.drawing_backend import DrawingBackend
from tests.lora_files import make_adapter, write_diffusers

CURL = r"""
# Submit
RESPONSE=$(curl -s -X POST 'https://api.bfl.ai/v1/flux-2-klein-9b-kv-finetuned' \
  -H "x-key: $BFL_API_KEY" \
  -H 'Content-Type: application/json' \
  -d '{
    "prompt": "A portrait of ohwx in a sunlit studio, soft key light",
    "finetune_id": "my-portrait-lora",
    "finetune_strength": 1.0
  }')
POLLING_URL=$(echo "$RESPONSE" | jq -r '.polling_url')

# Poll
while true; do
  RESULT=$(curl -s "$POLLING_URL" -H "x-key: $BFL_API_KEY")
  STATUS=$(echo "$RESULT" | jq -r '.status')
  [ "$STATUS" = "Ready" ] && echo "$RESULT" | jq -r '.result.sample' && break
  [ "$STATUS" = "Error" ] || [ "$STATUS" = "Failed" ] && echo "$RESULT" && break
  sleep 1
done
"""

PYTHON = r"""
import os, time, requests

response = requests.post(
    "https://api.bfl.ai/v1/flux-2-klein-9b-kv-finetuned",
    headers={"x-key": os.environ["BFL_API_KEY"], "Content-Type": "application/json"},
    json={
        "prompt": "A portrait of ohwx in a sunlit studio, soft key light",
        "finetune_id": "my-portrait-lora",
        "finetune_strength": 1.0,
    },
).json()

while True:
    time.sleep(1)
    result = requests.get(
        response["polling_url"], headers={"x-key": os.environ["BFL_API_KEY"]}
    ).json()
    if result["status"] == "Ready":
        print(result["result"]["sample"])
        break
    if result["status"] in ("Error", "Failed"):
        print(result)
        break
"""

needs_curl = pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="curl and jq are not here")


class KvBackend(DrawingBackend):
    """Draws what klein-9b-kv is asked for."""

    def models(self) -> Sequence[ModelStatus]:
        return [ModelStatus(weights="klein-9b-kv", precision="fp8", available=True, digest="d1")]


@pytest.fixture
def server(home: Path, tmp_path: Path) -> Iterator[Server]:
    path = write_diffusers(tmp_path / "portrait.safetensors", make_adapter(KLEIN_9B, rank=1))
    with run_server(KvBackend(), home) as server:
        server.service.finetunes.add_file(
            "acme", path, name="my-portrait-lora", weights="klein-9b-kv", trigger_phrase='ohwx "quoted" it\'s'
        )
        yield server


@pytest.fixture
def key(server: Server) -> str:
    return server.service.accounts.create_key("acme")[1]


def run(command: Sequence[str], key: str) -> str:
    environment = {**os.environ, "BFL_API_KEY": key, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip()


def assert_is_image(url: str) -> None:
    with urllib.request.urlopen(url) as reply:
        assert reply.headers["content-type"] == "image/jpeg"
        assert reply.read(2) == b"\xff\xd8"


@needs_curl
def test_the_pages_curl_loop(server: Server, key: str) -> None:
    assert_is_image(run(["bash", "-c", CURL.replace("https://api.bfl.ai", server.url)], key))


def test_the_pages_python(server: Server, key: str) -> None:
    assert_is_image(run([sys.executable, "-c", PYTHON.replace("https://api.bfl.ai", server.url)], key))


@pytest.mark.parametrize("language", [pytest.param("curl", marks=needs_curl), "python"])
def test_our_own_examples_run(server: Server, key: str, language: Language) -> None:
    program = write_example(server.service.finetunes.find("acme", "my-portrait-lora"), server.url, language)
    assert_is_image(run(["bash" if language == "curl" else sys.executable, "-c", program], key))
    backend = server.service.backend
    assert isinstance(backend, KvBackend)
    assert backend.rendered[-1].prompt == 'A portrait of ohwx "quoted" it\'s in a sunlit studio, soft key light'
