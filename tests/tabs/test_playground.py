"""The Playground without a page: form to spec, routes, what each organization can choose, what is shown of an image."""

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
from evaluation.store.store import Store
from evaluation.sweep import Finished, run_sweep
from evaluation.tabs import playground_markup as drawn
from evaluation.tabs.playground import PlaygroundTab, build_playground_tab
from evaluation.tabs.playground_form import (
    RATIOS,
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
from evaluation.tabs.playground_models import Choice, Models
from evaluation.tabs.playground_parts import slide_to
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
from lora_runtime.values import ModelStatus, Reference
from tests.api_server import run_server
from tests.app_server import closed_loops  # noqa: F401 - a fixture
from tests.drawing_backend import DrawingBackend
from tests.lora_files import make_adapter, write_diffusers

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
    models = Models(backends, finetunes, Shelf(finetunes), weights="pocket", remote="global")
    models.learn()
    return models


def add(finetunes: Finetunes, folder: Path, organization: str, name: str) -> str:
    path = write_diffusers(folder / f"{name}.safetensors", make_adapter(POCKET, seed=len(name)))
    return finetunes.add_file(organization, path, name=name, weights="pocket", trigger_phrase="ohwx").id


def form(**changes: object) -> PlayForm:
    made = PlayForm(model="finetune:official/style", where="drawing", prompt="a cat", seed="7")
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
    choices = models.list("acme")
    keys = [choice.key for choice in choices]
    assert keys[: len(WEIGHTS)] == [f"base:{name}" for name in WEIGHTS]
    assert keys[len(WEIGHTS) : len(WEIGHTS) + 2] == ["finetune:mine", "finetune:other/given"]
    assert "finetune:other/secret" not in keys
    whose = {choice.key: choice.whose for choice in choices}
    assert whose["finetune:mine"] == "yours"
    assert whose["finetune:other/given"] == "shared by other"
    assert whose["finetune:official/style"] == "official"
    assert models.find("acme", "finetune:mine").trigger_phrase == "ohwx"


@pytest.mark.parametrize("key", ["finetune:other/secret", "finetune:secret", "base:none", "", "file:pocket/abc", "x:y"])
def test_a_key_of_somebody_else_leads_nowhere(models: Models, finetunes: Finetunes, tmp_path: Path, key: str) -> None:
    add(finetunes, tmp_path, "other", "secret")
    with pytest.raises(NotFound):
        models.find("acme", key)


def test_a_file_of_another_organization_is_not_found_by_its_digest(
    models: Models, finetunes: Finetunes, tmp_path: Path
) -> None:
    add(finetunes, tmp_path, "other", "secret")
    sha256 = finetunes.find("other", "secret").lora.sha256
    assert models.find("other", f"file:pocket/{sha256}").key == "finetune:secret"
    with pytest.raises(NotFound):
        models.find("acme", f"file:pocket/{sha256}")


def test_a_finetune_goes_to_its_own_endpoint(models: Models) -> None:
    style = models.find("local", "finetune:official/style")
    route = models.route(style, None, "drawing")
    assert route.endpoint is not None
    assert route.endpoint.path == "/v1/flux-2-klein-pocket-finetuned"
    assert not route.reason
    base = models.route(models.find("local", "base:pocket"), None, "drawing")
    assert base.endpoint is not None
    assert base.endpoint.path == "/v1/flux-2-klein-pocket"
    kv = Choice(key="finetune:kv", weights=find_weights("klein-9b-kv"), lora=style.lora, precision="fp8")
    paths = {
        precision: route.endpoint.path
        for precision in ("fp8", "bf16")
        if (route := models.route(kv, precision, "drawing")).endpoint  # type: ignore[arg-type]
    }
    assert paths == {
        "fp8": "/v1/flux-2-klein-9b-kv-finetuned",
        "bf16": "/v1/flux-2-klein-9b-kv-bf16-finetuned",
    }


def test_what_cannot_run_says_why(models: Models, backends: dict[str, Backend]) -> None:
    def reason(key: str, precision: str | None = None) -> str:
        return models.route(models.find("local", key), precision, "drawing").reason  # type: ignore[arg-type]

    assert reason("base:klein-9b-kv", "bf16").endswith("is not on this machine. Download it.")
    assert reason("base:klein-9b-kv", "fp32") == (
        "FLUX.2 [klein] 9B (KV-cached) does not run in fp32 here. It runs in: bf16, fp8."
    )
    assert reason("base:klein-4b") == "The drawing backend does not run klein-4b."
    assert reason("base:pocket-base") == "Not installed: run make."
    with pytest.raises(Unavailable, match="Not installed"):
        make_play_spec(backends, form(model="base:pocket-base"), models.find("local", "base:pocket-base"))


def test_before_the_backends_were_asked_nothing_is_said(backends: dict[str, Backend], finetunes: Finetunes) -> None:
    fresh = Models(backends, finetunes, Shelf(finetunes), weights="klein-4b", remote="http://lab:7860")
    assert fresh.first == "base:klein-4b"
    assert fresh.remote == "http://lab:7860"
    assert not fresh.route(fresh.find("local", "base:klein-4b"), None, "drawing").reason


def test_a_form_is_a_sweep_of_one_cell(models: Models, backends: dict[str, Backend], tmp_path: Path) -> None:
    images = (draw_image(tmp_path / "a.png", (96, 64)),)
    style = models.find("local", "finetune:official/style")
    spec = make_play_spec(backends, form(strength="0,85", width=96, height=64, references=images), style)
    (cell,) = plan(spec)
    assert cell.request.strength == Decimal("0.85")
    assert cell.request.lora is not None
    assert cell.request.lora.name == "style", "a bundled one goes by its plain name, as on the other tabs"
    assert (cell.request.seed, cell.request.width, cell.request.height) == (7, 96, 64)
    assert cell.request.references == images
    (base,) = plan(make_base_spec(spec))
    assert base.request == replace(cell.request, lora=None, strength=Decimal(0))
    assert base.identity == cell.base
    (alone,) = plan(make_play_spec(backends, form(model="base:pocket"), models.find("local", "base:pocket")))
    assert alone.request.lora is None


def test_an_empty_seed_is_a_new_one_for_each_image(models: Models, backends: dict[str, Backend]) -> None:
    style = models.find("local", "finetune:official/style")

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
        make_play_spec(backends, form(**changes), models.find("local", "finetune:official/style"))


@given(st.decimals(min_value=-4, max_value=4, places=4))
def test_a_strength_is_read_exactly(strength: Decimal) -> None:
    assert parse_strength(f" {strength} ") == strength
    assert parse_strength(str(strength).replace(".", ",")) == strength
    assert 0 <= slide_to(str(strength)) <= 2


def test_a_remote_finetune_goes_by_its_id_there(models: Models, backends: dict[str, Backend]) -> None:
    remote = {"remote": backends["drawing"]}
    style = models.find("local", "finetune:official/style")
    spec = make_play_spec(remote, form(where="remote", remote_id=" my-style "), style)
    assert spec.loras[0].finetune_id == "my-style"
    assert spec.loras[0].sha256 == find_lora("style").sha256
    only_there = make_play_spec(
        remote, form(where="remote", remote_id="acme/there"), models.find("local", "base:pocket")
    )
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
    style = models.find("local", "finetune:official/style")
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
    style = models.find("local", "finetune:official/style")
    for organization, origin in (("acme", "playground"), ("other", "playground"), ("acme", "sweep")):
        spec = make_play_spec(backends, form(prompt=f"a cat of {organization} {origin}"), style)
        events = list(run_sweep(spec, backend=backends, store=store, organization=organization, origin=origin))  # type: ignore[arg-type]
        assert isinstance(events[-1], Finished)
    listed = store.history(24, organization="acme", origin="playground")
    assert [run.spec.prompts for run, _ in listed] == [("a cat of acme playground",)]
    ((run, (record,)),) = listed
    picture = drawn.draw_picture(run, record, download="/d", output_format="png", programs=())
    assert "a cat of acme playground, strength 1.00, seed 7" in picture
    assert "Compare with base" in picture


def test_hostile_words_are_inert(models: Models, backends: dict[str, Backend]) -> None:
    style = replace(models.find("local", "finetune:official/style"), key=HOSTILE)
    assert style.lora is not None
    tuned = replace(style, finetune=None, lora=replace(style.lora, name=HOSTILE, trigger_phrase=HOSTILE))
    (cell,) = plan(make_play_spec(backends, form(prompt=HOSTILE), tuned))
    program = drawn.Program(name="curl", text=HOSTILE, note=HOSTILE)
    pieces = [
        drawn.draw_picker([tuned], tuned, {tuned.key: HOSTILE}),
        drawn.draw_trigger(HOSTILE, there=False),
        drawn.draw_trigger(HOSTILE, there=True),
        drawn.draw_waiting(cell.request, "png"),
        drawn.draw_problem(HOSTILE),
        drawn.draw_strip((), HOSTILE),
        drawn._draw_program(program),
        drawn._draw_program(replace(program, problem=HOSTILE)),
    ]
    for piece in pieces:
        assert "&lt;img src=x" in piece
        assert "<img src=x" not in piece


def test_a_finetune_is_rendered_remotely_at_its_endpoint_there(home: Path, tmp_path: Path, closed_loops: None) -> None:  # noqa: F811
    with run_server(DrawingBackend(), tmp_path / "server") as server:
        remote = RemoteBackend(server.url, None)
        database = Database(f"sqlite:///{home / 'lab.sqlite3'}")
        tab = build_tab({"local": Klein(), "remote": remote}, database, home, remote=server.url)
        parts = tab.parts
        values = values_of(
            tab, model="finetune:official/style", where="remote", prompt="a cat", strength="0.85", seed="7",
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
    picked = act.pick(values, "base:pocket-base", ask())
    assert picked[parts.steps]["value"] == 28
    assert picked[parts.steps]["interactive"]
    assert (picked[parts.width], picked[parts.height]) == size_of("16:9", find_weights("pocket-base"))
    assert not picked[parts.strength]["interactive"]
    values = values_of(tab, model="pick finetune:official/subject", where="drawing", prompt="a cat")
    chosen = act.describe(values, ask())
    assert chosen[parts.model] == "finetune:official/subject"
    assert chosen[parts.steps]["value"] == 4
    assert "Insert" in chosen[parts.trigger]
    filled = act.describe(values_of(tab, model="base:pocket", where="drawing", steps=9), ask())
    assert "value" not in filled[parts.steps]
    lost = act.describe(values_of(tab, model="finetune:other/secret", where="drawing"), ask())
    assert "was not found" in lost[parts.route]
    assert "Choose a model" in lost[parts.picker]
    assert act.choose("mine") == {parts.model: "pick finetune:mine"}


def test_an_image_is_rendered_kept_and_shown_to_its_visitor_alone(
    tab: PlaygroundTab, tmp_path: Path, database: Database, home: Path
) -> None:
    parts = tab.parts
    upload = draw_image(tmp_path / "upload.png", (96, 64))
    values = values_of(
        tab, model="finetune:official/style", where="drawing", prompt="a cat", strength="0.85", seed="7", width=96,
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
    values = values_of(tab, model="base:pocket", where="drawing", aspect="1:1", references=[])
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
