"""What happens while a person fills in the Playground: models, hints, shapes, seeds, reference images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import gradio as gr

from evaluation.cost import format_credits
from evaluation.report.draw import draw
from evaluation.report.grid_view import image_url
from evaluation.store.store import Store
from evaluation.tabs import markup
from evaluation.tabs.playground_form import (
    CUSTOM,
    LIKE_IMAGE,
    Choice,
    Model,
    Models,
    PlayForm,
    choose_precision,
    fill_play_form,
    list_shapes,
    name_shape,
    read_choice,
    size_of,
)
from evaluation.tabs.playground_parts import PlayParts, Updates, Values, read_play_form, slide_to, write_play_form
from evaluation.tabs.playground_show import ORIGIN
from evaluation.tabs.playground_view import describe_steps, view_picker
from evaluation.trigger import add_trigger, has_trigger
from lora_runtime.backends.base import Backend
from lora_runtime.errors import InvalidInput, KleinLabError
from lora_runtime.references import MAX_REFERENCES, read_reference
from lora_runtime.registry.accounts import price, to_credits
from lora_runtime.registry.visitors import Visitors
from lora_runtime.values import Reference, RenderRequest


class PlayFields:
    """Events of the form. Every one looks its model up anew, for the visitor who asks."""

    def __init__(
        self,
        backends: Mapping[str, Backend],
        store: Store,
        models: Models,
        visitors: Visitors,
        parts: PlayParts,
    ) -> None:
        self._backends = backends
        self._store = store
        self._models = models
        self._visitors = visitors
        self._parts = parts

    def load(self, values: Values, request: gr.Request) -> Updates:
        """Choose the first model, unless another tab has chosen one already."""
        form = read_play_form(self._parts, values)
        if form.model:
            return self.describe(values, request)
        return self._pick(form, self._models.first, request)

    def learn(self, values: Values, request: gr.Request) -> Updates:
        """Ask the backends what runs, which may take seconds, and say it."""
        self._models.learn()
        return self._draw(read_play_form(self._parts, values), request)

    def describe(self, values: Values, request: gr.Request) -> Updates:
        """Draw what belongs to the chosen model; one that another tab picked brings its defaults."""
        form = read_play_form(self._parts, values)
        if form.model is not None and form.model.picked:
            return self._pick(form, form.model, request)
        return self._draw(form, request)

    def pick(self, values: Values, text: str, request: gr.Request) -> Updates:
        """Take a model of the picker, with the defaults of its weights."""
        return self._pick(read_play_form(self._parts, values), read_choice(text), request)

    def choose_shape(self, values: Values, request: gr.Request) -> Updates:
        """Put the sides of the chosen shape into the fields."""
        form = read_play_form(self._parts, values)
        choice = self._find(form, request)
        size = size_of(form.aspect, choice.weights, form.references) if choice else None
        if choice is None or size is None:
            return {self._parts.route: gr.skip()}
        sized = replace(form, width=size[0], height=size[1])
        return {
            self._parts.width: sized.width,
            self._parts.height: sized.height,
            self._parts.route: self._draw_route(sized, choice, self._where(form)),
        }

    def name_shape(self, values: Values, request: gr.Request) -> Updates:
        """Choose the shape of the sides that were written."""
        form = read_play_form(self._parts, values)
        choice = self._find(form, request)
        if choice is None:
            return {self._parts.route: gr.skip()}
        return {
            self._parts.aspect: name_shape(form.width, form.height, choice.weights),
            self._parts.route: self._draw_route(form, choice, self._where(form)),
        }

    def check_prompt(self, values: Values, request: gr.Request) -> Updates:
        """Say whether the prompt has the trigger phrase."""
        form = read_play_form(self._parts, values)
        return {self._parts.trigger: _draw_trigger(form, self._find(form, request))}

    def insert_trigger(self, values: Values, request: gr.Request) -> Updates:
        """Put the trigger phrase in front of the prompt."""
        form = read_play_form(self._parts, values)
        choice = self._find(form, request)
        phrase = choice.trigger_phrase if choice else None
        if not phrase:
            return {self._parts.prompt: gr.skip()}
        prompt = add_trigger(form.prompt, phrase)
        return {
            self._parts.prompt: prompt,
            self._parts.trigger: _draw_trigger(replace(form, prompt=prompt), choice),
        }

    def choose_strength(self, strength: str) -> Updates:
        """Bring the slider to a strength of the box."""
        return {self._parts.slider: slide_to(strength)}

    def reuse_seed(self, request: gr.Request) -> Updates:
        """Keep the seed of the visitor's last image for the next ones."""
        organization = self._visitors.organization(request.session_hash)
        newest = self._store.history(1, organization=organization, origin=ORIGIN)
        if not newest:
            return {self._parts.status: markup.draw_message("There is no image yet whose seed could be used again.")}
        return {self._parts.seed: str(newest[0][0].spec.seeds[0])}

    def add_references(self, files: Sequence[str] | str | None, values: Values, request: gr.Request) -> Updates:
        """Check uploaded images, in the order in which they came; a run keeps them, others go with Gradio's cache."""
        form = read_play_form(self._parts, values)
        references, problem = list(form.references), ""
        for file in [files] if isinstance(files, str) else files or []:
            try:
                if len(references) == MAX_REFERENCES:
                    raise InvalidInput(f"Images: at most {MAX_REFERENCES} are allowed. Remove one first.")
                references.append(read_reference(Path(file)))
            except KleinLabError as error:
                problem = problem or str(error)
        return self._show_references(form, references, request, problem)

    def arrange_references(self, values: Values, act: str, index: int, request: gr.Request) -> Updates:
        """Move a reference image one place (`left`, `right`), or `remove` it."""
        form = read_play_form(self._parts, values)
        references = list(form.references)
        if 0 <= index < len(references):
            moved = references.pop(index)
            if act != "remove":
                references.insert(max(0, index + (1 if act == "right" else -1)), moved)
        return self._show_references(form, references, request)

    def fill(self, request: RenderRequest, *, backend: str) -> Updates:
        """Put a whole image's settings on the page; on a backend that is here now."""
        form = fill_play_form(request, backend=backend if backend in self._backends else next(iter(self._backends)))
        shown = self._show_strip(request.references)
        return {**write_play_form(self._parts, form), **shown}

    def choose(self, finetune_id: str) -> Updates:
        """Choose a finetune; its base brings its defaults along."""
        picked = Choice(kind="finetune", finetune_id=finetune_id, picked=True)
        return {self._parts.model: picked.model_dump_json(exclude_defaults=True)}

    def _where(self, form: PlayForm) -> str:
        """The backend of the form; the app's first one when it has none of that name."""
        return form.where if form.where in self._backends else next(iter(self._backends))

    def _find(self, form: PlayForm, request: gr.Request) -> Model | None:
        try:
            return self._models.find(self._visitors.organization(request.session_hash), form.model)
        except KleinLabError:
            return None

    def _pick(self, form: PlayForm, choice: Choice | None, request: gr.Request) -> Updates:
        picked = choice.model_copy(update={"picked": False}) if choice else None
        form = replace(form, model=picked, where=self._where(form))
        model = self._find(form, request)
        if model is None:
            return self._draw(form, request)
        weights = model.weights
        aspect = form.aspect if size_of(form.aspect, weights, form.references) else "1:1"
        width, height = size_of(aspect, weights, form.references) or (weights.default_size, weights.default_size)
        form = replace(
            form, aspect=aspect, width=width, height=height, steps=weights.steps, guidance=weights.guidance,
            precision="", remote_id="",
        )  # fmt: skip
        return _merge(write_play_form(self._parts, form), self._draw(form, request))

    def _draw(self, form: PlayForm, request: gr.Request) -> Updates:
        """What belongs to the model of the form, and changes none of its values."""
        parts = self._parts
        organization = self._visitors.organization(request.session_hash)
        models, where = self._models.list(organization), self._where(form)
        found = {model.choice: self._models.route(model, None, where).reason for model in models}
        reasons = {choice: reason for choice, reason in found.items() if reason}
        try:
            model = self._models.find(organization, form.model)
        except KleinLabError as error:
            return {
                parts.picker: draw_picker(models, None, reasons),
                parts.route: _draw_problem(error),
                parts.trigger: "",
            }
        return {
            parts.picker: draw_picker(models, model, reasons),
            parts.route: self._draw_route(form, model, where),
            parts.trigger: _draw_trigger(form, model),
            **self._enable(model, where, form),
        }

    def _draw_route(self, form: PlayForm, model: Model, where: str) -> str:
        try:
            route = self._models.route(model, choose_precision(form.precision), where)
        except KleinLabError as error:
            return _draw_problem(error)
        place, cost = "on this machine", ""
        if server := self._models.server(where):
            place = f"at {server}"
            if route.endpoint and not route.reason:
                side = model.weights.default_size
                asked_px = (form.width or side) * (form.height or side)
                cost = f" · {format_credits(to_credits(price(route.endpoint, output_px=asked_px)))}"
        path = route.endpoint.path if route.endpoint else ""
        return draw("play-route.html", path=path, place=place, cost=cost, reason=route.reason)

    def _enable(self, model: Model, where: str, form: PlayForm) -> Updates:
        """Which fields the model has."""
        parts = self._parts
        remote = self._models.server(where) is not None
        tuned = model.lora is not None or (remote and bool(form.remote_id))
        free, steps, guidance = describe_steps(model.weights, remote=remote)
        return {
            parts.strength: gr.update(interactive=tuned),
            parts.slider: gr.update(interactive=tuned, info="" if tuned else "A base model has none."),
            parts.reset: gr.update(interactive=tuned),
            parts.steps: gr.update(interactive=free, info=steps),
            parts.guidance: gr.update(interactive=free, info=guidance),
            parts.aspect: gr.update(choices=list_shapes(model.weights, form.references)),
            parts.remote_id: gr.update(visible=remote),
        }

    def _show_references(
        self, form: PlayForm, references: Sequence[Reference], request: gr.Request, problem: str = ""
    ) -> Updates:
        updates = {self._parts.references: list(references), **self._show_strip(references, problem)}
        model = self._find(form, request)
        if model is None:
            return updates
        first = bool(references) and not form.references
        aspect = LIKE_IMAGE if first else form.aspect
        if not references and aspect == LIKE_IMAGE:
            aspect = "1:1"
        size = size_of(aspect, model.weights, references)
        sides = {self._parts.width: size[0], self._parts.height: size[1]} if size else {}
        shapes = list_shapes(model.weights, references)
        return {**updates, **sides, self._parts.aspect: gr.update(choices=shapes, value=aspect if size else CUSTOM)}

    def _show_strip(self, references: Sequence[Reference], problem: str = "") -> Updates:
        full = len(references) >= MAX_REFERENCES
        return {
            self._parts.strip: draw_strip(references, problem),
            self._parts.upload: gr.update(interactive=not full),
        }


def _merge(values: Updates, properties: Updates) -> Updates:
    """Set values and properties of the same components at once."""
    both = {
        part: {**change, "value": values[part]} if part in values and isinstance(change, dict) else change
        for part, change in properties.items()
    }
    return {**values, **both}


def draw_strip(references: Sequence[Reference], problem: str = "") -> str:
    """Return the reference images in their order, and why one was not taken."""
    return draw("play-strip.html", images=[image_url(each.path) for each in references], problem=problem)


def draw_picker(models: Sequence[Model], chosen: Model | None, reasons: Mapping[Choice, str]) -> str:
    """Return the list of models behind a button."""
    option, groups = view_picker(models, chosen, reasons)
    return draw("play-picker.html", chosen=option, groups=groups)


def _draw_problem(error: KleinLabError) -> str:
    return draw("play-route.html", place="", reason=str(error))


def _draw_trigger(form: PlayForm, model: Model | None) -> str:
    phrase = model.trigger_phrase if model else None
    return draw("play-trigger.html", phrase=phrase, there=bool(phrase) and has_trigger(form.prompt, phrase or ""))
