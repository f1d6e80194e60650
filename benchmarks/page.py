"""How long does a person wait: until the page can be used, until images are there, and for a grid of 400 cells to move?

The real app on the pocket, in Chromium, with the example that the page opens with. The first sweep starts with the
page: it waits for torch and the model. The second one finds them loaded. Then a grid of 20 strengths and 20 seeds is
scrolled, zoomed and moved, and the longest task of the page's main thread meanwhile is how long it stood still.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
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

SIDE: Final = 20
"""Strengths, and seeds, of the large grid."""

WHEEL_S: Final = 0.016
"""Between two turns of the wheel: a frame."""

TRACED: Final = ("devtools.timeline", "disabled-by-default-devtools.timeline", "toplevel", "__metadata")


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
        moves = list(_move_large_grid(page))
        browser.close()
    table = Table("waiting for", "seconds")
    for row in rows:
        table.add_row(row["what"], f"{row['seconds']:.2f}")
    console.print(table)
    table = Table(f"a grid of {SIDE**2} cells", "longest task, ms", "tasks over 100 ms", "tasks")
    for row in moves:
        table.add_row(row["what"], f"{row['longest_task_ms']:.0f}", str(row["over_100_ms"]), str(row["tasks"]))
    console.print(table)
    return [*rows, *moves]


def _time_sweep(page: "Page", name: str, *, seed: str) -> Iterator[dict[str, Any]]:
    page.locator("#seed").get_by_role("textbox").fill(seed)
    clicked = time.perf_counter()
    page.get_by_role("button", name="Run sweep").click()
    caption = page.locator("#sweep-grid caption", has_text=f"seed {seed}")
    caption.wait_for(state="attached")  # it has no width of its own, so as not to widen the table
    page.locator(DONE).first.wait_for()
    yield {"what": f"{name}: click to first image", "seconds": round(time.perf_counter() - clicked, 2)}
    page.locator("#sweep-grid table:not([aria-busy=true])").wait_for()
    images = page.locator(DONE).count()
    yield {"what": f"{name}: click to the last of {images}", "seconds": round(time.perf_counter() - clicked, 2)}


def _move_large_grid(page: "Page") -> Iterator[dict[str, Any]]:
    """Run a sweep of `SIDE` times `SIDE` cells, then move about in it at two sizes of a picture."""
    form = page.locator("#sweep-form")
    form.get_by_role("button", name="Advanced").click()
    for label in ("Width (px)", "Height (px)"):
        form.get_by_label(label).fill("64")
    form.get_by_label("Strengths").fill(f"0-1.9 [{SIDE}]")
    form.get_by_role("button", name="More rows").click()
    form.get_by_label("Further seeds").fill(", ".join(str(100 + number) for number in range(1, SIDE)))
    form.get_by_text(f"{SIDE**2} images").wait_for()
    page.get_by_role("button", name="Run sweep").click()
    page.wait_for_function("([cells, count]) => document.querySelectorAll(cells).length === count", arg=[DONE, SIDE**2])
    page.locator("#sweep-verdict .which.told, #sweep-verdict .which.open").first.wait_for()
    page.wait_for_timeout(3000)
    cell = page.locator(DONE).nth(SIDE + 5)
    cell.scroll_into_view_if_needed()
    for size in ("96", "320"):
        page.get_by_label("Width of a picture, in pixels").fill(size)
        page.wait_for_timeout(500)
        for what, move in (("scroll", _scroll), ("zoom", _zoom), ("move what is zoomed", _drag)):
            yield {"what": f"{what}, pictures of {size} px", **_trace(page, partial(move, page))}
        page.keyboard.press("0")
    page.get_by_label("Width of a picture, in pixels").fill("96")
    below = page.get_by_label("What stands below a picture")
    yield {"what": "another score below", **_trace(page, lambda: below.select_option("ssim"))}
    yield {"what": "full screen", **_trace(page, lambda: page.locator("#open-viewer").click())}


def _scroll(page: "Page") -> None:
    _stand_over_grid(page)
    for across, down, times in ((0, 200, 40), (300, 0, 20), (-300, -300, 40)):
        for _ in range(times):
            page.mouse.wheel(across, down)
            time.sleep(WHEEL_S)


def _zoom(page: "Page") -> None:
    _stand_over_grid(page)
    page.keyboard.down("Control")
    for turn, times in ((-60, 20), (60, 20), (-60, 10)):
        for _ in range(times):
            page.mouse.wheel(0, turn)
            time.sleep(WHEEL_S)
    page.keyboard.up("Control")


def _drag(page: "Page") -> None:
    x, y = _stand_over_grid(page)
    page.mouse.down()
    for step in range(30):
        page.mouse.move(x + 3 * step, y + 2 * step)
        time.sleep(WHEEL_S)
    page.mouse.up()


def _stand_over_grid(page: "Page") -> tuple[float, float]:
    box = page.locator("#sweep-grid .grid-scroll").bounding_box()
    if box is None:
        raise RuntimeError("The grid is not on the page.")
    x, y = box["x"] + 200, box["y"] + min(200, box["height"] / 2)
    page.mouse.move(x, y)
    return x, y


def _trace(page: "Page", move: Callable[[], object]) -> dict[str, Any]:
    """How long the page's main thread was busy at a time while something moved."""
    browser = page.context.browser
    if browser is None:
        raise RuntimeError("The page has no browser of its own.")
    browser.start_tracing(page=page, categories=list(TRACED))
    move()
    page.wait_for_timeout(400)
    events = json.loads(browser.stop_tracing())["traceEvents"]
    mains = {
        (event["pid"], event["tid"])
        for event in events
        if event.get("name") == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks = [
        event["dur"] / 1000
        for event in events
        if event.get("name", "").endswith("RunTask")
        and event.get("ph") == "X"
        and (event["pid"], event["tid"]) in mains
    ]
    return {"longest_task_ms": round(max(tasks), 1), "over_100_ms": sum(ms > 100 for ms in tasks), "tasks": len(tasks)}
