"""What happens when a person runs a sweep: run, stop, continue, add strengths, open an earlier one, download its grid.

A visitor is a browser session. Each has at most one sweep under way here, with a cancel event of its own; closing the
page sets it, and the sweep stops at the next denoising step with everything done kept.
"""

import io
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Final, TypeAlias

import gradio as gr

from evaluation.axes import SweepSpec
from evaluation.grid import extend_spec
from evaluation.judge.answer import Answer, answer_run
from evaluation.judge.prompt_fit import score_prompts
from evaluation.report.files import grid_png
from evaluation.store.store import CellRecord, Run, Store, Verdict
from evaluation.sweep import CellEnded, Finished, Planned, Stepped, SweepEvent, resume_sweep, run_sweep
from evaluation.tabs import markup
from evaluation.tabs.form import make_form_spec
from evaluation.tabs.live import Cancels, Watch
from evaluation.tabs.parts import SweepParts, Updates, Values, read_form
from lora_runtime.backends.base import Backend
from lora_runtime.errors import InvalidInput, KleinLabError, NotAuthorized
from lora_runtime.registry.shelf import Shelf
from lora_runtime.registry.visitors import Visitors
from lora_runtime.values import Precision

WAITING_VERDICT: Final = Verdict(
    ok=None, summary="When the sweep ends: is strength 0 the base model, and did every strength change the picture?"
)

SOMEBODY_ELSES: Final = "somebody else’s sweep, to look at: Run sweep makes one of your own"

FindStrengths: TypeAlias = Callable[[Sequence[CellRecord]], Iterable[Decimal]]
"""From the cells of a run to the strengths that are added to it."""


