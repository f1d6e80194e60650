"""`download judge`, against a Hub on loopback: what is said first, what comes, and where it is found again."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from lora_runtime.__main__ import app
from lora_runtime.errors import InvalidInput, StorageFailed, Unavailable
from lora_runtime.judges import DEFAULTS, HUB_JUDGES, find_eye, find_judge, plan_judges, say_missing
from lora_runtime.settings import Settings
from lora_runtime.startup import fetch_judge
from tests.hub_double import Hub, serve_hub
from tests.judge_folders import make_clip, make_dinov2, make_siglip


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub with tiny models under the names of the real ones, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        for name, make in (("siglip2", make_siglip), ("clip", make_clip), ("dinov2", make_dinov2)):
            files = read_folder(make(tmp_path / name))
            hub.repos[HUB_JUDGES[name].hub_id] = {**files, "README.md": b"# A model", "pytorch_model.bin": b"pickle"}
        yield hub


def list_fetched(hub: Hub) -> set[str]:
    return {asked.rpartition("/")[2] for asked in hub.asked if asked.startswith("GET") and "/resolve/" in asked}


def test_size_and_licence_are_said_before_the_first_byte(hub: Hub) -> None:
    asked = CliRunner().invoke(app, ["download", "judge"], input="n\n")
    assert asked.exit_code == 1
    for name in DEFAULTS:
        judge = HUB_JUDGES[name]
        assert f"{judge.label} from huggingface.co/{judge.hub_id}: " in asked.stdout
    assert asked.stdout.count("Licence: Apache-2.0.") == 2
    assert not list_fetched(hub)
    (plan,) = plan_judges(["dinov2"])
    files = hub.repos[HUB_JUDGES["dinov2"].hub_id]
    assert plan.size_bytes == sum(len(files[name]) for name in files if not name.endswith((".md", ".bin")))


def test_what_came_is_found_again(hub: Hub) -> None:
    assert find_judge("klein-4b") is find_eye("klein-4b") is None
    assert "download judge" in str(say_missing("klein-4b"))
    done = CliRunner().invoke(app, ["download", "judge", "--yes"])
    assert done.exit_code == 0, done.output
    assert not {"README.md", "pytorch_model.bin"} & list_fetched(hub)
    judge, eye = find_judge("klein-4b"), find_eye("klein-4b")
    assert judge is not None
    assert eye is not None
    assert (judge.name, judge.kind) == (HUB_JUDGES["siglip2"].hub_id, "siglip")
    assert (eye.name, eye.kind) == (HUB_JUDGES["dinov2"].hub_id, "dinov2")
    assert say_missing("klein-4b") is None
    before = len(list_fetched(hub))
    hub.asked.clear()
    assert CliRunner().invoke(app, ["download", "judge", "--yes"]).exit_code == 0
    assert before > 0 == len(list_fetched(hub)), "what is here is not fetched again"


def test_one_judge_can_be_chosen_and_its_eye_serves_where_there_is_no_other(hub: Hub) -> None:
    for plan in plan_judges(["clip"]):
        plan.run()
    judge = find_judge("klein-9b")
    assert judge is not None
    assert judge == find_eye("klein-9b")
    assert judge.kind == "clip"
    (judge.folder / "model.safetensors").unlink()
    assert find_judge("klein-9b") is None, "half a download is not there yet"


def test_what_is_in_the_way_is_a_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="none of siglip2, clip, dinov2"):
        plan_judges(["dreamsim"])
    for words, message in (
        (["judge", "--precision", "fp8"], "--precision is of weights"),
        (["klein-4b", "--model", "clip"], "--model is of `download judge`"),
    ):
        refused = CliRunner().invoke(app, ["download", *words, "--yes"])
        assert refused.exit_code == 1
        assert message in refused.stderr
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 0))
    with pytest.raises(StorageFailed, match=r"The judges needs? .* GB"):
        plan_judges()
    hub.gated.add(HUB_JUDGES["clip"].hub_id)
    with pytest.raises(Unavailable, match="accepted its licence"):
        plan_judges(["clip"])
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="could not be reached"):
        plan_judges(["clip"])


@pytest.mark.parametrize(
    ("change", "fetched"),
    [({}, True), ({"weights": "pocket"}, False), ({"fetch_judge": False}, False)],
)
def test_a_space_with_a_gpu_fetches_its_judge_at_the_start(hub: Hub, change: dict[str, object], fetched: bool) -> None:
    fetch_judge(Settings(weights="klein-4b", fetch_judge=True).model_copy(update=change))
    assert (find_judge("klein-4b") is not None) == fetched
    hub.asked.clear()
    fetch_judge(Settings(weights="klein-4b", fetch_judge=True))
    assert bool(list_fetched(hub)) != fetched, "what is there is not fetched again"


def test_a_judge_that_cannot_be_fetched_keeps_nobody_from_starting(
    hub: Hub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_runtime.startup.logger.disabled", False)
    hub.repos.clear()
    fetch_judge(Settings(weights="klein-4b", fetch_judge=True))
    assert "SigLIP 2" in caplog.text
