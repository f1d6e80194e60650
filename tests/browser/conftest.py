"""A real browser on the real app: Chromium by Playwright, the app in a process of its own with a home of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

ROOT = Path(__file__).parent.parent.parent
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 120_000
PROCESS_S = 300
"""How long a test waits for what must come: where a machine has other work too, all of it comes late."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


def find_chromium() -> str | None:
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


@dataclass
class App:
    """The app as a process. `args` go to serve.py: --drawing paints with a slow test backend instead of the pocket."""

    home: Path
    args: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    port: int = field(default_factory=lambda: free_port())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "App":
        environment = {
            **os.environ,
            "KLEIN_LAB_HOME": str(self.home),
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        }
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "serve.py"), *self.args], cwd=ROOT, env=environment
        )
        deadline = time.monotonic() + PROCESS_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"The app ended with status {self.process.returncode} before it served.")
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
            else:
                return self
        self.kill()
        raise RuntimeError(f"The app did not serve within {PROCESS_S} seconds.")

    @contextmanager
    def held(self, *, above: float) -> Iterator[None]:
        """Draw nothing that is stronger than `above` until the end: a run stays in its middle while it is looked at."""
        gate = self.home / "held"
        gate.with_suffix(".new").write_text(str(above))
        gate.with_suffix(".new").replace(gate)
        try:
            yield
        finally:
            gate.unlink()

    def rendered(self, seed: int | str, *, log: str = "rendered.log") -> list[str]:
        """What the drawing backend drew of a seed, in order, a line for each image."""
        path = self.home / log
        return [line for line in path.read_text().splitlines() if line.startswith(f"{seed} ")] if path.exists() else []

    def kill(self) -> None:
        """End it the hard way, as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End it as Ctrl-C does and return the exit status."""
        return self._end(signal.SIGINT)

    def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        try:
            return self.process.wait(timeout=PROCESS_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    chromium = find_chromium()
    if chromium is None:
        pytest.fail("No Chromium here. `apt-get install -y chromium`, or name one in CHROMIUM.")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def drawing_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """One app for all tests that do not end it; its backend draws slowly enough to watch."""
    app = App(tmp_path_factory.mktemp("drawing"), args=("--drawing", "0.25")).start()
    yield app
    app.stop()


@pytest.fixture(scope="package")
def public_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """One app for all tests of visitors who are kept apart: each is new to it, so none sees what another test left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLEIN_LAB_VISITORS", "apart")
        app = App(tmp_path_factory.mktemp("public"), args=("--drawing", "0.3")).start()
    yield app
    app.stop()


@pytest.fixture
def start_app(tmp_path: Path) -> Iterator[Callable[..., App]]:
    """Start apps that a test may kill."""
    started: list[App] = []

    def start(*args: str, home: Path | None = None) -> App:
        app = App(home or tmp_path / "lab", args=args)
        started.append(app)
        return app.start()

    yield start
    for app in started:
        app.kill()


@dataclass
class Visitor:
    """One person's browser page, with everything that went wrong in it."""

    page: Page
    dialogs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def visit(self, app: App) -> Page:
        self.page.goto(app.url)
        expect(self.page.get_by_role("button", name="Run sweep")).to_be_visible()
        # The echo comes last of what the first screen needs.
        expect(self.page.locator("#sweep-form .values")).to_be_visible()
        return self.page


@pytest.fixture
def new_visitor(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Visitor]]:
    slower = request.config.getoption("--slower")
    contexts: list[BrowserContext] = []
    visitors: list[Visitor] = []

    def new(**options: object) -> Visitor:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})  # type: ignore[arg-type]
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        visitor = Visitor(context.new_page())
        # Every page is told, at a rate of 1 too: the session keeps the rate for as long as the page is open.
        context.new_cdp_session(visitor.page).send("Emulation.setCPUThrottlingRate", {"rate": slower})
        visitor.page.on("pageerror", lambda error: visitor.errors.append(str(error)))
        visitor.page.on("dialog", lambda dialog: (visitor.dialogs.append(dialog.message), dialog.dismiss()))
        visitors.append(visitor)
        return visitor

    yield new
    for context in contexts:
        context.close()
    for visitor in visitors:
        assert not visitor.errors
        assert not visitor.dialogs


@pytest.fixture
def visitor(new_visitor: Callable[..., Visitor]) -> Visitor:
    return new_visitor()
