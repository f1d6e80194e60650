"""The app as programs meet it: the /sweep contract, which endpoints there are, which files can be read."""

import base64
import contextlib
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import gradio as gr
import pytest
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import app
from evaluation.store.store import Store
from evaluation.tabs.page import FAULT
from lora_runtime.backends.remote import RemoteBackend
from lora_runtime.registry.finetunes import Finetunes
from lora_runtime.registry.local import open_blobs
from lora_runtime.settings import settings
from lora_runtime.storage.database import Database
from tests.app_server import closed_loops, connect, serve  # noqa: F401 - a fixture
from tests.bfl_doubles import KEY, BflDouble
from tests.drawing_backend import DrawingBackend, make_lora

PROMPT_SETS = {"list_prompt_sets", "save_prompt_set", "delete_prompt_set"}
PROGRAMS = {"sweep", "generate", "votes", "list_finetunes", "list_training_runs", "inspect", *PROMPT_SETS}

# Gradio's own summary of its queue uses pandas as pandas 3 warns of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.queueing")


@pytest.fixture
def page(home: Path, closed_loops: None) -> Iterator[gr.Blocks]:  # noqa: F811
    with serve(home, DrawingBackend()) as page:
        yield page


def test_sweep_endpoint_returns_rows_with_the_files_that_were_written(page: gr.Blocks, home: Path) -> None:
    client = connect(page.local_url)
    rows = client.predict(
        lora="house-style", prompt="a red cat", strengths="0.5, 1", seed=7, weights="pocket", api_name="/sweep"
    )
    assert [row["strength"] for row in rows] == [0, 0.5, 1], "the base column is added"
    assert {row["status"] for row in rows} == {"done"}
    assert {(row["seed"], row["prompt"], row["lora"], row["weights"]) for row in rows} == {
        (7, "a red cat", "house-style", "pocket")
    }
    (answer,) = {json.dumps(row["answer"], sort_keys=True) for row in rows}
    assert json.loads(answer)["sentence"].endswith(".")
    for row in rows:
        downloaded = Path(row["image"]).read_bytes()
        with Image.open(BytesIO(downloaded)) as image:
            assert json.loads(image.info["klein_lab"])["prompt"] == "a red cat"
        written = [path for path in (home / "blobs").rglob("*.png") if path.read_bytes() == downloaded]
        assert len(written) == 1, "the client must get the very bytes that were written"


def test_votes_endpoint_reads_what_people_chose(page: gr.Blocks) -> None:
    client = connect(page.local_url)
    rows = client.predict(lora="house-style", prompt="a red cat", strengths="0, 1", seed=7, api_name="/sweep")
    with contextlib.closing(Store.open(settings())) as store:
        base, full = (record.cell.identity for record in store.cells(rows[0]["run"]))
        store.vote(base, full, "right", voter="ada")
    (found,) = client.predict(run=rows[0]["run"], api_name="/votes")
    assert (found["votes"], found["voters"], found["different"]) == (1, {"ada": 1}, False)
    assert [one["strength"] for one in found["standings"]] == [1, 0]


def test_prompt_sets_are_saved_listed_used_and_deleted(page: gr.Blocks) -> None:
    client = connect(page.local_url)
    saved = client.predict(name="mine", prompts=["a cat at sea", "a cat"], api_name="/save_prompt_set")
    assert saved == {"name": "mine", "prompts": ["{subject} at sea", "{subject}"], "replaced": False}
    listed = client.predict(api_name="/list_prompt_sets")
    assert [(one["name"], one["built_in"]) for one in listed] == [("four scenes", True), ("mine", False)]
    asked = {"lora": "house-style", "prompt": "a red dog at night", "strengths": "0, 1", "seed": 7}
    rows = client.predict(**asked, prompt_set="mine", api_name="/sweep")
    assert [row["prompt"] for row in rows] == ["a red dog at sea"] * 2 + ["a red dog"] * 2
    assert client.predict(name="mine", api_name="/delete_prompt_set") == {"deleted": "mine"}
    with pytest.raises(AppError, match="no prompt set"):
        client.predict(**asked, prompt_set="mine", api_name="/sweep")


