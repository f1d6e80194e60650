"""Run the cells of a sweep that have no image yet; yield each as it ends.

Every image is kept before its event is yielded, and whatever stops the run (cancel, closing the generator, a crash)
leaves the run in the store, where `resume_sweep` goes on. Cells of the same identity share one image. One more request
a LoRA and target, the *control*, renders it attached at strength 0: the verdict compares it with the base image.
"""

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from PIL import Image

from evaluation.grid import Cell, SweepSpec, Target, name_backends, plan
from evaluation.identity import rendered_request
from evaluation.judge.metrics import METRICS, score_image
from evaluation.judge.verdict import compare_pixels, judge
from evaluation.store.store import CellRecord, Origin, Store, Verdict
from lora_runtime.backends.base import Backend, require_available
from lora_runtime.backends.several import Share, render_shares
from lora_runtime.errors import Cancelled, Conflict, InvalidInput, Unavailable
from lora_runtime.registry.accounts import LOCAL
from lora_runtime.values import Failed, LoraRef, Progress, Rendered, RenderRequest

__all__ = [
    "CellEnded",
    "EndStatus",
    "Finished",
    "Planned",
    "Stepped",
    "SweepEvent",
    "Verdict",
    "resume_sweep",
    "run_sweep",
]

EndStatus: TypeAlias = Literal["done", "kept", "failed"]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The first event: the run is logged, and this is what is known of its cells."""

    run_id: str
    spec: SweepSpec
    cells: tuple[CellRecord, ...]


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """The batch under way has done `step` of `steps`; `done` of `total` cells have ended; so many `engines` work."""

    done: int
    total: int
    step: int
    steps: int
    engines: int = 1


@dataclass(frozen=True, kw_only=True)
class CellEnded:
    """A cell ended: *done* was rendered now, *kept* had its image already, *failed* has an error instead."""

    record: CellRecord
    status: EndStatus


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The last event. `stopped` when cells were left pending because somebody cancelled."""

    run_id: str
    verdict: Verdict
    stopped: bool


SweepEvent: TypeAlias = Planned | Stepped | CellEnded | Finished


def run_sweep(
    spec: SweepSpec,
    *,
    backend: Backend | Mapping[str, Backend],
    store: Store,
    cancel: threading.Event | None = None,
    organization: str = LOCAL,
    origin: Origin = "sweep",
) -> Generator[SweepEvent, None, None]:
    """Log a new run of `spec` and render its cells that have no image yet.

    `backend` is the one of the spec, or all of them by name; several render at the same time. Closing the generator
    early cancels what is left. The run belongs to `organization`.

    Raises:
        Unavailable: The weights cannot run on a backend.
        Conflict: A backend or its weights are not those of the spec.
        StorageFailed: An image could not be written; those before it are kept.
    """
    cells = plan(spec)
    run_id = store.create_run(spec, cells, organization=organization, origin=origin)
    yield from _Sweep(run_id, spec, cells, name_backends(backend), store).run(cancel)


def resume_sweep(
    run_id: str,
    *,
    backend: Backend | Mapping[str, Backend],
    store: Store,
    cancel: threading.Event | None = None,
) -> Generator[SweepEvent, None, None]:
    """Go on with a run: render its cells that have no image, the failed ones again.

    Raises:
        NotFound: There is no such run.
        Unavailable, Conflict, StorageFailed: As in `run_sweep`.
    """
    run, records = store.look(run_id)
    cells = [record.cell for record in records]
    yield from _Sweep(run_id, run.spec, cells, name_backends(backend), store).run(cancel)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One request, and the cells that its image is for; a control's image is for none, but for `control`."""

    backend: str
    request: RenderRequest
    cells: tuple[Cell, ...] = ()
    control: tuple[LoraRef, Target] | None = None


