"""The Finetunes tab in a browser: add with the file check, each wrong file, edit, share, delete and undo, phone."""

import re
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from playwright.sync_api import Locator, Page, expect
from safetensors.numpy import save_file

from lora_runtime.catalogue import POCKET
from lora_runtime.registry.finetunes import Finetunes
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database

from .conftest import App, Visitor

HOSTILE = "<img src=x onerror=alert(1)> \"'${alert(2)} {{3}}"


def write_lora(path: Path, *, seed: int = 1, zero: bool = False, width: int = POCKET.hidden, trigger: str = "") -> Path:
    """A real LoRA of two layers, written without torch."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_k"):
        down, up = (random.standard_normal(shape, dtype=np.float32) for shape in ((2, width), (width, 2)))
        tensors[f"transformer.{layer}.lora_A.weight"] = down
        tensors[f"transformer.{layer}.lora_B.weight"] = up * (not zero)
    save_file(tensors, path, metadata={"trigger_phrase": trigger} if trigger else None)
    return path


def write_flux1(path: Path) -> Path:
    name = "transformer.transformer_blocks.0.ff.net.0.proj"
    save_file(
        {f"{name}.lora_A.weight": np.ones((1, 3072), "f4"), f"{name}.lora_B.weight": np.ones((12288, 1), "f4")}, path
    )
    return path


@contextmanager
def registry(app: App) -> Iterator[Finetunes]:
    """The app's registry, from another process."""
    database = Database(f"sqlite:///{app.home / 'lab.sqlite3'}")
    yield Finetunes(database, Blobs(app.home / "api"), max_bytes=50_000_000)
    database.close()


def open_finetunes(page: Page) -> None:
    page.get_by_role("tab", name="Finetunes").click()
    expect(page.locator("#finetunes-table table")).to_be_visible()


def open_dialog(page: Page) -> Locator:
    page.get_by_role("button", name="+ Add Finetune").click()
    dialog = page.get_by_role("dialog", name="Add Finetune")
    expect(dialog).to_be_visible()
    return dialog


def drop(page: Page, path: Path) -> None:
    page.set_input_files("#dialog-file input[type=file]", path)


def choose(page: Page, field: str, option: str) -> None:
    page.locator(field).get_by_role("combobox").click()
    page.get_by_role("option", name=option, exact=True).click()


def row(page: Page, finetune_id: str) -> Locator:
    return page.get_by_role("button", name=finetune_id, exact=True)


