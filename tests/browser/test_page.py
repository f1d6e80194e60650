"""What page.js and page.py do for every tab: the order of a page's events, whichever way the network turns them."""

from pathlib import Path

from playwright.sync_api import Route, expect

from .conftest import App, Visitor
from .test_finetunes_tab import open_finetunes, registry, row, write_lora


def test_an_answer_that_was_overtaken_is_not_drawn_over_a_newer_one(
    drawing_app: App, visitor: Visitor, tmp_path: Path
) -> None:
    with registry(drawing_app) as finetunes:
        finetunes.add_file("local", write_lora(tmp_path / "o.safetensors", seed=9), name="overtaken", weights="pocket")
        finetunes.add_file("acme", write_lora(tmp_path / "g.safetensors", seed=8), name="granted", weights="pocket")
        finetunes.grant("acme", "granted", "local")
    page = visitor.visit(drawing_app)
    open_finetunes(page)
    expect(row(page, "overtaken")).to_be_visible()
    held: list[Route] = []

    def turn(route: Route) -> None:
        """The network is slow with the deletion."""
        if '"delete"' in (route.request.post_data or ""):
            held.append(route)
        else:
            route.continue_()

    page.route("**/queue/join*", turn)
    page.get_by_role("button", name="Delete overtaken").click()
    page.locator("#finetunes-shown").get_by_text("Shared").click()
    expect(row(page, "official/style")).to_have_count(0)
    expect(row(page, "acme/granted")).to_be_visible()
    held[0].continue_()
    expect(page.locator("#finetunes-note")).to_contain_text("overtaken was deleted.")
    expect(row(page, "official/style")).to_have_count(0)
    expect(row(page, "acme/granted")).to_be_visible()
    expect(page.locator("#finetunes-shown").get_by_role("radio", name="Shared")).to_be_checked()
