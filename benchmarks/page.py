"""How long does a person wait: until the page can be used, and from the click on Run sweep until images are there?

The real app on the pocket, in Chromium, with the example that the page opens with. The first sweep starts with the
page: it waits for torch and the model. The second one finds them loaded.
"""

import os
import shutil
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.startup import serve_app

if TYPE_CHECKING:
    from playwright.sync_api import Page

ARGUMENTS: Final = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
PATIENCE_MS: Final = 180_000
READY: Final = "#sweep-form .values"
"""What comes last of the first screen: the form's echo of what it would render."""

DONE: Final = "#sweep-grid .cell.done"


def run(console: Console) -> list[dict[str, Any]]:
    """Measure; print a table and return its rows. Without a browser there are none."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        console.print("The page is not measured: that takes Chromium and playwright, which `make test` installs.")
        return []
    started = time.perf_counter()
    with serve_app() as url, sync_playwright() as playwright:
        answered = time.perf_counter()
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        opened = time.perf_counter()
        page.goto(url)
        page.locator(READY).wait_for()
        usable = time.perf_counter()
        rows = [
            {"what": "app.py until the page answers", "seconds": round(answered - started, 2)},
            {"what": "page opened until it can be used", "seconds": round(usable - opened, 2)},
            *_time_sweep(page, "first sweep", seed="7"),
            *_time_sweep(page, "second sweep", seed="8"),
        ]
        browser.close()
    table = Table("waiting for", "seconds")
    for row in rows:
        table.add_row(row["what"], f"{row['seconds']:.2f}")
    console.print(table)
    return rows


def _time_sweep(page: "Page", name: str, *, seed: str) -> Iterator[dict[str, Any]]:
    page.locator("#seed").get_by_role("textbox").fill(seed)
    clicked = time.perf_counter()
    page.get_by_role("button", name="Run sweep").click()
    caption = page.locator("#sweep-grid caption", has_text=f"seed {seed}")
    caption.wait_for()
    page.locator(DONE).first.wait_for()
    yield {"what": f"{name}: click to first image", "seconds": round(time.perf_counter() - clicked, 2)}
    page.locator("#sweep-grid table:not([aria-busy=true])").wait_for()
    images = page.locator(DONE).count()
    yield {"what": f"{name}: click to the last of {images}", "seconds": round(time.perf_counter() - clicked, 2)}
