"""The whole path with nothing replaced: two apps as `make run` starts them, on the bundled pocket klein.

The second one renders on the first as if that were the BFL API.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from lora_runtime.lora.check import check_file
from lora_runtime.lora.export import write_export
from lora_runtime.lora.library import find_lora, report_of
from tests.app_server import connect

from .conftest import ROOT, App, Visitor
from .serve import keep_loras
from .test_finetunes_tab import registry
from .test_sweep_tab import done, fill, run, wait_for_end

LORA, PROMPT, STRENGTHS, SEED = "subject", "a large ohwx in the snow", "0, 0.5, 1", 11


@pytest.fixture(scope="module")
def first_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    home = tmp_path_factory.mktemp("first")
    keep_loras(home / "loras")
    app = App(home).start()
    yield app
    assert app.stop() == 0


@pytest.fixture(scope="module")
def second_app(first_app: App, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLEIN_LAB_REMOTE", first_app.url)
        app = App(tmp_path_factory.mktemp("second")).start()
    yield app
    assert app.stop() == 0


def pixels(data: bytes) -> bytes:
    with Image.open(BytesIO(data)) as image:
        assert image.format == "PNG"
        return image.tobytes()


def test_a_sweep_on_the_pocket_klein(first_app: App, visitor: Visitor) -> None:
    page = visitor.visit(first_app)
    page.get_by_label("LoRA", exact=True).click()
    page.get_by_role("option", name="house-style").click()
    page.get_by_role("button", name="Advanced").click()
    page.get_by_label("Width (px)").fill("64")
    page.get_by_label("Height (px)").fill("64")
    fill(page, strengths="0, 0.5, 1", seed="7")
    expect(page.locator("#sweep-form")).to_contain_text("3 images")
    run(page)
    # Loading torch and the model takes its time where other work runs.
    expect(done(page)).to_have_count(3, timeout=240_000)
    wait_for_end(page)
    expect(page.get_by_role("region", name="Verdict")).to_contain_text("Trustworthy")
    expect(page.locator("#sweep-grid caption")).to_contain_text("pocket klein")
    expect(page.locator("#sweep-verdict .which.told")).to_be_visible(timeout=240_000)
    page.get_by_role("button", name="More rows").click()
    page.get_by_label("More precisions").click()
    page.locator("#precision").get_by_label("Precision").click()
    page.get_by_role("option", name="BF16").click()
    page.get_by_label("Further precisions").click()
    page.get_by_role("option", name="FP8").first.click()  # the other list may still be on its way out
    page.keyboard.press("Escape")
    expect(page.locator("#sweep-form")).to_contain_text("2 × 3 = 6 images")
    run(page)
    expect(page.locator("#sweep-grid .row th")).to_have_text(["bf16", "fp8"])
    expect(done(page)).to_have_count(6, timeout=240_000)
    wait_for_end(page)
    expect(page.get_by_role("region", name="Verdict")).to_contain_text(
        "fp8 against bf16, same seed and strength: SSIM 0."
    )
    page.get_by_role("button", name="Too strong at 1.0").click()
    run(page)
    expect(done(page)).to_have_count(7)
    expect(page.locator("#sweep-grid th.advised").first).to_be_visible(timeout=240_000)
    heads = page.locator("#sweep-grid .strengths th")
    top = max(index for index, head in enumerate(heads.all()) if "advised" in (head.get_attribute("class") or ""))
    edge = " to ".join(heads.nth(index).inner_text() for index in (top, top + 1))
    expect(page.locator("#refine")).to_have_text(re.compile(f"Refine {edge}: [1-3] images"))
    page.locator("#weights").get_by_label("Weights").click()
    expect(page.get_by_role("option", name="FLUX.2 [klein] 9B (klein-9b) — not here")).to_be_visible()
    page.get_by_role("option", name="FLUX.2 [klein] 9B (klein-9b) — not here").click()
    expect(page.locator("#sweep-form .hint.warn").last).to_be_visible()


def test_browser_client_and_command_line_agree(
    first_app: App, second_app: App, visitor: Visitor, tmp_path: Path
) -> None:
    """One sweep asked for in three ways, each with a home of its own, so that nothing is kept from another."""
    page = visitor.visit(first_app)
    page.get_by_label("LoRA", exact=True).click()
    page.get_by_role("option", name=LORA).click()
    fill(page, prompt=PROMPT, strengths=STRENGTHS, seed=str(SEED))
    expect(page.locator("#sweep-form")).to_contain_text("3 images")
    run(page)
    expect(done(page)).to_have_count(3)
    wait_for_end(page)
    sources = [image.get_attribute("src") for image in page.locator("#sweep-grid table img").all()]
    seen = [pixels(page.request.get(f"{first_app.url}/{source}").body()) for source in sources]

    rows = connect(second_app.url).predict(
        lora=LORA, prompt=PROMPT, strengths=STRENGTHS, seed=SEED, weights="pocket", api_name="/sweep"
    )
    fetched = [pixels(Path(row["image"]).read_bytes()) for row in rows]

    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "evaluation", "sweep", "--lora", LORA, "--prompt", PROMPT, "--strengths", STRENGTHS,
        "--seed", str(SEED), "--out", str(out),
    ]  # fmt: skip
    environment = os.environ | {"KLEIN_LAB_HOME": str(tmp_path / "three")}
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=environment)
    written = [pixels(path.read_bytes()) for path in sorted(out.glob("*strength*.png"))]

    assert len(seen) == 3
    assert len(set(seen)) == 3
    assert seen == fetched == written


def test_rows_of_this_machine_and_of_a_second_one(second_app: App, visitor: Visitor) -> None:
    page = visitor.visit(second_app)
    fill(page, prompt="a red cat in the snow", strengths="0, 1", seed="7")
    page.get_by_role("button", name="More rows").click()
    page.get_by_label("More places").click()
    page.get_by_label("Further places").click()
    page.get_by_role("option", name="The remote server").click()
    expect(page.locator("#sweep-form")).to_contain_text("2 × 2 = 4 images")
    page.get_by_role("button", name="Advanced").first.click()
    page.locator("#sweep-form").get_by_label("Width (px)").fill("64")
    page.locator("#sweep-form").get_by_label("Height (px)").fill("64")
    run(page)
    wait_for_end(page)
    expect(done(page)).to_have_count(4)
    expect(page.locator("#sweep-grid th[scope=rowgroup]").nth(1)).to_contain_text("remote")
    verdict = page.get_by_role("region", name="Verdict")
    expect(verdict).to_contain_text("Every strength acted, and strength 0 is the base model.")
    expect(verdict).to_contain_text("On remote, strength 0 is what the server sent for it")


def test_the_answer_is_taken_away(first_app: App, visitor: Visitor, tmp_path: Path) -> None:
    write_export(report_of(find_lora("style")), tmp_path / "mine.safetensors", strength=1, spelling="kohya")
    with registry(first_app) as finetunes:
        finetunes.add_file("local", tmp_path / "mine.safetensors", name="mine", weights="pocket")
    page = visitor.visit(first_app)
    page.get_by_label("LoRA", exact=True).click()
    page.get_by_role("option", name="mine", exact=True).click()
    fill(page, strengths="0-1.4 [8]", seed="7")
    run(page)
    expect(done(page)).to_have_count(8, timeout=240_000)
    wait_for_end(page)
    expect(page.locator("#take-away")).to_be_hidden()
    page.get_by_role("button", name="Make sure").click()
    expect(page.locator("#take-use")).to_be_visible(timeout=300_000)
    wait_for_end(page)
    told = page.locator("#sweep-verdict .which.told").inner_text()
    best = next(filter(None, (re.search(rule, told) for rule in (r"best ([\d.]+)", r"([\d.]+):"))))[1]
    expect(page.locator("#take-use")).to_have_text(f"Use {best}")
    page.locator("#take-recommend").click()
    expect(page.locator("#take-hint")).to_contain_text(f"mine is recommended at {best}")
    with page.expect_download(timeout=120_000) as handed:
        page.locator("#take-export").click()
    expect(page.locator("#take-hint")).to_contain_text(f"as the original at {best}")
    file = tmp_path / handed.value.suggested_filename
    handed.value.save_as(file)
    assert file.name == f"mine-{best}-diffusers.safetensors"
    assert check_file(file).fits == ("pocket", "pocket-base")
    page.locator("#take-use").click()
    expect(page.get_by_role("slider", name=re.compile("Strength"))).to_have_value(best)
    expect(page.locator("#play-picker .picker-value")).to_contain_text("mine")
    page.get_by_role("tab", name="Finetunes").click()
    expect(page.locator("#finetunes-table")).to_contain_text(f"best at {best}")
    page.get_by_role("button", name="mine", exact=True).click()
    page.locator("#finetune-export-strength input, #finetune-export-strength textarea").first.fill("0.5")
    with page.expect_download(timeout=120_000) as handed:
        page.locator("#finetune-export").click()
    assert handed.value.suggested_filename == "mine-0.5-diffusers.safetensors"
    expect(page.locator("#finetune-export-hint")).to_contain_text("as the original at 0.5")
