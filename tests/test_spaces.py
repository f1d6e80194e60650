"""A Hugging Face Space: the real app.py in a process with a Space's environment, and what must hold there."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import app
from evaluation.grid import make_spec
from evaluation.store.store import Store
from evaluation.sweep import run_sweep
from lora_runtime import settings as settings_module
from lora_runtime.catalogue import WEIGHTS
from lora_runtime.settings import Settings
from lora_runtime.startup import fetch_weights
from tests.api_server import run_server
from tests.drawing_backend import STYLE, DrawingBackend

ROOT = Path(app.__file__).parent
FRONT_MATTER: dict[str, Any] = yaml.safe_load((ROOT / "README.md").read_text().split("---\n")[1])
SECRETS = {"BFL_API_KEY": "bfl-0123456789-secret", "HF_TOKEN": "hf_0123456789SECRET"}

# Source: huggingface.co/docs/hub/spaces-overview, "Helper environment variables"; the rest is what its image sets.
SPACE = {
    "SPACE_ID": "someone/klein-lora-lab",
    "SPACE_AUTHOR_NAME": "someone",
    "SPACE_REPO_NAME": "klein-lora-lab",
    "SPACE_TITLE": "Klein LoRA Lab",
    "SPACE_HOST": "someone-klein-lora-lab.hf.space",
    "SYSTEM": "spaces",
    "CPU_CORES": "2",
    "MEMORY": "16Gi",
    "GRADIO_SERVER_NAME": "0.0.0.0",
    "GRADIO_ANALYTICS_ENABLED": "True",
}


@dataclass
class Space:
    """A running Space; `output` is what it wrote to its log."""

    url: str
    home: Path
    process: subprocess.Popen[str]
    log: Path

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@dataclass
class Browser:
    """A visitor's page without a browser: Gradio's own protocol over plain HTTP."""

    space: Space
    token: str = field(default_factory=lambda: secrets.token_hex(24))

    def __post_init__(self) -> None:
        self.session = secrets.token_hex(6)
        self.config = json.loads(self.space.get("/config")[1])
        self.components = {each["id"]: each for each in self.config["components"]}
        self.fire("enter", [self.token])

    def fire(self, name: str, data: list[object] | None = None, **values: object) -> dict[str, Any]:
        """Fire an event with what the page starts with, `values` by element id aside; what it ends with, by element."""
        event = next(each for each in self.config["dependencies"] if each["api_name"] == name)
        sent = data if data is not None else [self._start_value(id_, values) for id_ in event["inputs"]]
        body = {"data": sent, "fn_index": event["id"], "session_hash": self.session, "event_data": None}
        request = urllib.request.Request(
            f"{self.space.url}/gradio_api/queue/join", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=60).close()
        shown: dict[str, Any] = {}
        with urllib.request.urlopen(
            f"{self.space.url}/gradio_api/queue/data?session_hash={self.session}", timeout=120
        ) as stream:
            for line in stream:
                if not line.startswith(b"data:"):
                    continue
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    assert message["success"], message
                    shown = dict(zip(event["outputs"], message["output"]["data"], strict=True))
                    break
        return {self.components[id_]["props"].get("elem_id") or str(id_): value for id_, value in shown.items()}

    def _start_value(self, id_: int, values: dict[str, object]) -> object:
        props = self.components[id_]["props"]
        return values.get(props.get("elem_id") or "", props.get("value"))


def start(home: Path, **environment: str) -> Space:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    plain = {name: value for name, value in os.environ.items() if name not in ("HOST", "PORT", "DATABASE_URL")}
    log = home.parent / "space.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, text=True,
            env={**plain, **SPACE, **SECRETS, "KLEIN_LAB_HOME": str(home), "PORT": str(port), **environment},
        )  # fmt: skip
    space = Space(f"http://127.0.0.1:{port}", home, process, log)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            space.get("/")
        except OSError:
            time.sleep(0.2)
        else:
            return space
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    """A Space that was there before: in its storage lie a visitor's run of two days ago and one of the owner's."""
    home = tmp_path_factory.mktemp("space") / "home"
    leave_runs(home)
    running = start(home)
    yield running
    running.process.send_signal(signal.SIGINT)
    running.process.wait(timeout=60)


def leave_runs(home: Path) -> None:
    from sqlalchemy import text

    from lora_runtime.storage.blobs import Blobs
    from lora_runtime.storage.database import Database

    database = Database(f"sqlite:///{home / 'lab.sqlite3'}")
    store, backend = Store(database, Blobs(home / "blobs")), DrawingBackend()
    for seed, organization in enumerate((f"visitor-{'a' * 32}", "local")):
        spec = make_spec(backend, loras=[STYLE], prompts=["a cat"], strengths="0", seeds=[seed])
        list(run_sweep(spec, backend=backend, store=store, organization=organization))
    with database.session() as session:
        session.execute(text("update runs set created = datetime('now', '-2 days')"))
    database.close()


def test_the_front_matter_is_what_runs_here() -> None:
    assert FRONT_MATTER["sdk"] == "gradio"
    assert (ROOT / FRONT_MATTER["app_file"]).is_file()
    needed = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("gradio["))
    low = re.search(r">=([\d.]+)", needed)
    assert low
    assert [int(part) for part in FRONT_MATTER["sdk_version"].split(".")][:2] >= [int(p) for p in low[1].split(".")]
    assert FRONT_MATTER["python_version"] in ("3.12", "3.11")
    assert len(FRONT_MATTER["short_description"]) <= 60
    public = {weights.hub_id for weights in WEIGHTS.values() if weights.hub_id and not weights.gated}
    assert set(FRONT_MATTER["models"]) == public
    assert "mcp-server" in FRONT_MATTER["tags"]
    assert "hf_oauth" not in FRONT_MATTER, "nobody needs to sign in"


def test_the_packages_of_a_space_are_nothing_but_names() -> None:
    """Its builder hands every word of the file to apt-get."""
    for line in (ROOT / "packages.txt").read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", line)


def test_visitors_are_told_whose_their_work_is_and_how_long_it_is_kept(space: Space) -> None:
    status, page = space.get("/")
    assert status == 200
    assert "What you make here is yours alone" in page
    assert "kept for 24 hours" in page


def test_secrets_are_shown_nowhere(space: Space) -> None:
    shown = [space.get(path)[1] for path in ("/", "/config", "/gradio_api/info", "/gradio_api/mcp/schema")]
    shown.append(space.log.read_text())
    for name, secret in SECRETS.items():
        assert not any(secret in text for text in shown), name


def test_the_http_api_is_off_without_keys(space: Space) -> None:
    for path in ("/v1/credits", "/v1/my_finetunes", "/v1/docs", "/v1/openapi.json", "/v1/nothing"):
        status, body = space.get(path)
        assert status == 404
        assert "KLEIN_LAB_API_KEYS" in json.loads(body)["detail"]


def test_keys_of_a_secret_turn_the_http_api_on(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("SPACE_ID", "someone/lab")
    with run_server(DrawingBackend(), home, api_keys="acme:secret-1") as server:
        assert server.ask("GET", "/v1/credits").status == 403
        assert server.ask("GET", "/v1/credits", key="secret-2").status == 403
        assert server.ask("GET", "/v1/credits", key="secret-1").status == 200
        assert "secret-1" not in str(server.service.settings)
    with run_server(DrawingBackend(), home) as server:
        assert server.ask("GET", "/v1/credits").status == 404


def test_agents_find_the_tools_under_the_name_of_the_space(space: Space) -> None:
    schema = json.loads(space.get("/gradio_api/mcp/schema")[1])
    names = {"sweep", "generate", "list_training_runs", "votes", "list_finetunes", "inspect"}
    names |= {f"{verb}_prompt_set" for verb in ("save", "delete")} | {"list_prompt_sets"}
    assert {each["name"] for each in schema} == {f"klein_lora_lab_{name}" for name in names}


def test_what_visitors_of_two_days_ago_left_is_gone(space: Space) -> None:
    store = Store.open(Settings().model_copy(update={"home": space.home}))
    deadline = time.monotonic() + 60
    while len(left := store.runs()) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    store.close()
    assert {run.organization for run in left if run.spec.prompts == ("a cat",)} == {"local"}


def test_the_pocket_runs_on_a_cpu_and_two_visitors_do_not_see_each_other(space: Space) -> None:
    first, second = Browser(space), Browser(space)
    first.fire("run", strengths="0, 1", prompt="a red cat of the first visitor", seed="7")
    deadline = time.monotonic() + 120
    while "of the first visitor" not in str(Browser(space, first.token).fire("log_refresh")):
        assert time.monotonic() < deadline, "it goes on, though its page was closed when it had begun"
        time.sleep(0.2)
    again, stranger = (str(Browser(space, token).fire("sweep_load")) for token in (first.token, secrets.token_hex(24)))
    assert "of the first visitor" in again, "a reload finds the same work"
    assert "of the first visitor" not in stranger
    assert "of the first visitor" not in str(second.fire("sweep_load"))
    assert "a cat" not in again, "nor the owner's"
    assert "of the first visitor" not in str(second.fire("log_refresh"))


def test_what_is_different_follows_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HOST", "KLEIN_LAB_HOME"):
        monkeypatch.delenv(name, raising=False)
    at_home = Settings()
    assert (at_home.visitors, at_home.host, at_home.weights) == ("together", "127.0.0.1", "pocket")
    for name, value in SPACE.items():
        monkeypatch.setenv(name, value)
    there = Settings()
    assert (there.visitors, there.host, there.keep_hours) == ("apart", "0.0.0.0", 24)
    assert not at_home.fetch_judge
    assert settings_module._default_home(mounted=tmp_path) == tmp_path / "klein-lora-lab"
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert (Settings().weights, Settings().fetch_judge) == ("klein-4b", True)
    monkeypatch.setenv("KLEIN_LAB_WEIGHTS", "pocket")
    assert Settings().weights == "pocket"


def test_weights_that_cannot_be_fetched_do_not_keep_a_space_from_starting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lora_runtime.startup.logger.disabled", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    fetch_weights(Settings(weights="klein-4b"))
    assert not caplog.records, "nobody's own machine fetches anything unasked"
    monkeypatch.setenv("SPACE_ID", "someone/lab")
    fetch_weights(Settings(weights="klein-4b"))
    assert "klein] 4B" in caplog.text