def test_pictures_of_the_look_come_as_base64_and_are_kept_to_judge_by(page: gr.Blocks, home: Path) -> None:
    client, look = connect(page.local_url), BytesIO()
    Image.radial_gradient("L").save(look, "PNG")
    asked = {"lora": "house-style", "prompt": "a red dog", "strengths": "0, 1", "seed": 7, "api_name": "/sweep"}
    rows = client.predict(**asked, likeness=[base64.b64encode(look.getvalue()).decode()])
    with contextlib.closing(Store.open(settings())) as store:
        (kept,) = store.run(rows[0]["run"]).spec.likeness
        assert kept.path.read_bytes() == look.getvalue()
        assert kept.path.is_relative_to(home)
    with pytest.raises(AppError, match="neither base64"):
        client.predict(**asked, likeness=["?"])


TYPES = {
    "/sweep": {
        "lora": "str", "prompt": "str", "strengths": "str | float | list[float | str]", "seed": "int | str",
        "weights": "str", "precision": "str", "backend": "str", "every": "int | str", "last": "int | str",
        "prompt_set": "str", "likeness": "list[str]",
    },
    "/generate": {
        "prompt": "str", "lora": "str", "strength": "float | str", "seed": "int | str", "weights": "str",
        "width": "int | str", "height": "int | str", "steps": "int | str", "guidance": "float | str",
        "precision": "str", "backend": "str",
    },
    "/votes": {"run": "str"},
    "/list_training_runs": {},
    "/list_prompt_sets": {},
    "/save_prompt_set": {"name": "str", "prompts": "list[str]"},
    "/delete_prompt_set": {"name": "str"},
    "/list_finetunes": {},
    "/inspect": {"lora": "str", "file": "filepath"},
}  # fmt: skip


def test_endpoints_have_named_typed_documented_parameters(page: gr.Blocks) -> None:
    info = connect(page.local_url).view_api(return_format="dict", print_info=False)
    endpoints = info["named_endpoints"]
    assert {
        name: {entry["parameter_name"]: entry["python_type"]["type"] for entry in endpoint["parameters"]}
        for name, endpoint in endpoints.items()
    } == TYPES, "everything else belongs to the page"
    assert all(endpoint["description"] for endpoint in endpoints.values())
    required = {
        name: [entry["parameter_name"] for entry in endpoint["parameters"] if not entry["parameter_has_default"]]
        for name, endpoint in endpoints.items()
    }
    assert required == {
        "/sweep": ["lora", "prompt", "strengths", "seed"],
        "/generate": ["prompt"],
        "/votes": ["run"],
        "/list_training_runs": [],
        "/list_prompt_sets": [],
        "/save_prompt_set": ["name", "prompts"],
        "/delete_prompt_set": ["name"],
        "/list_finetunes": [],
        "/inspect": [],
    }


def test_generate_endpoint_renders_one_image_and_logs_it(page: gr.Blocks, home: Path) -> None:
    client = connect(page.local_url)
    row = client.predict(prompt="a red cat", lora="house-style", strength=0.7, seed=7, api_name="/generate")
    assert (row["strength"], row["seed"], row["lora"], row["weights"]) == (0.7, 7, "house-style", "pocket")
    base = client.predict(prompt="a red cat", seed=7, width=64, height=64, api_name="/generate")
    assert (base["strength"], base["lora"]) == (0, None)
    with Image.open(base["image"]) as image:
        assert image.size == (64, 64)
    store = Store.open(settings())
    assert [(run.origin, run.organization) for run in store.runs()] == [("api", "local")] * 2
    store.close()


def test_inspect_endpoint_takes_a_name_or_an_upload_and_no_path(page: gr.Blocks, tmp_path: Path) -> None:
    client = connect(page.local_url)
    report = client.predict(lora="overtrained", api_name="/inspect")
    assert report["ok"]
    uploaded = client.predict(file=handle_file(make_lora("new").path), api_name="/inspect")
    assert uploaded["sha256"] == make_lora("new").sha256
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no LoRA at all")
    report = client.predict(file=handle_file(broken), api_name="/inspect")
    assert not report["ok"]
    assert report["problems"]
    for path in (make_lora("new").path, Path(app.__file__), Path("/etc/passwd")):  # of this machine, never uploaded
        for meta in ({}, {"meta": {"_type": "gradio.FileData"}}):
            assert ask_plainly(page, "inspect", ["", {"path": str(path), **meta}]).startswith("event: error")