class _Sweep:
    """One run on its way: what is rendered, what has ended, which controls wait for their base image."""

    def __init__(
        self, run_id: str, spec: SweepSpec, cells: Sequence[Cell], backends: Mapping[str, Backend], store: Store
    ) -> None:
        self.run_id = run_id
        self.spec = spec
        self.cells = cells
        self.backends = backends
        self.store = store
        self.controls = _find_controls(self.cells)
        self.held: dict[tuple[LoraRef, Target], Rendered] = {}
        """Images of controls until their base image is there."""
        self.ended = 0
        self.stopped = False

    def run(self, cancel: threading.Event | None) -> Iterator[SweepEvent]:
        records = self.store.known(self.run_id, self.cells)
        yield Planned(run_id=self.run_id, spec=self.spec, cells=records)
        for record in records:
            if record.state == "done":
                self._score(record.cell.identity)
                yield self._end(record.cell, "kept")
        jobs = self._list_jobs(records)
        if jobs:
            self._check_backends()
            self.store.clear_errors(self.run_id, [cell.position for job in jobs for cell in job.cells])
            yield from self._render(jobs, cancel)
        verdict = judge(
            self.store.known(self.run_id, self.cells),
            {
                self._name(cell, key[0]): self.store.control(cell.base, key[0].sha256)
                for key, cell in self.controls.items()
            },
        )
        self.store.set_verdict(self.run_id, verdict)
        yield Finished(run_id=self.run_id, verdict=verdict, stopped=self.stopped)

    def _list_jobs(self, records: Sequence[CellRecord]) -> list[_Job]:
        """What is still to render, each identity once; a control next to its base cell, so that they share a batch."""
        waiting: dict[str, list[Cell]] = {}
        for record in records:
            if record.state != "done":
                waiting.setdefault(record.cell.identity, []).append(record.cell)
        jobs = []
        for cell in self.cells:
            if cell.identity in waiting:
                cells = waiting.pop(cell.identity)
                request = rendered_request(cell.request, cell.target)
                jobs.append(_Job(backend=cell.target.backend, request=request, cells=tuple(cells)))
            lora = cell.request.lora
            key = (lora, cell.target) if lora else None
            if key and self.controls.get(key) is cell and not self.store.control(cell.base, key[0].sha256):
                jobs.append(_Job(backend=cell.target.backend, request=cell.request, control=key))
        return jobs

    def _name(self, cell: Cell, lora: LoraRef) -> str:
        """What a control is called in the verdict."""
        return f"{lora.name} at {cell.row_label}" if len(self.spec.targets) > 1 else lora.name

    def _check_backends(self) -> None:
        """Refuse to keep images under an identity that is not theirs."""
        for target in self.spec.targets:
            backend = self.backends.get(target.backend)
            if backend is None:
                raise Conflict(
                    f"Run {self.run_id} renders on the {target.backend} backend, not on {' and '.join(self.backends)}."
                )
            try:
                status = backend.status(target.weights, target.precision)
            except (InvalidInput, Unavailable) as error:
                raise Unavailable(
                    f"{target.weights} in {target.precision} does not run here. Resume the run where it was started."
                ) from error
            if require_available(status).digest != target.digest:
                raise Conflict(_changed(self.run_id, target, backend.server))

    def _shares(self, jobs: Sequence[_Job]) -> list[Share]:
        """The jobs of each backend."""
        places: dict[str, list[int]] = {}
        for index, job in enumerate(jobs):
            places.setdefault(job.backend, []).append(index)
        return [
            Share(
                backend=self.backends[name],
                requests=tuple(jobs[index].request for index in indices),
                indices=tuple(indices),
            )
            for name, indices in places.items()
        ]

    def _render(self, jobs: Sequence[_Job], cancel: threading.Event | None) -> Iterator[SweepEvent]:
        events = render_shares(self._shares(jobs), cancel=cancel)
        try:
            for event in events:
                match event:
                    case Progress(step=step, steps=steps, engines=engines):
                        yield Stepped(done=self.ended, total=len(self.cells), step=step, steps=steps, engines=engines)
                    case Rendered(index=index):
                        yield from self._keep(jobs[index], event)
                    case Failed(index=index, error=Cancelled()):
                        self.stopped = self.stopped or bool(jobs[index].cells)
                    case Failed(index=index, error=error):
                        for cell in jobs[index].cells:
                            self.store.set_error(self.run_id, cell.position, str(error))
                            yield self._end(cell, "failed")
        finally:
            events.close()

    def _keep(self, job: _Job, rendered: Rendered) -> Iterator[SweepEvent]:
        """Write the image, then everything that follows from it, then tell."""
        if job.cells:
            self.store.save_image(job.request, rendered, job.cells[0].target)
            self._score(job.cells[0].identity)
        elif job.control:
            self.held[job.control] = rendered
        self._settle_controls()
        for cell in job.cells:
            yield self._end(cell, "done")

    def _score(self, identity: str) -> None:
        """Score the image of `identity`, and as a base image all that are compared with it."""
        seen = set()
        for cell in self.cells:
            pair = (cell.identity, cell.base)
            if identity not in pair or pair in seen:
                continue
            seen.add(pair)
            record = self.store.record(self.run_id, cell)
            base = self.store.image(cell.base)
            if record.image and base and not METRICS.keys() <= record.scores.keys():
                with Image.open(record.image) as image, Image.open(base.path) as base_image:
                    self.store.save_scores(cell, score_image(image, base_image))

    def _settle_controls(self) -> None:
        """Compare each control with its base image as soon as both are there."""
        for key, cell in self.controls.items():
            base = self.store.image(cell.base) if key in self.held else None
            if base is None:
                continue
            control = self.held.pop(key)
            made = {**control.provenance, "batch_size": str(control.timing.batch_size)}
            with Image.open(base.path) as base_image:
                found = compare_pixels(control.image, made, base_image, base.provenance)
            self.store.save_control(cell.base, key[0].sha256, found)

    def _end(self, cell: Cell, status: EndStatus) -> CellEnded:
        self.ended += 1
        return CellEnded(record=self.store.record(self.run_id, cell), status=status)


def _changed(run_id: str, target: Target, server: str | None) -> str:
    """Why the images of a run could not be compared with new ones."""
    if target.server != server:
        return (
            f"Run {run_id} was started at {target.server}, and the {target.backend} backend is at {server} now. "
            "Set KLEIN_LAB_REMOTE to the server of the run."
        )
    return (
        f"The weights {target.weights} have changed since run {run_id} was started, so its other images could not be "
        "compared with new ones. Start a new sweep with the same settings."
    )


def _find_controls(cells: Sequence[Cell]) -> dict[tuple[LoraRef, Target], Cell]:
    """The first base cell of each LoRA on each target, but where that cell itself has the LoRA attached."""
    controls: dict[tuple[LoraRef, Target], Cell] = {}
    for cell in cells:
        if cell.request.lora and not cell.request.strength and not cell.target.server:
            controls.setdefault((cell.request.lora, cell.target), cell)
    return controls
