import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin

from playwright.sync_api import Locator, Page, expect

from tests.drawing_backend import make_lora

from .conftest import App, Visitor


def fill(page: Page, *, prompt: str = "", strengths: str = "", seed: str = "") -> None:
    if prompt:
        page.get_by_label("Prompt", exact=True).fill(prompt)
    if strengths:
        page.get_by_label("Strengths").fill(strengths)
    if seed:
        page.get_by_label("Seed", exact=True).fill(seed)


def run(page: Page) -> None:
    page.get_by_role("button", name="Run sweep").click()


def done(page: Page) -> Locator:
    return page.locator("#sweep-grid .cell.done")


def wait_for_end(page: Page) -> None:
    expect(page.get_by_role("button", name="Run sweep")).to_be_enabled()
    expect(page.locator("#sweep-grid table[aria-busy=false]")).to_be_visible()


def status(page: Page) -> Locator:
    return page.locator("#sweep-status [role=status]")


def test_first_screen_is_ready_to_run(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    assert page.get_by_label("Prompt", exact=True).input_value()
    assert page.get_by_label("Seed", exact=True).input_value() == "7"
    expect(page.locator("#sweep-form .values li")).to_have_text(
        ["0 · base", "0.20", "0.40", "0.60", "0.80", "1.00", "1.20"]
    )
    expect(page.locator("#sweep-form")).to_contain_text("7 images")
    expect(page.get_by_role("button", name="Run sweep")).to_be_in_viewport()
    expect(page.locator("#sweep-grid")).to_be_in_viewport()
    box = page.locator("#sweep-grid table").bounding_box()
    run(page)
    expect(done(page).first).to_be_visible()
    after = page.locator("#sweep-grid table").bounding_box()
    assert box
    assert after
    assert (after["x"], after["width"]) == (box["x"], box["width"])
    assert abs(after["height"] - box["height"]) < 4, "the grid must not jump when it fills"


def test_cells_fill_one_by_one_and_end_with_a_verdict(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    fill(page, prompt="a green owl at night", strengths="0, 0.5, 1, 1.5", seed="21")
    table = page.locator("#sweep-grid table")
    with drawing_app.held(above=0.5):
        run(page)
        expect(table).to_have_attribute("aria-busy", "true")
        expect(done(page)).to_have_count(2)
    wait_for_end(page)
    expect(done(page)).to_have_count(4)
    expect(page.get_by_role("region", name="Verdict")).to_contain_text("strength 0 is the base model")
    expect(status(page)).to_contain_text("4 of 4 · done in")
    expect(table.locator("caption")).to_contain_text("a green owl at night")
    expect(table.locator("caption")).to_contain_text("seed 21")
    expect(table.locator("th[scope=col]")).to_have_text(["0 · base", "0.50", "1.00", "1.50"])
    image = page.request.get(urljoin(page.url, str(done(page).nth(2).locator("img").get_attribute("src"))))
    assert image.headers["content-type"] == "image/png"
    assert b"klein_lab" in image.body()
    assert image.body() == next(drawing_app.home.rglob(Path(image.url).name)).read_bytes()


def test_wrong_strengths_are_marked_where_they_are_wrong(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    fill(page, strengths="0, 0.5, abc")
    alert = page.locator("#sweep-form").get_by_role("alert")
    expect(alert).to_contain_text("character 9")
    expect(alert.locator("mark")).to_have_text("abc")
    run(page)
    expect(page.locator("#sweep-status").get_by_role("alert")).to_contain_text("character 9")
    expect(page.get_by_role("button", name="Run sweep")).to_be_enabled()
    fill(page, strengths="0, 0.5")
    expect(alert).to_have_count(0)
    fill(page, seed="seven")
    run(page)
    expect(page.locator("#sweep-status").get_by_role("alert")).to_contain_text("'seven' is not a whole number")


TYPE_AT_ONCE = """() => new Promise((resolve) => new MutationObserver((_, self) => {
  const labels = [...document.querySelectorAll('#sweep-form label')];
  const field = labels.find((each) => each.textContent.includes('Further seeds'))?.querySelector('input, textarea');
  if (!field) return;
  self.disconnect();
  field.focus();
  field.value = '8, 9';
  field.dispatchEvent(new Event('input', { bubbles: true }));
  resolve();
}).observe(document.body, { childList: true, subtree: true }))"""
"""Type into a field in the moment in which it appears."""


def test_what_is_typed_into_a_field_as_it_appears_stays(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    page.evaluate(f"() => {{ window.typed = ({TYPE_AT_ONCE})(); }}")
    page.get_by_role("button", name="More rows").click()
    page.evaluate("window.typed")
    expect(page.locator("#sweep-form")).to_contain_text("3 × ")
    page.evaluate("() => new Promise((resolve) => setTimeout(resolve, 500))")
    expect(page.get_by_label("Further seeds")).to_have_value("8, 9")


def test_stop_keeps_what_is_done_and_continue_renders_the_rest(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    fill(page, prompt="a brown snail in the forest", strengths="0-1.4 [8]", seed="31")
    with drawing_app.held(above=0.2):
        run(page)
        expect(done(page)).to_have_count(2)
        page.get_by_role("button", name="Stop").click()
        expect(status(page)).to_contain_text("2 of 8 · stopped, 6 left")
        wait_for_end(page)
    expect(done(page)).to_have_count(2)
    rendered = drawing_app.rendered(31)
    page.get_by_role("button", name="Continue").click()
    expect(done(page)).to_have_count(8)
    wait_for_end(page)
    again = drawing_app.rendered(31)
    assert len(set(again)) == len(again) > len(rendered), "no cell may be rendered twice"


def test_failed_cells_say_why_and_can_be_retried(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    fill(page, prompt="fail at first", strengths="0, 0.5, 1", seed="41")
    run(page)
    expect(page.locator("#sweep-grid .cell.failed")).to_have_count(2)
    wait_for_end(page)
    expect(page.locator("#sweep-grid .cell.failed").first).to_contain_text("The device gave up on this image")
    (drawing_app.home / "repaired").touch()
    try:
        page.get_by_role("button", name="Retry 2 failed").click()
        expect(done(page)).to_have_count(3)
        wait_for_end(page)
    finally:
        (drawing_app.home / "repaired").unlink()
    expect(page.locator("#resume")).to_be_hidden()


def test_two_cells_can_be_compared_by_click_list_and_keyboard(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    fill(page, strengths="0, 0.5, 1", seed="51")
    run(page)
    wait_for_end(page)
    panel = page.get_by_role("region", name="Compare two cells")
    expect(panel).to_be_visible()
    done(page).nth(1).click()
    done(page).nth(2).click()
    expect(done(page).nth(1)).to_have_attribute("data-side", "A")
    expect(done(page).nth(2)).to_have_attribute("aria-pressed", "true")
    sources = [cell.locator("img").get_attribute("src") for cell in done(page).all()]
    assert panel.locator(".a img").get_attribute("src") == sources[1]
    assert panel.locator(".b img").get_attribute("src") == sources[2]
    panel.get_by_label("Cell A").select_option(index=0)
    assert panel.locator(".a img").get_attribute("src") == sources[0]
    slider = panel.get_by_label("How much of A is shown, in percent")
    slider.focus()
    before = panel.locator(".a .shot").evaluate("shot => getComputedStyle(shot).clipPath")
    page.keyboard.press("End")
    assert panel.locator(".a .shot").evaluate("shot => getComputedStyle(shot).clipPath") != before
    panel.get_by_text("Side by side").click()
    boxes = [panel.locator(f".{side} img").bounding_box() for side in "ab"]
    assert boxes[0]
    assert boxes[1]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    panel.get_by_text("Flicker").click()
    panel.get_by_role("button", name="Show the other").click()
    seen = [panel.locator(f".{side} img").is_visible() for side in "ab"]
    assert sorted(seen) == [False, True]


def test_the_grid_is_one_tab_stop_with_arrow_keys(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    fill(page, strengths="0, 0.5, 1", seed="51")
    page.get_by_role("button", name="More rows").click()
    page.get_by_label("Further seeds").fill("52")
    expect(page.locator("#sweep-form")).to_contain_text("2 × 3 = 6 images")
    run(page)
    wait_for_end(page)
    expect(page.locator("#sweep-grid .row th")).to_have_text(["seed 51", "seed 52"])
    done(page).first.focus()
    for key, label in (
        ("ArrowRight", "Strength 0.50, seed 51"),
        ("ArrowDown", "Strength 0.50, seed 52"),
        ("End", "Strength 1.00, seed 52"),
        ("ArrowRight", "Strength 1.00, seed 52"),
        ("Home", "Strength 0.00, seed 52"),
    ):
        page.keyboard.press(key)
        assert str(page.locator(":focus").get_attribute("aria-label")).startswith(label)
    assert page.locator("#sweep-grid .cell[tabindex='0']").count() == 1
    page.keyboard.press("Enter")
    expect(page.locator(":focus")).to_have_attribute("data-side", "A")


def test_two_visitors_do_not_see_each_other(drawing_app: App, new_visitor: Callable[..., Visitor]) -> None:
    first, second = new_visitor(), new_visitor()
    one, two = first.visit(drawing_app), second.visit(drawing_app)
    fill(one, prompt="a red cat of the first visitor", strengths="0-1 [6]", seed="71")
    fill(two, prompt="a blue boat of the second visitor", strengths="0, 1", seed="72")
    run(one)
    expect(done(one).first).to_be_visible()
    expect(two.locator("#sweep-grid .cell.planned")).to_have_count(2)
    run(two)
    wait_for_end(two)
    expect(two.locator("#sweep-grid caption")).to_contain_text("second visitor")
    two.close()
    wait_for_end(one)
    expect(done(one)).to_have_count(6)
    expect(one.locator("#sweep-grid caption")).to_contain_text("first visitor")


HOSTILE = (
    "${alert(1)} {{6*7}} `${alert(2)}` <img src=x onerror=alert(3)> <script>alert(4)</script> \"quoted\" 'single' "
    "\\u0041 &lt;b&gt; ‮RTL‬ עברית 🐱 "
)


def test_hostile_texts_are_inert_everywhere(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    prompt = HOSTILE + "long" * 300
    fill(page, prompt=prompt, strengths="0, 1", seed="81")
    run(page)
    wait_for_end(page)
    expect(page.locator("#sweep-grid caption .prompt")).to_have_text(prompt, use_inner_text=False)
    fill(page, strengths="<img src=x onerror=alert(5)>")
    expect(page.locator("#sweep-form").get_by_role("alert")).to_contain_text("<img src=x o")
    page.get_by_role("tab", name="Comparison").click()
    page.locator("#log tr[data-id]").first.click()
    expect(page.locator("#log-detail .prompt")).to_have_text(prompt)
    page.get_by_label("Note").fill(HOSTILE)
    expect(page.locator("#log tr[aria-selected=true]")).to_contain_text("{{6*7}}")
    assert page.locator("#log img[src=x], #sweep-grid img[src=x], #log-detail img[src=x]").count() == 0
    assert visitor.dialogs == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_wrong_upload_is_refused_where_it_was_made(drawing_app: App, visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.visit(drawing_app)
    page.get_by_role("button", name="Upload a LoRA").click()
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"this is no LoRA")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload .safetensors files").click()
    chooser.value.set_files(wrong)
    expect(page.locator("#sweep-form").get_by_role("alert")).to_be_visible()
    right = tmp_path / "My LoRA.safetensors"
    right.write_bytes(make_lora("of my own").path.read_bytes())
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload .safetensors files").click()
    chooser.value.set_files(right)
    expect(page.get_by_label("LoRA", exact=True)).to_have_value("my-lora")


CONTRAST = """(scheme) => {
  const [ink, paper] = [getComputedStyle(document.querySelector("#sweep-grid caption .prompt")).color,
                        getComputedStyle(document.body).backgroundColor]
    .map((colour) => colour.match(/[0-9.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0));
  return scheme === "dark" ? ink - paper > 350 : paper - ink > 350;
}"""


def test_a_phone_scrolls_the_grid_not_the_page_and_its_words_can_be_read_in_the_dark(
    drawing_app: App, new_visitor: Callable[..., Visitor]
) -> None:
    visitor = new_visitor(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = visitor.visit(drawing_app)
    fill(page, strengths="0-1.4 [8]", seed="91")
    run(page)
    expect(page.locator("#sweep-status")).to_be_in_viewport()
    wait_for_end(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    inside = page.locator("#sweep-grid .grid-scroll")
    assert inside.evaluate("box => box.scrollWidth > box.clientWidth")
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(CONTRAST, arg=scheme)


def test_the_labelled_grid_and_the_animation_can_be_downloaded(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    fill(page, strengths="0, 0.5, 1", seed="51")
    run(page)
    wait_for_end(page)
    for what, magic, ending in (("labelled grid", b"\x89PNG", "png"), ("animation", b"RIFF", "webp")):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Download the {what}").click()
        assert Path(download.value.path()).read_bytes().startswith(magic)
        assert re.fullmatch(rf"run-[0-9a-f]+\.{ending}", download.value.suggested_filename)


def test_a_killed_app_keeps_every_finished_cell(start_app: Callable[..., App], visitor: Visitor) -> None:
    app = start_app("--drawing", "0.3")
    page = visitor.visit(app)
    fill(page, prompt="a teal fish underwater", strengths="0-1.4 [8]", seed="95")
    with app.held(above=0.4):
        run(page)
        expect(done(page)).to_have_count(3)
        app.kill()
        page.goto("about:blank")  # it would reload itself once the app is back, beside the visit
    before = app.rendered(95)
    app.start()
    visitor.visit(app)
    expect(page.locator("#cut-off")).to_contain_text("1 sweep was cut off when the app ended")
    page.get_by_role("button", name="Open an earlier sweep").click()
    page.get_by_label("Earlier sweeps").click()
    page.get_by_role("option", name=re.compile("a teal fish.*unfinished")).click()
    expect(page.locator("#sweep-grid .cell.left")).to_have_count(5)
    expect(done(page)).to_have_count(3)
    page.get_by_role("button", name="Continue 1 sweep").click()
    expect(done(page)).to_have_count(8)
    wait_for_end(page)
    expect(page.locator("#cut-off")).to_be_hidden()
    after = app.rendered(95)[len(before) :]
    cells = [line for line in after if line.endswith("True") and not line.startswith("95 0 ")]
    assert len(cells) == 5, "only the rest may be rendered"
