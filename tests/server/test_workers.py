"""Tasks of different callers share the engine's batches; a worker that stops gives its task back."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest

from lora_runtime.backends.base import Backend
from lora_runtime.backends.bfl_words import Status
from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import ENDPOINTS, POCKET
from lora_runtime.errors import StorageFailed
from lora_runtime.registry.accounts import Accounts
from lora_runtime.registry.finetunes import SUFFIX
from lora_runtime.server.claims import LEASE_S
from lora_runtime.server.service import Service
from lora_runtime.server.tasks import Tasks
from lora_runtime.server.wire import Flux2KleinFinetunedInputs, Flux2KleinInputs
from lora_runtime.server.workers import tidy
from lora_runtime.settings import Settings
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database
from lora_runtime.values import ModelStatus, Precision, Rendered, RenderEvent, RenderRequest
from tests.drawing_backend import DrawingBackend
from tests.lora_files import make_adapter, write_diffusers


class Watched:
    """A backend that writes down in which batch each request was rendered."""

    def __init__(self, backend: Backend) -> None:
        self.name, self.label, self.server = backend.name, backend.label, backend.server
        self.batches: dict[tuple[str, str], int] = {}
        self._backend = backend

    def status(self, weights: str, precision: Precision | None) -> ModelStatus:
        return self._backend.status(weights, precision)

    def models(self) -> Sequence[ModelStatus]:
        return self._backend.models()

    def render(
        self, requests: Sequence[RenderRequest], *, cancel: threading.Event | None = None
    ) -> Iterator[RenderEvent]:
        for event in self._backend.render(requests, cancel=cancel):
            if isinstance(event, Rendered):
                request = requests[event.index]
                lora = request.lora.name if request.lora else ""
                self.batches[lora, str(request.strength)] = event.timing.batch_size
            yield event

    def close(self) -> None:
        self._backend.close()


MakeService: TypeAlias = Callable[..., Service]


@pytest.fixture
def make_service(home: Path) -> Iterator[MakeService]:
    """Services on one home folder; their databases are closed after the test."""
    databases = []

    def make(backend: Backend, **changes: object) -> Service:
        chosen = Settings(home=home, **changes)
        databases.append(Database(chosen.sqlalchemy_url()))
        return Service(backend=backend, database=databases[-1], blobs=Blobs(home / "api"), settings=chosen)

    yield make
    for database in databases:
        database.close()


def submit(service: Service, organization: str, *, finetune_id: str | None = None, strength: float = 1.0) -> str:
    common = {"prompt": "a red cat", "seed": 1, "width": 64, "height": 64}
    name, body = "flux-2-klein-pocket", Flux2KleinInputs(**common)
    if finetune_id is not None:
        name = "flux-2-klein-pocket-finetuned"
        body = Flux2KleinFinetunedInputs(**common, finetune_id=finetune_id, finetune_strength=strength)
    service.accounts.add_organization(organization)
    return service.submit(organization, ENDPOINTS[name], body, base_url="http://127.0.0.1").task_id


def wait(service: Service, task_ids: Sequence[str]) -> list[Status]:
    pause = threading.Event()
    for _ in range(2400):
        tasks = [service.tasks.find(task_id) for task_id in task_ids]
        if all(task is not None and task.status is not Status.PENDING for task in tasks):
            break
        pause.wait(0.05)
    return [task.status for task in tasks if task is not None]


def test_callers_with_different_loras_and_strengths_share_a_batch(
    local_backend: LocalBackend, make_service: MakeService
) -> None:
    watched = Watched(local_backend)
    service = make_service(watched)
    submitted = [
        submit(service, "acme", finetune_id="official/style", strength=0.5),
        submit(service, "zenith", finetune_id="official/subject", strength=1.0),
        submit(service, "third", finetune_id="official/style", strength=1.5),
        submit(service, "acme"),
    ]
    service.start()
    assert wait(service, submitted) == [Status.READY] * 4
    service.close()
    assert len(watched.batches) == 4
    assert max(watched.batches.values()) >= 2, watched.batches


def test_a_service_that_stops_gives_its_tasks_back(make_service: MakeService) -> None:
    under_way, stopping = threading.Event(), threading.Event()

    def hold(_request: RenderRequest) -> None:
        under_way.set()
        stopping.wait(60)

    first = make_service(DrawingBackend(fails=hold), workers=1)
    submitted = [submit(first, "local") for _ in range(3)]
    first.start()
    assert under_way.wait(60)
    closer = threading.Thread(target=first.close)
    closer.start()
    stopping.set()
    closer.join()
    second = make_service(DrawingBackend())
    second.start()
    assert wait(second, submitted) == [Status.READY] * 3
    second.close()
    assert second.accounts.spent("local")[0] == 3


def test_a_full_disk_delays_a_task_and_does_not_end_it(make_service: MakeService) -> None:
    faults = [StorageFailed("The disk is full.")]
    service = make_service(DrawingBackend(fails=lambda _request: faults.pop() if faults else None))
    task_id = submit(service, "local")
    service.start()
    pause = threading.Event()
    task = service.tasks.find(task_id)
    while faults or task is None or task.attempts:  # from the claim to the worker's giving it back
        pause.wait(0.01)
        task = service.tasks.find(task_id)
    assert task.status is Status.PENDING
    service.close()


def test_a_surprise_fails_its_task_and_not_the_worker(make_service: MakeService) -> None:
    class Broken(DrawingBackend):
        def render(
            self, requests: Sequence[RenderRequest], *, cancel: threading.Event | None = None
        ) -> Iterator[RenderEvent]:
            if requests[0].lora is not None:
                raise ZeroDivisionError
            return super().render(requests, cancel=cancel)

    service = make_service(Broken(), workers=1)
    submitted = [submit(service, "local", finetune_id="official/style"), submit(service, "local")]
    service.start()
    assert wait(service, submitted) == [Status.ERROR, Status.READY]
    service.close()


def test_the_file_of_an_attempt_that_was_killed_goes_with_the_next_one(make_service: MakeService, home: Path) -> None:
    service = make_service(DrawingBackend(), workers=1)
    submitted = submit(service, "local")
    other = submit(service, "local")
    database = Database(f"sqlite:///{home / 'lab.sqlite3'}")
    killed = Tasks(database, max_active=24, clock=lambda: time.time() - 2 * LEASE_S)
    (claimed,) = killed.claim()
    assert claimed.id == submitted
    killed.begin(claimed)
    database.close()
    half = service.blobs.put(b"in another batch", suffix=f".{submitted}.result.jpeg")
    service.start()
    assert wait(service, [submitted, other]) == [Status.READY, Status.READY]
    service.close()
    named = {service.tasks.find(task_id).result_blob for task_id in (submitted, other)}  # type: ignore[union-attr]
    assert {path.name for path in (home / "api").rglob("*.result.jpeg")} == named
    assert half not in named


def test_a_task_whose_process_died_is_rendered_alone(make_service: MakeService) -> None:
    """It may be the cause: whoever is rendered beside it would die with it."""
    service = make_service(DrawingBackend())
    suspect, *others = (submit(service, "local") for _ in range(5))
    killed = Tasks(service.database, max_active=24, clock=lambda: time.time() - 2 * LEASE_S)
    (claimed,) = killed.claim()
    assert claimed.id == suspect
    killed.begin(claimed)
    service.close()

    beside: list[int] = []
    lock, together = threading.Lock(), threading.Event()

    class Counting(DrawingBackend):
        under_way = 0

        def render(
            self, requests: Sequence[RenderRequest], *, cancel: threading.Event | None = None
        ) -> Iterator[RenderEvent]:
            with lock:
                self.under_way += 1
                beside.append(self.under_way)
                if self.under_way > 1:
                    together.set()
            if len(beside) > 2:  # the suspect and the one after it are alone, the rest are held until they are not
                together.wait(60)
            yield from super().render(requests, cancel=cancel)
            with lock:
                self.under_way -= 1

    second = make_service(Counting(), workers=4)
    second.start()
    assert wait(second, [suspect, *others]) == [Status.READY] * 5
    second.close()
    assert beside[0] == 1, "the suspect goes first, as the oldest"
    assert beside[1] == 1, "and nobody joins it"
    assert max(beside) > 1


def test_files_that_killed_processes_left_half_written_go_and_those_on_their_way_stay(
    make_service: MakeService,
) -> None:
    service = make_service(DrawingBackend())
    folder = service.blobs.folder
    for name in (".part-old", ".part-new", ".upload-old/a.safetensors", ".upload-new/a.safetensors", ".gitignore"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
        for path in (file, file.parent) if "old" in name or "new" in name else ():
            os.utime(path, (1, 1))
    os.utime(folder / ".part-new")
    os.utime(folder / ".upload-new" / "a.safetensors")  # the folder is as old as its first byte
    os.utime(folder / ".gitignore", (1, 1))
    tidy(service.tasks, service.finetunes, service.blobs, frozenset())
    assert {path.name for path in folder.iterdir()} == {".part-new", ".upload-new", ".gitignore"}
    service.close()


def test_files_nobody_needs_go_and_those_of_finetunes_and_tasks_stay(make_service: MakeService, tmp_path: Path) -> None:
    service = make_service(DrawingBackend())
    kept = [
        service.finetunes.add_file(
            "local",
            write_diffusers(tmp_path / f"{name}.safetensors", make_adapter(POCKET, rank=2, seed=seed)),
            name=name,
            weights="pocket",
        )
        for seed, name in enumerate(("listed", "rendering", "deleted", "gone"))
    ]
    submit(service, "local", finetune_id="rendering")
    for name in ("rendering", "gone"):
        service.finetunes.remove("local", name)
    assert service.finetunes.purge(time.time() + 1) == 2
    service.finetunes.remove("local", "deleted")
    for path in service.blobs.folder.rglob(f"*{SUFFIX}"):
        os.utime(path, (1, 1))
    seen: frozenset[str] = frozenset()
    for _ in range(2):
        seen = tidy(service.tasks, service.finetunes, service.blobs, seen)
    left = {path.name for path in service.blobs.folder.rglob(f"*{SUFFIX}")}
    assert left == {kept[0].blob, kept[1].blob, kept[2].blob}
    assert service.finetunes.restore("local", "deleted").lora.path.is_file()
    service.close()


def test_organizations_are_added_once_by_many_threads(make_service: MakeService) -> None:
    service = make_service(DrawingBackend())
    threads = [threading.Thread(target=Accounts.add_organization, args=(service.accounts, "acme")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    submit(service, "acme")
    assert service.tasks.active("acme") == 1
    service.close()
