"""Looking closely at a grid: how large, where, what stands below, what is hidden; rating in it; A minus B."""

from collections.abc import Callable

from playwright.sync_api import Locator, Page, expect

from .conftest import App, Visitor
from .test_sweep_tab import done, fill, run, wait_for_end

PLACE = """image => {
  const {a, e, f} = new DOMMatrix(getComputedStyle(image).transform);
  const {clientWidth, clientHeight} = image;
  const middle = [(clientWidth / 2 - e) / clientWidth / a, (clientHeight / 2 - f) / clientHeight / a];
  return [a, ...middle].map((each) => Math.round(1000 * each) / 10).join();
}"""
"""How much a picture is enlarged, and which point of it stands in the middle of its frame, in percent."""

BRIGHT = "stage => Number(getComputedStyle(stage).filter.match(/brightness\\(([0-9.]+)\\)/)?.[1] ?? 1)"


def sweep(page: Page, *, seed: int, strengths: str = "0, 0.5, 1", rows: int = 2) -> None:
    """Run a grid of some seeds."""
    fill(page, strengths=strengths, seed=str(seed))
    page.get_by_role("button", name="More rows").click()
    page.get_by_label("Further seeds").fill(", ".join(str(seed + row) for row in range(1, rows)))
    expect(page.locator("#sweep-form")).to_contain_text(f"{rows} × ")
    run(page)
    wait_for_end(page)


def width(cell: Locator) -> float:
    box = cell.bounding_box()
    assert box
    return box["width"]


def wait_for_answer(page: Page) -> None:
    expect(page.locator("#sweep-verdict .which.told")).to_be_visible()