def ask_plainly(page: gr.Blocks, name: str, data: list[object]) -> str:
    """What an endpoint answers to plain HTTP, which no client has tidied up."""
    url = f"{page.local_url}gradio_api/call/{name}"
    request = urllib.request.Request(url, json.dumps({"data": data}).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        event_id = json.load(reply)["event_id"]
    with urllib.request.urlopen(f"{url}/{event_id}") as reply:
        return str(reply.read().decode())


def test_sweep_endpoint_renders_on_several_backends(home: Path, closed_loops: None) -> None:  # noqa: F811
    lora = make_lora("house-style")
    with BflDouble() as server:
        remote = RemoteBackend(server.origin, KEY, finetunes={lora.sha256: "their-style"})
        backends = {"local": DrawingBackend(), "remote": remote}
        with contextlib.closing(remote), serve(home, backends) as page:
            asked = {"lora": "house-style", "prompt": "a red cat", "strengths": "0, 1", "seed": 7}
            client = connect(page.local_url)
            rows = client.predict(**asked, backend="local,remote", api_name="/sweep")
            with pytest.raises(AppError, match="no backend 'cloud' here, only local, remote"):
                client.predict(**asked, backend="cloud", api_name="/sweep")
        assert {row["status"] for row in rows} == {"done"}
        assert [(row["backend"], row["strength"], row["cost"]) for row in rows] == [
            ("local", 0, None), ("local", 1, None), ("remote", 0, 4.5), ("remote", 1, 4.5),
        ]  # fmt: skip
        assert {body["finetune_id"] for body in server.bodies.values()} == {"their-style"}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("strengths", "0, abc", "character 4"),
        ("lora", "nobody", "There is no LoRA named 'nobody'"),
        ("lora", "/etc/passwd.safetensors", "There is no LoRA named"),
        ("prompt", "  ", "Prompt"),
        ("seed", -5, "Seed"),
        ("seed", 2**32 + 7, "would give the image of seed 7"),
        ("seed", "seven", "Seed: 'seven' is not a whole number. Send one such as 7, or -1 for a random one."),
        ("seed", [7], "Seed: a list is not a whole number"),
        ("strengths", {"from": 0}, "Strengths: an object is not a number. Send a list of numbers"),
        ("strengths", [0, 19], "from -15 to 15"),
        ("prompt", 7, "Prompt: 7 is not a text"),
        ("lora", ["style"], "LoRA: a list is not a text"),
        ("weights", "klein-100b", "klein-100b"),
    ],
)
def test_sweep_endpoint_says_what_is_wrong(page: gr.Blocks, field: str, value: object, words: str) -> None:
    request = {"lora": "house-style", "prompt": "a red cat", "strengths": "0, 1", "seed": 7, field: value}
    with pytest.raises(AppError, match=words):
        connect(page.local_url).predict(**request, api_name="/sweep")


@pytest.mark.parametrize(
    ("strengths", "seed", "rendered"),
    [
        ([0, 0.5], 7.0, [0, 0.5]),
        (0.5, "7", [0, 0.5]),
        ("0.7 to 0.9 [2]", " ７ ", [0, 0.7, 0.9]),
        ([0.1 * 3], 7, [0, 0.3]),
    ],
)
def test_lists_and_numbers_are_taken_as_programs_have_them(
    page: gr.Blocks, strengths: object, seed: object, rendered: list[float]
) -> None:
    asked = {"lora": "house-style", "prompt": "a red cat", "strengths": strengths, "seed": seed}
    rows = connect(page.local_url).predict(**asked, api_name="/sweep")
    assert [(row["strength"], row["seed"]) for row in rows] == [(strength, 7) for strength in rendered]
    size = {"width": "64", "height": 64.0, "steps": "2", "guidance": "1"}
    row = connect(page.local_url).predict(
        prompt="a red cat", lora="house-style", strength="0,8", seed=seed, **size, api_name="/generate"
    )
    assert (row["strength"], row["seed"]) == (0.8, 7)


PYTHONS_WORDS = re.compile(
    r"Traceback|Error:|Errno|<class|NoneType|argument must|' object (is|has)|not supported between|could not convert|"
    r"unexpected keyword|positional|codec can't|has no attribute|ConversionSyntax|pydantic|validation error"
)


