"""The Playground in a real browser, on a backend that draws slowly enough to watch."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin

from PIL import Image
from playwright.sync_api import Locator, Page, expect

from .conftest import App, Visitor

HOSTILE = "a cat ${alert(1)} {{constructor.constructor('alert(1)')()}} <img src=x onerror=alert(1)>"


def go(visitor: Visitor, app: App) -> Page:
    page = visitor.visit(app)
    page.get_by_role("tab", name="Playground").click()
    expect(picker(page)).to_contain_text("official/style")
    return page


def picker(page: Page) -> Locator:
    return page.locator("#play-picker .picker-button")


def option(page: Page, title: str) -> Locator:
    return page.locator(f'[role="option"]:has(.title bdi:text-is("{title}"))')


def field(page: Page, name: str) -> Locator:
    return page.locator(f"#play-{name} textarea, #play-{name} input").first


def generate(page: Page, *, prompt: str = "", seed: str = "") -> None:
    if prompt:
        field(page, "prompt").fill(prompt)
    if seed:
        field(page, "seed").fill(seed)
    page.get_by_role("button", name="Generate").click()


def wait_for_image(page: Page) -> Locator:
    expect(page.locator("#play-status")).to_contain_text("Done in")
    return page.locator("#play-picture .frame img").first


def test_pick_by_keyboard_insert_the_trigger_render_copy_and_sweep(
    drawing_app: App, new_visitor: Callable[..., Visitor]
) -> None:
    visitor = new_visitor(permissions=["clipboard-read", "clipboard-write"])
    page = go(visitor, drawing_app)
    expect(page.locator("#play-route")).to_contain_text("POST /v1/flux-2-klein-pocket-finetuned on this machine")
    picker(page).focus()
    page.keyboard.press("ArrowDown")
    expect(option(page, "official/style")).to_be_focused()
    page.keyboard.press("Escape")
    expect(picker(page)).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(option(page, "official/subject").locator(".tag").last).to_have_text("“ohwx”")
    page.keyboard.type("official/su")
    page.keyboard.press("Enter")
    expect(picker(page)).to_contain_text("official/subject")
    expect(picker(page)).to_be_focused()
    page.get_by_role("button", name="Insert ohwx").click()
    expect(field(page, "prompt")).to_have_value("ohwx a red cat in the snow")
    expect(page.locator("#play-trigger")).to_contain_text("is in the prompt")
    field(page, "prompt").fill("a plain cat")
    expect(page.locator("#play-trigger")).to_contain_text("is missing")
    field(page, "strength").fill("0.85")
    expect(page.get_by_role("slider", name=re.compile("Strength"))).to_have_value("0.85")
    generate(page, prompt="a plain cat, ohwx", seed="901")
    image = wait_for_image(page)
    expect(image).to_have_attribute("alt", "a plain cat, ohwx, strength 0.85, seed 901")
    body = page.request.get(urljoin(page.url, str(image.get_attribute("src")))).body()
    assert b"klein_lab" in body
    for name, words in (
        ("curl", '"finetune_strength": 0.85'), ("Python", '"finetune_id": "official/subject"'), ("diffusers", "[0.85]")
    ):  # fmt: skip
        page.get_by_role("button", name=name, exact=True).click()
        expect(page.locator(".copied")).to_have_text(f"Copied as {name}.")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert words in copied
        assert "901" in copied
    page.get_by_role("button", name="Sweep this").click()
    expect(page.get_by_role("tab", name="Sweep")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#prompt textarea")).to_have_value("a plain cat, ohwx")
    expect(page.locator("#seed input, #seed textarea").first).to_have_value("901")
    expect(page.get_by_label("LoRA", exact=True)).to_have_value(re.compile("subject"))


def test_seeds_are_drawn_kept_and_used_again(drawing_app: App, visitor: Visitor) -> None:
    page = go(visitor, drawing_app)
    seeds = []
    for number in range(2):
        generate(page, prompt=f"a drawn seed {number}")
        expect(page.locator("#play-picture .prompt")).to_have_text(f"a drawn seed {number}")
        wait_for_image(page)
        seeds.append(str(page.locator("#play-picture .facts li").first.text_content()).removeprefix("seed "))
    assert seeds[0] != seeds[1]
    page.get_by_role("button", name="Keep last").click()
    expect(field(page, "seed")).to_have_value(seeds[1])
    generate(page)
    wait_for_image(page)
    assert len(drawing_app.rendered(seeds[1])) == 1, "the same image is not rendered twice"
    page.locator("#play-dice").click()
    expect(field(page, "seed")).to_have_value("")


def test_wrong_input_and_what_cannot_run_are_said_and_nothing_is_lost(drawing_app: App, visitor: Visitor) -> None:
    page = go(visitor, drawing_app)
    alert = page.locator("#play-status").get_by_role("alert")
    for name, wrong, words, right in (
        ("strength", "much", "'much' is not a number", "1"),
        ("strength", "-15.5", "must be from -15 to 15", "-0.5"),
        ("seed", "seven", "'seven' is not a whole number", "902"),
    ):
        field(page, name).fill(wrong)
        generate(page)
        expect(alert).to_contain_text(words)
        field(page, name).fill(right)
    generate(page, prompt="please fail once")
    expect(page.locator("#play-picture").get_by_role("alert")).to_contain_text("The device gave up on this image")
    (drawing_app.home / "repaired").touch()
    try:
        page.get_by_role("button", name="Try again").click()
        wait_for_image(page)
    finally:
        (drawing_app.home / "repaired").unlink()
    picker(page).click()
    missing = option(page, "pocket klein Base")
    expect(missing).to_contain_text("Not installed: run make.")
    missing.click()
    expect(page.locator("#play-route")).to_contain_text("Not installed: run make.")
    generate(page)
    expect(alert).to_contain_text("Not installed: run make.")
    picker(page).click()
    option(page, "pocket klein").click()
    expect(page.locator("#play-route")).to_contain_text("POST /v1/flux-2-klein-pocket on this machine")
    expect(field(page, "strength")).to_be_disabled()
    page.get_by_role("button", name="Advanced").last.click()
    expect(page.get_by_label("Steps").last).to_be_disabled()
    expect(page.get_by_label("Steps").last).to_have_value("4")


def test_stop_then_render_it_and_compare_with_the_base(public_app: App, visitor: Visitor) -> None:
    page = go(visitor, public_app)
    with public_app.held(above=0):
        generate(page, prompt=HOSTILE, seed="903")
        expect(page.locator("#play-status")).to_contain_text("of 4")
        expect(page.locator("#play-run")).to_be_disabled()
        page.get_by_role("button", name="Stop").last.click()
        expect(page.locator("#play-run")).to_be_enabled()
    page.get_by_role("button", name="Render it now").click()
    wait_for_image(page)
    page.get_by_role("button", name="Compare with base").click()
    expect(page.locator("#play-picture .stage img")).to_have_count(2)
    page.get_by_label("How much of the base image").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#play-picture .stage")).to_have_attribute("style", re.compile("--split: 51%"))
    assert public_app.rendered("903") == ["903 1 True", "903 0 False"]
    page.get_by_role("button", name="Hide the base").click()
    expect(page.locator("#play-picture .stage")).to_have_count(0)
    page.reload()
    page.get_by_role("tab", name="Playground").click()
    expect(page.locator("#play-history li")).to_have_count(2)
    page.locator("#play-history button").nth(1).click()
    # Both have the same prompt, and only the chosen one has settings to use.
    expect(page.locator("#play-history button").nth(1)).to_have_attribute("aria-current", "true")
    expect(page.locator("#play-picture .prompt")).to_have_text(HOSTILE)
    page.get_by_role("button", name="Use these settings").click()
    expect(field(page, "prompt")).to_have_value(HOSTILE)
    expect(field(page, "seed")).to_have_value("903")
    expect(picker(page)).to_contain_text("official/style")


def test_reload_in_the_middle_leaves_an_image_that_can_be_rendered(
    start_app: Callable[..., App], visitor: Visitor
) -> None:
    app = start_app("--drawing", "3")
    page = go(visitor, app)
    with app.held(above=0):
        generate(page, prompt="a cat in the middle", seed="907")
        expect(page.locator("#play-status")).to_contain_text("of 4")
        page.reload()
        page.get_by_role("tab", name="Playground").click()
        expect(page.locator("#play-history button")).to_have_attribute("aria-label", re.compile("seed 907.*stopped"))
    expect(page.locator("#play-picture .prompt")).to_have_text("a cat in the middle")
    page.get_by_role("button", name="Render it now").click()
    wait_for_image(page)
    assert app.rendered("907") == ["907 1 True"], "once"


def test_reference_images_can_be_added_ordered_and_removed(drawing_app: App, visitor: Visitor, tmp_path: Path) -> None:
    page = go(visitor, drawing_app)
    for name, size in (("wide.png", (300, 200)), ("tall.jpg", (100, 200))):
        Image.new("RGB", size, "teal").save(tmp_path / name)
    (tmp_path / "bad.png").write_bytes(b"no image")
    page.get_by_role("button", name="Reference images").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add images").click()
    chooser.value.set_files([tmp_path / "wide.png", tmp_path / "bad.png", tmp_path / "tall.jpg"])
    strip = page.locator("#play-references")
    expect(strip.get_by_role("alert")).to_contain_text("bad.png is no whole PNG")
    expect(strip.get_by_role("img")).to_have_count(2)
    first = strip.get_by_role("img", name="Reference image 1")
    wide = str(first.get_attribute("src"))
    assert page.request.get(urljoin(page.url, wide)).ok
    strip.get_by_role("button", name="Move image 1 back").click()
    expect(first).not_to_have_attribute("src", wide)
    strip.get_by_role("button", name="Remove image 1").click()
    expect(strip.get_by_role("img")).to_have_count(1)
    page.get_by_role("button", name="Size and format").click()
    expect(page.get_by_label("Width (px)").last).to_have_value("256")
    page.get_by_text("JPEG", exact=True).click()
    generate(page, seed="904")
    wait_for_image(page)
    expect(page.locator("#play-picture .facts")).to_contain_text("256 × 160 px")
    expect(page.locator("#play-picture .facts")).to_contain_text("1 reference image")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download JPEG").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\xff\xd8")
    assert download.value.suggested_filename.endswith(".jpg")


def test_two_visitors_do_not_see_each_other(public_app: App, new_visitor: Callable[..., Visitor]) -> None:
    pages = [go(new_visitor(), public_app) for _ in range(2)]
    for number, page in enumerate(pages):
        generate(page, prompt=f"the image of visitor {number}")
    for number, page in enumerate(pages):
        wait_for_image(page)
        expect(page.locator("#play-history li")).to_have_count(1)
        page.reload()
        page.get_by_role("tab", name="Playground").click()
        expect(page.locator("#play-picture .prompt")).to_have_text(f"the image of visitor {number}")
        expect(page.locator("#play-history li")).to_have_count(1)
        code = page.locator(".program[aria-label=diffusers] code").text_content()
        assert code
        assert str(Path(__file__).parents[2]) not in code, "no path of the server is shown"


def test_a_phone_shows_everything_without_scrolling_sideways(
    drawing_app: App, new_visitor: Callable[..., Visitor]
) -> None:
    page = go(new_visitor(viewport={"width": 390, "height": 844}), drawing_app)
    picker(page).click()
    box = page.locator(".picker-menu").bounding_box()
    assert box
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.keyboard.press("Escape")
    generate(page, prompt="a" * 300, seed="905")
    expect(page.locator("#play-status")).to_be_in_viewport()
    wait_for_image(page)
    page.get_by_role("button", name="curl", exact=True).click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
