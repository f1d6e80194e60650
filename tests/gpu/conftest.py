"""Everything here needs a CUDA GPU and nothing else: no network, no checkpoint, under ten minutes on one H100."""

from collections.abc import Iterator

import pytest
import torch

from lora_runtime.settings import settings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the folder; without a CUDA GPU its tests are skipped and say why."""
    for item in items:
        if "gpu" in item.path.parts:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="there is no CUDA GPU here"))


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The GPU as the device of every backend, and all its memory back afterwards."""
    monkeypatch.setenv("KLEIN_LAB_DEVICE", "cuda")
    settings.cache_clear()
    yield
    torch._dynamo.reset()
    torch.cuda.empty_cache()