def test_pictures_take_the_size_that_is_chosen_and_the_browser_keeps_it(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    sweep(page, seed=1001)
    fits = width(done(page).first)
    size = page.get_by_label("Width of a picture, in pixels")
    size.fill("640")
    assert width(done(page).first) == 640
    scroll = page.locator("#sweep-grid .grid-scroll")
    assert scroll.evaluate("box => box.scrollWidth > box.clientWidth && box.scrollHeight > box.clientHeight")
    scroll.evaluate("box => box.scrollTo(500, 400)")
    box, label, head = (
        each.bounding_box()
        for each in (
            scroll,
            page.locator("#sweep-grid .row span").first,
            page.locator("#sweep-grid .strengths th").nth(1),
        )
    )
    assert box
    assert label
    assert head
    assert box["x"] <= label["x"] < box["x"] + 20, "the row's label stays in sight"
    assert abs(head["y"] - box["y"]) < 2, "so do the strengths"
    page.reload()
    expect(done(page)).to_have_count(6)
    assert width(done(page).first) == 640
    page.get_by_role("button", name="1:1").click()
    assert width(done(page).first) == 128, "a pixel of the picture is one of the screen"
    page.get_by_role("button", name="Fit", exact=True).click()
    assert width(done(page).first) == fits


def test_a_grid_takes_the_width_of_the_screen(drawing_app: App, new_visitor: Callable[..., Visitor]) -> None:
    page = new_visitor(viewport={"width": 2400, "height": 1000}).visit(drawing_app)
    sweep(page, seed=1001, strengths="0-1.4 [8]")
    assert page.locator("#sweep-grid table").evaluate("table => table.getBoundingClientRect().width") > 1360
    page.get_by_role("tab", name="Finetunes").click()
    expect(page.locator("#finetunes-table")).to_be_visible()
    expect(page.locator(".main.wide")).to_have_count(0)


def test_all_pictures_zoom_and_move_together(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    sweep(page, seed=1001)
    images, zoomed = page.locator("#sweep-grid .cell.done img"), page.locator(".grid-tools [data-part=zoomed]")
    whole = images.first.evaluate(PLACE)
    done(page).nth(1).hover()
    page.keyboard.down("Control")
    page.mouse.wheel(0, -400)
    page.keyboard.up("Control")
    expect(zoomed).to_have_text("223%")
    places = {image.evaluate(PLACE) for image in images.all()}
    assert len(places) == 1
    assert places != {whole}
    expect(page.locator("[data-side=A]")).to_have_count(1)
    before = page.locator("[data-side=A]").get_attribute("aria-label")
    page.mouse.down()
    page.mouse.move(*middle(done(page).nth(1), 40), steps=4)
    page.mouse.up()
    expect(page.locator("[data-side=A]")).to_have_attribute("aria-label", str(before))  # no click
    assert {image.evaluate(PLACE) for image in images.all()} != places
    done(page).first.focus()
    page.keyboard.press("0")
    expect(zoomed).to_have_text("100%")
    assert images.last.evaluate(PLACE) == whole
    page.keyboard.press("+")
    expect(zoomed).to_have_text("125%")
    moved = images.first.evaluate(PLACE)
    page.keyboard.press("Shift+ArrowLeft")
    page.wait_for_function(
        f"before => ({PLACE})(document.querySelector('#sweep-grid .cell img')) !== before", arg=moved
    )
    expect(done(page).first).to_be_focused()
    page.get_by_role("button", name="Back to the whole picture").first.click()
    expect(zoomed).to_have_text("100%")


def middle(cell: Locator, across: float = 0) -> tuple[float, float]:
    box = cell.bounding_box()
    assert box
    return box["x"] + box["width"] / 2 + across, box["y"] + box["height"] / 2


def test_two_fingers_zoom(drawing_app: App, new_visitor: Callable[..., Visitor]) -> None:
    page = new_visitor(viewport={"width": 390, "height": 844}, has_touch=True).visit(drawing_app)
    sweep(page, seed=1001)
    done(page).first.scroll_into_view_if_needed()
    x, y = middle(done(page).first)
    touch = page.context.new_cdp_session(page)
    for kind, apart in (("touchStart", 20), ("touchMove", 30), ("touchMove", 40)):
        points = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(page.locator(".grid-tools [data-part=zoomed]")).to_have_text("200%")


def test_what_stands_below_is_chosen_said_and_coloured(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    sweep(page, seed=1001)
    wait_for_answer(page)
    told, choice = page.locator("#sweep-grid .told"), page.get_by_label("What stands below a picture")
    choice.select_option(label="SSIM to base")
    expect(told.first).to_have_text("1.000")
    heats = [float(each.evaluate("told => told.style.getPropertyValue('--heat')")) for each in told.all()[:3]]
    assert heats[0] == 1.0 > heats[1] > heats[2]
    page.reload()
    expect(told.first).to_have_text("1.000")
    choice.select_option(label="Seconds an image")
    expect(told.nth(1)).to_have_text("0.25")


def test_a_row_and_a_column_are_hidden_and_come_back(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    sweep(page, seed=1001)
    visible = page.locator("#sweep-grid .cell.done:visible")
    page.locator("#sweep-grid .strengths th").nth(1).hover()
    page.get_by_role("button", name="Hide strength 0.50").click()
    expect(visible).to_have_count(4)
    expect(page.locator("#compare select").first.locator("option")).to_have_count(4)
    visible.nth(1).focus()
    page.keyboard.press("r")
    expect(visible).to_have_count(2)
    expect(page.locator(":focus")).to_have_attribute(
        "aria-label", "Strength 1.00, seed 1002, done in 0.25 s. Choose it to compare."
    )
    page.keyboard.press("ArrowLeft")
    expect(page.locator(":focus")).to_have_attribute("data-strength", "0 · base")
    page.keyboard.press("r")
    expect(visible).to_have_count(2)  # the last row stays
    for words, count in (("Show 0.50", 3), ("Show seed 1001", 6)):
        page.get_by_role("button", name=words).click()
        expect(visible).to_have_count(count)
    expect(page.locator(".grid-tools .away")).to_be_hidden()


def test_a_picture_is_rated_in_the_grid_and_the_answer_says_it_at_once(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    sweep(page, seed=1011)
    wait_for_answer(page)
    cell, answer = done(page).nth(1), page.locator("#sweep-verdict")
    cell.hover()
    page.get_by_role("button", name="4 of 5").click()
    expect(page.locator("#sweep-grid .stars").nth(1)).to_have_text("★ 4")
    expect(answer).to_contain_text("0.5 4.0 of 5 (1 rating)")
    done(page).nth(4).focus()
    page.keyboard.press("2")
    expect(answer).to_contain_text("0.5 3.0 of 5 (2 ratings)")
    expect(done(page).nth(4)).to_be_focused()
    page.keyboard.press("2")
    expect(answer).to_contain_text("0.5 4.0 of 5 (1 rating)")
    page.get_by_label("Add values").fill("0.25")
    page.get_by_label("Add values").press("Enter")
    expect(done(page)).to_have_count(8)
    wait_for_end(page)
    expect(page.locator("#sweep-grid .stars").nth(2)).to_have_text("★ 4")
    expect(answer).to_contain_text("0.5 4.0 of 5 (1 rating)")


def test_a_and_b_differ_in_their_strength_alone_and_stay_through_more_strengths(
    drawing_app: App, visitor: Visitor
) -> None:
    page = visitor.visit(drawing_app)
    sweep(page, seed=1021, strengths="0, 0.5, 1")
    chosen = page.locator("#sweep-grid [data-side]")
    refine = page.locator("#refine")
    expect(chosen).to_have_count(2)
    labels = [str(each.get_attribute("aria-label")) for each in chosen.all()]
    assert all("seed 1021" in label for label in labels), labels
    done(page).nth(1).click()
    done(page).nth(2).click()
    expect(refine).to_contain_text("Refine 0.50 to 1.00")
    page.get_by_label("Add values").fill("0.1, 0.4, 1.5, 2")
    page.get_by_label("Add values").press("Enter")
    expect(done(page)).to_have_count(14)
    wait_for_end(page)
    for side, strength in (("A", "0.50"), ("B", "1.00")):
        mine = page.locator(f"#sweep-grid [data-side={side}]")
        expect(mine).to_have_attribute("data-strength", strength)
        source = str(mine.locator("img").get_attribute("src"))
        expect(page.locator(f"#compare .{side.lower()} img")).to_have_attribute("src", source)
    expect(refine).to_contain_text("Refine 0.50 to 1.00")
    refine.click()
    expect(page.locator("#sweep-grid th[scope=col]")).to_have_count(10)
    wait_for_end(page)
    expect(page.locator("#sweep-grid [data-side=A]")).to_have_attribute("data-strength", "0.50")


def test_full_screen_opens_where_the_advice_is_and_shows_a_minus_b(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    sweep(page, seed=1031, strengths="0, 1, 2, 3")
    wait_for_answer(page)
    page.locator("#open-viewer").click()
    box = page.locator("#viewer")
    heading = box.get_by_role("heading")
    expect(heading).to_be_visible()  # the answer's marks stand in the grid by now, which its card may be ahead of
    best = page.evaluate("document.querySelectorAll('#sweep-grid .told[data-mark=best]').length")
    expect(heading).to_have_text(
        f"Strength {page.locator('td:has(.told[data-mark=best]) .cell').first.get_attribute('data-strength')}"
        if best
        else "Strength 0 · base"
    )
    box.get_by_text("Difference", exact=True).click()
    box.get_by_label("Cell A").select_option(index=0)
    box.get_by_label("Cell B").select_option(index=3)
    stage = box.locator(".stage")
    assert stage.evaluate(BRIGHT) == 4
    assert box.locator(".a").evaluate("figure => getComputedStyle(figure).mixBlendMode") == "difference"
    same, apart = brightest(page, stage, 0.5), brightest(page, stage, 0.02)
    assert same < 20 < 200 < apart, "black where they are the same, bright where they differ"
    box.get_by_label("Amplify").fill("16")
    assert stage.evaluate(BRIGHT) == 16
    box.locator(".stage").hover()
    page.mouse.wheel(0, -200)
    expect(box.locator("[data-part=zoomed]")).to_have_text("149%")
    assert len({image.evaluate(PLACE) for image in box.locator(".shot img").all()}) == 1
    page.keyboard.press("0")
    expect(box.locator("[data-part=zoomed]")).to_have_text("100%")


def brightest(page: Page, stage: Locator, share: float) -> int:
    """The brightest channel of a pixel on the screen, that far across and down the stage."""
    import io

    from PIL import Image

    shot = Image.open(io.BytesIO(stage.screenshot())).convert("RGB")
    pixel = shot.getpixel((round(share * shot.width) + 4, round(share * shot.height) + 4))
    assert isinstance(pixel, tuple)
    return max(pixel)


def test_the_divider_ends_where_the_pictures_do(drawing_app: App, new_visitor: Callable[..., Visitor]) -> None:
    page = new_visitor(viewport={"width": 390, "height": 844}).visit(drawing_app)
    fill(page, prompt="a very long prompt that makes a caption of two lines or more " * 2)
    sweep(page, seed=1001)
    panel = page.locator("#compare")
    picture, line = panel.locator(".a .shot").bounding_box(), panel.locator(".split").bounding_box()
    assert picture
    assert line
    assert abs(picture["height"] - line["height"]) < 1
    for side in "AB":
        label = panel.get_by_label(f"Cell {side}")
        assert label.evaluate(
            "list => list.getBoundingClientRect().right <= list.closest('.viewer').getBoundingClientRect().right"
        )
