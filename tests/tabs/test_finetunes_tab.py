"""What the Finetunes tab says, worked out in Python: names, checks, rows, the norm profile, and what its events do."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from evaluation.tabs.finetunes_add import AddEvents
from evaluation.tabs.finetunes_form import (
    AddForm,
    EditForm,
    ListForm,
    check_new_name,
    find_same,
    list_changes,
    make_sweep_form,
    offer_precision,
    propose_name,
)
from evaluation.tabs.finetunes_norms import FLOOR_PX, describe_norms, list_groups, picture_norms
from evaluation.tabs.finetunes_run import FinetunesEvents
from evaluation.tabs.finetunes_view import RunRow, list_file, list_rows, make_row, say_why_not
from evaluation.tabs.page import Caller, Said
from lora_runtime.catalogue import KLEIN_4B, KLEIN_9B, POCKET, Shape
from lora_runtime.errors import InvalidInput, NotFound
from lora_runtime.lora.check import check_file, measure_blocks
from lora_runtime.lora.library import BUNDLED
from lora_runtime.registry.finetunes import Finetunes
from lora_runtime.registry.shelf import Shelf
from lora_runtime.registry.training_runs import TrainingRuns
from lora_runtime.server.service import Service
from lora_runtime.settings import Settings
from lora_runtime.snippets import write_prompt
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database
from tests.drawing_backend import DrawingBackend
from tests.lora_files import make_adapter, write_bfl, write_diffusers

LOCAL = Caller(session="one", organization="local", base_url="https://lab.example")
NOTHING = Said()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    settings = Settings(home=tmp_path / "home")
    database = Database(f"sqlite:///{tmp_path / 'lab.sqlite3'}")
    made = Service(backend=DrawingBackend(), database=database, blobs=Blobs(tmp_path / "api"), settings=settings)
    made.accounts.add_organization("zenith")
    yield made
    made.close()
    database.close()


@pytest.fixture
def registry(service: Service) -> Finetunes:
    return service.finetunes


@pytest.fixture
def training_runs(service: Service, tmp_path: Path) -> TrainingRuns:
    return TrainingRuns(service.database, Shelf(service.finetunes), tmp_path / "loras")


@pytest.fixture
def events(service: Service, training_runs: TrainingRuns) -> FinetunesEvents:
    return FinetunesEvents(
        service,
        training_runs,
        apart=False,
        sweep=lambda form, _: {"swept": form.lora},
        play=lambda name, _: {"played": name},
    )


@pytest.fixture
def lora(tmp_path: Path) -> Callable[..., Path]:
    """Writes a real LoRA of the pocket."""

    def write(name: str = "a", *, rank: int = 2, **metadata: str) -> Path:
        return write_bfl(tmp_path / f"{name}.safetensors", make_adapter(POCKET, rank=rank), metadata=metadata)

    return write


@pytest.mark.parametrize(("shape", "bars"), [(POCKET, 6), (KLEIN_4B, 25), (KLEIN_9B, 32)])
def test_the_picture_has_a_bar_for_every_block_of_the_model(tmp_path: Path, shape: Shape, bars: int) -> None:
    report = check_file(write_diffusers(tmp_path / "a.safetensors", make_adapter(shape, rank=2)))
    picture, blocks = picture_norms(report), measure_blocks(report)
    assert len(picture.columns) == len(picture.rows) == bars == shape.double_blocks + shape.single_blocks
    touched = {bar.words.partition(":")[0]: bar.height for bar in picture.columns if bar.height}
    assert list(touched) == ["Double block 0", "Double block 1", "Single block 0"]
    ratio = [height / max(touched.values()) for height in touched.values()]
    assert ratio == pytest.approx([norm / max(blocks.values()) for norm in blocks.values()])
    assert max(touched.values()) < FLOOR_PX
    assert [word.text for word in picture.words if word.kind == "value"] == [f"{max(blocks.values()):.3g}"]
    assert all(0 <= bar.x <= bar.x + bar.step <= 100.01 for bar in picture.columns)


def test_the_sentence_of_the_picture_says_where_the_change_is() -> None:
    groups = list_groups({"double 0": 3.0, "single 1": 4.0}, POCKET)
    assert describe_norms(groups) == (
        "64 % of it is in the single blocks; the strongest is single block 1, 4. 4 of 6 are left as they are."
    )
    everywhere = {"double 0": 1.0, "double 1": 1.0, **{f"single {n}": 1.0 for n in range(4)}, "top": 7.0}
    outside = describe_norms(list_groups(everywhere, POCKET))
    assert outside == "89 % of it is outside the blocks; the strongest is layers outside the blocks, 7."


def test_layers_outside_the_blocks_have_a_bar_too(tmp_path: Path) -> None:
    adapter = {"context_embedder.A": torch.ones(1, POCKET.text), "context_embedder.B": torch.ones(POCKET.hidden, 1)}
    report = check_file(write_diffusers(tmp_path / "top.safetensors", adapter))
    (bar,) = [bar for bar in picture_norms(report).columns if bar.kind == "top"]
    assert bar.words == f"Layers outside the blocks: {(POCKET.text * POCKET.hidden) ** 0.5:.3g}"


def test_a_report_says_what_the_file_is(lora: Callable[..., Path]) -> None:
    report = check_file(lora(rank=3, trigger_phrase="ohwx", base_model="FLUX.2-klein-base-4B"))
    facts = list_file(report)
    assert {**facts, "Size": "", "SHA-256": ""} == {
        "Format": "BFL / AI-Toolkit", "Rank": "3", "Alpha": "3", "Targets": "5 layers in 3 blocks",
        "Trained on": "pocket klein Base (the file says so)", "Trigger phrase": "ohwx", "Size": "", "SHA-256": "",
    }  # fmt: skip


def test_rows_say_whose_and_offer_what_can_be_done(registry: Finetunes, lora: Callable[..., Path]) -> None:
    registry.add_file("acme", lora(), name="mine", weights="pocket", trigger_phrase="ohwx")
    registry.grant("acme", "mine", "zenith")
    own, shared, official = (
        registry.find(*who) for who in (("acme", "mine"), ("zenith", "acme/mine"), ("zenith", "official/style"))
    )
    row = make_row(own, opened="mine")
    assert (row.base, row.trigger, row.kind, row.opened) == ("pocket klein", "ohwx", "owned", True)
    assert row.acts == ("playground", "sweep", "delete")
    assert make_row(shared).acts == make_row(official).acts == ("playground", "sweep")
    assert say_why_not(own) == ""
    assert say_why_not(shared) == "Shared by acme: only acme can change, share or delete it."
    assert "everybody's" in say_why_not(official)


@pytest.mark.parametrize(
    ("name", "ok", "says"),
    [
        ("", False, "Lowercase letters, digits, hyphens, and underscores only."),
        ("My LoRA", False, "Lowercase letters, digits, hyphens, and underscores only. Try “my-lora”."),
        ("x" * 65, False, "At most 64 characters."),
        ("taken", False, "acme already has a finetune named &#39;taken&#39;. Choose another name."),
        ("deleted", True, "Replaces the deleted finetune of this name for good."),
        ("free_1-x", True, "finetune_id: free_1-x"),
    ],
)
def test_a_name_is_checked_while_it_is_typed(
    registry: Finetunes, lora: Callable[..., Path], name: str, ok: bool, says: str
) -> None:
    for known in ("taken", "deleted"):
        registry.add_file("acme", lora(), name=known, weights="pocket")
    registry.remove("acme", "deleted")
    line, can_be_saved = check_new_name(registry, "acme", name)
    assert can_be_saved is ok
    assert says in line


def test_a_proposed_name_is_free_and_the_same_file_is_noticed(registry: Finetunes, lora: Callable[..., Path]) -> None:
    path = lora("My Portrait")
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
    assert EditForm(base=weights, precision=chosen).settled_precision == value
    assert AddForm(new_base=weights, new_precision=chosen).settled_precision == value


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


def test_the_list_opens_filters_deletes_and_brings_back(
    events: FinetunesEvents, registry: Finetunes, lora: Callable[..., Path]
) -> None:
    registry.add_file("local", lora(), name="mine", weights="pocket")
    opened = dict(events.click(LOCAL, ListForm(), Said(act="open", id="mine")))
    assert (opened["selected"], opened["panel"]["visible"], opened["base"]) == ("mine", True, "pocket")
    assert "https://lab.example/v1/flux-2-klein-pocket-finetuned" in opened["example"]
    assert events.click(LOCAL, ListForm(selected="mine"), Said(act="open", id="mine"))["selected"] == ""
    counts = dict(events.filter(LOCAL, ListForm(shown="Owned", search="MINE"), NOTHING))["shown"]["choices"]
    assert [label for label, _ in counts] == [f"All {len(registry.list('local'))}", "Owned 1", "Shared 0"]
    gone = events.click(LOCAL, ListForm(selected="mine"), Said(act="delete", id="mine"))
    assert (gone["selected"], gone["panel"]["visible"]) == ("", False)
    assert "mine was deleted." in gone["note"]
    assert "mine is back." in events.click(LOCAL, ListForm(), Said(act="restore", id="mine"))["note"]
    assert events.click(LOCAL, ListForm(), Said(act="sweep", id="mine")) == {"swept": "mine"}
    assert events.click(LOCAL, ListForm(), Said(act="playground", id="mine")) == {"played": "mine"}
    assert events.click(LOCAL, ListForm(), Said(act="nonsense", id="mine")) == {}
    with pytest.raises(NotFound):
        events.click(LOCAL, ListForm(), Said(act="delete", id="theirs"))


def test_a_training_run_is_one_row_that_opens(
    events: FinetunesEvents, training_runs: TrainingRuns, registry: Finetunes, tmp_path: Path
) -> None:
    paths = [
        write_bfl(tmp_path / f"x_step{step}.safetensors", make_adapter(POCKET, rank=1, seed=step))
        for step in (500, 1000, 1500)
    ]
    training_runs.keep("local", paths)
    registry.add_file("local", paths[0], name="alone", weights="pocket")  # the same file under another name
    names = [each.id for each in registry.list("local")]

    def rows(form: ListForm) -> list[tuple[str, bool]]:
        listed = list_rows(registry.list("local"), training_runs.list("local"), opened=form.selected,
                           unfolded=form.unfolded)  # fmt: skip
        return [(row.name, row.opened) if isinstance(row, RunRow) else (row.id, row.inside) for row in listed]

    folded = rows(ListForm())
    assert ("x", False) in folded
    assert {name for name, _ in folded} == {"x", *names} - {"x-500", "x-1000", "x-1500", "alone"}
    assert "4 checkpoints" in events.draw(LOCAL, ListForm())["table"]
    opened = events.click(LOCAL, ListForm(), Said(act="unfold", id="x"))
    assert (opened["unfolded"], opened["selected"]) == ("x", "")
    shown = [name for name, inside in rows(ListForm(unfolded="x")) if inside and name != "x"]
    assert shown == ["alone", "x-500", "x-1000", "x-1500"], "in the order of the training"
    assert events.click(LOCAL, ListForm(unfolded="x"), Said(act="unfold", id="x"))["unfolded"] == ""
    found = events.click(LOCAL, ListForm(), Said(act="open", id="x-1000"))
    assert (found["unfolded"], found["selected"], found["panel"]["visible"]) == ("x", "x-1000", True)
    assert "x-500" in events.draw(LOCAL, ListForm(search="500"))["table"], "a search finds a checkpoint"
    assert events.click(LOCAL, ListForm(), Said(act="sweep-run", id="x")) == {"swept": "x"}
    with pytest.raises(NotFound, match="no training run 'y'"):
        events.click(LOCAL, ListForm(), Said(act="sweep-run", id="y"))


def test_the_panel_saves_shares_and_says_what_is_wrong(
    events: FinetunesEvents, registry: Finetunes, lora: Callable[..., Path]
) -> None:
    registry.add_file("local", lora(), name="mine", weights="pocket")
    form = EditForm(selected="mine", base="klein-4b", trigger="sks")
    assert "0 of 5 layers match FLUX.2 [klein] 4B" in events.save(LOCAL, form, NOTHING)["saved"]
    saved = events.save(LOCAL, form.model_copy(update={"base": "pocket-base"}), NOTHING)["saved"]
    assert "Base Model is now pocket klein Base, was pocket klein; Trigger Phrase is now sks, was none" in saved
    assert registry.find("local", "mine").weights == "pocket-base"
    with pytest.raises(InvalidInput, match="is not an organization id"):
        events.grant(LOCAL, form.model_copy(update={"share_to": "Not An Id"}), NOTHING)
    for to, told in (("zenith", "zenith can use it now."), ("nobody", "Is it spelt right?")):
        assert told in events.grant(LOCAL, form.model_copy(update={"share_to": to}), NOTHING)["shared"]
    assert registry.find("local", "mine").granted_to == ("nobody", "zenith")
    assert "cannot use it any more" in events.revoke(LOCAL, form, Said(act="revoke", id="zenith"))["shared"]
    assert registry.find("local", "mine").granted_to == ("nobody",)


@pytest.mark.parametrize(
    ("apart", "asked", "acts_for"), [(False, "zenith", "zenith"), (True, "zenith", "local"), (False, "x", "local")]
)
def test_only_the_owner_of_a_machine_may_act_for_another_organization(
    service: Service, training_runs: TrainingRuns, apart: bool, asked: str, acts_for: str
) -> None:
    events = FinetunesEvents(service, training_runs, apart=apart, sweep=lambda *_: {}, play=lambda *_: {})
    assert events.organization(LOCAL, ListForm(organization=asked)) == acts_for


def test_the_dialog_checks_a_file_proposes_its_fields_and_adds_it(
    events: FinetunesEvents, service: Service, lora: Callable[..., Path], tmp_path: Path
) -> None:
    dialog = AddEvents(service, events)
    (tmp_path / "wrong.safetensors").write_bytes(b"PK\x03\x04" + bytes(60))
    *_, refused = dialog.take(LOCAL, AddForm(file=str(tmp_path / "wrong.safetensors")), NOTHING)
    assert refused["file"] is None
    assert "is a zip archive" in refused["file_hint"]
    form = AddForm(file=str(lora("My Portrait", trigger_phrase="ohwx")))
    *_, taken = dialog.take(LOCAL, form, NOTHING)
    assert (taken["name"], taken["new_base"], taken["new_trigger"]) == ("my-portrait", "pocket", "ohwx")
    assert taken["upload"]["interactive"] is True
    wrong = form.model_copy(update={"name": "x", "new_base": "klein-9b"})
    assert dialog.check(LOCAL, wrong, NOTHING)["upload"]["interactive"] is False
    *_, added = dialog.add(LOCAL, form.model_copy(update={"name": "x", "new_trigger": "ohwx"}), NOTHING)
    assert (added["selected"], added["file"], added["name"]) == ("x", None, "")
    assert service.finetunes.find("local", "x").trigger_phrase == "ohwx"
