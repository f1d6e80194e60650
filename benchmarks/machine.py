"""Plain facts about where a number was measured, and the ceilings it can be held against."""

import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

MATRIX_SIDE = 2048


def describe_machine() -> dict[str, str | int]:
    """Processor, device, versions and commit."""
    facts: dict[str, str | int] = {
        "processor": _processor_name(),
        "cores": torch.get_num_threads(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "commit": _commit(),
    }
    facts |= {name: version(name) for name in ("torch", "diffusers", "transformers", "peft", "gradio")}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = str(torch.version.cuda)
    return facts


def measure_matrix_rate(dtype: torch.dtype) -> float:
    """Return the rate of a large matrix product on the CPU, in GFLOP/s: the ceiling for a transformer."""
    a, b = (torch.randn(MATRIX_SIDE, MATRIX_SIDE).to(dtype) for _ in range(2))
    seconds = median_seconds(lambda: a @ b, repeats=9)
    return float(2 * MATRIX_SIDE**3 / seconds / 1e9)


def median_seconds(call: Callable[[], object], *, repeats: int) -> float:
    """Run `call` once to warm up, then `repeats` times, and return the median."""
    call()
    return statistics.median(time_once(call) for _ in range(repeats))


def time_once(call: Callable[[], object]) -> float:
    """Return the seconds one call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def peak_memory_bytes() -> int:
    """Return the most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
