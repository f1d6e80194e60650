"""What happens on the Playground: a model is picked, an image rendered, stopped, tried again, compared with its base.

An image is a sweep of one cell, so it is logged, shared with every sweep that has the same cell, and found again after
a reload. Each browser session has one under way at most; closing the page cancels it.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any, Final

import gradio as gr
from PIL import Image

from evaluation.grid import SweepSpec, plan
from evaluation.identity import base_request, identity
from evaluation.report.draw import draw, part
from evaluation.report.grid_view import image_url
from evaluation.store.references import keep_reference
from evaluation.store.store import CellRecord, Run, Store
from evaluation.sweep import Planned, SweepEvent, resume_sweep, run_sweep
from evaluation.tabs.follow import Runs
from evaluation.tabs.page import Caller, Changes, Said, keep_file
from evaluation.tabs.playground_form import (
    CUSTOM,
    LIKE_IMAGE,
    Choice,
    Model,
    Models,
    PlayForm,
    fill_play_form,
    list_shapes,
    make_base_spec,
    make_play_spec,
    name_shape,
    size_of,
)
from evaluation.tabs.playground_view import (
    Program,
    describe_steps,
    draw_end,
    draw_picker,
    draw_route,
    draw_steps,
    draw_trigger,
    name_file,
    view_history,
    view_picture,
    view_waiting,
    write_programs,
)
from evaluation.trigger import add_trigger
from lora_runtime.backends.base import Backend
from lora_runtime.errors import InvalidInput, KleinLabError
from lora_runtime.references import MAX_REFERENCES, read_reference
from lora_runtime.server.images import encode_result
from lora_runtime.server.service import Service
from lora_runtime.storage.blobs import Blobs
from lora_runtime.values import Reference, RenderRequest

GENERATE: Final = "Generate"
ORIGIN: Final = "playground"

_PAGES_OWN: Final = ("output_format", "selected")
"""Fields that no image fills in: how to download, and which image is shown."""

HISTORY: Final = 24
"""How many earlier images the Playground shows."""


class PlayHandlers:
    """Events of the tab; each is told who asks, what the form holds, and what was said.

    A choice is looked up anew each time. What is shown comes from the store, so that a reload finds it again.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        store: Store,
        service: Service,
        models: Models,
        *,
        apart: bool,
    ) -> None:
        self._backends = backends
        self._store = store
        self._service = service
        self._blobs = Blobs(service.settings.home / "blobs")
        self._models = models
        self._apart = apart
        self._runs = Runs()

    # The form

    def load(self, caller: Caller, form: PlayForm, said: Said) -> Changes:
        """Choose the first model, unless another tab has chosen one already, and show the newest image."""
        newest = self._store.history(1, organization=caller.organization, origin=ORIGIN)
        shown = self._show(newest[0][0].id, form, caller) if newest else {"history": ""}
        return {**self.describe(caller, form, said), **shown}

    def learn(self, caller: Caller, form: PlayForm, said: Said) -> Changes:
        """Ask the backends what runs, which may take seconds, and say it."""
        self._models.learn()
        return self._describe(caller, form)

    def describe(self, caller: Caller, form: PlayForm, said: Said) -> Changes:
        """Draw what belongs to the chosen model; one that another tab picked brings its defaults."""
        chosen = form.model or self._models.first
        return self._pick(caller, form, chosen) if form.model is None or chosen.picked else self._describe(caller, form)

    def pick(self, caller: Caller, form: PlayForm, said: Said) -> Changes:
        """Take a model of the picker, with the defaults of its weights."""
        choice = PlayForm.read({"model": said.text}).model
        return self._pick(caller, form, choice or self._models.first)

    def choose_shape(self, caller: Caller, form: PlayForm, said: Said) -> Changes:
        """Put the sides of the chosen shape into the fields."""
        model = self._models.find(caller.organization, form.model)
        width, height = size_of(form.aspect, model.weights, form.references) or (form.width, form.height)
        route = self._draw_route(form.change(width=width, height=height), model)
        return {"width": width, "height": height, "route": route}

    def name_shape(self, caller: Caller, form: PlayForm, said: Said) -> Changes:
        """Choose the shape of the sides that were written."""
        model = self._models.find(caller.organization, form.model)
        aspect = name_shape(form.width, form.height, model.weights)
        return {"aspect": aspect, "route": self._draw_route(form, model)}

    def check_prompt(self, caller: Caller, form: PlayForm, said: Said) -> Changes:
        """Say whether the prompt has the trigger phrase."""
        if form.model is None:
            return {}
        return {"trigger": draw_trigger(form, self._models.find(caller.organization, form.model))}

    def insert_trigger(self, caller: Caller, form: PlayForm, said: Said) -> Changes:
        """Put the trigger phrase in front of the prompt."""
        model = self._models.find(caller.organization, form.model)
        form = form.change(prompt=add_trigger(form.prompt, model.trigger_phrase or ""))
        return {"prompt": form.prompt, "trigger": draw_trigger(form, model)}

    def reuse_seed(self, caller: Caller, form: PlayForm, said: Said) -> Changes:
        """Keep the seed of the caller's last image for the next ones."""
        newest = self._store.history(1, organization=caller.organization, origin=ORIGIN)
        if not newest:
            raise InvalidInput("There is no image yet whose seed could be used again.")
        return {"seed": str(newest[0][0].spec.seeds[0])}

    def add_references(self, caller: Caller, values: Mapping[str, Any], said: Said) -> Changes:
        """Check uploaded images, in the order in which they came; a run keeps them, others go with Gradio's cache."""
        form, problem = PlayForm.read(values), ""
        references = list(form.references)
        for file in values["upload"] or ():
            try:
                if len(references) == MAX_REFERENCES:
                    raise InvalidInput(f"Images: at most {MAX_REFERENCES} are allowed. Remove one first.")
                references.append(read_reference(Path(file)))
            except KleinLabError as error:
                problem = problem or str(error)
        return self._arrange(caller, form, references, problem)

    def arrange_references(self, caller: Caller, form: PlayForm, said: Said) -> Changes:
        """Move a reference image one place (`left`, `right`), or `remove` it."""
        references = list(form.references)
        index = int(said.id) if said.id.isdecimal() else len(references)
        if index < len(references):
            moved = references.pop(index)
            if said.act != "remove":
                references.insert(max(0, index + (1 if said.act == "right" else -1)), moved)
        return self._arrange(caller, form, references)

    def fill(self, request: RenderRequest, *, backend: str) -> Changes:
        """Put a whole image's settings on the page; on a backend that is here now."""
        form = fill_play_form(request, backend=backend if backend in self._backends else next(iter(self._backends)))
        return {**form.write(leave=_PAGES_OWN), **_draw_strip(form.references)}

    # The image

    def run(self, caller: Caller, form: PlayForm, said: Said) -> Generator[Changes]:
        """Render the image of the form."""
        yield _begin()
        model = self._models.find(caller.organization, form.model)
        kept = form.change(references=tuple(keep_reference(self._blobs, each) for each in form.references))
        yield from self._render(make_play_spec(self._backends, kept, model), caller, form)

    def retry(self, caller: Caller, form: PlayForm, said: Said) -> Generator[Changes]:
        """Render the selected image, which was stopped or failed."""
        yield _begin()
        run, _ = self.find(form.selected)
        yield from self._render(run.spec, caller, form, run_id=run.id)

    def compare(self, caller: Caller, form: PlayForm, said: Said) -> Generator[Changes]:
        """Lay the base model's image of the same seed beside the selected one; render it first if it is not there."""
        run, record = self.find(form.selected)
        if self._find_base(record) is None:
            yield _begin("The base model is on its way …")
            yield from self._render(make_base_spec(run.spec), caller, form, keep=run.id)
        if self._find_base(record) is not None:
            yield self._show(run.id, form, caller, with_base=True)

    def stop(self, caller: Caller, form: PlayForm, said: Said) -> Changes:
        """Stop the caller's image at its next step; its generator shows the end."""
        self._runs.stop(caller.session)
        return {"stop": draw_buttons(running=True, stopping=True)["stop"]}

    def forget(self, session: str) -> None:
        """Stop the image of a page that was closed."""
        self._runs.stop(session)

    def show(self, caller: Caller, form: PlayForm, said: Said) -> Changes:
        """Show one of the earlier images, or the selected one anew."""
        run_id = said.id or form.selected
        return self._show(run_id, form, caller) if run_id else {"status": gr.skip()}

    def use(self, caller: Caller, form: PlayForm, said: Said) -> Changes:
        """Put the settings of the selected image into the form."""
        _, record = self.find(form.selected)
        said_so = part("message", text="The form has the settings of this image.")
        return {"status": said_so, **self.fill(record.cell.request, backend=record.cell.target.backend)}

    def find(self, run_id: str) -> tuple[Run, CellRecord]:
        """Return a run of the Playground and its one cell.

        Raises:
            NotFound: There is no such run.
        """
        run, cells = self._store.look(run_id)
        return run, cells[0]

    def name_lora(self, caller: Caller, request: RenderRequest) -> str | None:
        """Return the name under which the caller finds the LoRA of an image."""
        if request.lora is None:
            return None
        found = self._models.find_file(caller.organization, request.lora.sha256, request.weights)
        return found.lora.name if found else request.lora.name

    def _where(self, form: PlayForm) -> str:
        """The backend of the form; the app's first one when it has none of that name."""
        return form.where if form.where in self._backends else next(iter(self._backends))

    def _pick(self, caller: Caller, form: PlayForm, choice: Choice) -> Changes:
        form = form.change(model=choice.model_copy(update={"picked": False}), where=self._where(form))
        try:
            model = self._models.find(caller.organization, form.model)
        except KleinLabError:
            return self._describe(caller, form)
        weights = model.weights
        aspect = form.aspect if size_of(form.aspect, weights, form.references) else "1:1"
        width, height = size_of(aspect, weights, form.references) or (weights.default_size, weights.default_size)
        form = form.change(
            aspect=aspect, width=width, height=height, steps=weights.steps, guidance=weights.guidance,
            precision="", remote_id="", strength=model.strength or form.strength,
        )  # fmt: skip
        described = self._describe(caller, form)
        filled = {
            name: {**described[name], "value": value} if name in described else value
            for name, value in form.write(leave=_PAGES_OWN).items()
        }
        return {**described, **filled}

    def _describe(self, caller: Caller, form: PlayForm) -> Changes:
        """Draw what belongs to the model of the form, and change none of its values."""
        where = self._where(form)
        models = self._models.list(caller.organization)
        found = {model.choice: self._models.route(model, None, where)[1] for model in models}
        reasons = {choice: reason for choice, reason in found.items() if reason}
        try:
            model = self._models.find(caller.organization, form.model)
        except KleinLabError as error:
            lost = draw("play-route.html", place="", reason=str(error))
            return {"picker": draw_picker(models, None, reasons), "route": lost, "trigger": ""}
        remote = self._models.server(where) is not None
        tuned = model.lora is not None or (remote and bool(form.remote_id))
        free, steps, guidance = describe_steps(model.weights, remote=remote)
        return {
            "picker": draw_picker(models, model, reasons),
            "route": self._draw_route(form, model),
            "trigger": draw_trigger(form, model),
            "strength": gr.update(interactive=tuned),
            "slider": gr.update(interactive=tuned, info="" if tuned else "A base model has none."),
            "reset": gr.update(interactive=tuned),
            "steps": gr.update(interactive=free, info=steps),
            "guidance": gr.update(interactive=free, info=guidance),
            "aspect": gr.update(choices=list_shapes(model.weights, form.references)),
            "remote_id": gr.update(visible=remote),
        }

    def _draw_route(self, form: PlayForm, model: Model) -> str:
        where = self._where(form)
        route = self._models.route(model, form.precision or None, where)
        return draw_route(form, model, route, self._models.server(where) or "")

    def _arrange(self, caller: Caller, form: PlayForm, references: list[Reference], problem: str = "") -> Changes:
        weights = self._models.find(caller.organization, form.model).weights
        aspect = LIKE_IMAGE if references and not form.references else form.aspect
        if not references and aspect == LIKE_IMAGE:
            aspect = "1:1"
        size = size_of(aspect, weights, references)
        return {
            **_draw_strip(references, problem),
            "references": references,
            "aspect": gr.update(choices=list_shapes(weights, references), value=aspect if size else CUSTOM),
            **({"width": size[0], "height": size[1]} if size else {}),
        }

    def _render(
        self, spec: SweepSpec, caller: Caller, form: PlayForm, *, run_id: str = "", keep: str = ""
    ) -> Generator[Changes]:
        """Run a spec of one cell, anew or as the run `run_id`, and show it; `keep` leaves another image on the page.

        Each change says what the buttons are: a browser that is busy shows the last of several and no other.
        """
        asked = plan(spec)[0].request

        def start(cancel: Event) -> Iterator[SweepEvent]:
            known: Any = {"backend": self._backends, "store": self._store, "cancel": cancel}
            if run_id:
                return resume_sweep(run_id, **known)
            return run_sweep(spec, **known, organization=caller.organization, origin=ORIGIN)

        def estimate(planned: Planned) -> float | None:
            return self._store.seconds_per_image(asked.weights, asked.precision, asked.width, asked.height, asked.steps)

        with closing(self._runs.follow(caller.session, start, estimate=estimate, redraw_s=0)) as moments:
            for moment in moments:
                shown = keep or moment.planned.run_id
                if moment.is_last:
                    yield {**self._show(shown, form, caller), **draw_buttons(), "status": draw_end(moment)}
                    continue
                step, steps = (moment.stepped.step, moment.stepped.steps) if moment.stepped else (0, asked.steps)
                waiting = draw("play-picture.html", picture=view_waiting(asked, form.output_format))
                yield {
                    **({"picture": waiting, "selected": shown} if moment.is_first and not keep else {}),
                    **draw_buttons(running=True, stopping=moment.cancelled),
                    "status": draw_steps(step, steps, moment.seconds_left()),
                }

    def _show(self, run_id: str, form: PlayForm, caller: Caller, *, with_base: bool = False) -> Changes:
        """Show one image large, beside its base image if that is wanted and there, and the earlier ones."""
        run, record = self.find(run_id)
        earlier = self._store.history(HISTORY, organization=caller.organization, origin=ORIGIN)
        picture = view_picture(
            run,
            record,
            output_format=form.output_format,
            download=self._encode(record, form.output_format),
            programs=self._write_programs(record, form.output_format, caller),
            base=self._find_base(record) if with_base else None,
        )
        return {
            "selected": run_id,
            "picture": draw("play-picture.html", picture=picture),
            "history": draw("play-history.html", images=view_history(earlier), selected=run_id),
        }

    def _find_base(self, record: CellRecord) -> Path | None:
        """Return the base model's image of the same settings, if it was ever rendered."""
        target = record.cell.target
        key = identity(base_request(record.cell.request), target)
        found = self._store.image(key)
        return found.path if found else None

    def _encode(self, record: CellRecord, output_format: str) -> str:
        """The address of the image in a format; the PNG is the very file that was written."""
        if record.image is None or output_format == "png":
            return image_url(record.image) if record.image else ""
        with Image.open(record.image) as image:
            data = encode_result(image, output_format, record.cell.request)
        return image_url(Path(keep_file(data, name_file(record.run_id, output_format))))

    def _write_programs(self, record: CellRecord, output_format: str, caller: Caller) -> tuple[Program, ...]:
        if record.image is None:
            return ()
        request, target = record.cell.request, record.cell.target
        base_url = target.server or caller.base_url
        finetune_id = request.lora.finetune_id if target.server and request.lora else None
        if request.lora is not None and finetune_id is None:
            found = self._models.find_file(caller.organization, request.lora.sha256, request.weights)
            finetune_id = found.id if found and found.weights == request.weights else None
        note = (
            "The HTTP API of this Space is off until it has keys." if not target.server and self._service.is_off else ""
        )
        return write_programs(
            request, base_url=base_url, finetune_id=finetune_id, output_format=output_format, note=note,
            with_paths=not self._apart,
        )  # fmt: skip


def _draw_strip(references: Sequence[Reference], problem: str = "") -> Changes:
    images = [image_url(reference.path) for reference in references]
    return {
        "strip": draw("play-strip.html", images=images, problem=problem),
        "upload": gr.update(interactive=len(references) < MAX_REFERENCES),
    }


def draw_buttons(*, running: bool = False, stopping: bool = False) -> Changes:
    """Return what Generate and Stop are while an image is on its way, and while none is."""
    return {
        "run": gr.update(interactive=not running, value="Rendering …" if running else GENERATE),
        "stop": gr.update(interactive=running and not stopping, value="Stopping …" if stopping else "Stop"),
    }


def _begin(words: str = "Getting ready …") -> Changes:
    return {**draw_buttons(running=True), "status": part("message", text=words, running=True)}
