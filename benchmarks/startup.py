"""How long until something is there: `--help`, and the app's page?

Each is a fresh process, as a user starts it. The baseline is the bare import of what cannot be avoided: Python itself
for the commands, gradio for the app.
"""

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
ROUNDS = 3
GIVE_UP_S = 120


def run(console: Console) -> list[dict[str, Any]]:
    """Measure each; print a table and return its rows."""
    python = _time_command("-c", "pass")
    gradio = _time_command("-c", "import gradio")
    rows = [
        _row("python -m lora_runtime --help", _time_command("-m", "lora_runtime", "--help"), "python", python),
        _row("python -m evaluation --help", _time_command("-m", "evaluation", "--help"), "python", python),
        _row("app.py to a served page", statistics.median(_time_app() for _ in range(ROUNDS)), "import gradio", gradio),
    ]
    table = Table("start-up", "seconds", "baseline", "baseline s", "ratio")
    for row in rows:
        table.add_row(
            row["what"], f"{row['seconds']:.2f}", row["baseline"], f"{row['baseline_s']:.2f}", f"{row['ratio']:.1f}x"
        )
    console.print(table)
    return rows


def _row(what: str, seconds: float, baseline: str, baseline_s: float) -> dict[str, Any]:
    return {
        "what": what,
        "seconds": round(seconds, 3),
        "baseline": baseline,
        "baseline_s": round(baseline_s, 3),
        "ratio": round(seconds / baseline_s, 2),
    }


def _time_command(*arguments: str) -> float:
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _time_app() -> float:
    """Seconds from starting app.py to the first answered page."""
    started = time.perf_counter()
    with serve_app():
        return time.perf_counter() - started


@contextlib.contextmanager
def serve_app() -> Iterator[str]:
    """Run app.py with a home of its own until the end of the block; its address, as soon as it answers there."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as home:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        environment = os.environ | {"PORT": str(port), "HOST": "127.0.0.1", "KLEIN_LAB_HOME": home}
        app = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            url = f"http://127.0.0.1:{port}/"
            _wait_for_page(url, until=time.perf_counter() + GIVE_UP_S)
            yield url
        finally:
            app.terminate()
            app.wait()


def _wait_for_page(url: str, *, until: float) -> None:
    while time.perf_counter() < until:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.02)
    raise TimeoutError(f"{url} was not served within {GIVE_UP_S} s")
