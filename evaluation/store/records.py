"""What the store knows, as frozen records: runs, cells, images, verdicts, controls. No behaviour, no database."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeAlias

from evaluation.axes import SweepSpec
from evaluation.grid import Cell
from lora_runtime.registry.accounts import LOCAL

State: TypeAlias = Literal["pending", "done", "failed"]
RunStatus: TypeAlias = Literal["done", "failed", "unfinished"]
Origin: TypeAlias = Literal["sweep", "playground", "api"]
"""What made a run: the Sweep tab or the command line, the Playground, a program."""

Outcome: TypeAlias = Literal["left", "right", "tie", "neither"]
"""What a voter says of two images."""

CellKey: TypeAlias = tuple[str, int]
"""The id of a run and a position in it."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a sweep can be trusted. `ok` is None when there was too little to judge; `findings` are sentences."""

    ok: bool | None
    summary: str
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """One execution of a sweep. *failed*: every cell was tried and some have no image; *unfinished*: some wait.

    Whoever knows its id may look at it; lists show it to its `organization` alone.
    """

    id: str
    created: datetime
    spec: SweepSpec
    status: RunStatus
    verdict: Verdict | None
    organization: str = LOCAL
    origin: Origin = "sweep"

    @property
    def is_red(self) -> bool:
        """Whether its verdict says not to trust it."""
        return self.verdict is not None and self.verdict.ok is False


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """A cell of a run and what is known about it. `red`: its run's verdict says not to trust it.

    `scores` are its image's own, or compare it with the base image of its row. `cost` (credits) and `request_id` are
    what the server said that rendered it. `provenance` says how the image was made: the backend's words (device,
    versions) and `batch_size`. A `deleted` cell has left the log, and leaves for good when the store is purged; its run
    still shows it.
    """

    run_id: str
    cell: Cell
    state: State
    image: Path | None = None
    error: str | None = None
    seconds: float | None = None
    created: datetime | None = None
    cost: float | None = None
    request_id: str | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    rating: int | None = None
    note: str = ""
    deleted: bool = False
    red: bool = False
    organization: str = LOCAL
    origin: Origin = "sweep"

    @property
    def key(self) -> CellKey:
        """What names the cell in the store."""
        return self.run_id, self.cell.position


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image's file and how it was made; see `CellRecord`."""

    path: Path
    provenance: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Control:
    """A LoRA attached at strength 0, against the base image: the largest difference of a channel value (0 to 255).

    `tolerance` is the difference that the two devices and batch shapes allow.
    """

    difference: int
    tolerance: int


@dataclass(frozen=True, kw_only=True)
class Vote:
    """A blind choice between two images of one scene, by identity, as they were shown.

    `voter` is a name; `organization` is whose it is, as of a run.
    """

    left: str
    right: str
    outcome: Outcome
    voter: str
    created: datetime
    organization: str = LOCAL
