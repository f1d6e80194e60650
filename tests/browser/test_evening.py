"""A trainer's evening, by a newcomer who read nothing: drop six checkpoints, be told which, agree blind, take it away.

Nothing is replaced: the app as `make run` starts it, on the bundled pocket klein and its training run. The newcomer
agrees: blind, they take the pictures that they liked in the grid, which are those of the answer.
"""

import base64
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from lora_runtime.lora.library import read_lora
from lora_runtime.pocket import TRAINING
from lora_runtime.proof import LEAST_DB
from tests.pocket_model import draw_plain, load_plain, psnr

from .conftest import App, Visitor
from .test_sweep_tab import done, fill, run, wait_for_end

VOTES = 10
ADVISED = """([checkpoint, best]) => [...document.querySelectorAll("#sweep-grid tbody")]
  .filter((row) => row.dataset.where.split(" ")[0] === checkpoint)
  .flatMap((row) => [...row.querySelectorAll(".cell.done")])
  .filter((cell) => Number.parseFloat(cell.dataset.strength) === best)
  .map((cell) => cell.querySelector("img").getAttribute("src"))"""

DROP = """([names, files]) => {
  const transfer = new DataTransfer();
  for (const [number, name] of names.entries()) {
    const bytes = Uint8Array.from(atob(files[number]), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name));
  }
  const form = document.querySelector("#sweep-form");
  for (const kind of ["dragover", "drop"]) {
    form.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    app = App(tmp_path_factory.mktemp("evening")).start()
    yield app
    assert app.stop() == 0


def drop(page: Page, folder: Path) -> None:
    """Drop the checkpoints of the bundled training run on the form, under names of another training."""
    files = sorted(folder.glob("*.safetensors"))
    names = [f"my_style_{path.stem.rpartition('_')[2]}.safetensors" for path in files]
    page.evaluate(DROP, [names, [base64.b64encode(path.read_bytes()).decode() for path in files]])


def read_pixels(page: Page, source: str) -> bytes:
    """The pixels of a picture on the page: its file says more in the grid than on the stage of a vote."""
    with Image.open(BytesIO(page.request.get(f"{page.url.split('?')[0]}{source}").body())) as image:
        return image.convert("RGB").tobytes()


def vote(page: Page, liked: set[bytes]) -> None:
    """Press the arrow of the picture that was liked in the grid, or T where it is none of the two."""
    stage = page.locator("#vote-stage")
    sides = {"ArrowLeft": "left", "ArrowRight": "right"}
    seen = {key: str(stage.locator(f'[data-part="{side}"]').get_attribute("src")) for key, side in sides.items()}
    page.keyboard.press(next((key for key, source in seen.items() if read_pixels(page, source) in liked), "t"))


def test_a_newcomers_evening(lab: App, visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.visit(lab)
    drop(page, TRAINING)
    expect(page.locator("#upload-box")).to_contain_text("Kept as the training run “my_style (6 checkpoints)”.")
    fill(page, strengths="0, 0.4, 0.8, 1.2")
    expect(page.locator("#sweep-form")).to_contain_text("6 × 4 = 24 images")
    run(page)
    expect(done(page)).to_have_count(24)
    wait_for_end(page)
    page.get_by_role("button", name="Make sure").click()
    answer = page.locator("#sweep-verdict")
    expect(answer.locator(".which")).to_contain_text("Use checkpoint", timeout=300_000)
    named = re.search(r"Use checkpoint (\d+) at ([\d.]+):", answer.inner_text())
    assert named is not None
    checkpoint, best = named.groups()
    expect(page.locator(".heat [data-kind=chosen]")).to_have_attribute("title", re.compile("use this"))
    overtrained = page.locator(".heat tbody tr").last
    expect(overtrained.locator("[data-kind=copies], [data-kind=lost]").first).to_be_visible()

    page.get_by_label("What stands below a picture").select_option("evidence")
    advised = page.evaluate(ADVISED, [checkpoint, float(best)])
    assert len(advised) == 8
    expect(page.locator('#sweep-grid td:has(.told[data-mark="best"]) .told').first).to_contain_text("best")
    page.locator("#open-viewer").click()
    viewer = page.locator("#viewer")
    expect(viewer.get_by_role("heading")).to_have_text(re.compile(rf"Strength {best}0?"))
    expect(viewer.locator("header")).to_contain_text(checkpoint)
    page.keyboard.press("Escape")

    page.get_by_role("button", name="Vote blind").click()
    liked = {read_pixels(page, source) for source in advised}
    expect(page.get_by_label("What is compared")).to_have_value(re.compile(f"{re.escape(best)}: which checkpoint"))
    said = page.locator('#vote-stage [data-part="said"]')
    for number in range(VOTES):
        expect(said).to_contain_text(f"{number} vote")
        vote(page, liked)
    expect(said).to_contain_text(f"{VOTES} votes")
    page.keyboard.press("r")
    result = page.locator("#vote-result")
    expect(result).to_contain_text(f"Use checkpoint {checkpoint} at {best}")
    expect(result.locator("tbody th").first).to_have_text(re.compile(rf"^my_style-{checkpoint} {re.escape(best)}"))

    page.get_by_role("tab", name="Sweep", exact=True).click()
    expect(answer).to_contain_text(f"Use checkpoint {checkpoint} at {best}")
    with page.expect_download(timeout=120_000) as handed:
        page.get_by_role("button", name=f"Export at {best}").click()
    exported = tmp_path / handed.value.suggested_filename
    handed.value.save_as(exported)
    assert checkpoint in exported.name
    original = next(path for path in TRAINING.iterdir() if int(path.stem.rpartition("_")[2]) == int(checkpoint))
    assert read_lora(exported).sha256 != read_lora(original).sha256
    pipeline = load_plain()
    before, after = draw_plain(pipeline, original, float(best)), draw_plain(pipeline, exported, 1.0)
    assert psnr(before, after) >= LEAST_DB
    assert psnr(before, draw_plain(pipeline, original, 0.5 * float(best))) < LEAST_DB
