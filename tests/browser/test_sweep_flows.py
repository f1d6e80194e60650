"""What one does with a sweep: a link to it, more strengths, presets, a cell in full, rows, a proxy's prefix."""

import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, expect

from lora_runtime.catalogue import KLEIN_4B
from tests.lora_files import make_adapter, write_diffusers

from .conftest import App, Visitor
from .test_sweep_tab import HOSTILE, done, fill, run, status, wait_for_end


def heads(page: Page) -> Locator:
    return page.locator("#sweep-grid th[scope=col]")


def open_link(visitor: Visitor, url: str) -> Page:
    visitor.page.goto(url)
    expect(visitor.page.locator("#sweep-form .values")).to_be_visible()
    return visitor.page


def test_a_link_opens_a_sweep_where_it_was(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    assert "sweep=" not in page.url
    fill(page, prompt=HOSTILE, strengths="0-1.4 [8]", seed="601")
    with drawing_app.held(above=0.2):
        run(page)
        expect(done(page)).to_have_count(2)
        expect(page).to_have_url(re.compile(re.escape(f"{drawing_app.url}/?sweep=run-")))
        link = page.url
        page.reload()  # in the middle
        expect(done(page)).to_have_count(2)
        expect(page.locator("#stop")).to_be_enabled()
    expect(page.locator("#sweep-grid caption .prompt")).to_have_text(HOSTILE.strip(), use_inner_text=False)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(HOSTILE)
    expect(page.get_by_label("Seed", exact=True)).to_have_value("601")
    expect(done(page)).to_have_count(8)
    wait_for_end(page)
    expect(page).to_have_url(link)
    assert len(drawing_app.rendered(601)) == len(set(drawing_app.rendered(601))) == 9, "no cell twice"
    open_link(visitor, link)
    expect(page.locator("#sweep-verdict .verdict.good")).to_be_visible()
    expect(page.locator("#resume")).to_be_disabled()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#copy-said")).to_have_text("Link copied.")
    assert page.evaluate("navigator.clipboard.readText()") == link
    open_link(visitor, f"{drawing_app.url}/?sweep=run-<b>nope</b>")
    expect(page.locator("#sweep-status").get_by_role("alert")).to_contain_text("There is no sweep 'run-<b>nope</b>'")
    expect(page.locator("#sweep-grid .cell.planned")).not_to_have_count(0)
    fill(page, strengths="0, 1", seed="602")
    run(page)
    expect(done(page)).to_have_count(2)


def test_who_has_the_link_may_look_but_not_change(public_app: App, new_visitor: Callable[..., Visitor]) -> None:
    app = public_app
    one, two = new_visitor(), new_visitor()
    page = one.visit(app)
    fill(page, prompt="a red cat of the first visitor", strengths="0-1.4 [15]", seed="611")
    with app.held(above=0.2):
        run(page)
        expect(done(page)).to_have_count(3)
        page.get_by_role("button", name="Stop").click()
        wait_for_end(page)
    expect(page.locator("#resume")).to_be_enabled()
    other = open_link(two, page.url)
    expect(other.locator("#sweep-grid caption")).to_contain_text("of the first visitor")
    expect(status(other)).to_contain_text("somebody else’s sweep")
    for name in ("resume", "add", "refine"):
        expect(other.locator(f"#{name}")).to_be_disabled()
    other.locator("#open-viewer").click()
    expect(other.locator("#viewer .a img")).to_be_visible()
    expect(other.locator("#viewer .rate")).to_be_hidden()
    other.keyboard.press("Escape")
    run(other)
    expect(done(other)).to_have_count(15)
    wait_for_end(other)
    assert other.url != page.url
    expect(other.locator("#refine")).to_be_enabled()
    assert len(app.rendered(611)) == len(set(app.rendered(611))), "what is there is shared"


def test_strengths_are_added_and_refined_and_only_new_ones_rendered(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    fill(page, strengths="0, 0.4, 0.8", seed="621")
    page.get_by_role("button", name="More rows").click()
    page.get_by_label("Further seeds").fill("622")
    run(page)
    wait_for_end(page)
    assert len(drawing_app.rendered(621)) == 4
    more = page.get_by_label("Add values")
    more.fill("0.4, x")
    expect(page.locator("#extend-hint").get_by_role("alert")).to_contain_text("character 6")
    expect(page.locator("#add")).to_be_disabled()
    more.fill("0.4, 1.2")
    expect(page.locator("#add")).to_have_text("Add 2 images")
    more.press("Enter")
    expect(heads(page)).to_have_text(["0 · base", "0.40", "0.80", "1.20"])
    wait_for_end(page)
    expect(done(page)).to_have_count(8)
    expect(more).to_have_value("")
    assert len(drawing_app.rendered(621)) == 5
    done(page).nth(1).click()
    done(page).nth(2).click()
    expect(page.locator("#refine")).to_have_text("Refine 0.40 to 0.80: 6 images")
    before = page.url
    page.locator("#refine").click()
    expect(heads(page)).to_have_text(["0 · base", "0.40", "0.50", "0.60", "0.70", "0.80", "1.20"])
    wait_for_end(page)
    expect(done(page)).to_have_count(14)
    assert page.url != before
    assert len(drawing_app.rendered(621)) == 8
    expect(page.locator("#sweep-grid .cell[data-side=A]")).to_have_attribute("data-strength", "0.40")
    expect(page.locator("#sweep-grid .cell[data-side=B]")).to_have_attribute("data-strength", "0.80")
    expect(page.locator("#refine")).to_have_text("Refine 0.40 to 0.80: 8 images")
    done(page).nth(8).click()
    done(page).nth(1).click()
    expect(page.locator("#extend-hint")).to_contain_text("two cells of different strengths")


def test_an_answer_is_made_sure_at_a_click(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    fill(page, prompt="a red fox to be sure of", strengths="0, 1", seed="645")
    run(page)
    wait_for_end(page)
    sure, hint = page.locator("#sure"), page.locator("#sure-hint")
    expect(hint).to_contain_text("4 prompts × 2 seeds at 0, 1: 16 new pictures, about")
    before = page.url
    with drawing_app.held(above=0.5):
        sure.click()
        expect(page.locator("#stop")).to_be_enabled()
        expect(sure).to_be_disabled()
    wait_for_end(page)
    expect(done(page)).to_have_count(16)
    assert page.url != before
    assert len(drawing_app.rendered(646)) == 8, "the second seed"
    expect(hint).to_contain_text("has 4 prompts × 2 seeds already")
    expect(sure).to_be_disabled()


def test_presets_fill_the_form_are_replaced_deleted_and_brought_back(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    strengths, seed = page.get_by_label("Strengths"), page.get_by_label("Seed", exact=True)
    page.get_by_role("button", name="0.7 to 0.9, same seed").click()
    expect(strengths).to_have_value("0, 0.7-0.9 (+0.05)")
    expect(seed).to_have_value("7")
    expect(page.locator("#sweep-form .values li")).to_have_text(["0 · base", "0.70", "0.75", "0.80", "0.85", "0.90"])
    page.get_by_role("button", name="Presets").click()
    form, name = page.locator("#sweep-form"), page.get_by_label("Save the form as")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(form.get_by_role("alert")).to_contain_text("write a name")
    name.fill("<b>mine</b>")
    name.press("Enter")
    expect(form).to_contain_text("Saved as “<b>mine</b>”.")
    fill(page, strengths="0, 1", seed="9")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(form).to_contain_text("in place of the one that was there")
    page.get_by_role("button", name="Undo").click()
    expect(form).to_contain_text("is as it was")
    page.reload()
    page.get_by_role("button", name="Presets").click()
    page.get_by_label("Use a preset").click()
    page.get_by_role("option", name="<b>mine</b>").click()
    expect(strengths).to_have_value("0, 0.7-0.9 (+0.05)")
    expect(seed).to_have_value("7")
    page.get_by_role("button", name="Delete the preset").click()
    expect(form).to_contain_text("Deleted “<b>mine</b>”.")
    page.get_by_label("Use a preset").click()
    expect(page.get_by_role("option", name="<b>mine</b>")).to_have_count(0)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_label("Use a preset")).to_have_value("<b>mine</b>")


def test_a_prompt_set_is_used_and_saved_and_pictures_of_the_look_judge(
    drawing_app: App, visitor: Visitor, tmp_path: Path
) -> None:
    page = visitor.visit(drawing_app)
    form, further = page.locator("#sweep-form"), page.get_by_label("Further prompts")
    fill(page, prompt="a red fox in the snow", strengths="0, 1", seed="651")
    page.get_by_role("button", name="More rows").click()
    page.get_by_label("Use a prompt set").click()
    page.get_by_role("option", name="four scenes").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a red fox on the beach")
    expect(further).to_have_value("a red fox in a forest\na red fox in the city\na red fox at night")
    further.fill("a red fox at sea")
    page.get_by_label("Save the prompts as").fill("<i>two</i>")
    page.get_by_role("button", name="Save set").click()
    expect(form).to_contain_text("Saved as “<i>two</i>”: {subject} on the beach · {subject} at sea")
    page.get_by_role("button", name="Judge by pictures of the look").click()
    look = tmp_path / "look.png"
    Image.radial_gradient("L").save(look)
    with page.expect_file_chooser() as chooser:
        page.locator("#likeness").click()
    chooser.value.set_files(look)
    expect(form).to_contain_text("1 picture of the look. They must not be training pictures.")
    run(page)
    wait_for_end(page)
    page.reload()
    page.get_by_role("button", name="More rows").click()
    page.get_by_label("Use a prompt set").click()
    page.get_by_role("option", name="<i>two</i>").click()
    expect(further).to_have_value(re.compile(" at sea$"))
    page.get_by_role("button", name="Delete the set").click()
    expect(form).to_contain_text("Deleted “<i>two</i>”.")


def test_a_cell_in_full_by_keyboard_and_rated(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    page.get_by_role("button", name="A subject appears").click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("3")
    fill(page, strengths="0, 0.5, 1", seed="631")
    page.get_by_role("button", name="More rows").click()
    page.get_by_label("Trigger on and off").click()
    expect(page.locator("#sweep-form")).to_contain_text("2 × 3 = 6 images")
    run(page)
    wait_for_end(page)
    expect(page.locator("#sweep-grid .row th")).to_have_text(
        ["with the trigger phrase “ohwx”", "without the trigger phrase “ohwx”"]
    )
    done(page).nth(1).focus()
    page.keyboard.press("f")
    box = page.get_by_role("dialog", name="Strength 0.50")
    expect(box).to_be_visible()
    expect(box).to_contain_text("with the trigger phrase “ohwx” · 2 of 6")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")  # the end of the row
    page.keyboard.press("ArrowDown")
    box = page.get_by_role("dialog", name="Strength 1.00")
    expect(box).to_contain_text("without the trigger phrase “ohwx” · 6 of 6")
    source = done(page).nth(5).locator("img").get_attribute("src")
    expect(page.locator("#viewer .a img")).to_have_attribute("src", str(source))
    page.keyboard.press("4")
    expect(box.get_by_role("button", name="4 of 5")).to_have_attribute("aria-pressed", "true")
    for _ in range(10):  # the focus stays inside
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('#viewer')")
    page.keyboard.press("Escape")
    expect(box).to_be_hidden()
    expect(page.locator("#sweep-grid [data-position='5'] > :focus")).to_be_visible()
    expect(page.locator("#sweep-grid .stars").nth(5)).to_have_text("★ 4")
    page.reload()
    expect(page.locator("#sweep-grid .stars").nth(5)).to_have_text("★ 4")
    page.get_by_label("Prompt", exact=True).press("f")
    expect(page.locator("#viewer")).to_be_hidden()


def test_weights_that_are_not_here_say_so_where_the_eye_is(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    page.get_by_role("button", name="More rows").click()
    page.locator("#rows").get_by_label("Trigger on and off").click()
    fill(page, strengths="0, 1", seed="641")
    run(page)
    expect(page.locator("#sweep-status").get_by_role("alert")).to_contain_text("style has no trigger phrase")
    page.locator("#rows").get_by_label("More weights").click()
    page.get_by_label("Further weights").click()
    page.get_by_role("option", name="pocket klein Base").click()
    page.keyboard.press("Escape")
    expect(page.locator("#sweep-form")).to_contain_text("2 × 2 = 4 images")
    run(page)
    expect(page.locator("#sweep-status").get_by_role("alert")).to_contain_text("Not installed: run make")
    page.locator("#rows").get_by_label("None", exact=True).click()
    run(page)
    expect(done(page)).to_have_count(2)


def test_images_and_links_work_under_a_prefix(start_app: Callable[..., App], visitor: Visitor) -> None:
    prefixed = f"{start_app('--drawing', '0', '--prefix', '/lab').url}/lab/"
    page = open_link(visitor, prefixed)
    fill(page, strengths="0, 1", seed="651")
    run(page)
    wait_for_end(page)
    assert done(page).nth(1).locator("img").evaluate("async (image) => (await image.decode(), image.naturalWidth > 0)")
    assert page.url.startswith(f"{prefixed}?sweep=run-")
    page.reload()
    expect(done(page)).to_have_count(2)


def test_a_lora_brings_the_weights_it_was_made_for(drawing_app: App, visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.visit(drawing_app)
    real = write_diffusers(tmp_path / "made-for-4b.safetensors", make_adapter(KLEIN_4B, rank=1))
    page.get_by_role("button", name="Advanced").first.click()
    page.get_by_role("button", name="Upload a LoRA").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload .safetensors files").click()
    chooser.value.set_files(real)
    weights = page.locator("#weights input")
    expect(weights).to_have_value(re.compile("klein-4b"))
    page.get_by_label("LoRA", exact=True).click()
    page.get_by_role("option", name="overtrained").click()
    expect(weights).to_have_value(re.compile("pocket"))
