"""What the person at this machine types, and the home folder that they had before there was a registry."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from evaluation.store.presets import Presets
from evaluation.store.store import Store
from evaluation.sweep import resume_sweep
from evaluation.tabs.sweep_form import SweepForm
from lora_runtime.catalogue import POCKET
from lora_runtime.errors import NotFound
from lora_runtime.lora.library import find_lora, path_of, report_of
from lora_runtime.registry.accounts import LOCAL
from lora_runtime.registry.local import fetch_lora, open_blobs, open_registry
from lora_runtime.registry.shelf import Shelf
from lora_runtime.server.service import Service
from lora_runtime.settings import settings
from tests.drawing_backend import DrawingBackend, make_lora
from tests.lora_files import make_adapter, write_bfl

OLD_HOME = Path(__file__).parent.parent / "golden" / "old-home.tar.gz"


def list_names() -> dict[str, str]:
    with open_registry() as finetunes:
        return {ref.name: ref.sha256 for ref in Shelf(finetunes).list(LOCAL)}


def put_into_home(home: Path, **files: str) -> None:
    (home / "loras").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        shutil.copyfile(make_lora(content).path, home / "loras" / f"{name}.safetensors")


def test_a_finetune_is_found_by_its_name_and_a_file_by_its_path(home: Path, tmp_path: Path) -> None:
    file = write_bfl(tmp_path / "My LoRA.safetensors", make_adapter(POCKET), metadata={"trigger_phrase": "ohwx"})
    with open_registry() as finetunes:
        kept = Shelf(finetunes).keep(LOCAL, file)
    assert fetch_lora("my-lora") == kept
    assert (kept.name, kept.trigger_phrase) == ("my-lora", "ohwx")
    assert fetch_lora(str(file)).path == file
    assert fetch_lora("style") == find_lora("style")
    with pytest.raises(NotFound, match="Known names: style, subject, overtrained, my-lora"):
        fetch_lora("nothing")


def test_what_lies_in_the_home_folder_is_taken_in_once_under_its_own_name(home: Path) -> None:
    put_into_home(home, style="one", Mine="two", mine="three", 风格="four")
    (home / "loras" / "bad.safetensors").write_bytes(b"x")
    names = list_names()
    digits = {name: make_lora(name).sha256 for name in ("one", "two", "three", "four")}
    assert names["风格"] == digits["four"]
    assert names[f"style-{digits['one'][:6]}"] == digits["one"], "the bundled one was there first"
    (second,) = names.keys() & {f"mine-{digits[each][:6]}" for each in ("two", "three")}
    assert {names["mine"], names[second]} == {digits["two"], digits["three"]}
    assert list_names() == names
    assert [path.name for path in (home / "loras").iterdir()] == ["bad.safetensors"], "what cannot be read stays"


def test_a_taking_in_that_was_cut_off_goes_on(home: Path) -> None:
    put_into_home(home, mine="one")
    before = list_names()
    put_into_home(home, mine="one")  # as if the process had ended before it deleted the file
    assert list_names() == before
    assert not list((home / "loras").iterdir())


@pytest.fixture
def old(home: Path) -> dict[str, Any]:
    """What the code of commit 2f2a595 said of the home that it made; see golden/make_old_home.py."""
    with tarfile.open(OLD_HOME) as archive:
        archive.extractall(home.parent, filter="data")
    return dict(json.loads((home / "expected.json").read_text()))


@pytest.fixture
def service(old: dict[str, Any], store: Store) -> Iterator[Service]:
    chosen = settings()
    service = Service(backend=DrawingBackend(), database=store.database, blobs=open_blobs(chosen), settings=chosen)
    yield service
    service.close()


def test_an_old_home_opens_with_every_lora_and_finetune(old: dict[str, Any], service: Service) -> None:
    mine = {name: sha256 for name, sha256 in old["loras"].items() if name not in ("style", "subject", "overtrained")}
    shelf = Shelf(service.finetunes)
    assert mine.items() <= {ref.name: ref.sha256 for ref in shelf.list(LOCAL)}.items()
    for ref in shelf.list(LOCAL):
        assert report_of(ref).file.sha256 == ref.sha256
    for finetune_id, (sha256, phrase, owner) in old["finetunes"].items():
        if owner != "official":
            found = service.finetunes.find(LOCAL, finetune_id)
            assert [found.lora.sha256, found.trigger_phrase, found.owner] == [sha256, phrase, owner]
    assert [finetune.name for finetune in service.finetunes.list_deleted(LOCAL)] == ["gone"]
    assert service.finetunes.restore(LOCAL, "gone").lora.sha256 == make_lora("gone").sha256
    assert fetch_lora("ann/klein-style").name == "watercolor", "known by its address, without asking the Hub"


def test_an_old_home_opens_with_every_run_rating_and_preset(
    old: dict[str, Any], service: Service, store: Store
) -> None:
    for run_id, status, ok, cells in old["runs"]:
        run, records = store.look(run_id)
        assert (run.status, run.verdict and run.verdict.ok) == (status, ok)
        seen = [
            [each.cell.identity, each.state, each.image and each.image.name, each.rating, each.note, dict(each.scores)]
            for each in records
        ]
        assert json.loads(json.dumps(seen)) == cells
        assert all(lora.path is None or lora.path.is_file() for lora in run.spec.loras)
    (preset,) = Presets(store.database).list(LOCAL)
    form = SweepForm.load(preset.form)
    assert [form.lora, *form.more_loras] == ["kept", "lora", "local/mine"]
    for name in (form.lora, *form.more_loras):
        assert path_of(Shelf(service.finetunes).find(LOCAL, name or "")).is_file()


def test_an_old_half_done_run_goes_on_with_a_lora_of_the_home_folder(
    old: dict[str, Any], service: Service, store: Store
) -> None:
    (run_id,) = (each[0] for each in old["runs"] if [cell[1] for cell in each[3]] == ["done", "pending", "pending"])
    backend = DrawingBackend()
    for _ in resume_sweep(run_id, backend=backend, store=store):
        pass
    assert [record.state for record in store.cells(run_id)] == ["done"] * 3
    asked = sorted((request.lora is not None, request.strength) for request in backend.rendered)
    assert asked == [(True, 0), (True, Decimal("0.5")), (True, 1)], "the control and what was left; the base was kept"


def test_an_old_home_opens_with_every_task(old: dict[str, Any], service: Service) -> None:
    (task,) = service.tasks.claim()
    assert (task.id, task.finetune) == (old["tasks"][1], "acme/theirs")
    assert task.lora_blob is not None
    assert service.blobs.path(task.lora_blob).is_file()
    assert not service.tasks.claim(), "the other had ended"
