"""Open a cluster, and wait until so many engines of it are ready. Ray is imported when the first is opened."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_runtime.backends.crew import EngineState

if TYPE_CHECKING:
    from lora_runtime.backends.cluster import ClusterBackend

PATIENCE_S = 300
"""An engine imports torch; on a busy machine that takes its time."""


def open_cluster(address: str) -> "ClusterBackend":
    from lora_runtime.backends.cluster import ClusterBackend

    return ClusterBackend(address)


def wait_for_engines(backend: "ClusterBackend", count: int) -> Sequence[EngineState]:
    """Return the engines once just so many are ready."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        ready = [engine for engine in backend.engines() if engine.state in ("idle", "working")]
        if len(ready) == count:
            return ready
        time.sleep(0.2)
    raise AssertionError(f"there were not {count} engines: {backend.engines()}")
