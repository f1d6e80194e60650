"""The Playground without a page: form to spec, routes, what each organization can choose, what is shown of an image."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evaluation.grid import SweepSpec, plan
from evaluation.report.draw import draw
from evaluation.store.store import Store
from evaluation.tabs.page import Caller, Changes, Said
from evaluation.tabs.playground_form import (
    RATIOS,
    Choice,
    Model,
    Models,
    PlayForm,
    fill_play_form,
    list_shapes,
    make_base_spec,
    make_play_spec,
    name_shape,
    size_of,
    slide_to,
    sweep_form,
)
from evaluation.tabs.playground_run import PlayHandlers
from evaluation.tabs.playground_view import Program, draw_picker, view_groups, view_picture, view_waiting
from lora_runtime.backends.base import Backend
from lora_runtime.backends.remote import RemoteBackend
from lora_runtime.catalogue import POCKET, WEIGHTS, find_weights
from lora_runtime.errors import InvalidInput, NotFound, RenderFailed, Unavailable
from lora_runtime.lora.library import find_lora, refer_to
from lora_runtime.references import read_reference
from lora_runtime.registry.finetunes import Finetunes
from lora_runtime.registry.shelf import Shelf
from lora_runtime.server.service import Service
from lora_runtime.settings import Settings
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database
from lora_runtime.values import ModelStatus, Precision, Reference
from tests.api_server import run_server
from tests.app_server import closed_loops  # noqa: F401 - a fixture
from tests.drawing_backend import DrawingBackend
from tests.lora_files import make_adapter, write_diffusers

STYLE = Choice(kind="finetune", finetune_id="official/style")
BASE = Choice(kind="base", weights="pocket")
CALLER, OTHER = (Caller(session=name, organization=name, base_url="http://lab:7860") for name in ("local", "two"))
SAID = Said()
HOSTILE = "<img src=x onerror=alert(1)> ${6*7} {{value}} \"quotes'"


class Klein(DrawingBackend):
    """Says of the full weights what a machine without them says."""

    def models(self) -> Sequence[ModelStatus]:
        reason = "FLUX.2 [klein] 9B (KV-cached) is not on this machine. Download it."
        return [
            *super().models(),
            ModelStatus(weights="klein-9b-kv", precision="bf16", available=False, reason=reason),
            ModelStatus(weights="klein-9b-kv", precision="fp8", available=True, digest="kv"),
        ]


@pytest.fixture
def database(home: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{home / 'lab.sqlite3'}")
    yield database
    database.close()


@pytest.fixture
def finetunes(home: Path, database: Database) -> Finetunes:
    return Finetunes(database, Blobs(home / "api"), max_bytes=2**30)


@pytest.fixture
def backends() -> dict[str, Backend]:
    return {"drawing": Klein()}


@pytest.fixture
def models(backends: dict[str, Backend], finetunes: Finetunes) -> Models:
    models = Models(backends, Shelf(finetunes), weights="pocket")
    models.learn()
    return models


@pytest.fixture
def style(models: Models) -> Model:
    return models.find("local", STYLE)


@pytest.fixture
def make(models: Models, backends: dict[str, Backend]) -> Callable[..., SweepSpec]:
    """The spec of a form with some fields changed."""

    def make(**changes: object) -> SweepSpec:
        asked = form(**changes)
        return make_play_spec(
            {"remote": DrawingBackend(server="http://lab:7860"), **backends}, asked, models.find("local", asked.model)
        )

    return make


def add(finetunes: Finetunes, folder: Path, organization: str, name: str) -> str:
    path = write_diffusers(folder / f"{name}.safetensors", make_adapter(POCKET, seed=len(name)))
    return finetunes.add_file(organization, path, name=name, weights="pocket", trigger_phrase="ohwx").id


def finetune(name: str) -> Choice:
    return Choice(kind="finetune", finetune_id=name)


def form(**changes: object) -> PlayForm:
    return PlayForm(model=STYLE, where="drawing", prompt="a cat", seed="7").change(**changes)


def draw_image(path: Path, size: tuple[int, int]) -> Reference:
    Image.new("RGB", size, "teal").save(path)
    return read_reference(path)


def test_bases_come_first_then_the_finetunes_of_the_organization(
    models: Models, finetunes: Finetunes, tmp_path: Path
) -> None:
    add(finetunes, tmp_path, "acme", "mine")
    add(finetunes, tmp_path, "other", "secret")
    add(finetunes, tmp_path, "other", "given")
    finetunes.grant("other", "given", "acme")
    listed = models.list("acme")
    assert [model.title for model in listed[: len(WEIGHTS)]] == [weights.label for weights in WEIGHTS.values()]
    tuned = {model.title: model.whose for model in listed[len(WEIGHTS) :]}
    assert list(tuned)[:2] == ["mine", "other/given"]
    assert (tuned["mine"], tuned["other/given"], tuned["official/style"]) == ("yours", "shared by other", "official")
    assert "other/secret" not in tuned
    assert models.find("acme", finetune("mine")).trigger_phrase == "ohwx"
    assert all(models.find("acme", model.choice) == model for model in listed)


@pytest.mark.parametrize(
    "choice",
    [
        None,
        Choice(kind="finetune", finetune_id="other/secret"),
        Choice(kind="finetune", finetune_id="secret"),
        Choice(kind="base", weights="none"),
        Choice(kind="file", weights="pocket", sha256="abc"),
    ],
)
def test_a_choice_of_somebody_else_leads_nowhere(
    models: Models, finetunes: Finetunes, tmp_path: Path, choice: Choice | None
) -> None:
    add(finetunes, tmp_path, "other", "secret")
    sha256 = finetunes.find("other", "secret").lora.sha256
    by_digest = Choice(kind="file", weights="pocket", sha256=sha256)
    assert models.find("other", by_digest).title == "secret"
    for wanted in (choice, by_digest):
        with pytest.raises(NotFound):
            models.find("acme", wanted)


def test_a_finetune_goes_to_its_own_endpoint(models: Models, style: Model) -> None:
    kv = replace(style, weights=find_weights("klein-9b-kv"), precision="fp8")
    asked: list[tuple[Model, Precision | None]] = [
        (models.find("local", BASE), None), (style, None), (kv, None), (kv, "fp8"), (kv, "bf16"),
    ]  # fmt: skip
    endpoints = [models.route(model, precision, "drawing")[0] for model, precision in asked]
    assert [endpoint.name for endpoint in endpoints if endpoint] == [
        "flux-2-klein-pocket",
        "flux-2-klein-pocket-finetuned",
        "flux-2-klein-9b-kv-finetuned",
        "flux-2-klein-9b-kv-finetuned",
        "flux-2-klein-9b-kv-bf16-finetuned",
    ]


@pytest.mark.parametrize(
    ("weights", "precision", "words"),
    [
        ("klein-9b-kv", "bf16", "is not on this machine. Download it."),
        ("klein-9b-kv", "fp32", "Precision fp32 is not offered for klein-9b-kv here. Choose one of: bf16, fp8."),
        ("klein-4b", None, "The drawing backend does not run klein-4b."),
        ("pocket-base", None, "Not installed: run make."),
        ("klein-9b-kv", "fp8", ""),
    ],
)
def test_what_cannot_run_says_why_in_the_words_of_a_render(
    models: Models, backends: dict[str, Backend], weights: str, precision: Precision | None, words: str
) -> None:
    model = models.find("local", Choice(kind="base", weights=weights))
    reason = models.route(model, precision, "drawing")[1]
    assert words in reason
    if words:
        with pytest.raises((Unavailable, InvalidInput), match=re.escape(reason)):
            make_play_spec(backends, form(model=model.choice, precision=precision or "", width=None), model)
    fresh = Models(backends, models._shelf, weights=weights)
    assert (fresh.first, fresh.server("drawing")) == (model.choice, None)
    assert not fresh.route(model, precision, "drawing")[1], "before the backends were asked nothing is said"


def test_a_form_is_a_sweep_of_one_cell(make: Callable[..., SweepSpec], tmp_path: Path) -> None:
    images = (draw_image(tmp_path / "a.png", (96, 64)),)
    spec = make(strength="-0,35", width=96, height=64, references=images, seed=" 8 ")
    (cell,) = plan(spec)
    request = cell.request
    assert request.lora is not None
    assert request.lora.name == "style", "a bundled one goes by its plain name, as on the other tabs"
    assert (request.strength, request.seed, request.width, request.height) == (Decimal("-0.35"), 8, 96, 64)
    assert request.references == images
    (base,) = plan(make_base_spec(spec))
    assert base.request == replace(request, lora=None, strength=Decimal(0))
    assert base.identity == cell.base
    assert plan(make(model=BASE))[0].request.lora is None
    assert make(seed="").seeds != make(seed="").seeds, "an empty seed is a new one for each image"
    (same,) = plan(make(**dict(fill_play_form(request, backend="drawing"))))
    assert same.identity == cell.identity
    wide = sweep_form(request, backend="drawing", lora="style")
    assert (wide.lora, wide.prompt, wide.seed, wide.width) == ("style", "a cat", "8", 96)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strength": "much"}, "Strength: 'much' is not a number"),
        ({"strength": ""}, "is not a number"),
        ({"strength": "nan"}, "is not a number"),
        ({"strength": "15.01"}, "must be from -15 to 15"),
        ({"seed": "seven"}, "'seven' is not a whole number"),
        ({"prompt": " "}, "write at least one word"),
        ({"width": 100}, "must be a multiple of 16"),
        ({"guidance": 3.0}, "is distilled and takes none"),
        ({"where": "elsewhere"}, "there is no backend 'elsewhere' here"),
    ],
)
def test_a_wrong_field_is_named(make: Callable[..., SweepSpec], changes: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        make(**changes)


@given(st.decimals(min_value=-4, max_value=4, places=4))
def test_a_strength_is_read_exactly(strength: Decimal) -> None:
    model = Model(choice=BASE, weights=find_weights("pocket"), title="", lora=find_lora("style"))
    for written in (f" {strength} ", str(strength).replace(".", ",")):
        spec = make_play_spec({"drawing": DrawingBackend()}, form(strength=written), model)
        assert spec.strengths == (strength,)
    assert 0 <= slide_to(str(strength)) <= 2


def test_a_remote_finetune_goes_by_its_id_there(make: Callable[..., SweepSpec]) -> None:
    (lora,) = make(where="remote", remote_id=" my-style ").loras
    assert (lora.finetune_id, lora.sha256) == ("my-style", find_lora("style").sha256)
    only_there = make(where="remote", remote_id="acme/there", model=BASE)
    assert (only_there.loras, only_there.strengths) == ((refer_to("acme/there"),), (Decimal(1),))
    assert make(remote_id="my-style").loras[0].finetune_id is None


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_shape_is_one_the_weights_render(name: str) -> None:
    weights = find_weights(name)
    low, high = weights.sizes
    for ratio in RATIOS:
        size = size_of(ratio, weights)
        assert size is not None
        assert all(side % 16 == 0 and low <= side <= high for side in size)
        assert abs(size[0] / size[1] / float(RATIOS[ratio]) - 1) < 0.15
        assert name_shape(*size, weights) == ratio
    assert name_shape(64, 256, weights) == "custom"
    assert [value for _, value in list_shapes(weights)] == [*RATIOS, "custom"]


def test_a_picture_can_have_the_shape_of_the_first_reference(tmp_path: Path) -> None:
    images = [draw_image(tmp_path / "a.png", (300, 200))]
    pocket = find_weights("pocket")
    assert size_of("image", pocket, images) == (256, 160)
    assert list_shapes(pocket, images)[0] == ("As image 1 · 256 × 160", "image")
    assert size_of("image", pocket) is None


def test_the_picker_puts_what_cannot_run_last_and_keeps_what_is_chosen(models: Models, style: Model) -> None:
    base = models.find("local", BASE)
    missing = models.find("local", Choice(kind="base", weights="klein-4b"))
    assert view_groups([base, missing], style, {missing.choice: "It is not here."}) == {
        "Base models": [base],
        "Finetunes": [style],
        "What cannot run here, and why": [missing],
    }
    assert (style.title, style.tags) == ("official/style", ("pocket klein", "official"))
    subject = models.find("local", Choice(kind="finetune", finetune_id="official/subject"))
    assert subject.tags == ("pocket klein", "official", "“ohwx”")
    assert base.tags == ("4 steps, distilled", "Apache-2.0")


def test_hostile_words_are_inert(make: Callable[..., SweepSpec], style: Model) -> None:
    style = replace(style, choice=finetune(HOSTILE), title=HOSTILE, whose=HOSTILE)
    (cell,) = plan(make(prompt=HOSTILE))
    programs = (Program(name="curl", text=HOSTILE, note=HOSTILE), Program(name="Python", problem=HOSTILE))
    picture = replace(view_waiting(cell.request, "png"), state="error", reason=HOSTILE, programs=programs)
    for piece in (
        draw_picker([style], style, {style.choice: HOSTILE}),
        draw("play-trigger.html", phrase=HOSTILE, there=False),
        draw("play-trigger.html", phrase=HOSTILE, there=True),
        draw("play-route.html", place="", reason=HOSTILE),
        draw("play-strip.html", images=(HOSTILE,), problem=HOSTILE),
        draw("play-picture.html", picture=picture),
        draw("play-picture.html", picture=replace(picture, state="done", image=HOSTILE, base=HOSTILE)),
    ):
        assert "&lt;img src=x" in piece
        assert "<img src=x" not in piece


def read_all(page: Iterable[Changes]) -> dict[str, Any]:
    """What the page shows when all of a run's changes have come."""
    shown: dict[str, Any] = {}
    for changes in page:
        shown.update(changes)
    return shown


