"""What is deleted for good, and when: visitors' old work with its files, and what was deleted a day ago; no more."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from evaluation.grid import make_spec
from evaluation.store.clean import Cleaning, clean
from evaluation.store.presets import Presets
from evaluation.store.rows import RunRow
from evaluation.store.store import Store
from evaluation.sweep import Planned, run_sweep
from lora_runtime.registry.accounts import LOCAL
from lora_runtime.server.service import Service
from lora_runtime.settings import Settings
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database
from tests.drawing_backend import STYLE, DrawingBackend, make_lora

VISITOR, OTHER = f"visitor-{'a' * 32}", f"visitor-{'b' * 32}"
NOW = datetime.now(UTC)
LATER = NOW + timedelta(hours=25)


@dataclass
class Lab:
    settings: Settings
    database: Database
    store: Store
    service: Service

    def sweep(self, organization: str, *, seed: int, prompt: str = "a red cat") -> str:
        """Two images of `organization`; the run's id."""
        backend = DrawingBackend()
        spec = make_spec(backend, loras=[STYLE], prompts=[prompt], strengths="0, 1", seeds=[seed], width=64, height=64)
        events = list(run_sweep(spec, backend=backend, store=self.store, organization=organization))
        assert isinstance(events[0], Planned)
        return events[0].run_id

    def images(self) -> int:
        return len(list((self.settings.home / "blobs").rglob("*.png")))

    def runs(self) -> set[str]:
        return {run.id for run in self.store.runs()}


@pytest.fixture
def lab(home: Path) -> Iterator[Lab]:
    settings = Settings(visitors="apart")
    database = Database(settings.sqlalchemy_url())
    blobs = Blobs(settings.home / "api")
    service = Service(backend=DrawingBackend(), database=database, blobs=blobs, settings=settings)
    yield Lab(settings, database, Store(database, Blobs(settings.home / "blobs")), service)
    service.close()
    database.close()


def test_old_work_of_visitors_goes_with_its_files_and_nothing_else_does(lab: Lab) -> None:
    lab.sweep(VISITOR, seed=1)
    kept = {lab.sweep(LOCAL, seed=2), lab.sweep("acme", seed=3)}
    for owner in (VISITOR, LOCAL):
        lab.service.finetunes.add_file(owner, make_lora("mine").path, name="mine", weights="pocket")
        Presets(lab.database).save(owner, "mine", "{}")
    prompts = lab.settings.home / "prompts"
    prompts.mkdir()
    (prompts / "embedding.safetensors").touch()
    clean(lab.store, lab.service, lab.settings, now=NOW)
    assert len(lab.runs()) == 3, "nothing is old yet"
    clean(lab.store, lab.service, lab.settings, now=LATER)
    assert lab.runs() == kept
    assert lab.images() == 4
    assert "mine" in [finetune.name for finetune in lab.service.finetunes.list(LOCAL)]
    assert "mine" not in [finetune.name for finetune in lab.service.finetunes.list(VISITOR)]
    assert not lab.service.finetunes.list_deleted(VISITOR)
    assert not Presets(lab.database).list(VISITOR)
    assert Presets(lab.database).list(LOCAL)
    assert VISITOR not in lab.service.accounts.list_organizations()
    assert not list(prompts.iterdir())


def test_an_image_that_a_younger_run_shows_stays(lab: Lab) -> None:
    lab.sweep(VISITOR, seed=1)
    young = lab.sweep(OTHER, seed=1)
    assert lab.images() == 2, "the same cells share their images"
    with lab.database.session() as session:
        session.execute(update(RunRow).where(RunRow.id == young).values(created=LATER - timedelta(hours=1)))
    clean(lab.store, lab.service, lab.settings, now=LATER)
    assert lab.runs() == {young}
    assert all(record.state == "done" for record in lab.store.cells(young))
    clean(lab.store, lab.service, lab.settings, now=LATER + timedelta(days=1))
    assert (lab.runs(), lab.images()) == (set(), 0)


@pytest.mark.parametrize("changes", [{"keep_hours": 0}, {"visitors": "together"}])
def test_where_it_is_kept_for_ever_nothing_goes_for_its_age(lab: Lab, changes: dict[str, object]) -> None:
    run = lab.sweep(VISITOR, seed=1)
    clean(lab.store, lab.service, lab.settings.model_copy(update=changes), now=LATER + timedelta(days=900))
    assert lab.runs() == {run}


def test_a_deletion_can_be_taken_back_for_a_day(lab: Lab) -> None:
    run = lab.sweep(LOCAL, seed=1)
    cells = [(run, record.cell.position) for record in lab.store.cells(run)]
    lab.store.delete_cells(cells)
    clean(lab.store, lab.service, lab.settings, now=NOW + timedelta(hours=23))
    assert lab.store.restore_cells(cells) == 2
    lab.store.delete_cells(cells)
    clean(lab.store, lab.service, lab.settings, now=LATER)
    assert lab.store.restore_cells(cells) == 0
    assert (lab.runs(), lab.images()) == (set(), 0)


def test_the_cleaning_runs_at_once_and_ends_with_the_app(lab: Lab) -> None:
    lab.sweep(VISITOR, seed=1)
    with lab.database.session() as session:
        from sqlalchemy import text

        session.execute(text("update runs set created = '2020-01-01 00:00:00.000000'"))
    cleaning = Cleaning(lab.store, lab.service, lab.settings)
    cleaning.start()
    cleaning.close()
    assert lab.runs() == set()
