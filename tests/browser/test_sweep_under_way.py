"""A sweep is no page's: it goes on without one, its link follows it from any page, and Back leads to the run before."""

from collections.abc import Callable

from playwright.sync_api import Page, expect

from .conftest import App, Visitor
from .test_sweep_flows import heads, open_link
from .test_sweep_tab import done, fill, run, status, wait_for_end


def wait_for_link(page: Page) -> str:
    page.wait_for_function("new URL(location.href).searchParams.has('sweep')")
    return page.url


def test_a_sweep_fills_without_its_tab_and_a_second_browser_sees_it(
    drawing_app: App, new_visitor: Callable[..., Visitor]
) -> None:
    one, two, three = new_visitor(), new_visitor(), new_visitor()
    page = one.visit(drawing_app)
    fill(page, prompt="a sweep of forty", strengths="0-3.9 [40]", seed="661")
    with drawing_app.held(above=0.2):
        run(page)
        expect(done(page)).to_have_count(3)
        link = wait_for_link(page)
        page.close()
        second = open_link(two, link)
        expect(done(second)).to_have_count(3)
        expect(status(second)).to_contain_text("3 of 40")
        expect(second.get_by_role("button", name="Running …")).to_be_disabled()
    with drawing_app.held(above=1):
        expect(done(second)).to_have_count(11)
        third = open_link(three, link)
        expect(done(third)).to_have_count(11)
        third.get_by_role("button", name="Stop").click()
        for each in (second, third):
            expect(status(each)).to_contain_text("11 of 40 · stopped, 29 left")
            wait_for_end(each)
            expect(each.locator("#resume")).to_have_text("Continue: 29 left")
            expect(each.locator("#stop")).to_be_disabled()
    third.locator("#resume").click()
    expect(done(third)).to_have_count(40)
    wait_for_end(third)
    rendered = drawing_app.rendered(661)
    assert len(rendered) == len(set(rendered)) == 41, "each once, and the control"


def test_back_leads_to_the_run_before_and_forward_to_the_next(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    fill(page, strengths="0, 0.5", seed="671")
    run(page)
    wait_for_end(page)
    first = wait_for_link(page)
    more = page.get_by_label("Add values")
    more.fill("1, 1.5")
    expect(page.locator("#add")).to_have_text("Add 2 images")
    with drawing_app.held(above=1):
        page.locator("#add").click()
        expect(done(page)).to_have_count(3)
        second = page.url
        assert second != first
        page.go_back()
        expect(heads(page)).to_have_text(["0 · base", "0.50"])
        assert page.url == first
        wait_for_end(page)
        expect(page.locator("#refine")).to_be_enabled()
        expect(page.get_by_label("Strengths")).to_have_value("0, 0.5")
        page.go_forward()
        expect(heads(page)).to_have_text(["0 · base", "0.50", "1.00", "1.50"])
        expect(page.locator("#stop")).to_be_enabled()
    wait_for_end(page)
    expect(done(page)).to_have_count(4)
    assert page.url == second
    page.go_back()
    expect(heads(page)).to_have_text(["0 · base", "0.50"])


def test_a_wrong_field_takes_nothing_away_from_the_grid_that_is_there(drawing_app: App, visitor: Visitor) -> None:
    page = visitor.visit(drawing_app)
    fill(page, strengths="0, 1", seed="681")
    run(page)
    wait_for_end(page)
    expect(page.locator("#refine")).to_be_enabled()
    fill(page, seed="seven")
    page.evaluate(
        """() => {
          window.dead = [];
          for (const id of ["download", "refine", "sure"]) {
            const button = document.getElementById(id);
            const note = () => { if (button.disabled) window.dead.push(id); };
            new MutationObserver(note).observe(button, { attributes: true });
          }
        }"""
    )
    run(page)
    expect(page.locator("#sweep-status").get_by_role("alert")).to_contain_text("'seven' is not a whole number")
    expect(page.get_by_role("button", name="Run sweep")).to_be_enabled()
    wrong = page.locator("#sweep-form [aria-invalid=true]")
    expect(wrong).to_have_count(1)
    assert wrong.evaluate("each => each.closest('#seed') !== null")
    for name in ("download", "refine", "sure"):
        expect(page.locator(f"#{name}")).to_be_enabled()
    assert page.evaluate("window.dead") == [], "not for a moment"
    fill(page, seed="682")
    expect(wrong).to_have_count(0)
    fill(page, strengths="0, x")
    run(page)
    expect(wrong).to_have_count(1)
    assert wrong.evaluate("each => each.closest('#strengths') !== null")
