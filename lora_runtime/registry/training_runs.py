"""The training runs of an organization: files that were dropped at once, folders that a trainer writes to, the bundled.

What is dropped is kept as finetunes, each checkpoint under a name of its own; the run remembers their order, what each
is called in it, and which did not fit. A folder of `home/loras` is a training run that may still grow: it is read anew
whenever it is asked for, and it is for whoever sits at this machine alone. The pocket's own training run is for all.
"""

import contextlib
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import select

from lora_runtime.errors import InvalidInput, KleinLabError
from lora_runtime.lora.library import find_bundled_run, list_bundled_runs
from lora_runtime.lora.names import clean_name, number_name
from lora_runtime.lora.training import (
    Checkpoint,
    TrainingRun,
    find_checkpoints,
    list_ready,
    name_run,
    order_files,
    read_files,
    read_folder,
)
from lora_runtime.registry.accounts import LOCAL
from lora_runtime.registry.shelf import Shelf
from lora_runtime.storage.database import Database
from lora_runtime.storage.rows import TrainingRunRow
from lora_runtime.values import LoraRef


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A training run to choose: its name, how many checkpoints it has, and the folder where it may grow.

    `files` are the SHA-256 of those that are finetunes too, in the order of the training.
    """

    name: str
    count: int
    folder: Path | None = None
    files: tuple[str, ...] = ()


class TrainingRuns:
    """The training runs of one database; their LoRAs are on the `shelf`, those under way in folders of `folder`."""

    def __init__(self, database: Database, shelf: Shelf, folder: Path) -> None:
        self._database = database
        self._shelf = shelf
        self._folder = folder

    def list(self, organization: str) -> tuple[Listed, ...]:
        """Return what there is to choose, the newest first; files are not read for it."""
        shelved = self._shelf.list(organization)
        there = {ref.sha256 for ref in shelved}
        kept = []
        for row in self._rows(organization):
            files = tuple(each["sha256"] for each in row.checkpoints if each["sha256"] in there)
            if files:
                kept.append(Listed(name=row.name, count=len(row.checkpoints), files=files))
        taken = {each.name for each in kept} | {ref.name for ref in shelved}
        bundled = [
            Listed(name=folder.name, count=len(find_checkpoints(folder)))
            for folder in list_bundled_runs()
            if folder.name not in taken
        ]
        taken |= {each.name for each in bundled}
        return (*self._list_folders(organization, taken), *kept, *bundled)

    def find(self, organization: str, name: str) -> TrainingRun | None:
        """Return the training run of that name; None where there is none.

        Raises:
            NotFound: It is a folder that has gone meanwhile.
        """
        if folder := self._find_folder(organization, name):
            return replace(read_folder(folder), name=name)
        row = next((row for row in self._rows(organization) if row.name == name), None)
        if row is None:
            bundled = find_bundled_run(name)
            return replace(read_folder(bundled), folder=None) if bundled else None
        shelved = {ref.sha256: ref for ref in self._shelf.list(organization)}
        return TrainingRun(name=name, checkpoints=tuple(_read(each, shelved) for each in row.checkpoints))

    def find_ready(self, organization: str, name: str) -> TrainingRun | None:
        """Return a training run that may grow, with the checkpoints that are written to their end; None for others."""
        folder = self._find_folder(organization, name)
        return read_files(list_ready(folder, now=time.time()), name=name) if folder else None

    def choose(self, organization: str, name: str) -> TrainingRun | LoraRef:
        """Return the training run or the LoRA that `organization` sees under `name`.

        Raises:
            NotFound: There is neither.
        """
        return self.find(organization, name) or self._shelf.find(organization, name)

    def keep(self, organization: str, paths: Sequence[Path]) -> TrainingRun:
        """Register files as the checkpoints of one training run; one that does not fit stays in it, and says why.

        Raises:
            InvalidInput: None of them fits.
            StorageFailed: The disk is full or not writable.
        """
        name = self._find_name(organization, name_run([path.stem for path in paths]))
        checkpoints = []
        # Uploads lie in folders of their own, whose names say nothing.
        for path, label in order_files(paths, by_folder=False):
            try:
                checkpoints.append(Checkpoint(label=label, lora=self._keep(organization, path, f"{name}-{label}")))
            except KleinLabError as error:
                checkpoints.append(Checkpoint(label=label, problem=str(error)))
        if not any(each.lora for each in checkpoints):
            raise InvalidInput(f"None of the {len(checkpoints)} files can be rendered. {checkpoints[0].problem}")
        run = TrainingRun(name=name, checkpoints=tuple(checkpoints))
        self._store(organization, run)
        return run

    def is_in_folder(self, organization: str, lora: LoraRef) -> bool:
        """Whether a LoRA is a checkpoint of a folder that `organization` can choose, so that it may take it."""
        folders = [*list_bundled_runs(), *((self._folder.resolve(),) if organization == LOCAL else ())]
        return lora.path is not None and any(folder in lora.path.parents for folder in folders)

    def take(self, organization: str, lora: LoraRef) -> LoraRef:
        """Register a checkpoint of such a folder as a finetune; any other LoRA is returned as it is.

        Raises:
            KleinLabError: As `Shelf.keep`.
        """
        if lora.path is None or not self.is_in_folder(organization, lora):
            return lora
        return self._keep(organization, lora.path, lora.name)

    def _find_folder(self, organization: str, name: str) -> Path | None:
        return next((listed.folder for listed in self.list(organization) if listed.name == name), None)

    def _keep(self, organization: str, path: Path, name: str) -> LoraRef:
        return self._shelf.keep(organization, path, file_name=f"{name}.safetensors")

    def _store(self, organization: str, run: TrainingRun) -> None:
        said = [
            {"label": each.label, "sha256": each.lora.sha256 if each.lora else "", "problem": each.problem}
            for each in run.checkpoints
        ]
        row = TrainingRunRow(
            id=uuid.uuid4().hex, organization_id=organization, name=run.name, checkpoints=said, created=time.time()
        )
        with self._database.session() as session:
            session.add(row)

    def _find_name(self, organization: str, wanted: str) -> str:
        """The first name that neither a training run nor a LoRA of the organization has."""
        taken = {ref.name for ref in self._shelf.list(organization)} | {each.name for each in self.list(organization)}
        return next(name for name in number_name(wanted) if name not in taken)

    def _rows(self, organization: str) -> Sequence[TrainingRunRow]:
        query = (
            select(TrainingRunRow)
            .where(TrainingRunRow.organization_id == organization)
            .order_by(TrainingRunRow.created.desc())
        )
        with self._database.session() as session:
            return session.scalars(query).all()

    def _list_folders(self, organization: str, taken: set[str]) -> tuple[Listed, ...]:
        if organization != LOCAL or not self._folder.is_dir():
            return ()
        found = []
        for folder in sorted(each for each in self._folder.iterdir() if each.is_dir()):
            count = 0
            with contextlib.suppress(OSError):  # it went while it was looked at, or may not be read
                count = len(find_checkpoints(folder))
            name = next(each for each in number_name(clean_name(folder.name)) if each not in taken)
            if count:
                found.append(Listed(name=name, count=count, folder=folder))
                taken.add(name)
        return tuple(found)


def _read(kept: dict[str, str], shelved: dict[str, LoraRef]) -> Checkpoint:
    lora = shelved.get(kept["sha256"])
    problem = kept["problem"] or ("" if lora else "Its finetune was deleted.")
    return Checkpoint(label=kept["label"], lora=lora, problem=problem)
