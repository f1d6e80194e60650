"""Make the pictures of the README from real sweeps: `python -m tests.browser.screenshots --out .github/images`.

Starts the app with a fresh home, runs a sweep as a visitor would, and photographs it in light, dark and on a phone.
"""

import argparse
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.conftest import ARGUMENTS, PATIENCE_MS, App, find_chromium

DESKTOP = {"width": 1280, "height": 880}
PHONE = {"width": 390, "height": 844}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(".github/images"))
    parser.add_argument("--drawing", type=float, help="use the test backend, with this many seconds an image")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=PATIENCE_MS)
    args = () if chosen.drawing is None else ("--drawing", str(chosen.drawing))
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        app = App(Path(home), args=args).start()
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(ARGUMENTS))
        try:
            photograph(browser, app, chosen.out)
        finally:
            browser.close()
            app.stop()


def photograph(browser: Browser, app: App, out: Path) -> None:
    page = open_page(browser, app, DESKTOP, "light")
    page.screenshot(path=out / "first.png")
    page.get_by_role("button", name="Too strong at 1.0").click()
    sweep(page)
    page.screenshot(path=out / "sweep.png", full_page=True)
    page.get_by_role("tab", name="Playground").click()
    page.locator("#play-run").click()
    expect(page.locator("#play-picture .frame img").first).to_be_visible()
    page.wait_for_timeout(600)
    page.screenshot(path=out / "playground.png")
    page.get_by_role("tab", name="Finetunes").click()
    page.get_by_role("button", name="official/style").first.click()
    page.wait_for_timeout(1500)
    page.screenshot(path=out / "finetunes.png")
    page.get_by_role("tab", name="Comparison").click()
    page.locator("#log tbody tr", has_text="0.80").click()
    expect(page.locator("#log-detail img")).to_be_visible()
    page.get_by_role("radio", name="5 stars").check(force=True)  # the star itself is what is seen
    page.get_by_label("Note").fill("The frame is there, and it still is a boat.")
    expect(page.locator("#log tr[aria-selected=true]")).to_contain_text("still is a boat")
    page.screenshot(path=out / "comparison.png")
    for name, size, scheme in (("dark", DESKTOP, "dark"), ("phone", PHONE, "light")):
        page = open_page(browser, app, size, scheme)
        sweep(page)
        page.screenshot(path=out / f"{name}.png", full_page=name == "dark")


def open_page(browser: Browser, app: App, size: dict[str, int], scheme: str) -> Page:
    context = browser.new_context(viewport=size, color_scheme=scheme, device_scale_factor=2 if size is PHONE else 1)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(app.url)
    expect(page.locator("#sweep-form .values")).to_be_visible()
    return page


def sweep(page: Page) -> None:
    page.get_by_role("button", name="Run sweep").click()
    expect(page.locator("#sweep-verdict .good")).to_be_visible()
    expect(page.get_by_role("button", name="Run sweep")).to_be_enabled()
    expect(page.locator("#sweep-verdict .which.told")).to_be_visible()
    page.wait_for_timeout(900)


if __name__ == "__main__":
    main()