@pytest.fixture
def act(backends: dict[str, Backend], models: Models, database: Database, home: Path) -> Iterator[PlayHandlers]:
    with closing(open_service(backends["drawing"], database, home)) as service:
        yield PlayHandlers(backends, Store(database, Blobs(home / "blobs")), service, models, apart=True)


def open_service(backend: Backend, database: Database, home: Path) -> Service:
    return Service(backend=backend, database=database, blobs=Blobs(home / "api"), settings=Settings(home=home))


def test_a_finetune_is_rendered_remotely_at_its_endpoint_there(
    finetunes: Finetunes,
    database: Database,
    home: Path,
    tmp_path: Path,
    closed_loops: None,  # noqa: F811
) -> None:
    with (
        run_server(DrawingBackend(), tmp_path / "server") as server,
        closing(RemoteBackend(server.url, None)) as remote,
        closing(open_service(remote, database, home)) as service,
    ):
        backends: dict[str, Backend] = {"local": Klein(), "remote": remote}
        models = Models(backends, Shelf(finetunes), weights="pocket")
        act = PlayHandlers(backends, Store(database, Blobs(home / "blobs")), service, models, apart=False)
        asked = form(where="remote", strength="0.85")
        route = act.learn(CALLER, asked, SAID)
        assert "POST /v1/flux-2-klein-pocket-finetuned" in route["route"]
        assert f"at {server.url} · about 0.1 credits" in route["route"]
        assert route["remote_id"]["visible"]
        end = read_all(act.run(CALLER, asked, SAID))
        assert "Done in" in end["status"]
        assert f"{server.url}/v1/flux-2-klein-pocket-finetuned" in end["picture"]
        (made,) = server.service.backend.rendered  # type: ignore[attr-defined]
        assert (made.prompt, made.seed, made.strength) == ("a cat", 7, Decimal("0.85"))
        assert made.lora.sha256 == find_lora("style").sha256


