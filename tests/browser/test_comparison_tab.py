import csv
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from .conftest import App, Visitor
from .test_sweep_tab import fill, run, wait_for_end


def open_log(page: Page) -> None:
    page.get_by_role("tab", name="Comparison").click()


def test_empty_log_says_what_to_do_and_a_rating_survives_a_restart(
    start_app: Callable[..., App], visitor: Visitor
) -> None:
    app = start_app("--drawing", "0.01")
    page = visitor.visit(app)
    open_log(page)
    expect(page.locator("#log")).to_contain_text("Nothing rendered yet")
    page.get_by_role("tab", name="Sweep").click()
    fill(page, prompt="a white bunny in the snow", strengths="0, 0.5, 1", seed="5")
    run(page)
    wait_for_end(page)
    open_log(page)
    rows = page.locator("#log tbody tr")
    expect(rows).to_have_count(3)
    rows.filter(has_text="0.50").click()
    expect(page.locator("#log-detail")).to_contain_text("a white bunny in the snow")
    page.locator("#rating").get_by_text("4", exact=True).click()
    page.get_by_label("Note").fill("the best one")
    expect(rows.filter(has_text="0.50")).to_contain_text("the best one")
    expect(rows.filter(has_text="0.50")).to_contain_text("★★★★")
    assert app.stop() == 0
    app.start()
    visitor.visit(app)
    open_log(page)
    expect(rows).to_have_count(3)
    rows.filter(has_text="0.50").click()
    expect(page.get_by_label("Note")).to_have_value("the best one")
    expect(page.locator("#rating").get_by_label("4", exact=True)).to_be_checked()


def test_filter_sort_and_csv(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    for prompt, seed in (("zebra one", "101"), ("zebra two", "102")):
        fill(page, prompt=prompt, strengths="0, 1", seed=seed)
        run(page)
        expect(page.locator("#sweep-grid caption")).to_contain_text(prompt)
        wait_for_end(page)
    open_log(page)
    rows = page.locator("#log tbody tr")
    page.get_by_label("Search").fill("zebra")
    expect(rows).to_have_count(4)
    page.locator("#log [data-sort=strength]").click()
    expect(page.locator("#log th[aria-sort=ascending]")).to_have_text("Strength")
    assert [row.locator("td").nth(1).text_content() for row in rows.all()] == ["0.00", "0.00", "1.00", "1.00"]
    page.locator("#log [data-sort=strength]").click()
    expect(page.locator("#log th[aria-sort=descending]")).to_have_text("Strength")
    assert rows.first.locator("td").nth(1).text_content() == "1.00"
    page.get_by_label("Search").fill("zebra two")
    expect(rows).to_have_count(2)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    with Path(download.value.path()).open(newline="") as file:
        table = list(csv.DictReader(file))
    assert download.value.suggested_filename == "klein-lora-lab.csv"
    assert [(row["prompt"], row["strength"], row["seed"]) for row in table] == [
        ("zebra two", "1.0", "102"),
        ("zebra two", "0.0", "102"),
    ]
    page.get_by_label("Search").fill("nothing like this")
    expect(page.locator("#log")).to_contain_text("No row matches")


def test_sweep_again_fills_the_form_and_keeps_every_image(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    fill(page, prompt="a yellow teapot again", strengths="0, 0.3, 0.9", seed="111")
    run(page)
    wait_for_end(page)
    fill(page, prompt="something else", strengths="1", seed="1")
    open_log(page)
    page.get_by_label("Search").fill("teapot again")
    page.locator("#log tbody tr").first.click()
    page.get_by_role("button", name="Sweep again with these settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a yellow teapot again")
    expect(page.get_by_label("Strengths")).to_have_value("0, 0.3, 0.9")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("111")
    rendered = (drawing_app.home / "rendered.log").read_text()
    run(page)
    expect(page.locator("#sweep-status")).to_contain_text("3 of 3 · done")
    wait_for_end(page)
    assert (drawing_app.home / "rendered.log").read_text() == rendered, "the same cells are not rendered again"
