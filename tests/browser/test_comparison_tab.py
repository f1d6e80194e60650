"""The Comparison tab in a real browser, on a log that was there before: two LoRAs, two seeds, a hostile prompt."""

import csv
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from evaluation.store.store import Store
from evaluation.sweep import run_sweep
from lora_runtime.settings import Settings
from tests.drawing_backend import DrawingBackend, make_drawing_spec, make_lora

from .conftest import App, Visitor
from .test_sweep_tab import fill, run, wait_for_end

HOSTILE = "a fox ${alert(1)} {{constructor.constructor('alert(1)')()}} <img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def log_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """An app whose log has 15 images, one of two LoRAs: each test uses rows of its own, found by their prompt."""
    home = tmp_path_factory.mktemp("log")
    loras = [make_lora("house-style"), make_lora("other-style")]
    asked = [
        {"prompts": ["zebra one"], "seeds": [101, 102], "strengths": "0, 0.5, 1"},
        {"prompts": ["teapot again"], "loras": loras, "seeds": [103], "strengths": "0, 0.7, 1"},
        {"prompts": [HOSTILE], "seeds": [104], "strengths": "0, 1"},
        {"prompts": ["walrus of the phone"], "seeds": [105], "strengths": "0, 1"},
    ]
    with closing(Store.open(Settings(home=home))) as store:
        for each in asked:
            spec = make_drawing_spec(**{"loras": loras[:1], "width": 128, "height": 128, **each})
            for _ in run_sweep(spec, backend=DrawingBackend(), store=store):
                pass
    app = App(home, args=("--drawing", "0.01")).start()
    yield app
    app.stop()


def open_log(page: Page) -> None:
    page.get_by_role("tab", name="Comparison").click()


def rows(page: Page) -> Locator:
    return page.locator("#log tr[data-id]")


def search(page: Page, words: str, count: int) -> None:
    page.get_by_label("Search").fill(words)
    expect(rows(page)).to_have_count(count)


def take(page: Page, name: str) -> Path:
    page.locator("#log .menu summary").click()
    with page.expect_download() as download:
        page.locator("#log .menu").get_by_role("button", name=name).click()
    path = Path(tempfile.mkdtemp()) / download.value.suggested_filename
    download.value.save_as(path)
    assert path.stem == "klein-lora-lab"
    return path


def test_empty_log_says_what_to_do_and_a_rating_survives_a_restart(
    start_app: Callable[..., App], visitor: Visitor
) -> None:
    app = start_app("--drawing", "0.01")
    page = visitor.visit(app)
    open_log(page)
    expect(page.locator("#log")).to_contain_text("Nothing rendered yet")
    page.get_by_role("button", name="Run a first sweep").click()
    fill(page, prompt="a white bunny in the snow", strengths="0, 0.5, 1", seed="5")
    run(page)
    wait_for_end(page)
    open_log(page)
    expect(rows(page)).to_have_count(3)
    middle = rows(page).filter(has_text="0.50")
    middle.locator(".thumb").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#log-detail")).to_contain_text("a white bunny in the snow")
    expect(page.locator("#log-detail h3")).to_be_focused()
    page.keyboard.press("4")
    expect(middle).to_contain_text("★★★★")
    page.get_by_label("Note").fill("the best one")
    expect(middle).to_contain_text("the best one")
    assert app.stop() == 0
    page.goto("about:blank")  # it would reload itself once the app is back, beside the visit
    app.start()
    visitor.visit(app)
    open_log(page)
    middle.locator(".thumb").click()
    expect(page.get_by_label("Note")).to_have_value("the best one")
    expect(page.get_by_role("radio", name="4 stars")).to_be_checked()
    page.keyboard.press("Escape")
    expect(page.locator("#log-detail")).not_to_be_visible()


def test_filter_group_sort_and_take_away(log_app: App, visitor: Visitor, browser: Browser) -> None:
    page = visitor.visit(log_app)
    open_log(page)
    search(page, "zebra", 6)
    page.get_by_role("combobox", name="Seed").select_option("102")
    expect(rows(page)).to_have_count(3)
    expect(page.locator("#log .count")).to_have_text("3 of 15 images")
    expect(page.locator("#log-bar select[name=seed] option")).to_have_count(3)  # all, and the two seeds that occur
    page.get_by_label("Strength from").fill("0.4")
    page.keyboard.press("Tab")
    expect(rows(page)).to_have_count(2)
    page.locator("#log [data-value=strength]").click()
    expect(page.locator("#log th[aria-sort=ascending]")).to_have_text("Strength")
    page.locator("#log [data-value=strength]").click()
    expect(page.locator("#log th[aria-sort=descending]")).to_have_text("Strength")
    expect(rows(page).first).to_contain_text("1.00")
    with take(page, "CSV").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["prompt"], row["strength"], row["seed"]) for row in table] == [
        ("zebra one", "1.0", "102"),
        ("zebra one", "0.5", "102"),
    ]
    assert not table[0]["image"].startswith("/"), "where files lie on the machine is not told"
    rows(page).last.locator("[data-pick]").check()
    lines = take(page, "JSON lines").read_text().splitlines()
    assert [json.loads(line)["strength"] for line in lines] == [0.5]
    assert take(page, "Parquet").read_bytes()[:4] == b"PAR1"
    page.get_by_role("button", name="Clear filters").click()
    expect(rows(page)).to_have_count(15)
    expect(page.get_by_label("Search")).to_have_value("")
    page.get_by_label("Group rows").select_option("lora")
    heading = page.locator("#log .heading").first
    expect(heading).to_contain_text("13 images · SSIM")
    heading.get_by_role("button").click()
    expect(page.locator("#log tr[data-id]:visible")).to_have_count(3)
    page.get_by_role("button", name="Clear picks").click()
    search(page, "nothing like this", 0)
    expect(page.locator("#log")).to_contain_text("No row matches")


def test_an_open_list_follows_what_is_rendered_elsewhere(start_app: Callable[..., App], visitor: Visitor) -> None:
    app = start_app("--drawing", "0.01")
    page = visitor.visit(app)
    open_log(page)
    expect(page.locator("#log")).to_contain_text("Nothing rendered yet")

    def render(prompt: str) -> None:
        spec = make_drawing_spec(prompts=[prompt], strengths="0, 1")
        with closing(Store.open(Settings(home=app.home))) as store:
            for _ in run_sweep(spec, backend=DrawingBackend(), store=store):
                pass

    render("an otter while you look")
    expect(rows(page)).to_have_count(2)
    rows(page).last.locator("[data-pick]").check()
    rows(page).last.locator(".thumb").focus()
    render("a badger behind it")
    expect(rows(page)).to_have_count(4)
    expect(page.locator("#log .picks")).to_contain_text("1 picked")
    expect(rows(page).last.locator("[data-pick]")).to_be_checked()
    expect(rows(page).last.locator(".thumb")).to_be_focused()
    page.locator("#log .menu summary").click()
    render("a heron under the menu")
    expect(rows(page)).to_have_count(6)
    expect(page.locator("#log .menu")).to_have_attribute("open", "")
    page.keyboard.press("Escape")
    search(page, "badger", 2)
    render("another badger")
    expect(rows(page)).to_have_count(4)


def test_the_report_opens_offline(log_app: App, visitor: Visitor, browser: Browser) -> None:
    page = visitor.visit(log_app)
    open_log(page)
    search(page, "teapot", 5)
    report = take(page, "Report")
    context = browser.new_context(offline=True, viewport={"width": 390, "height": 844})
    offline = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    offline.on("request", lambda request: asked.append(request.url))
    offline.on("console", lambda message: said.append(message.text))
    offline.goto(f"file://{report}")
    expect(offline.get_by_role("heading", level=1)).to_have_text("LoRA strengths: house-style, other-style")
    images = offline.locator(".cell img")
    expect(images).to_have_count(6)
    assert images.evaluate_all("images => images.every(image => image.complete && image.naturalWidth > 0)")
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert said == []
    assert offline.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_compare_and_chart(log_app: App, visitor: Visitor) -> None:
    page = visitor.visit(log_app)
    open_log(page)
    search(page, "teapot", 5)
    compare = page.get_by_role("button", name="Compare side by side")
    rows(page).nth(1).locator("[data-pick]").check()
    expect(compare).to_be_disabled()
    rows(page).nth(3).locator("[data-pick]").check()
    compare.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("header")).to_contain_text("2 images side by side")
    expect(dialog.locator("header")).to_contain_text("teapot again · seed 103")
    first, second = dialog.locator("figure.a"), dialog.locator("figure.b")
    expect(first.locator("figcaption")).to_contain_text("LoRA house-style")
    expect(first.locator("figcaption")).not_to_contain_text("Seed")
    expect(second.locator("figcaption")).to_contain_text("LoRA other-style")
    dialog.get_by_text("One", exact=True).click()
    expect(second).to_be_hidden()
    dialog.get_by_role("button", name="To the right").click()
    expect(first.locator("figcaption")).to_contain_text("LoRA other-style")
    page.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()
    expect(page.locator("#log .picks")).to_contain_text("2 picked")
    compare.click()
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Close").click()

    page.get_by_role("button", name="Chart").click()
    dots = page.locator("#log .dot")
    expect(dots).to_have_count(6)
    expect(page.get_by_role("group", name="against strength")).to_be_visible()
    page.get_by_role("combobox", name="Score").select_option("seconds")
    expect(page.get_by_role("group", name="Seconds an image against strength")).to_be_visible()
    dots.first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#log .tip")).to_contain_text("seed 103")
    expect(page.locator("#log .tip img")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator("#log-detail")).to_contain_text("teapot again")
    page.get_by_text("The numbers").click()
    expect(page.locator(".numbers tbody tr")).to_have_count(6)


def test_delete_stays_undoable(log_app: App, visitor: Visitor) -> None:
    page = visitor.visit(log_app)
    open_log(page)
    search(page, "zebra", 6)
    page.get_by_role("combobox", name="Seed").select_option("101")
    expect(rows(page)).to_have_count(3)
    page.get_by_label("Pick all rows shown").check()
    page.get_by_role("button", name="Delete").click()
    expect(page.locator("#log .undo")).to_contain_text("3 images deleted.")
    page.get_by_role("button", name="Clear filters").click()
    search(page, "zebra", 3)
    rows(page).first.locator("[data-pick]").check()
    page.get_by_role("button", name="Delete").click()
    expect(rows(page)).to_have_count(2)
    expect(page.locator("#log .undo")).to_contain_text("4 images deleted.")
    page.get_by_role("tab", name="Sweep").click()
    open_log(page)
    page.get_by_role("button", name="Undo").click()
    expect(rows(page)).to_have_count(3)
    page.get_by_role("button", name="Undo").click()
    expect(rows(page)).to_have_count(6)
    expect(page.locator("#log .undo")).to_have_count(0)


def test_hostile_words_stay_words_on_a_phone(log_app: App, new_visitor: Callable[..., Visitor]) -> None:
    visitor = new_visitor(viewport={"width": 390, "height": 844})
    page = visitor.visit(log_app)
    page.evaluate("document.querySelector('[data-tab-id=comparison]')?.click()")
    search(page, "alert", 2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    rows(page).last.locator(".thumb").click()
    panel = page.locator("#log-panel")
    expect(panel.locator("img")).to_be_in_viewport()
    expect(panel.get_by_role("heading")).to_have_text("Strength 1.00, seed 104")
    expect(panel).to_contain_text(HOSTILE)
    panel.get_by_label("Note").fill(HOSTILE)
    expect(panel).to_contain_text("Saved.")
    panel.get_by_role("radio", name="2 stars").check(force=True)
    expect(rows(page).last).to_contain_text("★★")
    panel.get_by_role("button", name="The row above").click()
    expect(panel.get_by_role("heading")).to_have_text("Strength 0.00, seed 104")
    expect(panel.get_by_label("Note")).to_have_value("")
    panel.get_by_role("button", name="Close").click()
    expect(panel).not_to_be_visible()
    page.get_by_label("Pick all rows shown").check()
    page.get_by_role("button", name="Compare side by side").click()
    expect(page.get_by_role("dialog")).to_contain_text(HOSTILE)
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Chart").click()
    expect(page.locator("#log .chart")).to_be_visible()


def test_sweep_again_and_open_in_the_playground(log_app: App, visitor: Visitor) -> None:
    page = visitor.visit(log_app)
    fill(page, prompt="something else", strengths="1", seed="1")
    open_log(page)
    search(page, "walrus", 2)
    rows(page).last.locator(".thumb").click()
    page.get_by_role("button", name="Sweep again with these settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("walrus of the phone")
    expect(page.get_by_label("Strengths")).to_have_value("0, 1")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("105")
    log = log_app.home / "rendered.log"
    rendered = log.read_text() if log.exists() else ""
    run(page)
    expect(page.locator("#sweep-status")).to_contain_text("2 of 2 · done")
    wait_for_end(page)
    assert (log.read_text() if log.exists() else "") == rendered, "the same cells are not rendered again"
    open_log(page)
    page.get_by_role("button", name="Open in Playground").click()
    expect(page.locator("#play-prompt textarea")).to_have_value("walrus of the phone")