def test_a_picked_model_brings_its_defaults_and_a_filled_one_keeps_what_was_filled_in(act: PlayHandlers) -> None:
    base = Choice(kind="base", weights="pocket-base")
    picked = act.pick(CALLER, form(model=None, aspect="16:9"), Said(act="pick", value=base.dump()))
    assert picked["steps"]["value"] == 28
    assert picked["steps"]["interactive"]
    assert (picked["width"], picked["height"]) == size_of("16:9", find_weights("pocket-base"))
    assert not picked["strength"]["interactive"]
    subject = Choice(kind="finetune", finetune_id="official/subject")
    chosen = act.describe(CALLER, form(model=subject.model_copy(update={"picked": True})), SAID)
    assert (chosen["model"], chosen["steps"]["value"]) == (subject.dump(), 4)
    assert "Insert" in chosen["trigger"]
    filled = act.describe(CALLER, form(model=BASE, steps=9), SAID)
    assert "value" not in filled["steps"]
    lost = act.describe(CALLER, form(model=finetune("other/secret")), SAID)
    assert "was not found" in lost["route"]
    assert "Choose a model" in lost["picker"]


def test_the_page_keeps_a_choice_as_a_value() -> None:
    for choice in (STYLE, BASE, None):
        written = form(model=choice).write()
        assert PlayForm.read({**written, "model": written.get("model", "")}).model == choice
    for name, wrong in (("model", "pick base:pocket"), ("precision", "int4"), ("output_format", "gif")):
        with pytest.raises(InvalidInput, match=f"{wrong}' does not fit"):
            PlayForm.read({name: wrong})


