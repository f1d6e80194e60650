"""What `test_zerogpu.py` starts: a grid on `spaces`, with a drawing in place of the model; one JSON line an event.

torch is kept out, as `spaces` would ask the driver for a GPU on its behalf.
"""

import argparse
import json
import os
import threading
from decimal import Decimal
from pathlib import Path

import no_torch  # noqa: F401 - first

# isort: split
import spaces

from lora_runtime.backends.zerogpu import ZeroGpuBackend
from lora_runtime.errors import RenderFailed
from lora_runtime.values import Failed, Progress, Rendered, RenderRequest
from tests.drawing_backend import STYLE, DrawingBackend


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=Path)
    parser.add_argument("--stop-after", type=int)
    parser.add_argument("--fail", action="store_true")
    chosen = parser.parse_args()
    grid = [
        RenderRequest(
            weights="pocket", precision="fp32", prompt="a red cat", seed=7, width=64, height=64, steps=4, guidance=1.0,
            lora=STYLE, strength=Decimal(f"0.{step}"),
        )
        for step in range(6)
    ]  # fmt: skip
    fails = (lambda request: RenderFailed("The device gave up.") if request.strength else None) if chosen.fail else None
    drawing = DrawingBackend(delay_s=0.2, log=chosen.log, **({"fails": fails} if fails else {}))
    backend = ZeroGpuBackend(lend=lambda task, seconds: spaces.GPU(duration=seconds)(task), render=_make_task(drawing))
    cancel, done, here = threading.Event(), 0, os.getpid()
    for event in backend.render(grid, cancel=cancel):
        line: dict[str, object] = {"kind": type(event).__name__}
        if isinstance(event, Rendered):
            done += 1
            drawn = len(chosen.log.read_text().splitlines())
            line |= {"index": event.index, "forked": event.provenance["process"] != str(here), "drawn": drawn}
        elif isinstance(event, Failed):
            line |= {"index": event.index, "error": f"{type(event.error).__name__}: {event.error}"}
        if not isinstance(event, Progress):
            print(json.dumps(line), flush=True)
        if done == chosen.stop_after:
            cancel.set()


def _make_task(drawing: DrawingBackend):
    def render(requests):
        for event in drawing.render(requests):
            if isinstance(event, Rendered):
                event.provenance["process"] = str(os.getpid())
            yield event

    return render


if __name__ == "__main__":
    main()
