"""What the Finetunes tab says about a file and its fields, without a browser: picture, report, rules at the field."""

import math
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from evaluation.tabs import finetunes_markup as markup
from evaluation.tabs.finetunes_form import (
    check_new_name,
    find_same,
    list_changes,
    make_sweep_form,
    offer_precision,
    propose_name,
)
from evaluation.tabs.finetunes_norms import describe_norms, draw_norms, list_groups
from lora_runtime.catalogue import KLEIN_4B, KLEIN_9B, POCKET, Shape
from lora_runtime.lora.check import check_file, measure_blocks
from lora_runtime.lora.library import BUNDLED
from lora_runtime.registry.accounts import Accounts
from lora_runtime.registry.finetunes import Finetunes
from lora_runtime.snippets import write_prompt
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database
from tests.lora_files import make_adapter, write_bfl, write_diffusers

HOSTILE = "<img src=x onerror=alert(1)> \"'${alert(2)} {{3}} \u202e"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Finetunes]:
    database = Database(f"sqlite:///{tmp_path / 'lab.sqlite3'}")
    Accounts(database).add_organization("zenith")
    yield Finetunes(database, Blobs(tmp_path / "api"), max_bytes=50_000_000)
    database.close()


class Tags(HTMLParser):
    """The elements of a text, their attributes, and its words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def count(self, tag: str, css: str = "") -> int:
        return sum(name == tag and css in (found.get("class") or "") for name, found in self.tags)


def draw_svg(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])


@pytest.mark.parametrize(("shape", "bars"), [(POCKET, 6), (KLEIN_4B, 25), (KLEIN_9B, 32)])
def test_the_picture_has_a_bar_for_every_block_of_the_model(tmp_path: Path, shape: Shape, bars: int) -> None:
    report = check_file(write_diffusers(tmp_path / "a.safetensors", make_adapter(shape, rank=2)))
    html = draw_norms(report, key="k")
    svg = draw_svg(html)
    groups = svg.findall("g")
    assert len(groups) == bars == shape.double_blocks + shape.single_blocks
    assert svg.get("role") == "img"
    named = {svg.find(f"*[@id='{name}']").tag for name in (svg.get("aria-labelledby") or "").split()}  # type: ignore[union-attr]
    assert named == {"title", "desc"}
    blocks = measure_blocks(report)
    heights = {str(group.findtext("title")): float(group.findall("rect")[1].get("height") or 0) for group in groups}
    touched = [label for label, height in heights.items() if height]
    assert [label.partition(":")[0] for label in touched] == ["Double block 0", "Double block 1", "Single block 0"]
    tallest = max(heights, key=lambda label: heights[label])
    assert tallest.startswith(max(blocks, key=lambda name: blocks[name]).replace(" ", " block ").capitalize())
    ratio = [heights[label] / heights[tallest] for label in touched]
    assert ratio == pytest.approx([norm / max(blocks.values()) for norm in blocks.values()], abs=0.01)
    assert Tags(html).count("td") == bars, "the table says the same"


def test_the_sentence_of_the_picture_says_where_the_change_is() -> None:
    groups = list_groups({"double 0": 3.0, "single 1": 4.0}, POCKET)
    assert describe_norms(groups) == (
        "64 % of it is in the single blocks; the strongest is single block 1, 4. 4 of 6 are left as they are."
    )
    outside = list_groups(
        {"double 0": 1.0, "double 1": 1.0, **{f"single {n}": 1.0 for n in range(4)}, "top": 7}, POCKET
    )
    assert describe_norms(outside).startswith("89 % of it is outside the blocks; the strongest is layers outside")
    assert "left as" not in describe_norms(outside)


def test_layers_outside_the_blocks_have_a_bar_too(tmp_path: Path) -> None:
    adapter = {"context_embedder.A": torch.ones(1, POCKET.text), "context_embedder.B": torch.ones(POCKET.hidden, 1)}
    report = check_file(write_diffusers(tmp_path / "top.safetensors", adapter))
    (bar,) = [group for group in draw_svg(draw_norms(report, key="k")).findall("g") if group.get("class") == "top"]
    norm = math.sqrt(POCKET.text * POCKET.hidden)
    assert bar.findtext("title") == f"Layers outside the blocks: {norm:.3g}"


def test_a_report_says_what_the_file_is_and_keeps_texts_inert(tmp_path: Path) -> None:
    path = write_bfl(
        tmp_path / "a.safetensors",
        make_adapter(POCKET, rank=3),
        metadata={"trigger_phrase": HOSTILE.replace("\u202e", ""), "base_model": "FLUX.2-klein-base-4B"},
    )
    report = check_file(path)
    tags = Tags(markup.draw_report(report, key="k"))
    for said in (
        "pocket klein",
        "pocket klein Base",
        "BFL / AI-Toolkit",
        "5 layers in 3 blocks",
        "says so",
        HOSTILE.strip("\u202e "),
    ):
        assert said in tags.words
    assert not tags.count("img")
    assert not any(name.startswith("on") for _, found in tags.tags for name in found)


def test_rows_say_whose_and_offer_what_can_be_done(registry: Finetunes, tmp_path: Path) -> None:
    path = write_diffusers(tmp_path / "a.safetensors", make_adapter(POCKET, rank=2))
    registry.add_file("acme", path, name="mine", weights="pocket", trigger_phrase=HOSTILE.replace("\u202e", ""))
    registry.grant("acme", "mine", "zenith")
    own, shared = registry.find("acme", "mine"), registry.find("zenith", "acme/mine")
    acts = {
        finetune.id: [
            found.get("data-act") for tag, found in Tags(markup.draw_table([finetune])).tags if tag == "button"
        ]
        for finetune in (own, shared)
    }
    assert acts == {
        "mine": ["open", "playground", "sweep", "delete"],
        "acme/mine": ["open", "playground", "sweep"],
    }
    tags = Tags(markup.draw_table([own], opened="mine"))
    assert not tags.count("img")
    assert [found["aria-expanded"] for _, found in tags.tags if "aria-expanded" in found] == ["true"]
    assert "Owned" in tags.words
    assert "only acme can change" in Tags(markup.draw_heading(shared)).words
    assert [found["data-id"] for _, found in Tags(markup.draw_grants(own)).tags if "data-id" in found] == ["zenith"]


@pytest.mark.parametrize(
    ("name", "ok", "says"),
    [
        ("", False, "Lowercase letters, digits, hyphens, and underscores only."),
        ("My LoRA", False, "Lowercase letters, digits, hyphens, and underscores only. Try “my-lora”."),
        ("x" * 65, False, "At most 64 characters."),
        ("taken", False, "acme already has a finetune named 'taken'. Choose another name."),
        ("deleted", True, "Replaces the deleted finetune of this name for good."),
        ("free_1-x", True, "finetune_id: free_1-x"),
        (HOSTILE, False, "Lowercase letters"),
    ],
)
def test_a_name_is_checked_while_it_is_typed(
    registry: Finetunes, tmp_path: Path, name: str, ok: bool, says: str
) -> None:
    path = write_diffusers(tmp_path / "a.safetensors", make_adapter(POCKET, rank=1))
    for known in ("taken", "deleted"):
        registry.add_file("acme", path, name=known, weights="pocket")
    registry.remove("acme", "deleted")
    hint = check_new_name(registry, "acme", name)
    tags = Tags(hint.html)
    assert (hint.ok, says in tags.words) == (ok, True), tags.words
    assert not tags.count("img")


def test_a_proposed_name_is_free_and_the_same_file_is_noticed(registry: Finetunes, tmp_path: Path) -> None:
    path = write_diffusers(tmp_path / "My Portrait.safetensors", make_adapter(POCKET, rank=1))
    assert propose_name(registry, "acme", path.name) == "my-portrait"
    added = registry.add_file("acme", path, name="my-portrait", weights="pocket")
    assert propose_name(registry, "acme", path.name) == "my-portrait-2"
    assert find_same(registry, "acme", added.lora.sha256) == "my-portrait"
    assert find_same(registry, "zenith", added.lora.sha256) == ""
    assert find_same(registry, "zenith", check_file(BUNDLED / "style.safetensors").file.sha256) == "official/style"


@pytest.mark.parametrize(
    ("weights", "chosen", "value", "interactive"),
    [
        ("klein-9b-kv", "bf16", "bf16", True),
        ("klein-9b-kv", "", "fp8", True),
        ("klein-4b", "bf16", "fp8", False),
        ("pocket", "fp8", "", False),
    ],
)
def test_the_precision_follows_the_base(weights: str, chosen: str, value: str, interactive: bool) -> None:
    update = offer_precision(weights, chosen=chosen)
    assert isinstance(update, dict)
    assert (update["value"], update["interactive"]) == (value, interactive)


def test_changes_are_said_in_the_words_of_the_page() -> None:
    before = {"Base Model": "A", "Precision": "FP8", "Trigger Phrase": ""}
    after = {"Base Model": "B", "Precision": "FP8", "Trigger Phrase": "TOK"}
    assert list_changes(before, after) == "Base Model is now B, was A; Trigger Phrase is now TOK, was none"
    assert list_changes(after, after) == ""


def test_a_first_sweep_has_the_trigger_phrase_and_the_bases_defaults(registry: Finetunes, tmp_path: Path) -> None:
    path = write_diffusers(tmp_path / "a.safetensors", make_adapter(KLEIN_4B, rank=1))
    added = registry.add_file("acme", path, name="mine", weights="klein-base-4b", trigger_phrase="ohwx")
    form = make_sweep_form(added, "mine")
    assert (form.lora, form.weights, form.steps, form.guidance, form.width) == ("mine", "klein-base-4b", 50, 4.0, 1024)
    assert form.prompt == "A portrait of ohwx in a sunlit studio, soft key light"
    assert write_prompt(registry.find("acme", "official/style")) == "a red cat in the snow"
    assert write_prompt(registry.find("acme", "official/subject")) == "a ohwx in the snow"
