"""ZeroGPU: one lease a grid, its length computed from the cells; images as they come; a stop ends the lease.

The `spaces` package is the real one, in a process of its own where it takes itself to be on ZeroGPU: it asks a device
server (ours, on loopback), forks, and hands events over from the fork. Only the GPU is missing, so the fork there
draws. Whether the real model renders in a fork is tested with a fork of our own, on the CPU.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from lora_runtime.backends.zerogpu import ATTACH_S, MAX_LEASE_S, START_S, Pace, ZeroGpuBackend, compute_seconds
from lora_runtime.catalogue import find_weights
from lora_runtime.errors import Cancelled, Unavailable
from lora_runtime.values import Failed, Rendered, RenderEvent, RenderRequest, Timing
from tests.drawing_backend import STYLE, SUBJECT

ROOT = Path(__file__).parents[2]
PROCESS = Path(__file__).with_name("zerogpu_process.py")


def request(strength: str, **changes: object) -> RenderRequest:
    plain = RenderRequest(
        weights="pocket", precision="fp32", prompt="a red cat", seed=7, width=64, height=64, steps=4, guidance=1.0,
        lora=STYLE, strength=Decimal(strength),
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


class DeviceServer:
    """The part of Hugging Face that lends GPUs, as `spaces` calls it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str]]] = []
        calls = self.calls

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                parts = urlsplit(self.path)
                calls.append((parts.path, {name: values[0] for name, values in parse_qs(parts.query).items()}))
                lease = {"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": f"lease-{len(calls)}"}
                body = json.dumps(lease).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def devices() -> Iterator[DeviceServer]:
    server = DeviceServer()
    yield server
    server.close()


