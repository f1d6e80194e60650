"""The Vote tab in a browser: ten blind votes by keyboard alone, undo, reveal, a link for others, touch, dark, axe."""

import re
from collections.abc import Callable

from playwright.sync_api import Page, expect

from .conftest import App, Visitor
from .test_accessibility import check, walk_to
from .test_sweep_tab import fill, run, wait_for_end

STRENGTHS = "0, 0.37, 0.91, 1.13"


def sweep(visitor: Visitor, app: App, *, prompt: str, seed: str) -> Page:
    page = visitor.visit(app)
    fill(page, prompt=prompt, strengths=STRENGTHS, seed=seed)
    page.get_by_role("button", name="More rows").click()
    page.get_by_label("Further seeds").fill("82, 83")
    run(page)
    wait_for_end(page)
    return page


def pair_of(page: Page) -> list[str | None]:
    return [page.locator(f'#vote-stage [data-part="{side}"]').get_attribute("src") for side in ("left", "right")]


def expect_votes(page: Page, number: int) -> None:
    words = f"{number} vote{'s' * (number != 1)} of yours"
    expect(page.locator('#vote-stage [data-part="said"]')).to_contain_text(words)


def expect_blind(page: Page) -> None:
    """Neither the stage nor an address or text on it has a strength, and both pictures are there in full."""
    html = page.locator("#vote").evaluate("part => part.outerHTML")
    for strength in ("0.37", "0.91", "1.13"):
        assert strength not in html
    sizes = page.locator("#vote-stage .pick img").evaluate_all(
        "images => images.map((image) => [image.complete, image.naturalWidth > 0, image.alt])"
    )
    assert sizes == [[True, True, "Left picture"], [True, True, "Right picture"]]


def test_ten_blind_votes_by_keyboard_alone_then_undo_and_the_reveal(drawing_app: App, visitor: Visitor) -> None:
    page = sweep(visitor, drawing_app, prompt="a blind cat", seed="81")
    walk_to(page, page.locator("#vote-blind"))
    page.keyboard.press("Enter")
    expect(page.locator("#vote-stage .vote-pair")).to_be_visible()
    expect_votes(page, 0)
    expect(page.locator("#vote-stage .pick img").last).to_have_js_property("complete", True)
    expect_blind(page)
    seen = []
    for number, key in enumerate(
        ["ArrowLeft", "ArrowRight", "t", "n", "ArrowLeft", "ArrowRight", "t", "n", "T", "ArrowUp"]
    ):
        seen.append(pair_of(page))
        page.keyboard.press(key)
        expect_votes(page, number + 1)
    expect_blind(page)
    assert len({frozenset(pair) for pair in seen}) == 10, "each pair once"
    check(page, "Vote, a pair")
    page.keyboard.press("u")
    expect_votes(page, 9)
    assert pair_of(page) == seen[-1], "the pair that was taken back, with its sides"
    page.keyboard.press("ArrowLeft")
    expect_votes(page, 10)
    page.keyboard.press("r")
    result = page.locator("#vote-result")
    for strength in ("0 (base)", "0.37", "0.91", "1.13"):
        expect(result.locator("tbody th").filter(has_text=re.compile(rf"^{re.escape(strength)}")).first).to_be_visible()
    expect(result).to_contain_text("95% interval")
    expect(result).to_contain_text(re.compile(r"somebody \([0-9a-f]{8}\): 10; neither: 2"))
    expect(result).to_contain_text("What was measured")
    check(page, "Vote, the result")
    walk_to(page, result.get_by_role("button", name="Vote on"))
    page.keyboard.press("Enter")
    expect(page.locator("#vote-stage .vote-pair")).to_be_visible()
    expect(result).not_to_contain_text("interval")
    page.get_by_role("tab", name="Sweep", exact=True).click()
    expect(page.locator("#sweep-verdict")).to_contain_text("10 votes")


def test_whoever_opens_the_link_votes_for_themselves(public_app: App, new_visitor: Callable[..., Visitor]) -> None:
    owner = sweep(
        new_visitor(permissions=["clipboard-read", "clipboard-write"]), public_app, prompt="a shared cat", seed="84"
    )
    owner.locator("#vote-blind").click()
    owner.locator("#vote-name").get_by_role("textbox").fill("Ada")
    owner.locator('#vote-stage [data-press="left"]').last.click()
    expect_votes(owner, 1)
    owner.get_by_role("button", name="Copy link for others").click()
    link = owner.evaluate("navigator.clipboard.readText()")
    assert "?vote=run-" in link

    other = new_visitor(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, color_scheme="dark"
    ).page
    other.goto(link)
    expect(other.locator("#vote-stage .vote-pair")).to_be_visible()
    expect(other.locator('#vote-stage [data-part="said"]')).to_have_text("0 votes of yours, 1 of others")
    expect(other.locator("#vote-stage .pick img").last).to_have_js_property("complete", True)
    expect_blind(other)
    assert other.evaluate("document.documentElement.scrollWidth") <= 390
    check(other, "Vote on a phone, dark")
    before = pair_of(other)
    other.locator("#vote-stage .pick").first.tap()
    expect_votes(other, 1)
    assert pair_of(other) != before
    other.locator('#vote-stage [data-press="neither"]').tap()
    expect_votes(other, 2)
    other.locator('#vote-stage [data-press="undo"]').tap()
    expect(other.locator('#vote-stage [data-part="said"]')).to_have_text("1 vote of yours, 1 of others")
    other.locator('#vote-stage [data-press="reveal"]').tap()
    expect(other.locator("#vote-result")).to_contain_text(
        re.compile(r"Ada \([0-9a-f]{8}\): 1, somebody \([0-9a-f]{8}\): 1")
    )
    check(other, "The result on a phone, dark")
    owner.keyboard.press("u")
    expect(owner.locator('#vote-stage [data-part="said"]')).to_have_text("0 votes of yours, 1 of others")
    other.reload()
    expect(other.locator('#vote-stage [data-part="said"]')).to_have_text("1 vote of yours")
