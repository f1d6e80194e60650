"""A public demo: what one visitor makes is on no list of another, and still there for them after a reload."""

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from lora_runtime.lora.library import path_of
from tests.drawing_backend import make_lora

from .conftest import App, Visitor
from .test_sweep_tab import done, fill, run, wait_for_end


def list_everything(page: Page, *, images: int, rows: str) -> str:
    """All the page shows in its tabs and lists, as one text; `images` and `rows` tell when its own are there."""
    shown = []
    page.get_by_role("button", name="Open an earlier sweep").click()
    page.get_by_label("Earlier sweeps").click()
    shown.append(page.locator("[role=listbox]").all_inner_texts())
    page.keyboard.press("Escape")
    page.get_by_label("LoRA", exact=True).first.click()
    expect(page.get_by_role("option", name="overtrained").first).to_be_visible()
    shown.append(page.locator("[role=listbox]").all_inner_texts())
    page.keyboard.press("Escape")
    for name, place, expected in (
        ("Playground", "#play-history", None),
        ("Comparison", "#log", rows),
        ("Finetunes", "#finetunes-table table", "official/style"),
    ):
        page.get_by_role("tab", name=name, exact=True).click()
        if expected is None:
            expect(page.locator(f"{place} li")).to_have_count(images)
        else:
            expect(page.locator(place)).to_contain_text(expected)
        shown.append(page.locator(place).all_inner_texts())
    return str(shown)


def generate(page: Page, prompt: str) -> None:
    page.get_by_role("tab", name="Playground", exact=True).click()
    page.locator("#play-prompt textarea").fill(prompt)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#play-status")).to_contain_text("Done in")
    expect(page.locator("#play-history li")).to_have_count(1)


def test_two_visitors_of_a_public_demo_see_only_their_own(
    public_app: App, new_visitor: Callable[..., Visitor], tmp_path: Path
) -> None:
    app = public_app
    first, second = new_visitor(), new_visitor()
    page = first.visit(app)
    expect(page.locator(".keeping")).to_contain_text("yours alone")
    expect(page.locator(".keeping")).to_contain_text("24 hours")
    page.get_by_role("button", name="Upload a LoRA").click()
    own = tmp_path / "only-of-the-first.safetensors"
    own.write_bytes(path_of(make_lora("house-style")).read_bytes())
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload .safetensors files").click()
    chooser.value.set_files(own)
    expect(page.get_by_label("LoRA", exact=True).first).to_have_value("only-of-the-first")
    fill(page, prompt="a red cat of the first", strengths="0, 1", seed="71")
    run(page)
    wait_for_end(page)
    image = str(done(page).first.locator("img").get_attribute("src"))
    generate(page, "a blue boat of the first")

    other = second.visit(app)
    generate(other, "a boat of the second")
    other.get_by_role("tab", name="Sweep", exact=True).click()
    seen = list_everything(other, images=1, rows="a boat of the second")
    assert "of the first" not in seen
    assert "only-of-the-first" not in seen
    assert "house-style" not in seen, "nor what lies in the owner's folder"
    again = list_everything(first.visit(app), images=1, rows="a blue boat of the first")
    for thing in ("a red cat of the first", "only-of-the-first"):
        assert thing in again, "a reload finds the same work"
    assert "blobs" in image
