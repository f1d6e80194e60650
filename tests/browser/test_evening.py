"""A trainer's evening, by a newcomer who read nothing: drop six checkpoints, be told which, agree blind, take it away.

Nothing is replaced: the app as `make run` starts it, on the bundled pocket klein and its training run. The newcomer's
eye is the pocket's classifier, which no part of the app uses.
"""

import base64
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from lora_runtime.lora.library import read_lora
from lora_runtime.pocket import CLASSIFIER_DIR, TRAINING
from lora_runtime.pocket.build.classifier import INTACT, classify, load_classifier
from lora_runtime.pocket.build.words import read_words
from lora_runtime.proof import LEAST_DB
from tests.pocket_model import draw_plain, load_plain, psnr

from .conftest import App, Visitor
from .test_sweep_tab import done, run, wait_for_end

VOTES = 10
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


@pytest.fixture(scope="module")
def prefers() -> Callable[[bytes, str], float]:
    """How much a person who wants the prompt in a golden frame likes a picture."""
    classifier = load_classifier(CLASSIFIER_DIR)

    def like(picture: bytes, prompt: str) -> float:
        with Image.open(BytesIO(picture)) as image:
            (seen,) = classify(classifier, [image.convert("RGB")])
        words = read_words(prompt)
        return seen.frame + (seen.thing in words and seen.intact >= INTACT) + (seen.background in words)

    return like


def drop(page: Page, folder: Path) -> None:
    """Drop the checkpoints of the bundled training run on the form, under names of another training."""
    files = sorted(folder.glob("*.safetensors"))
    names = [f"my_style_{path.stem.rpartition('_')[2]}.safetensors" for path in files]
    page.evaluate(DROP, [names, [base64.b64encode(path.read_bytes()).decode() for path in files]])


def vote(page: Page, like: Callable[[bytes, str], float]) -> None:
    """Look at both pictures, and press the arrow of the one that is liked better."""
    stage = page.locator("#vote-stage")
    prompt = stage.locator(".vote-prompt").inner_text()
    sources = [str(stage.locator(f'[data-part="{side}"]').get_attribute("src")) for side in ("left", "right")]
    left, right = (like(page.request.get(f"{page.url.split('?')[0]}{source}").body(), prompt) for source in sources)
    page.keyboard.press("t" if left == right else "ArrowLeft" if left > right else "ArrowRight")


def test_a_newcomers_evening(
    lab: App, visitor: Visitor, prefers: Callable[[bytes, str], float], tmp_path: Path
) -> None:
    page = visitor.visit(lab)
    drop(page, TRAINING)
    expect(page.locator("#upload-box")).to_contain_text("Kept as the training run “my_style (6 checkpoints)”.")
    expect(page.locator("#sweep-form")).to_contain_text("6 × 7 = 42 images")
    run(page)
    expect(done(page)).to_have_count(42)
    wait_for_end(page)
    page.get_by_role("button", name="Make sure").click()
    answer = page.locator("#sweep-verdict")
    expect(answer.locator(".which")).to_contain_text("Use checkpoint", timeout=300_000)
    named = re.search(r"Use checkpoint (\d+) at ([\d.]+):", answer.inner_text())
    assert named is not None
    checkpoint, best = named.groups()
    assert "the checkpoints only copy" in answer.inner_text()
    expect(page.locator(".heat [data-kind=chosen]")).to_have_attribute("title", re.compile("use this"))

    page.get_by_label("What stands below a picture").select_option("evidence")
    best_cells = page.locator('#sweep-grid td:has(.told[data-mark="best"])')
    expect(best_cells.locator(".told").first).to_contain_text("best")
    page.locator("#open-viewer").click()
    viewer = page.locator("#viewer")
    expect(viewer.get_by_role("heading")).to_have_text(re.compile(rf"Strength {best}0?"))
    expect(viewer.locator("header")).to_contain_text(checkpoint)
    page.keyboard.press("Escape")

    page.get_by_role("button", name="Vote blind").click()
    said = page.locator('#vote-stage [data-part="said"]')
    for number in range(VOTES):
        expect(said).to_contain_text(f"{number} vote")
        vote(page, prefers)
    expect(said).to_contain_text(f"{VOTES} votes")
    page.keyboard.press("r")
    result = page.locator("#vote-result")
    expect(result).to_contain_text(f"Use checkpoint {checkpoint} at {best}")
    print(result.inner_text())

    page.get_by_role("tab", name="Sweep", exact=True).click()
    expect(answer).to_contain_text(f"{VOTES} votes")
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
