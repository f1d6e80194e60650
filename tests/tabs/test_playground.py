"""The Playground without a page: form to spec, routes, what each organization can choose, what is shown of an image."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.requests import Request

from evaluation.grid import plan
from evaluation.report.draw import draw
from evaluation.store.store import Store
from evaluation.sweep import Finished, run_sweep
from evaluation.tabs.playground import PlaygroundTab, build_playground_tab
from evaluation.tabs.playground_form import (
    RATIOS,
    Choice,
    Models,
    PlayForm,
    fill_play_form,
    list_shapes,
    make_base_spec,
    make_play_spec,
    name_shape,
    parse_strength,
    size_of,
    sweep_form,
)
from evaluation.tabs.playground_parts import slide_to
from evaluation.tabs.playground_view import Program, view_picker, view_picture, view_waiting
from evaluation.tabs.sweep import build_sweep_tab
from lora_runtime.backends.base import Backend
from lora_runtime.backends.remote import RemoteBackend
from lora_runtime.catalogue import POCKET, WEIGHTS, find_weights
from lora_runtime.errors import InvalidInput, NotFound, Unavailable
from lora_runtime.lora.library import find_lora, refer_to
from lora_runtime.references import read_reference
from lora_runtime.registry.finetunes import Finetunes
from lora_runtime.registry.shelf import Shelf
from lora_runtime.registry.visitors import Visitors
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


def add(finetunes: Finetunes, folder: Path, organization: str, name: str) -> str:
    path = write_diffusers(folder / f"{name}.safetensors", make_adapter(POCKET, seed=len(name)))
    return finetunes.add_file(organization, path, name=name, weights="pocket", trigger_phrase="ohwx").id


def finetune(name: str) -> Choice:
    return Choice(kind="finetune", finetune_id=name)


def form(**changes: object) -> PlayForm:
    made = PlayForm(model=STYLE, where="drawing", prompt="a cat", seed="7")
    return replace(made, **changes)  # type: ignore[arg-type]


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


def test_a_finetune_goes_to_its_own_endpoint(models: Models) -> None:
    style = models.find("local", STYLE)
    route = models.route(style, None, "drawing")
    assert route.endpoint is not None
    assert route.endpoint.path == "/v1/flux-2-klein-pocket-finetuned"
    assert not route.reason
    base = models.route(models.find("local", BASE), None, "drawing")
    assert base.endpoint is not None
    assert base.endpoint.path == "/v1/flux-2-klein-pocket"
    kv = replace(style, weights=find_weights("klein-9b-kv"), precision="fp8")
    paths = {
        precision: route.endpoint.path
        for precision in ("fp8", "bf16")
        if (route := models.route(kv, precision, "drawing")).endpoint  # type: ignore[arg-type]
    }
    assert paths == {
        "fp8": "/v1/flux-2-klein-9b-kv-finetuned",
        "bf16": "/v1/flux-2-klein-9b-kv-bf16-finetuned",
    }


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
    reason = models.route(model, precision, "drawing").reason
    assert words in reason
    if words:
        with pytest.raises((Unavailable, InvalidInput), match=re.escape(reason)):
            make_play_spec(backends, form(model=model.choice, precision=precision or "", width=None), model)
    fresh = Models(backends, models._shelf, weights=weights)
    assert (fresh.first, fresh.server("drawing")) == (model.choice, None)
    assert not fresh.route(model, precision, "drawing").reason, "before the backends were asked nothing is said"


def test_a_form_is_a_sweep_of_one_cell(models: Models, backends: dict[str, Backend], tmp_path: Path) -> None:
    images = (draw_image(tmp_path / "a.png", (96, 64)),)
    style = models.find("local", STYLE)
    spec = make_play_spec(backends, form(strength="0,85", width=96, height=64, references=images), style)
    (cell,) = plan(spec)
    assert cell.request.strength == Decimal("0.85")
    assert cell.request.lora is not None
    assert cell.request.lora.name == "style", "a bundled one goes by its plain name, as on the other tabs"
    assert (cell.request.seed, cell.request.width, cell.request.height) == (7, 96, 64)
    assert cell.request.references == images
    (base,) = plan(make_base_spec(spec))
    assert base.request == replace(cell.request, lora=None, strength=Decimal(0))
    assert base.identity == cell.reference
    (alone,) = plan(make_play_spec(backends, form(model=BASE), models.find("local", BASE)))
    assert alone.request.lora is None


def test_an_empty_seed_is_a_new_one_for_each_image(models: Models, backends: dict[str, Backend]) -> None:
    style = models.find("local", STYLE)

    def seed(**changes: object) -> int:
        return make_play_spec(backends, form(**changes), style).seeds[0]

    assert seed() == 7
    assert seed(seed=" 8 ") == 8
    assert seed(seed="") != seed(seed="")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strength": "much"}, "Strength: 'much' is not a number"),
        ({"strength": ""}, "is not a number"),
        ({"strength": "nan"}, "is not a number"),
        ({"strength": "4.01"}, "must be from -4 to 4"),
        ({"seed": "seven"}, "'seven' is not a whole number"),
        ({"prompt": " "}, "write at least one word"),
        ({"width": 100}, "must be a multiple of 16"),
        ({"guidance": 3.0}, "is distilled and takes none"),
        ({"precision": "int4"}, "is none of"),
        ({"where": "elsewhere"}, "there is no backend 'elsewhere' here"),
    ],
)
def test_a_wrong_field_is_named(
    models: Models, backends: dict[str, Backend], changes: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        make_play_spec(backends, form(**changes), models.find("local", STYLE))


@given(st.decimals(min_value=-4, max_value=4, places=4))
def test_a_strength_is_read_exactly(strength: Decimal) -> None:
    assert parse_strength(f" {strength} ") == strength
    assert parse_strength(str(strength).replace(".", ",")) == strength
    assert 0 <= slide_to(str(strength)) <= 2


def test_a_remote_finetune_goes_by_its_id_there(models: Models, backends: dict[str, Backend]) -> None:
    remote = {"remote": DrawingBackend(server="http://lab:7860")}
    style = models.find("local", STYLE)
    spec = make_play_spec(remote, form(where="remote", remote_id=" my-style "), style)
    assert spec.loras[0].finetune_id == "my-style"
    assert spec.loras[0].sha256 == find_lora("style").sha256
    only_there = make_play_spec(remote, form(where="remote", remote_id="acme/there"), models.find("local", BASE))
    assert only_there.loras == (refer_to("acme/there"),)
    assert only_there.strengths == (Decimal(1),)
    here = make_play_spec(backends, form(remote_id="my-style"), style)
    assert here.loras[0].finetune_id is None


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


def test_an_images_settings_fill_the_form_that_makes_it_again(
    models: Models, backends: dict[str, Backend], tmp_path: Path
) -> None:
    images = (draw_image(tmp_path / "a.png", (96, 64)),)
    style = models.find("local", STYLE)
    asked = form(strength="-0.35", width=96, height=64, references=images, seed="123")
    (cell,) = plan(make_play_spec(backends, asked, style))
    again = fill_play_form(cell.request, backend="drawing")
    assert again.seed == "123"
    (same,) = plan(make_play_spec(backends, again, models.find("local", again.model)))
    assert same.identity == cell.identity
    wide = sweep_form(cell.request, backend="drawing", lora="style")
    assert (wide.lora, wide.prompt, wide.seed, wide.width) == ("style", "a cat", "123", 96)


def test_images_are_listed_for_their_organization_alone(
    models: Models, backends: dict[str, Backend], database: Database, home: Path
) -> None:
    store = Store(database, Blobs(home / "blobs"))
    style = models.find("local", STYLE)
    for organization, origin in (("acme", "playground"), ("other", "playground"), ("acme", "sweep")):
        spec = make_play_spec(backends, form(prompt=f"a cat of {organization} {origin}"), style)
        events = list(run_sweep(spec, backend=backends, store=store, organization=organization, origin=origin))  # type: ignore[arg-type]
        assert isinstance(events[-1], Finished)
    listed = store.history(24, organization="acme", origin="playground")
    assert [run.spec.prompts for run, _ in listed] == [("a cat of acme playground",)]
    ((run, (record,)),) = listed
    picture = view_picture(run, record, output_format="jpeg", download="/d")
    assert (picture.state, picture.about) == ("done", "a cat of acme playground, strength 1.00, seed 7")
    assert picture.facts[:4] == ("seed 7", "style", "strength 1.00", "pocket klein · fp32")
    assert (picture.lora, picture.strength, picture.file_name) == ("style", "strength 1.00", f"{run.id}.jpg")
    for error, state, words in (("The device gave up.", "error", "gave up"), (None, "stopped", "stopped before")):
        missing = view_picture(run, replace(record, image=None, error=error), output_format="png")
        assert missing.state == state
        assert words in missing.reason


def test_the_picker_puts_what_cannot_run_last_and_keeps_what_is_chosen(models: Models) -> None:
    base, style = models.find("local", BASE), models.find("local", STYLE)
    missing = models.find("local", Choice(kind="base", weights="klein-4b"))
    chosen, groups = view_picker([base, missing], style, {missing.choice: "It is not here."})
    assert [(title, [option.title for option in options]) for title, options in groups] == [
        ("Base models", ["pocket klein"]),
        ("Finetunes", ["official/style"]),
        ("What cannot run here, and why", ["FLUX.2 [klein] 4B"]),
    ]
    assert chosen is groups[1][1][0]
    assert chosen.tags == ("pocket klein", "official")
    assert Choice.model_validate_json(chosen.value) == STYLE
    assert groups[2][1][0].reason == "It is not here."


def test_hostile_words_are_inert(models: Models, backends: dict[str, Backend]) -> None:
    style = replace(models.find("local", STYLE), choice=finetune(HOSTILE), title=HOSTILE, whose=HOSTILE)
    (cell,) = plan(make_play_spec(backends, form(prompt=HOSTILE), style))
    programs = (Program(name="curl", text=HOSTILE, note=HOSTILE), Program(name="Python", problem=HOSTILE))
    picture = replace(view_waiting(cell.request, "png"), state="error", reason=HOSTILE, programs=programs)
    chosen, groups = view_picker([style], style, {style.choice: HOSTILE})
    for piece in (
        draw("play-picker.html", chosen=chosen, groups=groups),
        draw("play-trigger.html", phrase=HOSTILE, there=False),
        draw("play-trigger.html", phrase=HOSTILE, there=True),
        draw("play-route.html", place="", reason=HOSTILE),
        draw("play-strip.html", images=(HOSTILE,), problem=HOSTILE),
        draw("play-picture.html", picture=picture),
        draw("play-picture.html", picture=replace(picture, state="done", image=HOSTILE, base=HOSTILE)),
    ):
        assert "&lt;img src=x" in piece
        assert "<img src=x" not in piece


def test_a_finetune_is_rendered_remotely_at_its_endpoint_there(home: Path, tmp_path: Path, closed_loops: None) -> None:  # noqa: F811
    with run_server(DrawingBackend(), tmp_path / "server") as server:
        remote = RemoteBackend(server.url, None)
        database = Database(f"sqlite:///{home / 'lab.sqlite3'}")
        tab = build_tab({"local": Klein(), "remote": remote}, database, home, remote=server.url)
        parts = tab.parts
        values = values_of(
            tab, model=STYLE.model_dump_json(), where="remote", prompt="a cat", strength="0.85", seed="7",
            output_format="png",
        )  # fmt: skip
        tab.fields.learn(values, ask())
        described = tab.fields.describe(values, ask())
        assert "POST /v1/flux-2-klein-pocket-finetuned" in described[parts.route]
        assert f"at {server.url} · about 0.1 credits" in described[parts.route]
        assert described[parts.remote_id]["visible"]
        end = list(tab.runs.run(values, ask()))[-1]
        assert "Done in" in end[parts.status]
        assert f"{server.url}/v1/flux-2-klein-pocket-finetuned" in end[parts.picture]
        (made,) = server.service.backend.rendered  # type: ignore[attr-defined]
        assert (made.prompt, made.seed, made.strength) == ("a cat", 7, Decimal("0.85"))
        assert made.lora.sha256 == find_lora("style").sha256
        remote.close()
        database.close()


@pytest.fixture
def tab(
    backends: dict[str, Backend],
    database: Database,
    home: Path,
    closed_loops: None,  # noqa: F811
) -> PlaygroundTab:
    """The tab with all its events, on a service of its own; nothing is served."""
    return build_tab(backends, database, home)


def build_tab(backends: dict[str, Backend], database: Database, home: Path, *, remote: str = "global") -> PlaygroundTab:
    chosen = Settings(home=home, remote=remote)
    first = next(iter(backends.values()))
    service = Service(backend=first, database=database, blobs=Blobs(home / "api"), settings=chosen)
    store, shelf, visitors = Store(database, Blobs(home / "blobs")), Shelf(service.finetunes), Visitors(apart=True)
    with gr.Blocks(), gr.Tabs() as tabs, gr.Tab("One"):
        sweep = build_sweep_tab(backends, store, shelf, visitors)
        return build_playground_tab(service, backends, store, shelf, visitors, sweep, tabs)


def values_of(tab: PlaygroundTab, **fields: object) -> dict[gr.components.Component, object]:
    return {getattr(tab.parts, name): value for name, value in fields.items()}


def ask(session: str = "one") -> gr.Request:
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"lab:7860")], "query_string": b"",
             "scheme": "http", "server": ("lab", 7860), "client": ("127.0.0.1", 1)}  # fmt: skip
    return gr.Request(request=Request(scope), session_hash=session)


def test_a_picked_model_brings_its_defaults_and_a_filled_one_keeps_what_was_filled_in(tab: PlaygroundTab) -> None:
    parts, act = tab.parts, tab.fields
    values = values_of(tab, where="drawing", prompt="a cat", aspect="16:9", strength="0.85")
    picked = act.pick(values, '{"kind": "base", "weights": "pocket-base"}', ask())
    assert picked[parts.steps]["value"] == 28
    assert picked[parts.steps]["interactive"]
    assert (picked[parts.width], picked[parts.height]) == size_of("16:9", find_weights("pocket-base"))
    assert not picked[parts.strength]["interactive"]
    values = values_of(
        tab,
        model='{"kind": "finetune", "finetune_id": "official/subject", "picked": true}',
        where="drawing",
        prompt="a cat",
    )
    chosen = act.describe(values, ask())
    assert Choice.model_validate_json(chosen[parts.model]) == finetune("official/subject")
    assert chosen[parts.steps]["value"] == 4
    assert "Insert" in chosen[parts.trigger]
    filled = act.describe(values_of(tab, model=BASE.model_dump_json(), where="drawing", steps=9), ask())
    assert "value" not in filled[parts.steps]
    lost = act.describe(values_of(tab, model=finetune("other/secret").model_dump_json(), where="drawing"), ask())
    assert "was not found" in lost[parts.route]
    assert "Choose a model" in lost[parts.picker]
    assert Choice.model_validate_json(act.choose("mine")[parts.model]).picked


def test_an_image_is_rendered_kept_and_shown_to_its_visitor_alone(
    tab: PlaygroundTab, tmp_path: Path, database: Database, home: Path
) -> None:
    parts = tab.parts
    upload = draw_image(tmp_path / "upload.png", (96, 64))
    values = values_of(
        tab, model=STYLE.model_dump_json(), where="drawing", prompt="a cat", strength="0.85", seed="7", width=96,
        height=64, references=[upload], output_format="webp",
    )  # fmt: skip
    steps = list(tab.runs.run(values, ask()))
    assert steps[0][parts.run]["interactive"] is False
    assert "Done in" in steps[-1][parts.status]
    run_id = steps[-1][parts.selected]
    run, record = tab.show.find(run_id)
    (kept,) = run.spec.references
    assert kept.sha256 == upload.sha256
    assert kept.path.is_relative_to(home / "blobs"), "an upload is deleted after a day"
    assert "http://lab:7860/v1/flux-2-klein-pocket-finetuned" in steps[-1][parts.picture]
    assert "Download WEBP" in steps[-1][parts.picture]
    assert run_id in tab.show.load("png", tab.show.caller(ask()))[parts.history]
    others = tab.show.load("png", tab.show.caller(ask("two")))
    assert others[parts.history] == ""
    assert parts.picture not in others
    assert tab.fields.reuse_seed(ask())[parts.seed] == "7"
    assert parts.seed not in tab.fields.reuse_seed(ask("two"))
    again = tab.fill(record.cell.request, backend="elsewhere")
    assert again[parts.where] == "drawing"
    assert again[parts.references] == (kept,)
    assert set(again) <= tab.targets()

    # What it was made with goes when the last run that needs it goes, and not before.
    store = Store(database, Blobs(home / "blobs"))
    second = list(tab.runs.run({**values, parts.seed: "8"}, ask()))[-1][parts.selected]
    later = datetime.now(UTC) + timedelta(days=1)
    store.delete_cells([(run_id, 0)])
    store.purge(later)
    assert kept.path.is_file()
    store.delete_cells([(second, 0)])
    store.purge(later)
    assert not kept.path.exists()
    assert upload.path.is_file()


def test_an_upload_that_is_none_is_said_and_the_others_are_taken(tab: PlaygroundTab, tmp_path: Path) -> None:
    parts, act = tab.parts, tab.fields
    files = []
    for number in range(5):
        Image.new("RGB", (96, 64 + 16 * number), "teal").save(path := tmp_path / f"{number}.png")
        files.append(str(path))
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    values = values_of(tab, model=BASE.model_dump_json(), where="drawing", aspect="1:1", references=[])
    found = act.add_references([str(bad), *files[:2]], values, ask())
    assert "bad.png is no whole PNG" in found[parts.strip]
    assert [reference.path.name for reference in found[parts.references]] == ["0.png", "1.png"]
    assert found[parts.aspect]["value"] == "image"
    assert (found[parts.width], found[parts.height]) == (96, 64)
    values[parts.references] = found[parts.references]
    full = act.add_references(files[2:], values, ask())
    assert "at most 4 are allowed" in full[parts.strip]
    assert not full[parts.upload]["interactive"]
    values[parts.references] = full[parts.references]
    moved = act.arrange_references(values, "right", 0, ask())
    assert [reference.path.name for reference in moved[parts.references]] == ["1.png", "0.png", "2.png", "3.png"]
    less = act.arrange_references(values, "remove", 3, ask())
    assert len(less[parts.references]) == 3
    assert len(act.arrange_references(values, "remove", 99, ask())[parts.references]) == 4
