"""Which backend a name opens: this process, the engines of a cluster, or a clear sentence."""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lora_runtime.backends import open as opening
from lora_runtime.backends.local import LocalBackend
from lora_runtime.backends.open import count_gpus, open_backend, parse_backends
from lora_runtime.errors import InvalidInput
from lora_runtime.settings import settings

ROOT = Path(__file__).parents[2]


OPENS_THE_APP = """
import app, evaluation.__main__, lora_runtime.__main__
from lora_runtime.backends.open import open_configured
for backend in open_configured().values(): backend.close()
"""
COLLECTS_THE_TESTS = ["-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", "not cluster", "tests"]


@pytest.mark.parametrize("arguments", [["-W", "ignore", "-c", OPENS_THE_APP], COLLECTS_THE_TESTS], ids=["run", "test"])
def test_nothing_imports_ray_until_a_cluster_is_opened(arguments: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise AssertionError('Ray was imported')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, *arguments], env=environment, cwd=ROOT, check=True, timeout=300)


@pytest.mark.parametrize(("name", "address"), [("cluster", None), ("local", "127.0.0.1:6379")])
def test_without_ray_a_cluster_is_refused_with_the_remedy(
    name: str, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "has_ray", lambda: False)
    if address:
        monkeypatch.setenv("KLEIN_LAB_RAY", address)
    settings.cache_clear()
    with pytest.raises(InvalidInput, match=r"needs Ray.*pip install -r requirements-cluster\.txt"):
        open_backend(name)


@pytest.mark.parametrize(("gpus", "said"), [(1, 0), (8, 1)])
def test_several_gpus_without_ray_render_on_one_and_say_how_to_use_all(
    gpus: int, said: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(opening, "has_ray", lambda: False)
    monkeypatch.setattr(opening, "count_gpus", lambda: gpus)
    with caplog.at_level(logging.WARNING):
        assert isinstance(open_backend("local"), LocalBackend)
    assert [record.getMessage().count("requirements-cluster.txt") for record in caplog.records] == [1] * said


def test_gpus_are_counted_without_asking_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert count_gpus(tmp_path) == 0
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert count_gpus(tmp_path) == 2
    for visible, count in (("", 0), ("-1", 0), ("0,3,5", 3)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert count_gpus(tmp_path) == count


def test_the_cluster_and_this_process_are_one_place() -> None:
    assert parse_backends("cluster, remote") == ("cluster", "remote")
    with pytest.raises(InvalidInput, match="Write one of the two"):
        parse_backends("local,cluster")
