"""Fixtures every test may use: a home folder with its store, and one local backend on the pocket for the session."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from evaluation.store import Store
from lora_runtime.backends.local import LocalBackend
from lora_runtime.settings import settings


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh KLEIN_LAB_HOME for each test; nothing touches the developer's own, nor spends their credits."""
    monkeypatch.setenv("KLEIN_LAB_HOME", str(tmp_path / "home"))
    for name in ("BFL_API_KEY", "KLEIN_LAB_REMOTE"):
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