def test_an_image_is_rendered_kept_and_shown_to_its_visitor_alone(
    act: PlayHandlers, tmp_path: Path, database: Database, home: Path
) -> None:
    upload = draw_image(tmp_path / "upload.png", (96, 64))
    asked = form(strength="0.85", width=96, height=64, references=(upload,), output_format="webp")
    steps = list(act.run(CALLER, asked, SAID))
    assert not steps[0]["run"]["interactive"]
    assert any("Step 1 of 4" in changes["status"] for changes in steps), "each step, however soon it comes"
    end = read_all(steps)
    assert "Done in" in end["status"]
    assert "outside" not in end["status"]
    assert end["run"]["interactive"]
    run, record = act.find(end["selected"])
    (kept,) = run.spec.references
    assert kept.sha256 == upload.sha256
    assert kept.path.is_relative_to(home / "blobs"), "an upload is deleted after a day"
    assert "http://lab:7860/v1/flux-2-klein-pocket-finetuned" in end["picture"]
    assert "Download WEBP" in end["picture"]
    picture = view_picture(run, record, output_format="jpeg", download="/d")
    assert (picture.state, picture.about) == ("done", "a cat, strength 0.85, seed 7")
    assert picture.facts[:4] == ("seed 7", "style", "strength 0.85", "pocket klein · fp32")
    assert (picture.strength, picture.file_name) == ("strength 0.85", f"{run.id}.jpg")
    for error, state, words in (("It gave up.", "error", "gave up"), (None, "stopped", "stopped before")):
        missing = view_picture(run, replace(record, image=None, error=error), output_format="png")
        assert missing.state == state
        assert words in missing.reason
    assert act.load(CALLER, form(), SAID)["selected"] == run.id
    assert "selected" not in act.load(OTHER, form(), SAID)
    assert act.reuse_seed(CALLER, form(), SAID) == {"seed": "7"}
    with pytest.raises(InvalidInput, match="no image yet"):
        act.reuse_seed(OTHER, form(), SAID)
    again = act.fill(record.cell.request, backend="elsewhere")
    assert (again["where"], again["references"], again["slider"]) == ("drawing", [kept], 0.85)
    assert "output_format" not in again, "how to download stays what the visitor chose"

    # What it was made with goes when the last run that needs it goes, and not before.
    store = Store(database, Blobs(home / "blobs"))
    beyond = read_all(act.run(CALLER, asked.change(seed="8", strength="5"), SAID))
    assert "Strength 5 is outside -2 to 2" in beyond["status"]
    second = beyond["selected"]
    later = datetime.now(UTC) + timedelta(days=1)
    for run_id, is_there in ((run.id, True), (second, False)):
        store.delete_cells([(run_id, 0)])
        store.purge(later)
        assert kept.path.is_file() == is_there
    assert upload.path.is_file()


