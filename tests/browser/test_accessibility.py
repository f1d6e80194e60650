"""Every tab for people who do not see the screen as we do: axe-core, keyboard alone, a phone, a page that stays put.

axe-core comes with the package axe-playwright-python; it is injected as it is. Serious and critical violations fail.
"""

from collections.abc import Callable
from pathlib import Path

import axe_playwright_python
import pytest
from playwright.sync_api import Locator, Page, expect

from .conftest import App, Visitor

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
READY = {
    "Sweep": "#sweep-grid table", "Playground": ".frame", "Vote": "#vote-stage .pick", "Comparison": "#log",
    "Finetunes": "#finetunes-table",
}  # fmt: skip
"""What is there when a tab has been drawn."""

FIND_VIOLATIONS = """async () => {
  const found = await axe.run(document, {resultTypes: ["violations"]});
  return found.violations
    .filter((violation) => ["serious", "critical"].includes(violation.impact))
    .flatMap(({id, nodes}) => nodes.map((node) => `${id}: ${node.target} ${node.html.slice(0, 200)}`));
}"""

WATCH_SHIFTS = """() => {
  window.shifted = 0;
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifted += entry.value;
  }).observe({type: "layout-shift"});
}"""


NO_FADING = "*, *::before, *::after { transition: none !important; }"
"""Colours are measured where they end: those of a button that has just been enabled are on their way there."""

SETTLE = """() => Promise.all(document.getAnimations()
  .filter((animation) => animation.effect.getComputedTiming().endTime !== Infinity)
  .map((animation) => animation.finished.catch(() => null)))"""


def check(page: Page, where: str) -> None:
    page.add_style_tag(content=NO_FADING)
    page.evaluate(SETTLE)
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate(AXE)
    violations = page.evaluate(FIND_VIOLATIONS)
    assert not violations, f"{where}:\n" + "\n".join(violations)


def open_tab(page: Page, name: str) -> None:
    tab = page.get_by_role("tab", name=name, exact=True)
    tab.click()
    expect(tab).to_have_attribute("aria-selected", "true")
    expect(page.locator(READY[name]).first).to_be_visible()


def run_sweep(page: Page, *, prompt: str, seed: str) -> None:
    page.get_by_label("Prompt", exact=True).locator("visible=true").fill(prompt)
    page.get_by_label("Strengths").first.fill("0, 0.5, 1")
    page.get_by_label("Seed", exact=True).locator("visible=true").fill(seed)
    page.get_by_role("button", name="Run sweep").click()
    expect(page.locator("#sweep-grid .cell.done")).to_have_count(3)
    expect(page.get_by_role("button", name="Run sweep")).to_be_enabled()
    expect(page.locator("#refine")).to_be_enabled()  # the last thing that changes


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_any_tab_empty_or_filled(
    drawing_app: App, new_visitor: Callable[..., Visitor], scheme: str
) -> None:
    page = new_visitor(color_scheme=scheme).visit(drawing_app)
    check(page, f"Sweep, empty, {scheme}")
    run_sweep(page, prompt=f"an accessible {scheme} cat", seed="301")
    check(page, f"Sweep, filled, {scheme}")
    for name in READY:
        open_tab(page, name)
        check(page, f"{name}, {scheme}")
    open_tab(page, "Playground")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator(".frame img").first).to_be_visible()
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_enabled()
    expect(page.locator("#play-stop")).to_be_disabled()
    check(page, f"Playground, filled, {scheme}")
    open_tab(page, "Comparison")
    page.locator("#log tr[data-id]").first.click()
    expect(page.locator("#log-detail h3")).to_be_visible()
    check(page, f"Comparison, a row open, {scheme}")
    open_tab(page, "Finetunes")
    page.get_by_role("button", name="Add Finetune").first.click()
    expect(page.get_by_role("dialog", name="Add Finetune")).to_be_visible()
    check(page, f"Finetunes, the dialog, {scheme}")


def test_no_tab_scrolls_sideways_on_a_phone(drawing_app: App, new_visitor: Callable[..., Visitor]) -> None:
    page = new_visitor(viewport={"width": 390, "height": 844}).visit(drawing_app)
    run_sweep(page, prompt="a narrow cat", seed="302")
    for name in READY:
        open_tab(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name


def test_nothing_jumps_while_a_grid_fills(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    page.evaluate(WATCH_SHIFTS)
    run_sweep(page, prompt="a cat that stays put", seed="303")
    assert page.evaluate("window.shifted") < 0.1


def walk_to(page: Page, target: Locator) -> None:
    """Press Tab until the target has the focus."""
    expect(target).to_be_visible()
    for _ in range(90):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"Tab never reaches {target}")


def start_at_the_top(page: Page) -> None:
    page.evaluate("() => { const top = document.querySelector('.masthead'); top.tabIndex = -1; top.focus(); }")


def choose_tab(page: Page, name: str) -> None:
    start_at_the_top(page)
    walk_to(page, page.get_by_role("tab", name=name, exact=True))
    page.keyboard.press("Enter")
    expect(page.locator(READY[name]).first).to_be_visible()


def test_the_keyboard_alone_goes_through_every_tab(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    walk_to(page, page.locator("#strengths").get_by_role("textbox"))
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("0, 0.5, 1")
    walk_to(page, page.get_by_role("button", name="Run sweep"))
    page.keyboard.press("Enter")
    done = page.locator("#sweep-grid .cell.done")
    expect(done).to_have_count(3)
    expect(page.get_by_role("button", name="Run sweep")).to_be_enabled()
    walk_to(page, done.first)
    page.keyboard.press("ArrowRight")
    expect(done.nth(1)).to_be_focused()
    outline = done.nth(1).evaluate("cell => getComputedStyle(cell).outlineStyle")
    assert outline != "none", "the focus must be seen"
    choose_tab(page, "Playground")
    walk_to(page, page.locator("#play-prompt").get_by_role("textbox"))
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("a cat without a mouse")
    walk_to(page, page.locator("#play-run"))
    page.keyboard.press("Enter")
    expect(page.locator("#play-picture")).to_contain_text("a cat without a mouse")
    choose_tab(page, "Comparison")
    expect(page.locator("#log")).to_contain_text("a cat without a mouse")
    walk_to(page, page.locator("#log-search").get_by_role("textbox"))
    page.keyboard.type("without a mouse")
    expect(page.locator("#log tr[data-id]")).to_have_count(1)
    choose_tab(page, "Finetunes")
    walk_to(page, page.locator("#add-finetune"))
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Add Finetune")
    expect(dialog.locator(":focus")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator("#add-finetune")).to_be_focused()