def test_whatever_a_program_sends_it_never_hears_pythons_own_words(page: gr.Blocks) -> None:
    wrong = [True, [None], {"path": "/etc/passwd"}, "\ud800", 1e300, 10**30, "9" * 5000]
    right: dict[str, list[object]] = {
        "sweep": ["house-style", "a red cat", "0, 1", 7, "", "", ""],
        "generate": ["a red cat", "house-style", 1, 7, "", 64, 64, 2, 1, "", ""],
        "inspect": ["style", None],
        "votes": ["run-0"],
    }
    answers = [ask_plainly(page, name, values[:-1]) for name, values in right.items()]
    for name, values in right.items():
        for place in range(len(values)):
            for value in wrong:
                answers.append(ask_plainly(page, name, [*values[:place], value, *values[place + 1 :]]))
    refused = [answer for answer in answers if answer.startswith("event: error")]
    assert len(refused) > len(answers) / 2
    for answer in refused:
        said = json.loads(answer.partition("data: ")[2])["error"]
        assert said.endswith("."), answer
        assert said != FAULT, answer
        assert not PYTHONS_WORDS.search(said), answer


def test_a_fault_of_the_app_is_told_without_what_failed(
    page: gr.Blocks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_down(*_: object, **__: object) -> None:
        raise KeyError("secret of this machine")

    monkeypatch.setattr("evaluation.tabs.programs.make_spec", break_down)
    answer = ask_plainly(page, "generate", ["a red cat", "house-style", 1, 7, "", 64, 64, 2, 1, "", ""])
    assert json.loads(answer.partition("data: ")[2])["error"] == FAULT
    assert "KeyError: 'secret of this machine'" in capsys.readouterr().err, "the log has it"


def test_only_the_endpoints_for_programs_are_public(page: gr.Blocks) -> None:
    visibility = {fn.api_name: fn.api_visibility for fn in page.fns.values() if fn.fn is not None}
    assert {name for name, seen in visibility.items() if seen == "public"} == PROGRAMS
    assert set(visibility.values()) <= {"public", "private"}
    assert not page.config.get("run_history"), "what was asked for is not kept by the browser"


def test_files_outside_the_images_cannot_be_read(page: gr.Blocks, home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret.txt"
    outside.write_text("secret")
    for path in (
        outside,
        home / "lab.sqlite3",
        home / "blobs" / ".." / "lab.sqlite3",
        Path("/etc/passwd"),
        Path(app.__file__),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{page.local_url}gradio_api/file={path}")
        assert refused.value.code in (403, 404)
        refused.value.close()


def test_the_page_is_built_without_torch_and_without_stubs_for_editors() -> None:
    code = """if True:
        import ast, inspect, sys
        find, read = inspect.getfile, []
        ast.get_source_segment = lambda *arguments, **_: read.append(arguments)  # how Gradio reads its components
        import app
        sys.exit("torch" in sys.modules or "diffusers" in sys.modules or bool(read) or inspect.getfile is not find)
    """
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(app.__file__).parent).returncode == 0


def test_where_visitors_are_apart_a_program_sees_what_its_key_owns(
    home: Path,
    closed_loops: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KLEIN_LAB_VISITORS", "apart")
    monkeypatch.setenv("KLEIN_LAB_API_KEYS", "acme:secret-1")
    settings.cache_clear()
    with serve(home, DrawingBackend()) as page:
        database = Database(settings().sqlalchemy_url())
        finetunes = Finetunes(database, open_blobs(settings()), max_bytes=10**9)
        finetunes.add_file("acme", make_lora("theirs").path, name="theirs", weights="pocket")
        database.close()

        def names(**headers: str) -> set[str]:
            client = connect(page.local_url, headers=headers)
            return {lora["name"] for lora in client.predict(api_name="/list_finetunes")}

        bundled = {"style", "subject", "overtrained"}
        assert names() == bundled, "neither a finetune of others nor what lies in the owner's folder"
        assert names(**{"x-key": "secret-1"}) == bundled | {"theirs"}
        with pytest.raises(AppError, match="Not authenticated"):
            names(**{"x-key": "secret-2"})


def test_the_programs_of_the_readme_run(
    page: gr.Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(app.__file__).parent / "README.md").read_text()
    (section,) = re.findall(r"^## From a program\n(.*?)^## ", text, flags=re.DOTALL | re.MULTILINE)
    blocks = dict(re.findall(r"^```(python|json)\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE))
    here = page.local_url.rstrip("/")
    monkeypatch.chdir(tmp_path)
    exec(blocks["python"].replace("http://127.0.0.1:7860", here), {})
    printed = capsys.readouterr().out
    assert "style pocket None" in printed
    assert printed.count("done /") == 3
    (server,) = json.loads(blocks["json"])["mcpServers"].values()
    with urllib.request.urlopen(server["url"].replace("http://127.0.0.1:7860", here)) as reply:
        assert b"MCP" in reply.read()
