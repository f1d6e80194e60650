"""A sweep is no page's: it goes on without one, its link follows it from any page, and Back leads to the run before."""

import os
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.drawing_backend import make_lora

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


def keep_checkpoint(folder: Path, step: int) -> Path:
    """A checkpoint that the trainer wrote a while ago."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"growing_step{step}.safetensors"
    path.write_bytes(make_lora(f"growing-{step}").path.read_bytes())
    os.utime(path, (1, 1))
    return path


def sweep_training(visitor: Visitor, app: App, *, seed: int) -> Page:
    """Sweep the two checkpoints of a folder that a trainer may write to, on two scenes."""
    for step in (500, 1000):
        keep_checkpoint(app.home / "loras" / "growing", step)
    page = visitor.visit(app)
    page.locator("#lora").get_by_role("combobox").click()
    page.get_by_role("option", name="growing (2 checkpoints)").click()
    fill(page, strengths="0, 1", seed=str(seed))
    page.get_by_role("button", name="More rows").click()
    page.get_by_label("Further seeds").fill(str(seed + 1))
    expect(page.locator("#sweep-form")).to_contain_text("8 images")
    run(page)
    expect(done(page)).to_have_count(8)
    wait_for_end(page)
    return page


def test_a_checkpoint_is_swept_as_it_appears_once_it_is_whole(start_app: Callable[..., App], visitor: Visitor) -> None:
    app = start_app("--drawing", "0.05")
    page, folder = sweep_training(visitor, app, seed=691), app.home / "loras" / "growing"
    grown, offer = page.locator("#grown"), page.locator("#grown button")
    expect(grown).to_contain_text("The folder is looked at for new checkpoints.")
    expect(offer).to_be_disabled()
    first = wait_for_link(page)
    keep_checkpoint(folder, 1500)
    expect(offer).to_have_text("Sweep 1 new checkpoint")
    expect(grown).to_contain_text("New in the folder: 1500.")
    offer.click()
    expect(done(page)).to_have_count(12)
    wait_for_end(page)
    assert page.url != first
    expect(offer).to_be_disabled()
    page.get_by_label("as they appear").check()
    page.get_by_role("tab", name="Finetunes").click()  # it is looked at on other tabs too
    half = keep_checkpoint(folder, 2000)
    whole = half.read_bytes()
    half.write_bytes(whole[:-100])
    os.utime(half, (1, 1))
    keep_checkpoint(folder, 2500)
    expect(done(page)).to_have_count(16)
    half.write_bytes(whole)
    expect(done(page)).to_have_count(20)
    page.get_by_role("tab", name="Sweep", exact=True).click()
    wait_for_end(page)
    drawn = len(app.rendered(691)) + len(app.rendered(692))
    assert drawn == 2 + 5 * 2 + 5, "each once: a base image a scene, the checkpoints on both, and a control of each"
    expect(page.locator("#sweep-grid table caption")).to_contain_text("growing (5 checkpoints)")
    expect(page.get_by_label("as they appear")).to_be_checked()


def test_arrows_skip_the_scenes_that_are_folded_away(start_app: Callable[..., App], visitor: Visitor) -> None:
    page = sweep_training(visitor, start_app("--drawing", "0"), seed=695)
    cells = done(page)
    cells.first.focus()
    page.keyboard.press("ArrowDown")
    expect(cells.nth(4)).to_be_focused()  # the next checkpoint's first scene
    page.get_by_label("Show all scenes of 500").check()
    cells.nth(4).focus()
    page.keyboard.press("ArrowUp")
    expect(cells.nth(2)).to_be_focused()
    page.get_by_label("Show all scenes of 500").uncheck()
    expect(page.locator("#sweep-grid button.cell[tabindex='0']")).to_be_visible()  # Tab leads to one that is in sight
