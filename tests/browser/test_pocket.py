"""The whole path with nothing replaced: the app as `make run` starts it, on the bundled pocket klein."""

import re
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import expect

from .conftest import App, Visitor
from .serve import keep_loras
from .test_sweep_tab import done, fill, run, wait_for_end


def test_a_sweep_on_the_pocket_klein(start_app: Callable[..., App], visitor: Visitor, tmp_path: Path) -> None:
    home = tmp_path / "lab"
    keep_loras(home / "loras")
    app = start_app(home=home)
    page = visitor.visit(app)
    page.get_by_label("LoRA", exact=True).click()
    page.get_by_role("option", name="house-style").click()
    page.get_by_role("button", name="Advanced").click()
    page.get_by_label("Width (px)").fill("64")
    page.get_by_label("Height (px)").fill("64")
    fill(page, strengths="0, 0.5, 1", seed="7")
    expect(page.locator("#sweep-form")).to_contain_text("3 images")
    run(page)
    # Loading torch and the model takes its time where other work runs.
    expect(done(page)).to_have_count(3, timeout=240_000)
    wait_for_end(page)
    expect(page.get_by_role("region", name="Verdict")).to_contain_text("Trustworthy")
    expect(page.locator("#sweep-grid caption")).to_contain_text("pocket klein")
    expect(page.locator("#sweep-verdict .which.told")).to_be_visible(timeout=240_000)
    page.get_by_role("button", name="More rows").click()
    page.get_by_label("More precisions").click()
    page.locator("#precision").get_by_label("Precision").click()
    page.get_by_role("option", name="BF16").click()
    page.get_by_label("Further precisions").click()
    page.get_by_role("option", name="FP8").first.click()  # the other list may still be on its way out
    page.keyboard.press("Escape")
    expect(page.locator("#sweep-form")).to_contain_text("2 × 3 = 6 images")
    run(page)
    expect(page.locator("#sweep-grid .row th")).to_have_text(["bf16", "fp8"])
    expect(done(page)).to_have_count(6, timeout=240_000)
    wait_for_end(page)
    expect(page.get_by_role("region", name="Verdict")).to_contain_text(
        "fp8 against bf16, same seed and strength: SSIM 0."
    )
    page.get_by_role("button", name="Too strong at 1.0").click()
    run(page)
    expect(done(page)).to_have_count(7)
    expect(page.locator("#sweep-grid th.advised").first).to_be_visible(timeout=240_000)
    heads = page.locator("#sweep-grid .strengths th")
    top = max(index for index, head in enumerate(heads.all()) if "advised" in (head.get_attribute("class") or ""))
    edge = " to ".join(heads.nth(index).inner_text() for index in (top, top + 1))
    expect(page.locator("#refine")).to_have_text(re.compile(f"Refine {edge}: [1-3] images"))
    page.locator("#weights").get_by_label("Weights").click()
    expect(page.get_by_role("option", name="FLUX.2 [klein] 9B (klein-9b) — not here")).to_be_visible()
    page.get_by_role("option", name="FLUX.2 [klein] 9B (klein-9b) — not here").click()
    expect(page.locator("#sweep-form .hint.warn").last).to_be_visible()
    assert app.stop() == 0
