"""What happens when a person runs a sweep: run, stop, continue, open an earlier one, download its grid.

A visitor is a browser session. Each has at most one sweep under way here, with a cancel event of its own; closing the
page sets it, and the sweep stops at the next denoising step with everything done kept.
"""

import io
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import gradio as gr

from evaluation.report import grid_png
from evaluation.store import CellRecord, Store, Verdict
from evaluation.sweep import CellEnded, Finished, Planned, Stepped, SweepEvent, resume_sweep, run_sweep
from evaluation.tabs import markup
from evaluation.tabs.form import make_form_spec
from evaluation.tabs.parts import SweepParts, Updates, Values, read_form
from lora_runtime.backends.base import Backend
from lora_runtime.errors import KleinLabError
from lora_runtime.shelf import Shelf
from lora_runtime.visitors import Visitors

REDRAW_S: Final = 0.12
"""Cells of one batch end together; drawing the table for each of them would only keep the page busy."""

WAITING_VERDICT: Final = Verdict(
    ok=None, summary="When the sweep ends: is strength 0 the base model, and did every strength change the picture?"
)


class Cancels:
    """The cancel event of each visitor's sweep."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancels: dict[str, threading.Event] = {}

    def start(self, session: str) -> threading.Event:
        """Return a new cancel event; a sweep that the same page still has under way is stopped."""
        cancel = threading.Event()
        with self._lock:
            before = self._cancels.get(session)
            self._cancels[session] = cancel
        if before is not None:
            before.set()
        return cancel

    def stop(self, session: str) -> None:
        """Stop the visitor's sweep at its next step, if there is one."""
        with self._lock:
            cancel = self._cancels.pop(session, None)
        if cancel is not None:
            cancel.set()

    def end(self, session: str, cancel: threading.Event) -> None:
        """Forget a sweep that has ended."""
        with self._lock:
            if self._cancels.get(session) is cancel:
                del self._cancels[session]


@dataclass
class _Watch:
    """How far a run is and how long it has left."""

    seconds_per_image: float | None
    started: float = field(default_factory=time.monotonic)
    drawn: float = 0.0
    to_render: int = 0

    def is_due(self) -> bool:
        """Whether the page may be redrawn; a call that says yes starts the next wait."""
        now = time.monotonic()
        if now - self.drawn < REDRAW_S:
            return False
        self.drawn = now
        return True

    def seconds_left(self) -> float | None:
        if self.seconds_per_image is None:
            return None
        return self.seconds_per_image * self.to_render - (time.monotonic() - self.started)