def run_on_zero_gpu(devices: DeviceServer, tmp_path: Path, *arguments: str) -> list[dict[str, object]]:
    """Run `zerogpu_process.py` where `spaces` takes itself to be on ZeroGPU; the lines it wrote."""
    (tmp_path / "cgroup").write_text("0::/test\n")
    environment = {
        **os.environ,
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{devices.server.server_port}",
        "ZEROGPU_PROC_SELF_CGROUP_PATH": str(tmp_path / "cgroup"),
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    done = subprocess.run(
        [sys.executable, str(PROCESS), str(tmp_path / "rendered.log"), *arguments],
        env=environment, capture_output=True, text=True, timeout=240, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_grid_is_one_lease_whose_length_is_computed(devices: DeviceServer, tmp_path: Path) -> None:
    events = run_on_zero_gpu(devices, tmp_path)
    rendered = [event for event in events if event["kind"] == "Rendered"]
    assert sorted(event["index"] for event in rendered) == list(range(6))
    assert {event["forked"] for event in rendered} == {True}
    leases = [query for path, query in devices.calls if path == "/schedule"]
    assert len(leases) == 1, "one lease a grid"
    grid = tuple(request(f"0.{step}") for step in range(6))
    assert float(leases[0]["durationSeconds"]) == pytest.approx(Pace().estimate(grid), rel=0.51)
    assert [path for path, _ in devices.calls][-1] == "/release"
    assert rendered[0]["drawn"] < 6, "the first image must be there before the last is drawn"


def test_a_stop_ends_the_lease_and_keeps_what_is_done(devices: DeviceServer, tmp_path: Path) -> None:
    events = run_on_zero_gpu(devices, tmp_path, "--stop-after", "2")
    kinds = [event["kind"] for event in events if event["kind"] != "Progress"]
    assert kinds == ["Rendered"] * 2 + ["Failed"] * 4
    assert len((tmp_path / "rendered.log").read_text().splitlines()) < 6
    assert [path for path, _ in devices.calls].count("/release") == 1


def test_a_failing_cell_is_told_across_the_fork(devices: DeviceServer, tmp_path: Path) -> None:
    events = run_on_zero_gpu(devices, tmp_path, "--fail")
    failed = [event for event in events if event["kind"] == "Failed"]
    assert {event["error"] for event in failed} == {"RenderFailed: The device gave up."}
    assert len(failed) == 5, "all but the base image"


def forked(leases: list[int]) -> Callable[..., object]:
    """A decorator like `spaces.GPU` that only forks, and notes for how many seconds."""
    context = multiprocessing.get_context("fork")

    def lend(task: Callable[..., Iterator[RenderEvent]], seconds: Callable[..., int]) -> object:
        def run(requests: tuple[RenderRequest, ...]) -> Iterator[RenderEvent]:
            leases.append(seconds(requests))
            ours, theirs = context.Pipe()

            def work() -> None:
                import torch

                torch.set_num_threads(1)  # the threads of the parent are not inherited
                for event in task(requests):
                    theirs.send(event)
                theirs.send(None)

            process = context.Process(target=work, daemon=True)
            process.start()
            theirs.close()
            try:
                while (event := ours.recv()) is not None:
                    yield event
            finally:
                ours.close()
                process.terminate()
                process.join()

        return run

    return lend


@pytest.mark.slow
def test_a_model_loaded_before_renders_in_the_fork_as_it_does_here(
    monkeypatch: pytest.MonkeyPatch, local_backend: object
) -> None:
    from lora_runtime.backends.zerogpu import _make_render
    from lora_runtime.lora.library import find_lora
    from lora_runtime.pipeline import host

    monkeypatch.setattr("lora_runtime.settings.Settings.device", "cpu", raising=False)
    model = host.load_default(find_weights("pocket"))
    lora = find_lora("style")
    grid = [request(text, lora=lora, precision=model.precision) for text in ("0", "0.5", "1")]
    here = {event.index: event.image for event in local_backend.render(grid) if isinstance(event, Rendered)}  # type: ignore[attr-defined]
    monkeypatch.setattr(host, "load_model", lambda *_: pytest.fail("the fork must use what it inherited"))
    leases: list[int] = []
    backend = ZeroGpuBackend(lend=forked(leases), render=_make_render((model,)))  # type: ignore[arg-type]
    for _ in range(2):  # nothing that the first fork attached may be missed by the second
        there = {event.index: event.image for event in backend.render(grid) if isinstance(event, Rendered)}
        assert there.keys() == here.keys() == {0, 1, 2}
        for index, image in there.items():
            assert max(abs(a - b) for a, b in zip(image.tobytes(), here[index].tobytes(), strict=True)) <= 2
    assert len(leases) == 2


def timed(requests: tuple[RenderRequest, ...]) -> Iterator[RenderEvent]:
    from PIL import Image

    for index, each in enumerate(requests):
        image = Image.new("RGB", (each.width, each.height))
        yield Rendered(index=index, image=image, timing=Timing(seconds=compute_seconds(each) / 4, batch_size=1))


def test_a_lease_grows_with_cells_size_and_loras_and_learns() -> None:
    pace = Pace()
    klein = request("1", weights="klein-4b", width=1024, height=1024)
    one, eight = pace.estimate((klein,)), pace.estimate((klein,) * 8)
    assert START_S + ATTACH_S < one < eight < 60
    assert pace.estimate((klein, replace(klein, lora=SUBJECT))) >= one + ATTACH_S
    assert compute_seconds(replace(klein, width=2048, height=2048)) > 4 * compute_seconds(klein)
    guided = replace(klein, weights="klein-base-4b", steps=50, guidance=4.0)
    assert compute_seconds(guided) > 20 * compute_seconds(klein)
    leases: list[int] = []

    def lend(task: object, seconds: Callable[..., int]) -> object:
        return lambda requests: (leases.append(seconds(requests)), task(requests))[1]  # type: ignore[operator]

    backend = ZeroGpuBackend(lend=lend, render=timed)  # type: ignore[arg-type]
    for _ in range(2):
        assert sum(isinstance(event, Rendered) for event in backend.render((klein,) * 8)) == 8
    assert leases[1] < leases[0] == eight, "four times as fast as computed: the next lease is shorter"


def test_a_grid_that_is_too_long_for_one_lease_takes_several() -> None:
    base = request("1", weights="klein-base-4b", width=1024, height=1024, steps=50, guidance=4.0)
    leases: list[int] = []

    def lend(task: object, seconds: Callable[..., int]) -> object:
        return lambda requests: (leases.append(seconds(requests)), task(requests))[1]  # type: ignore[operator]

    backend = ZeroGpuBackend(lend=lend, render=timed)  # type: ignore[arg-type]
    events = [event for event in backend.render((base,) * 5) if isinstance(event, Rendered)]
    assert sorted(event.index for event in events) == [0, 1, 2, 3, 4]
    assert len(leases) > 1
    longest = max(leases)
    assert longest <= max(MAX_LEASE_S, Pace().estimate((base,)))


def test_a_lease_that_is_refused_is_a_sentence() -> None:
    class Refused(Exception):
        message = "You have exceeded your free ZeroGPU quota (90s requested vs. 30s left)."

    def refuse(task: object, seconds: object) -> object:
        def run(requests: object) -> Iterator[RenderEvent]:
            raise Refused
            yield

        return run

    backend = ZeroGpuBackend(lend=refuse, render=timed)  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="90s requested"):
        list(backend.render([request("1")]))


def test_a_sweep_that_is_cancelled_before_its_lease_takes_none() -> None:
    cancel = threading.Event()
    cancel.set()
    backend = ZeroGpuBackend(lend=lambda task, seconds: pytest.fail("leased") if task is None else task, render=timed)
    events = list(backend.render([request("0"), request("1")], cancel=cancel))
    assert all(isinstance(event, Failed) and isinstance(event.error, Cancelled) for event in events)
    assert len(events) == 2