class RunHandlers:
    """Events of Run, Stop, Continue, Add, Refine, Earlier sweeps and Download."""

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

        def start(cancel: threading.Event) -> Iterator[SweepEvent]:
            organization = self._visitors.organization(session)
            form = read_form(self._parts, values)
            spec = make_form_spec(self._backends, form, partial(self._shelf.find, organization))
            return self._start_run(spec, organization, cancel)

        yield from self._go(session, "Getting ready …", start)

    def extend(
        self, run_id: str | None, find_strengths: FindStrengths, session: str
    ) -> Generator[Updates, None, str | None]:
        """Run the sweep on the page again with more strengths; what it has is kept, only new cells are rendered.

        Returns the new run, or None when there is none.
        """

        def start(cancel: threading.Event) -> Iterator[SweepEvent]:
            run = self._find_own(run_id, session)
            spec = extend_spec(run.spec, find_strengths(self._store.cells(run.id)))
            return self._start_run(spec, run.organization, cancel)

        return (yield from self._go(session, "Adding strengths …", start))

    def resume(self, run_id: str | None, session: str) -> Iterator[Updates]:
        """Render the cells of the run on the page that have no image, the failed ones again."""

        def start(cancel: threading.Event) -> Iterator[SweepEvent]:
            run = self._find_own(run_id, session)
            return resume_sweep(run.id, backend=self._backends, store=self._store, cancel=cancel)

        yield from self._go(session, "Going on …", start)

    def is_running(self, session: str) -> bool:
        """Whether the page has a sweep under way."""
        return self._cancels.is_running(session)

    def can_change(self, run_id: str, session: str) -> bool:
        """Whether the run belongs to whoever is at the page."""
        return self._is_own(self._store.run(run_id), session)

    def rate(self, run_id: str | None, position: int, rating: int, session: str) -> None:
        """Keep the rating (0 takes it away) of a cell of the run on the page; its note stays.

        Raises:
            KleinLabError: The run is somebody else's, or there is no such cell.
        """
        run = self._find_own(run_id, session)
        record = next((record for record in self._store.cells(run.id) if record.cell.position == position), None)
        self._store.rate(run.id, position, rating or None, record.note if record else "")

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

    def open(self, run_id: str, session: str) -> Updates:
        """Show an earlier run; what it lacks can be continued by whom it belongs to.

        Raises:
            NotFound: There is no such run.
        """
        parts = self._parts
        run, records = self._store.look(run_id)
        own = self._is_own(run, session)
        answers = answer_run(self._store, run.id)
        words = _words(records) if own else [SOMEBODY_ELSES]
        return {
            parts.run_id: run.id,
            parts.grid: markup.draw_grid(run.spec, records, running=False, own=own, answers=answers),
            parts.verdict: markup.draw_outcome(run.verdict or WAITING_VERDICT, answers),
            parts.status: markup.draw_progress(
                done=_count(records, "done"), total=len(records), words=words, running=False
            ),
            **self._buttons(running=False, records=records, own=own),
        }

    def download(self, run_id: str | None) -> str | None:
        """Return the labelled grid of the run on the page as a PNG file in Gradio's cache."""
        if run_id is None:
            return None
        run, records = self._store.look(run_id)
        buffer = io.BytesIO()
        grid_png(run.spec, records).save(buffer, format="PNG")
        return str(
            gr.processing_utils.save_bytes_to_cache(
                buffer.getvalue(), f"{run_id}.png", self._parts.download_file.GRADIO_CACHE
            )
        )

    def _go(
        self, session: str, words: str, start: Callable[[threading.Event], Iterator[SweepEvent]]
    ) -> Generator[Updates, None, str | None]:
        """Show a sweep from the click to its end and return it; one that the page still has under way is stopped."""
        parts = self._parts
        run_id: str | None = None
        yield {**self._buttons(running=True), parts.status: markup.draw_message(words, running=True)}
        cancel = self._cancels.start(session)
        try:
            run_id = yield from self._follow(start(cancel))
            # The images are there and the buttons work; what the answer rests on may take a model and seconds.
            if run_id is not None and not cancel.is_set():
                yield from self._answer(run_id, cancel)
        except KleinLabError as error:
            yield {**self._buttons(running=False), parts.status: markup.draw_error(error)}
        finally:
            cancel.set()
            self._cancels.end(session, cancel)
        return run_id

    def _start_run(self, spec: SweepSpec, organization: str, cancel: threading.Event) -> Iterator[SweepEvent]:
        return run_sweep(spec, backend=self._backends, store=self._store, cancel=cancel, organization=organization)

    def _is_own(self, run: Run, session: str) -> bool:
        return run.organization == self._visitors.organization(session)

    def _find_own(self, run_id: str | None, session: str) -> Run:
        """The run on the page. Others may look at it, but not change it."""
        if run_id is None:
            raise InvalidInput("There is no sweep yet. Press Run sweep first.")
        run = self._store.run(run_id)
        if not self._is_own(run, session):
            raise NotAuthorized("This sweep is somebody else's. Press Run sweep to make one of your own.")
        return run

    def _answer(self, run_id: str, cancel: threading.Event) -> Iterator[Updates]:
        """Say which strength; not when the page has started another sweep meanwhile."""
        parts, problem = self._parts, ""
        answers: tuple[Answer, ...] = ()
        try:
            for _ in score_prompts(self._store, self._store.cells(run_id)):
                pass
            answers = answer_run(self._store, run_id)
        except KleinLabError as error:
            problem = str(error)
        if cancel.is_set():
            return
        run, records = self._store.look(run_id)
        yield {
            parts.grid: markup.draw_grid(run.spec, records, running=False, answers=answers),
            parts.verdict: markup.draw_outcome(run.verdict or WAITING_VERDICT, answers, problem=problem),
        }

    def _follow(self, events: Iterator[SweepEvent]) -> Generator[Updates, None, str | None]:
        """Turn the events of a sweep into what the page shows; return its run when it came to its end."""
        parts = self._parts
        planned: Planned | None = None
        records: list[CellRecord] = []
        watch = Watch(None)
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
            return None
        finally:
            if isinstance(events, Generator):
                events.close()
        return planned.run_id if planned else None

    def _watch(self, planned: Planned) -> Watch:
        """The time of the cells that are left, where the last ones like them say it."""
        left = Counter(_speed_key(record) for record in planned.cells if record.state != "done")
        known = {key: self._store.seconds_per_image(*key) for key in left}
        seconds = sum((known[key] or 0) * count for key, count in left.items())
        return Watch(None if None in known.values() else seconds)

    def _start(self, planned: Planned) -> Updates:
        parts = self._parts
        fresh = [
            replace(record, state="pending", error=None) if record.state == "failed" else record
            for record in planned.cells
        ]
        return {
            parts.run_id: planned.run_id,
            parts.grid: markup.draw_grid(planned.spec, fresh, running=True),
            parts.verdict: markup.draw_outcome(WAITING_VERDICT),
            parts.status: markup.draw_progress(
                done=_count(fresh, "done"), total=len(fresh), words=["the model starts"]
            ),
        }

    def _redraw(self, planned: Planned, records: Sequence[CellRecord], watch: Watch) -> Updates:
        parts = self._parts
        return {
            parts.grid: markup.draw_grid(planned.spec, records, running=True),
            parts.status: markup.draw_progress(
                done=_count(records, "done"), total=len(records), words=_left_words(watch)
            ),
        }

    def _finish(self, planned: Planned, finished: Finished, watch: Watch) -> Updates:
        parts = self._parts
        records = self._store.cells(planned.run_id)
        took = f"{watch.seconds_passed():.1f} s"
        words = _words(records) if finished.stopped or _count(records, "failed") else [f"done in {took}"]
        return {
            parts.grid: markup.draw_grid(planned.spec, records, running=False),
            parts.verdict: markup.draw_outcome(finished.verdict, measuring=not finished.stopped),
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

    def _buttons(self, *, running: bool, records: Sequence[CellRecord] = (), own: bool = True) -> Updates:
        parts = self._parts
        left, failed = _count(records, "pending"), _count(records, "failed")
        label = f"Continue: {left} left" if left else f"Retry {failed} failed" if failed else "Continue"
        return {
            parts.run: gr.update(interactive=not running, value="Running …" if running else "Run sweep"),
            parts.stop: gr.update(interactive=running, value="Stop"),
            parts.resume: gr.update(interactive=not running and own and bool(left or failed), value=label),
            parts.download: gr.update(interactive=not running and _count(records, "done") > 0),
            parts.add: gr.update(interactive=False),
            parts.refine: gr.update(interactive=False),
        }


def _count(records: Sequence[CellRecord], state: str) -> int:
    return sum(record.state == state for record in records)


def _speed_key(record: CellRecord) -> tuple[str, Precision, int, int, int]:
    request = record.cell.request
    return request.weights, request.precision, request.width, request.height, request.steps


def _words(records: Sequence[CellRecord]) -> list[str]:
    left, failed = _count(records, "pending"), _count(records, "failed")
    words = [f"{failed} failed: Retry tries them again"] if failed else []
    if left:
        words.append(f"stopped, {left} left: Continue renders only those")
    return words


def _left_words(watch: Watch) -> list[str]:
    left = watch.seconds_left()
    return [f"about {max(1, round(left))} s left"] if left is not None and left > 0 else []


def _draw_step(records: Sequence[CellRecord], event: Stepped, watch: Watch) -> str:
    return markup.draw_progress(
        done=_count(records, "done"),
        total=event.total,
        words=[f"step {event.step} of {event.steps}", *_left_words(watch)],
    )