class RunHandlers:
    """Events of Run, Stop, Continue, Earlier sweeps and Download."""

    def __init__(
        self, backends: Mapping[str, Backend], store: Store, shelf: Shelf, visitors: Visitors, parts: SweepParts
    ) -> None:
        self._backends = backends
        self._store = store
        self._shelf = shelf
        self._visitors = visitors
        self._parts = parts
        self._cancels = Cancels()

    def run(self, values: Values, session: str) -> Iterator[Updates]:
        """Run the sweep of the form."""
        parts = self._parts
        yield {**self._buttons(running=True), parts.status: markup.draw_message("Getting ready …", running=True)}
        cancel = self._cancels.start(session)
        try:
            organization = self._visitors.organization(session)
            spec = make_form_spec(self._backends, read_form(parts, values), partial(self._shelf.find, organization))
            events = run_sweep(
                spec, backend=self._backends, store=self._store, cancel=cancel, organization=organization
            )
            yield from self._follow(events)
        except KleinLabError as error:
            yield {**self._buttons(running=False), parts.status: markup.draw_error(error)}
        finally:
            cancel.set()
            self._cancels.end(session, cancel)

    def resume(self, run_id: str | None, session: str) -> Iterator[Updates]:
        """Render the cells of the run on the page that have no image, the failed ones again."""
        if run_id is None:
            return
        parts = self._parts
        yield {**self._buttons(running=True), parts.status: markup.draw_message("Going on …", running=True)}
        cancel = self._cancels.start(session)
        try:
            yield from self._follow(resume_sweep(run_id, backend=self._backends, store=self._store, cancel=cancel))
        except KleinLabError as error:
            yield {**self._buttons(running=False), parts.status: markup.draw_error(error)}
        finally:
            cancel.set()
            self._cancels.end(session, cancel)

    def stop(self, session: str) -> Updates:
        """Stop this visitor's sweep; its generator shows the end."""
        self._cancels.stop(session)
        return {self._parts.stop: gr.update(value="Stopping …", interactive=False)}

    def forget(self, session: str) -> None:
        """Stop the sweep of a page that was closed."""
        self._cancels.stop(session)

    def recover(self) -> Updates:
        """Make the buttons usable again after a fault that no error of ours describes; the page shows it as a toast."""
        return self._buttons(running=False)

    def open(self, run_id: str | None) -> Updates:
        """Show an earlier run; what it lacks can be continued."""
        if not run_id:
            return {}
        parts = self._parts
        try:
            run, records = self._store.run(run_id), self._store.cells(run_id)
        except KleinLabError as error:
            return {parts.status: markup.draw_error(error)}
        return {
            parts.run_id: run.id,
            parts.grid: markup.draw_grid(run.spec, records, running=False),
            parts.verdict: markup.draw_verdict(run.verdict or WAITING_VERDICT),
            parts.status: markup.draw_progress(
                done=_count(records, "done"), total=len(records), words=_words(records), running=False
            ),
            **self._buttons(running=False, records=records),
        }

    def download(self, run_id: str | None) -> str | None:
        """Return the labelled grid of the run on the page as a PNG file in Gradio's cache."""
        if run_id is None:
            return None
        run, records = self._store.run(run_id), self._store.cells(run_id)
        buffer = io.BytesIO()
        grid_png(run.spec, records).save(buffer, format="PNG")
        return str(
            gr.processing_utils.save_bytes_to_cache(
                buffer.getvalue(), f"{run_id}.png", self._parts.download_file.GRADIO_CACHE
            )
        )

    def _follow(self, events: Iterator[SweepEvent]) -> Iterator[Updates]:
        """Turn the events of a sweep into what the page shows."""
        parts = self._parts
        planned: Planned | None = None
        records: list[CellRecord] = []
        watch = _Watch(None)
        try:
            for event in events:
                match event:
                    case Planned():
                        planned, records = event, list(event.cells)
                        watch = self._watch(event)
                        yield self._start(event)
                    case Stepped():
                        if watch.is_due():
                            yield {parts.status: _draw_step(records, event, watch)}
                    case CellEnded(record=record):
                        records[record.cell.position] = record
                        if planned and watch.is_due():
                            yield self._redraw(planned, records, watch)
                    case Finished():
                        if planned:
                            yield self._finish(planned, event, watch)
        except KleinLabError as error:
            if planned is None:
                raise
            yield self._fail(planned, error)
        finally:
            if isinstance(events, Generator):
                events.close()

    def _watch(self, planned: Planned) -> _Watch:
        spec = planned.spec
        seconds = self._store.seconds_per_image(spec.weights, spec.precision, spec.width, spec.height, spec.steps)
        return _Watch(seconds, to_render=len(planned.cells) - _count(planned.cells, "done"))

    def _start(self, planned: Planned) -> Updates:
        parts = self._parts
        fresh = [
            replace(record, state="pending", error=None) if record.state == "failed" else record
            for record in planned.cells
        ]
        return {
            parts.run_id: planned.run_id,
            parts.grid: markup.draw_grid(planned.spec, fresh, running=True),
            parts.verdict: markup.draw_verdict(WAITING_VERDICT),
            parts.status: markup.draw_progress(
                done=_count(fresh, "done"), total=len(fresh), words=["the model starts"]
            ),
        }

    def _redraw(self, planned: Planned, records: Sequence[CellRecord], watch: _Watch) -> Updates:
        parts = self._parts
        return {
            parts.grid: markup.draw_grid(planned.spec, records, running=True),
            parts.status: markup.draw_progress(
                done=_count(records, "done"), total=len(records), words=_left_words(watch)
            ),
        }

    def _finish(self, planned: Planned, finished: Finished, watch: _Watch) -> Updates:
        parts = self._parts
        records = self._store.cells(planned.run_id)
        took = f"{time.monotonic() - watch.started:.1f} s"
        words = _words(records) if finished.stopped or _count(records, "failed") else [f"done in {took}"]
        return {
            parts.grid: markup.draw_grid(planned.spec, records, running=False),
            parts.verdict: markup.draw_verdict(finished.verdict),
            parts.status: markup.draw_progress(
                done=_count(records, "done"), total=len(records), words=words, running=False
            ),
            **self._buttons(running=False, records=records),
        }

    def _fail(self, planned: Planned, error: KleinLabError) -> Updates:
        parts = self._parts
        records = self._store.cells(planned.run_id)
        return {
            parts.grid: markup.draw_grid(planned.spec, records, running=False),
            parts.status: markup.draw_error(error),
            **self._buttons(running=False, records=records),
        }

    def _buttons(self, *, running: bool, records: Sequence[CellRecord] = ()) -> Updates:
        parts = self._parts
        left, failed = _count(records, "pending"), _count(records, "failed")
        label = f"Continue: {left} left" if left else f"Retry {failed} failed" if failed else "Continue"
        return {
            parts.run: gr.update(interactive=not running, value="Running …" if running else "Run sweep"),
            parts.stop: gr.update(interactive=running, value="Stop"),
            parts.resume: gr.update(interactive=not running and bool(left or failed), value=label),
            parts.download: gr.update(interactive=not running and _count(records, "done") > 0),
        }


def _count(records: Sequence[CellRecord], state: str) -> int:
    return sum(record.state == state for record in records)


def _words(records: Sequence[CellRecord]) -> list[str]:
    left, failed = _count(records, "pending"), _count(records, "failed")
    words = [f"{failed} failed: Retry tries them again"] if failed else []
    if left:
        words.append(f"stopped, {left} left: Continue renders only those")
    return words


def _left_words(watch: _Watch) -> list[str]:
    left = watch.seconds_left()
    return [f"about {max(1, round(left))} s left"] if left is not None and left > 0 else []


def _draw_step(records: Sequence[CellRecord], event: Stepped, watch: _Watch) -> str:
    return markup.draw_progress(
        done=_count(records, "done"),
        total=event.total,
        words=[f"step {event.step} of {event.steps}", *_left_words(watch)],
    )