def test_an_image_that_fails_says_so_and_is_tried_again(models: Models, database: Database, home: Path) -> None:
    faults = [RenderFailed("The device gave up. Free some memory.")]
    backend = Klein(fails=lambda request: faults.pop() if faults and request.strength else None)
    store = Store(database, Blobs(home / "blobs"))
    with closing(open_service(backend, database, home)) as service:
        act = PlayHandlers({"drawing": backend}, store, service, models, apart=True)
        failed = read_all(act.run(CALLER, form(), SAID))
        assert "the reason stands below" in failed["status"]
        assert "The device gave up" in failed["picture"]
        shown = form(selected=failed["selected"])
        assert "Done in" in read_all(act.retry(CALLER, shown, SAID))["status"]
        beside = read_all(act.compare(CALLER, shown, SAID))
        assert beside["selected"] == failed["selected"], "the base image does not take its place"
        assert [request.strength for request in backend.rendered] == [1, 0]
        assert len(list(act.compare(CALLER, shown, SAID))) == 1, "rendered once"


def test_an_upload_that_is_none_is_said_and_the_others_are_taken(act: PlayHandlers, tmp_path: Path) -> None:
    files = []
    for number in range(5):
        Image.new("RGB", (96, 64 + 16 * number), "teal").save(path := tmp_path / f"{number}.png")
        files.append(str(path))
    (bad := tmp_path / "bad.png").write_bytes(b"no image")

    def add(references: list[Reference], uploads: list[str]) -> Changes:
        return act.add_references(CALLER, {**form().write(), "references": references, "upload": uploads}, SAID)

    found = add([], [str(bad), *files[:2]])
    assert "bad.png is no whole PNG" in found["strip"]
    assert [reference.path.name for reference in found["references"]] == ["0.png", "1.png"]
    assert (found["aspect"]["value"], found["width"], found["height"]) == ("image", 96, 64)
    full = add(found["references"], files[2:])
    assert "at most 4 are allowed" in full["strip"]
    assert not full["upload"]["interactive"]
    four = form(references=tuple(full["references"]))
    for said, names in (
        (Said(act="right", id="0"), "1023"),
        (Said(act="left", id="3"), "0132"),
        (Said(act="remove", id="3"), "012"),
        (Said(act="remove", id="99"), "0123"),
    ):
        moved = act.arrange_references(CALLER, four, said)
        assert "".join(reference.path.stem for reference in moved["references"]) == names
