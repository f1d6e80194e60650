"""A sweep of one app that is rendered by a second one, as if by the BFL API."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from .conftest import App, Visitor
from .test_sweep_tab import done, fill, run, wait_for_end


def test_rows_of_this_machine_and_of_a_second_one(
    start_app: Callable[..., App], visitor: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = start_app(home=tmp_path / "other")
    monkeypatch.setenv("KLEIN_LAB_REMOTE", other.url)
    page = visitor.visit(start_app())
    fill(page, prompt="a red cat in the snow", strengths="0, 1", seed="7")
    page.get_by_role("button", name="More rows").click()
    page.get_by_label("More places").click()
    page.get_by_label("Further places").click()
    page.get_by_role("option", name="The remote server").click()
    expect(page.locator("#sweep-form")).to_contain_text("2 × 2 = 4 images")
    page.get_by_role("button", name="Advanced").first.click()
    page.locator("#sweep-form").get_by_label("Width (px)").fill("64")
    page.locator("#sweep-form").get_by_label("Height (px)").fill("64")
    run(page)
    wait_for_end(page)
    expect(done(page)).to_have_count(4)
    expect(page.locator("#sweep-grid th[scope=rowgroup]").nth(1)).to_contain_text("remote")
    verdict = page.get_by_role("region", name="Verdict")
    expect(verdict).to_contain_text("Every strength acted, and strength 0 is the base model.")
    expect(verdict).to_contain_text("On remote, strength 0 is what the server sent for it")
