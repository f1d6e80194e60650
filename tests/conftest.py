"""Fixtures every test may use: a home folder with its store, and one local backend on the pocket for the session."""

import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from evaluation.store.store import Store
from lora_runtime.backends.local import LocalBackend
from lora_runtime.settings import settings
from tests.postgres import serve_postgres
from tests.ray_nodes import Nodes, run_nodes


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slower", type=float, default=1, help="slow each page's processor down, as on a weak machine")


def pytest_configure() -> None:
    """Let Ctrl-C reach the apps that tests start: what a shell runs in the background ignores it, and so would they."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh KLEIN_LAB_HOME for each test; nothing touches the developer's own, nor spends their credits."""
    monkeypatch.setenv("KLEIN_LAB_HOME", str(tmp_path / "home"))
    for name in ("BFL_API_KEY", "KLEIN_LAB_REMOTE", "KLEIN_LAB_RAY"):
        monkeypatch.delenv(name, raising=False)
    settings.cache_clear()
    yield tmp_path / "home"
    settings.cache_clear()


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    """The store of the test's own home; a test that reopens it closes this one itself."""
    with closing(Store.open(settings())) as opened:
        yield opened


@pytest.fixture(scope="session")
def local_backend() -> Iterator[LocalBackend]:
    """The real engine on the bundled pocket."""
    backend = LocalBackend()
    yield backend
    backend.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own."""
    with serve_postgres() as url:
        yield url


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    """Two Ray nodes: one pair for the session, as a process is on one cluster at a time."""
    with run_nodes() as running:
        yield running
