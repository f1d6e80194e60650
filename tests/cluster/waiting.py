"""Wait until so many engines of a cluster are ready."""

import time
from collections.abc import Sequence

from lora_runtime.backends.cluster import ClusterBackend
from lora_runtime.backends.crew import EngineState

PATIENCE_S = 300
"""An engine imports torch; on a busy machine that takes its time."""


def wait_for_engines(backend: ClusterBackend, count: int) -> Sequence[EngineState]:
    """Return the engines once so many are ready."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        ready = [engine for engine in backend.engines() if engine.state in ("idle", "working")]
        if len(ready) >= count:
            return ready
        time.sleep(0.2)
    raise AssertionError(f"{count} engines did not come: {backend.engines()}")
