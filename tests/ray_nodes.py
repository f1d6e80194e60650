"""Two real Ray nodes on this machine, started by command as people start them; each is a machine of its own to Ray.

Each has its own KLEIN_LAB_HOME, so that files really have to travel. All that was started carries a mark in its
environment, or where Ray wrote its title over that, has a log in our folder open: so it is found and ended, whoever its
parent is by then.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
MARK = "KLEIN_LAB_TEST_NODES"
START_S = 180


@dataclass(kw_only=True)
class Nodes:
    """A cluster, its address, and the pid of each machine's raylet."""

    folder: Path
    port: int
    raylets: list[int] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def homes(self) -> list[Path]:
        """The home folder of each machine so far."""
        return [self.home(number) for number in range(len(self.raylets))]

    def home(self, number: int) -> Path:
        return self.folder / f"home{number}"

    def add(self) -> int:
        """Start the head, or let another machine join it; return its number."""
        number = len(self.raylets)
        where = (
            [f"--address={self.address}"]
            if number
            else [
                "--head", f"--port={self.port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false",
                f"--temp-dir={self.folder / 'ray'}",
            ]
        )  # fmt: skip
        common = ["--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats"]
        before = set(self._find_raylets())
        log = self.folder / f"start{number}.log"
        with log.open("wb") as out:
            started = subprocess.run(
                [Path(sys.executable).with_name("ray"), "start", *where, *common],
                env=self.environment(number), cwd=ROOT, stdout=out, stderr=out, timeout=START_S,
            )  # fmt: skip
        assert started.returncode == 0, log.read_text()
        (raylet,) = set(self._find_raylets()) - before
        self.raylets.append(raylet)
        return number

    def kill(self, number: int) -> None:
        """End a machine as a power cut does: its raylet at once, with no word to anybody, and what it had started."""
        children = psutil.Process(self.raylets[number]).children(recursive=True)
        os.kill(self.raylets[number], signal.SIGKILL)
        for process in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def processes(self) -> list[psutil.Process]:
        """All that was started for these nodes and lives."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and self._is_ours(process):
                    found.append(process)
        return found

    def stop(self) -> None:
        """End everything."""
        while processes := self.processes():
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=10)

    def _is_ours(self, process: psutil.Process) -> bool:
        if process.environ().get(MARK) == str(self.folder):
            return True
        return "ray" in process.name() and any(str(self.folder) in file.path for file in process.open_files())

    def _find_raylets(self) -> list[int]:
        return [process.pid for process in self.processes() if process.name() == "raylet"]

    def environment(self, number: int) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        return {
            **kept,
            MARK: str(self.folder),
            "KLEIN_LAB_HOME": str(self.home(number)),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "disabled",
            "RAY_raylet_start_wait_time_s": str(START_S),
        }


@contextlib.contextmanager
def run_nodes(count: int = 2) -> Iterator[Nodes]:
    """Start so many nodes, and leave nothing of them."""
    folder = Path(tempfile.mkdtemp(prefix="kr"))  # short: sockets lie in it
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nodes = Nodes(folder=folder, port=probe.getsockname()[1])
    try:
        for _ in range(count):
            nodes.add()
        yield nodes
    finally:
        nodes.stop()
        shutil.rmtree(folder, ignore_errors=True)