def test_a_file_is_checked_before_it_is_added_and_its_example_works(
    drawing_app: App, visitor: Visitor, tmp_path: Path
) -> None:
    page = visitor.visit(drawing_app)
    open_finetunes(page)
    add = page.get_by_role("button", name="+ Add Finetune")
    add.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Add Finetune")
    expect(dialog.locator(":focus")).to_have_count(1)
    for _ in range(12):
        page.keyboard.press("Tab")
        at = "document.activeElement"
        assert page.evaluate(f"{at} === document.body || !!{at}.closest('#finetune-dialog')"), "Tab left the dialog"
    dialog.get_by_label("Name", exact=True).focus()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(add).to_be_focused()

    open_dialog(page)
    upload = dialog.get_by_role("button", name="Upload Finetune")
    expect(upload).to_be_disabled()
    drop(page, write_lora(tmp_path / "My Portrait LoRA.safetensors", trigger="ohwx"))
    report = dialog.get_by_role("region", name="File check")
    expect(report).to_contain_text("Every layer fits pocket klein and pocket klein Base.")
    expect(report).to_contain_text("2 layers in 2 blocks")
    expect(report.get_by_role("img", name="Norm of the weight change, block by block")).to_be_visible()
    name = dialog.get_by_label("Name", exact=True)
    expect(name).to_have_value("my-portrait-lora")
    expect(dialog.get_by_label("Trigger Phrase")).to_have_value("ohwx")
    expect(upload).to_be_enabled()
    name.fill("My LoRA")
    expect(dialog).to_contain_text("Lowercase letters, digits, hyphens, and underscores only. Try “my-lora”.")
    expect(upload).to_be_disabled()
    name.fill("added-here")
    expect(upload).to_be_enabled()
    choose(page, "#dialog-base", "FLUX.2 [klein] 9B (KV-cached)")
    expect(dialog).to_contain_text("they fit pocket klein, pocket klein Base. Choose pocket.")
    expect(upload).to_be_disabled()
    choose(page, "#dialog-base", "pocket klein")
    expect(upload).to_be_enabled()
    upload.click()
    expect(dialog).to_be_hidden()

    expect(page.locator("#finetunes-note")).to_contain_text("added-here was added")
    expect(row(page, "added-here")).to_have_attribute("aria-expanded", "true")
    example = page.get_by_role("region", name="API example in curl")
    expect(example).to_contain_text('"finetune_id": "added-here"')
    expect(example).to_contain_text("ohwx")
    program = example.inner_text()
    assert f"{drawing_app.url}/v1/flux-2-klein-pocket-finetuned" in program
    if shutil.which("curl") and shutil.which("jq"):
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=600, check=True)
        with urllib.request.urlopen(done.stdout.strip()) as picture:
            assert picture.headers["content-type"] == "image/jpeg"
    page.locator("#finetune-language").get_by_text("Python").click()
    expect(page.get_by_role("region", name="API example in python")).to_contain_text("import os, time, requests")

    page.get_by_role("button", name="Sweep added-here").click()
    expect(page.locator("#lora").get_by_role("combobox")).to_have_value(re.compile("added-here"))
    expect(page.locator("#prompt textarea")).to_have_value("a ohwx in the snow")
    open_finetunes(page)
    page.get_by_role("button", name="Try added-here in the Playground").click()
    expect(page.get_by_role("tab", name="Playground")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#play-form")).to_contain_text("added-here")


def test_files_that_cannot_be_used_say_why_in_the_dialog(drawing_app: App, visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.visit(drawing_app)
    open_finetunes(page)
    dialog = open_dialog(page)
    whole = write_lora(tmp_path / "whole.safetensors", seed=2)
    wrong = {
        "pickle.ckpt": (b"\x80\x02}q\x00." * 9, "is a Python pickle, not a safetensors file"),
        "archive.safetensors": (b"PK\x03\x04" + bytes(60), "is a zip archive"),
        "cut-off.safetensors": (whole.read_bytes()[:-40], "was cut off or damaged"),
        "flux1.safetensors": (write_flux1(tmp_path / "f.safetensors").read_bytes(), "is a LoRA for FLUX.1"),
        "zero.safetensors": (write_lora(tmp_path / "z.safetensors", zero=True).read_bytes(), "will change nothing"),
    }
    upload, problem = dialog.get_by_role("button", name="Upload Finetune"), page.locator("#dialog-file-hint")
    for name, (data, says) in wrong.items():
        (tmp_path / name).write_bytes(data)
        drop(page, tmp_path / name)
        expect(problem).to_contain_text(f"This file cannot be added. {name}")
        expect(problem).to_contain_text(says)
        expect(upload).to_be_disabled()
    drop(page, whole)
    expect(problem).to_be_empty()
    expect(upload).to_be_enabled()
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    with registry(drawing_app) as finetunes:
        assert not [found for found in finetunes.list("local") if found.name in ("whole", "flux1", "zero", "cut-off")]
    open_dialog(page)
    expect(dialog.get_by_label("Name", exact=True)).to_have_value("")
    expect(upload).to_be_disabled()


def test_a_recommended_strength_is_what_the_playground_begins_with(
    drawing_app: App, visitor: Visitor, tmp_path: Path
) -> None:
    with registry(drawing_app) as finetunes:
        finetunes.add_file("local", write_lora(tmp_path / "c.safetensors", seed=5), name="soft", weights="pocket")
        finetunes.edit("local", "soft", recommended_strength="0.65")
    page = visitor.visit(drawing_app)
    open_finetunes(page)
    page.get_by_role("button", name="Try soft in the Playground").click()
    expect(page.locator("#play-picker .picker-value")).to_contain_text("soft")
    expect(page.get_by_role("slider", name=re.compile("Strength"))).to_have_value("0.65")


def test_edit_share_delete_and_undo(drawing_app: App, visitor: Visitor, tmp_path: Path) -> None:
    with registry(drawing_app) as finetunes:
        finetunes.add_file("local", write_lora(tmp_path / "a.safetensors", seed=3), name="edited", weights="pocket")
        finetunes.add_file("acme", write_lora(tmp_path / "b.safetensors", seed=4), name="theirs", weights="pocket")
        finetunes.grant("acme", "theirs", "local")
    page = visitor.visit(drawing_app)
    open_finetunes(page)
    row(page, "edited").focus()
    page.keyboard.press("Enter")
    panel = page.locator("#finetune-panel")
    expect(panel.get_by_role("region", name="API example in curl")).to_contain_text('"edited"')
    expect(row(page, "edited")).to_be_focused()
    panel.get_by_label("Trigger Phrase").fill("sks")
    panel.get_by_label("Recommended Strength").fill("5")
    page.keyboard.press("Tab")
    expect(panel).to_contain_text("5 is not above 0 and at most 2")
    panel.get_by_label("Recommended Strength").fill("0.75")
    page.keyboard.press("Tab")
    expect(panel).to_contain_text("Examples and the Playground begin with 0.75.")
    choose(page, "#finetune-base", "FLUX.2 [klein] 4B")
    expect(panel).to_contain_text("edited: 0 of 2 layers match FLUX.2 [klein] 4B")
    panel.get_by_role("button", name="Save changes").click()
    expect(page.locator("#finetune-saved")).to_contain_text("Not saved")
    choose(page, "#finetune-base", "pocket klein Base")
    panel.get_by_role("button", name="Save changes").click()
    expect(page.locator("#finetune-saved")).to_contain_text("Base Model is now pocket klein Base, was pocket klein")
    expect(panel.get_by_role("region", name="API example in curl")).to_contain_text("a sks in the snow")
    expect(panel.get_by_role("region", name="API example in curl")).to_contain_text('"finetune_strength": 0.75')
    expect(page.locator("#finetunes-table")).to_contain_text("best at 0.75")

    panel.get_by_label("Share with another Organization").fill("Not An Id")
    panel.get_by_role("button", name="+ Grant").click()
    expect(panel).to_contain_text("'Not An Id' is not an organization id")
    panel.get_by_label("Share with another Organization").fill("acme")
    page.keyboard.press("Enter")
    expect(panel).to_contain_text("acme can use it now.")
    with registry(drawing_app) as finetunes:
        assert finetunes.find("acme", "local/edited").trigger_phrase == "sks"

    page.get_by_role("button", name="Delete edited").click()
    note = page.locator("#finetunes-note")
    expect(note).to_contain_text("edited was deleted.")
    expect(row(page, "edited")).to_have_count(0)
    expect(panel).to_be_hidden()
    with registry(drawing_app) as finetunes:
        assert "local/edited" not in [found.id for found in finetunes.list("acme")]
    note.get_by_role("button", name="Undo").click()
    expect(note).to_contain_text("edited is back, shared as before.")
    row(page, "edited").click()
    panel.get_by_role("button", name="Revoke the grant of acme").click()
    expect(panel).to_contain_text("acme cannot use it any more.")
    with registry(drawing_app) as finetunes:
        assert "local/edited" not in [found.id for found in finetunes.list("acme")]

    page.locator("#finetunes-shown").get_by_text("Shared").click()
    expect(page.locator("#finetunes-table tbody tr")).to_have_count(1)
    row(page, "acme/theirs").click()
    expect(panel).to_contain_text("Shared by acme: only acme can change, share or delete it.")
    expect(panel.get_by_role("button", name="Save changes")).to_be_hidden()
    expect(page.get_by_role("button", name="Delete acme/theirs")).to_have_count(0)
    choose(page, "#finetunes-organization", "acme")
    page.locator("#finetunes-shown").get_by_text("Owned").click()
    expect(row(page, "theirs")).to_be_visible()
    page.get_by_role("button", name="Sweep theirs").click()
    expect(page.locator("#lora").get_by_role("combobox")).to_have_value(re.compile("acme/theirs"))


def test_a_phone_shows_all_of_it_and_hostile_texts_stay_texts(
    drawing_app: App, new_visitor: Callable[..., Visitor], tmp_path: Path
) -> None:
    page = new_visitor(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True).visit(drawing_app)
    page.get_by_role("button", name="tabs").or_(page.get_by_role("tab", name="Finetunes")).last.click()
    if not page.locator("#finetunes").is_visible():
        page.get_by_text("Finetunes", exact=True).last.click()
    dialog = open_dialog(page)
    drop(page, write_lora(tmp_path / "${alert(1)} <b>{{x}}.safetensors", seed=5, trigger=HOSTILE))
    expect(dialog.get_by_role("region", name="File check")).to_contain_text(HOSTILE)
    expect(dialog.get_by_label("Name", exact=True)).to_have_value("alert-1-bx")
    box = dialog.bounding_box()
    assert box is not None
    assert (box["x"], box["width"]) == (0, 390)
    dialog.get_by_role("button", name="Upload Finetune").click()
    expect(dialog).to_be_hidden()
    expect(row(page, "alert-1-bx")).to_have_attribute("aria-expanded", "true")
    expect(page.locator("#finetune-trigger").get_by_role("textbox")).to_have_value(HOSTILE)
    expect(page.locator("#finetunes-table")).to_contain_text(HOSTILE)
    assert page.locator("#finetunes img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_visitors_kept_apart_have_their_own_and_share_by_id(
    public_app: App, new_visitor: Callable[..., Visitor], tmp_path: Path
) -> None:
    one, other = new_visitor().visit(public_app), new_visitor().visit(public_app)
    open_finetunes(one)
    dialog = open_dialog(one)
    drop(one, write_lora(tmp_path / "private.safetensors"))
    dialog.get_by_role("button", name="Upload Finetune").click()
    expect(row(one, "private")).to_be_visible()
    open_finetunes(other)
    expect(row(other, "official/style")).to_be_visible()
    expect(row(other, "private")).to_have_count(0)
    their_id = other.locator("#finetunes code").first.inner_text()
    assert re.fullmatch(r"visitor-[0-9a-f]{32}", their_id)
    one.get_by_label("Share with another Organization").fill(their_id)
    one.get_by_role("button", name="+ Grant").click()
    expect(one.get_by_role("button", name=f"Revoke the grant of {their_id}")).to_be_visible()
    other.get_by_role("tab", name="Sweep").click()
    open_finetunes(other)
    other.locator("#finetunes-shown").get_by_text("Shared").click()
    expect(other.locator("#finetunes-table tbody tr")).to_have_count(1)
    expect(other.locator("#finetunes-organization")).to_be_hidden()
    one.reload()
    open_finetunes(one)
    expect(row(one, "private")).to_be_visible()
