"""One sweep asked for in three ways, from a browser, from gradio_client and on the command line: the same pixels."""

import os
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from gradio_client import Client
from PIL import Image
from playwright.sync_api import expect

from .conftest import ROOT, App, Visitor
from .test_sweep_tab import done, fill, run, wait_for_end

LORA, PROMPT, STRENGTHS, SEED = "subject", "a large ohwx in the snow", "0, 0.5, 1", 11


def pixels(data: bytes) -> bytes:
    with Image.open(BytesIO(data)) as image:
        assert image.format == "PNG"
        return image.tobytes()


def test_browser_client_and_command_line_agree(start_app: Callable[..., App], visitor: Visitor, tmp_path: Path) -> None:
    app = start_app(home=tmp_path / "one")
    page = visitor.visit(app)
    page.get_by_label("LoRA", exact=True).click()
    page.get_by_role("option", name=LORA).click()
    fill(page, prompt=PROMPT, strengths=STRENGTHS, seed=str(SEED))
    expect(page.locator("#sweep-form")).to_contain_text("3 images")
    run(page)
    expect(done(page)).to_have_count(3)
    wait_for_end(page)
    sources = [image.get_attribute("src") for image in page.locator("#sweep-grid table img").all()]
    seen = [pixels(page.request.get(f"{app.url}/{source}").body()) for source in sources]
    app.stop()

    other = start_app(home=tmp_path / "two")  # another home, so that nothing is kept from the first
    rows = Client(other.url, verbose=False).predict(
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
