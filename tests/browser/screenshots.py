"""Make the pictures of the README from real sweeps: `python -m tests.browser.screenshots --out .github/images`.

Starts the app with a fresh home, sweeps as a visitor would, and photographs the answer, a training run and a vote. With
`--dark` and `--phone` the same can be looked at there.
"""

import argparse
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.conftest import ARGUMENTS, PATIENCE_MS, App, find_chromium

DESKTOP = {"width": 1280, "height": 880}
PHONE = {"width": 390, "height": 844}
AIR = 12
"""Pixels around a part."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(".github/images"))
    parser.add_argument("--drawing", type=float, help="use the test backend, with this many seconds an image")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--phone", action="store_true")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=PATIENCE_MS)
    args = () if chosen.drawing is None else ("--drawing", str(chosen.drawing))
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        app = App(Path(home), args=args).start()
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(ARGUMENTS))
        try:
            photograph(open_page(browser, app, phone=chosen.phone, dark=chosen.dark), chosen.out)
        finally:
            browser.close()
            app.stop()


def photograph(page: Page, out: Path) -> None:
    sweep(page, "Too strong at 1.0")
    page.screenshot(path=out / "sweep.png", full_page=True)
    be_sure(page)
    shoot(page, out / "answer.png", "#sweep-verdict", "#take-away")
    sweep(page, "Which checkpoint?")
    be_sure(page)
    expect(page.locator(".heat [data-kind=chosen]")).to_be_visible()
    shoot(page, out / "training.png", "#sweep-status", "#sweep-grid .strengths", "#sweep-grid .cells >> nth=16")
    page.get_by_role("button", name="Vote blind").click()
    for number, key in enumerate(("ArrowLeft", "ArrowRight", "t")):
        expect(page.locator('#vote-stage [data-part="said"]')).to_contain_text(f"{number} vote")
        page.keyboard.press(key)
    expect(page.locator("#vote-stage .pick img").last).to_have_js_property("complete", True)
    page.wait_for_timeout(600)
    page.screenshot(path=out / "vote.png")


def shoot(page: Page, path: Path, *parts: str) -> None:
    """Photograph what lies between the first part's top and the last one's bottom, with some air around it."""
    boxes = [box for part in parts if (box := page.locator(part).bounding_box())]
    left, top = min(box["x"] for box in boxes), min(box["y"] for box in boxes)
    right, bottom = max(box["x"] + box["width"] for box in boxes), max(box["y"] + box["height"] for box in boxes)
    scrolled = page.evaluate("window.scrollY")
    clip = {
        "x": left - AIR,
        "y": top + scrolled - AIR,
        "width": right - left + 2 * AIR,
        "height": bottom - top + 2 * AIR,
    }
    page.screenshot(path=path, full_page=True, clip=clip)  # type: ignore[arg-type]


def open_page(browser: Browser, app: App, *, phone: bool, dark: bool) -> Page:
    context = browser.new_context(
        viewport=PHONE if phone else DESKTOP,  # type: ignore[arg-type]
        color_scheme="dark" if dark else "light",
        device_scale_factor=2 if phone else 1,
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(app.url)
    expect(page.locator("#sweep-form .values")).to_be_visible()
    return page


def sweep(page: Page, example: str) -> None:
    page.get_by_role("button", name=example).click()
    page.get_by_role("button", name="Run sweep").click()
    expect(page.locator("#sweep-verdict .good")).to_be_visible()
    expect(page.get_by_role("button", name="Run sweep")).to_be_enabled()
    expect(page.locator("#sweep-verdict .which.told")).to_be_visible()
    page.wait_for_timeout(900)


def be_sure(page: Page) -> None:
    page.get_by_role("button", name="Make sure").click()
    expect(page.locator("#sweep-verdict .which")).to_contain_text("scenes pass every test")
    expect(page.locator("#take-use")).to_be_visible()
    page.wait_for_timeout(900)


if __name__ == "__main__":
    main()
