"""What happens when a person renders on the Playground: generate, stop, try again, compare with the base.

An image is a sweep of one cell, so it is logged, shared with every sweep that has the same cell, and found again after
a reload. Each browser session has one under way at most; closing the page cancels it.
"""

import hashlib
import threading
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from typing import Final

import gradio as gr

from evaluation.grid import SweepSpec, plan
from evaluation.report.draw import draw
from evaluation.store.remove import REFERENCE
from evaluation.store.store import Store
from evaluation.sweep import CellEnded, Finished, Planned, Stepped, SweepEvent, resume_sweep, run_sweep
from evaluation.tabs import markup
from evaluation.tabs.live import Cancels, Watch
from evaluation.tabs.playground_form import Models, make_base_spec, make_play_spec
from evaluation.tabs.playground_parts import PlayParts, Updates, Values, read_play_form
from evaluation.tabs.playground_show import ORIGIN, Caller, PlayShow
from evaluation.tabs.playground_view import view_waiting
from lora_runtime.backends.base import Backend
from lora_runtime.errors import InvalidInput, KleinLabError
from lora_runtime.references import check_image, image_suffix
from lora_runtime.storage.blobs import Blobs
from lora_runtime.values import Reference

GENERATE: Final = "Generate"


class PlayRuns:
    """Events of Generate, Stop, Try again and Compare with base."""

    def __init__(
        self,
        backends: Mapping[str, Backend],
        store: Store,
        models: Models,
        show: PlayShow,
        parts: PlayParts,
        *,
        blobs: Blobs,
    ) -> None:
        self._blobs = blobs
        self._backends = backends
        self._store = store
        self._models = models
        self._show = show
        self._parts = parts
        self._cancels = Cancels()

    def run(self, values: Values, request: gr.Request) -> Iterator[Updates]:
        """Render the image of the form."""
        parts, caller = self._parts, self._show.caller(request)
        form = read_play_form(parts, values)
        yield self._begin()
        try:
            choice = self._models.find(caller.organization, form.model)
            form = replace(form, references=tuple(self._keep(reference) for reference in form.references))
            spec = make_play_spec(self._backends, form, choice)
        except KleinLabError as error:
            yield self._fail(error)
            return
        yield from self._render(spec, None, form.output_format, caller, request)

    def retry(self, values: Values, request: gr.Request) -> Iterator[Updates]:
        """Render the selected image, which was stopped or failed."""
        yield self._begin()
        caller, run_id = self._show.caller(request), str(values[self._parts.selected] or "")
        try:
            run, _ = self._show.find(run_id)
        except KleinLabError as error:
            yield self._fail(error)
            return
        output_format = read_play_form(self._parts, values).output_format
        yield from self._render(run.spec, run_id, output_format, caller, request)

    def compare(self, values: Values, request: gr.Request) -> Iterator[Updates]:
        """Lay the base model's image of the same seed beside the selected one; render it first if it is not there."""
        parts, caller = self._parts, self._show.caller(request)
        run_id = str(values[parts.selected] or "")
        output_format = read_play_form(parts, values).output_format
        try:
            run, record = self._show.find(run_id)
            there = self._show.find_base(record) is not None
        except KleinLabError as error:
            yield self._fail(error)
            return
        if not there:
            yield self._begin("The base model is on its way …")
            yield from self._render(make_base_spec(run.spec), None, output_format, caller, request, keep=run_id)
            if self._show.find_base(record) is None:
                return
        yield self._show.show(run_id, output_format, caller, with_base=True)

    def stop(self, request: gr.Request) -> Updates:
        """Stop the visitor's image at its next step; its generator shows the end."""
        self._cancels.stop(request.session_hash)
        return {self._parts.stop: gr.update(value="Stopping …", interactive=False)}

    def forget(self, session: str) -> None:
        """Stop the image of a page that was closed."""
        self._cancels.stop(session)

    def recover(self) -> Updates:
        """Make the buttons usable again after a fault that no error of ours describes; the page shows it as a toast."""
        return self._buttons(running=False)

    def _keep(self, reference: Reference) -> Reference:
        """Keep a reference as long as what is made with it: an upload is deleted after a day."""
        try:
            data = reference.path.read_bytes()
        except OSError as error:
            raise InvalidInput(f"Image: {reference.path.name} has gone. Choose it again.") from error
        check_image(data, reference.path.name)
        key = self._blobs.put(data, suffix=f"{REFERENCE}{image_suffix(data)}")
        return Reference(sha256=hashlib.sha256(data).hexdigest(), path=self._blobs.path(key))

    def _render(
        self,
        spec: SweepSpec,
        run_id: str | None,
        output_format: str,
        caller: Caller,
        request: gr.Request,
        *,
        keep: str = "",
    ) -> Iterator[Updates]:
        """Run a spec of one cell, anew or as the run `run_id`; `keep` leaves another image on the page."""
        cancel = self._cancels.start(request.session_hash)
        try:
            events = (
                run_sweep(
                    spec, backend=self._backends, store=self._store, cancel=cancel,
                    organization=caller.organization, origin=ORIGIN,
                )
                if run_id is None
                else resume_sweep(run_id, backend=self._backends, store=self._store, cancel=cancel)
            )  # fmt: skip
            yield from self._follow(spec, events, output_format, caller, cancel, keep=keep)
        except KleinLabError as error:
            yield self._fail(error)
        finally:
            cancel.set()
            self._cancels.end(request.session_hash, cancel)

    def _follow(
        self,
        spec: SweepSpec,
        events: Iterator[SweepEvent],
        output_format: str,
        caller: Caller,
        cancel: threading.Event,
        *,
        keep: str,
    ) -> Iterator[Updates]:
        """Turn the events of a sweep of one cell into what the page shows.

        Each says what the buttons are: a browser that is busy shows the last of several updates and no other.
        """
        parts = self._parts
        asked = plan(spec)[0].request
        seconds = self._store.seconds_per_image(asked.weights, asked.precision, asked.width, asked.height, asked.steps)
        watch, run_id, error = Watch(seconds), "", ""
        try:
            for event in events:
                match event:
                    case Planned():
                        run_id = event.run_id
                        waiting = {parts.picture: draw("play-picture.html", picture=view_waiting(asked, output_format))}
                        yield {
                            **self._buttons(running=True, stopping=cancel.is_set()),
                            parts.status: _draw_steps(0, asked.steps, watch),
                            **({} if keep else {**waiting, parts.selected: run_id}),
                        }
                    case Stepped():
                        yield {
                            **self._buttons(running=True, stopping=cancel.is_set()),
                            parts.status: _draw_steps(event.step, event.steps, watch),
                        }
                    case CellEnded():
                        error = event.record.error or ""
                    case Finished():
                        yield {
                            **self._show.show(keep or run_id, output_format, caller),
                            parts.status: _draw_end(watch, stopped=event.stopped, error=error),
                            **self._buttons(running=False),
                        }
        except KleinLabError as fault:
            if not run_id:
                raise
            yield {**self._show.show(keep or run_id, output_format, caller), **self._fail(fault)}
        finally:
            if isinstance(events, Generator):
                events.close()

    def _begin(self, words: str = "Getting ready …") -> Updates:
        return {**self._buttons(running=True), self._parts.status: markup.draw_message(words, running=True)}

    def _fail(self, error: KleinLabError) -> Updates:
        return {**self._buttons(running=False), self._parts.status: markup.draw_error(error)}

    def _buttons(self, *, running: bool, stopping: bool = False) -> Updates:
        return {
            self._parts.run: gr.update(interactive=not running, value="Rendering …" if running else GENERATE),
            self._parts.stop: gr.update(
                interactive=running and not stopping, value="Stopping …" if stopping else "Stop"
            ),
        }


def _draw_steps(step: int, steps: int, watch: Watch) -> str:
    if not step:
        return markup.draw_message("The model starts …", running=True)
    left = watch.seconds_left()
    soon = f" · about {max(1, round(left))} s left" if left and left > 0 else ""
    share = round(100 * step / steps)
    return draw("progress.html", words=f"Step {step} of {steps}{soon}", share=share, running=True)


def _draw_end(watch: Watch, *, stopped: bool, error: str) -> str:
    if error:
        return markup.draw_message("It failed; the reason stands below.")
    return markup.draw_message("Stopped." if stopped else f"Done in {watch.seconds_passed():.1f} s.")
