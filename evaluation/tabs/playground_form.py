"""What a person fills in on the Playground -> a sweep of one cell, and back; and the models that can be picked.

The page is not believed: what was picked is looked up anew for whoever asks, so a finetune
of another organization is not found.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self

import gradio as gr
from pydantic import BaseModel, ConfigDict, field_validator

from evaluation.grid import SweepSpec, make_spec
from evaluation.strengths import exact
from evaluation.tabs.fields import Box, Form
from evaluation.tabs.sweep_form import PRECISIONS, SweepForm, parse_seed
from lora_runtime.backends.base import Backend, choose_status, require_available
from lora_runtime.catalogue import WEIGHTS, Endpoint, Weights, choose_endpoint, find_weights
from lora_runtime.errors import InvalidInput, KleinLabError, NotFound
from lora_runtime.lora.library import is_elsewhere, refer_to
from lora_runtime.references import MULTIPLE
from lora_runtime.registry.finetune import Finetune, Source
from lora_runtime.registry.shelf import Shelf
from lora_runtime.requests import default_size
from lora_runtime.strength import check_strength
from lora_runtime.values import LoraRef, ModelStatus, Precision, Reference, RenderRequest
from lora_runtime.written import quote, read_decimal

SLIDER: Final = (0.0, 2.0)
"""The strengths of the slider; the box beside it takes every strength there is."""

CUSTOM: Final = "custom"
LIKE_IMAGE: Final = "image"

RATIOS: Final[Mapping[str, Fraction]] = MappingProxyType(
    {name: Fraction(*map(int, name.split(":"))) for name in ("1:1", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16")}
)
"""Shapes of a picture, width to height."""


class Choice(BaseModel):
    """What is chosen in the picker, as the page keeps it.

    A `base` is its weights, a `finetune` its id as whoever asks calls it, a `file` the LoRA of an image on its weights.
    What was `picked` brings the defaults of its weights along; what an image filled in does not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["base", "finetune", "file"]
    weights: str = ""
    finetune_id: str = ""
    sha256: str = ""
    picked: bool = False

    def dump(self) -> str:
        """Return it as the page keeps it."""
        return self.model_dump_json(exclude_defaults=True)


STARTER: Final = Choice(kind="finetune", finetune_id="official/style")
"""What is chosen first where the pocket runs."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A base model, or a LoRA on its base. `precision` is what its endpoint asks for; None is the backend's own.

    `strength` is the recommended one; without it what is written stays.
    """

    choice: Choice
    weights: Weights
    title: str
    lora: LoraRef | None = None
    trigger_phrase: str | None = None
    whose: str = ""
    precision: Precision | None = None
    strength: str = ""

    @property
    def tags(self) -> tuple[str, ...]:
        """A few words on it for the picker."""
        weights = self.weights
        if self.lora is None:
            made = "distilled" if weights.distilled else "base, undistilled"
            return f"{weights.steps} steps, {made}", weights.licence
        base = f"{weights.label} · {self.precision.upper()}" if self.precision else weights.label
        return base, self.whose, *([f"“{self.trigger_phrase}”"] if self.trigger_phrase else [])


class Models:
    """The models of every organization on the backends of the app.

    `weights` are chosen first, as the settings say.

    What a backend can run is asked for by `learn`: the first answer may import torch. Until then nothing is said.
    """

    def __init__(self, backends: Mapping[str, Backend], shelf: Shelf, *, weights: str) -> None:
        self.first = STARTER if weights == "pocket" else Choice(kind="base", weights=weights)
        self._backends = backends
        self._shelf = shelf
        self._statuses: Mapping[str, Sequence[ModelStatus]] = {}

    def server(self, where: str) -> str | None:
        """The address of the server behind a place; None for this machine."""
        return self._backends[where].server if where in self._backends else None

    def learn(self) -> None:
        """Ask every backend what it can run."""
        self._statuses = {name: tuple(backend.models()) for name, backend in self._backends.items()}

    def list(self, organization: str) -> tuple[Model, ...]:
        """Return the base models, then the finetunes that `organization` can use, the official ones last."""
        shown = sorted(self._shelf.show(organization), key=lambda finetune: finetune.source is Source.OFFICIAL)
        return (*map(_of_base, WEIGHTS.values()), *map(_of_finetune, shown))

    def find(self, organization: str, choice: Choice | None) -> Model:
        """Return what was chosen.

        Raises:
            NotFound: Nothing was, or nothing that `organization` can use.
        """
        if choice is None:
            raise NotFound("Model: choose one.")
        if choice.kind == "base":
            return _of_base(find_weights(choice.weights))
        if choice.kind == "finetune":
            for finetune in self._shelf.show(organization):
                if finetune.id == choice.finetune_id:
                    return _of_finetune(finetune)
            raise NotFound(f"The finetune {quote(choice.finetune_id)} was not found. Choose another one.")
        weights = find_weights(choice.weights)
        found = self.find_file(organization, choice.sha256, weights.name)
        if found is None:
            raise NotFound("The LoRA of that image is not among yours any more. Add its file on the Finetunes tab.")
        same = found.weights == weights.name
        return _of_finetune(found) if same else replace(_of_finetune(found), choice=choice, weights=weights)

    def find_file(self, organization: str, sha256: str, weights: str) -> Finetune | None:
        """Return the finetune with this file, one on these weights first; None if `organization` has none."""
        found = [each for each in self._shelf.show(organization) if each.lora.sha256 == sha256]
        return min(found, key=lambda finetune: finetune.weights != weights, default=None)

    def route(self, model: Model, precision: Precision | None, backend: str) -> tuple[Endpoint | None, str]:
        """Return where `model` goes on `backend`, at `precision` or its own, and why it cannot run there if it cannot.

        There is no endpoint where the API has none.
        """
        asked, reason = precision or model.precision, ""
        at: Precision = asked or "bf16"
        if backend in self._statuses:
            known = [status for status in self._statuses[backend] if status.weights == model.weights.name]
            at = asked or (known[0].precision if known else at)
            try:
                require_available(choose_status(known, model.weights.name, asked, backend=backend))
            except KleinLabError as error:
                reason = str(error)
        return choose_endpoint(model.weights.name, at, finetuned=model.lora is not None), reason


_Text: Final = partial(Box, gr.Textbox)
_Number: Final = partial(Box, gr.Number, min_width=110)
_Choose: Final = partial(Box, gr.Dropdown, filterable=False)
_PRECISIONS: Final = [("The endpoint's own", ""), *((words, name) for name, words in PRECISIONS.items() if name)]


class PlayForm(Form):
    """The fields of the Playground. `where` is a backend of the app.

    An empty seed is a new one for each image. `remote_id` is what the remote server calls the finetune; empty where it
    recognises the file. `selected` is the run whose image is shown.
    """

    model: Annotated[Choice | None, _Text(visible="hidden", label="Model", interactive=False)] = None
    where: Annotated[str, Box(gr.Radio, label="Where", elem_id="play-where")] = ""
    remote_id: Annotated[
        str,
        _Text(
            label="Finetune id there", placeholder="found by its file", visible=False, elem_id="play-remote-id",
            info="What the remote server calls the finetune; a server of this lab finds it by its file.",
        ),
    ] = ""  # fmt: skip
    prompt: Annotated[str, _Text(label="Prompt", lines=3, max_lines=8, elem_id="play-prompt")] = "a red cat in the snow"
    strength: Annotated[str, _Text(label="Exact", elem_id="play-strength", scale=2, min_width=96, max_lines=1)] = "1.00"
    seed: Annotated[
        str,
        _Text(label="Seed", placeholder="a new one for each image", elem_id="play-seed", min_width=150, max_lines=1),
    ] = ""
    aspect: Annotated[str, _Choose(choices=[*RATIOS, CUSTOM], label="Shape", elem_id="play-aspect")] = "1:1"
    width: Annotated[int | None, _Number(label="Width (px)", precision=0, step=16)] = None
    height: Annotated[int | None, _Number(label="Height (px)", precision=0, step=16)] = None
    output_format: Annotated[
        Literal["png", "jpeg", "webp"],
        Box(
            gr.Radio, choices=[("PNG", "png"), ("JPEG", "jpeg"), ("WEBP", "webp")], label="Download as",
            elem_id="play-format", info="PNG is lossless and carries the settings inside.",
        ),
    ] = "png"  # fmt: skip
    steps: Annotated[int | None, _Number(label="Steps", precision=0, step=1, interactive=False)] = None
    guidance: Annotated[float | None, _Number(label="Guidance", step=0.5, interactive=False)] = None
    precision: Annotated[
        Precision | Literal[""], _Choose(choices=_PRECISIONS, label="Precision", elem_id="play-precision")
    ] = ""
    references: Annotated[tuple[Reference, ...], Box(gr.State)] = ()
    selected: Annotated[str, _Text(visible="hidden", label="Image", interactive=False)] = ""

    @field_validator("model", mode="before")
    @classmethod
    def _read_choice(cls, value: object) -> object:
        return value if not isinstance(value, str) else Choice.model_validate_json(value) if value else None

    def change(self, **fields: object) -> Self:
        """Return the form with some fields changed."""
        return self.model_copy(update=fields)

    def write(self, *, leave: Collection[str] = ()) -> dict[str, Any]:
        """Return the values that put the form on the page; a choice is kept there as JSON."""
        model = {"model": self.model.dump()} if self.model and "model" not in leave else {}
        return {**super().write(leave={*leave, "model"}), **model, "slider": slide_to(self.strength)}


def slide_to(strength: str) -> float:
    """Where the slider stands for a strength of the box: at its end when the strength is beyond it."""
    low, high = SLIDER
    try:
        return min(max(float(read_decimal("Strength", strength)), low), high)
    except InvalidInput:
        return 1.0


def make_play_spec(backends: Mapping[str, Backend], form: PlayForm, model: Model) -> SweepSpec:
    """Resolve the form into a sweep of one cell; `model` is what was chosen, for whoever asks.

    Raises:
        KleinLabError: A field is wrong; as `make_spec`.
    """
    if form.where not in backends:
        raise InvalidInput(f"Where: there is no backend {quote(form.where)} here, only {', '.join(backends)}.")
    lora = _find_lora(form, model, server=backends[form.where].server)
    return make_spec(
        {form.where: backends[form.where]},
        weights=model.weights.name,
        loras=() if lora is None else (lora,),
        prompts=(form.prompt,),
        strengths="0" if lora is None else exact(check_strength(read_decimal("Strength", form.strength))),
        seeds=(parse_seed(form.seed),),
        precision=form.precision or model.precision,
        width=form.width,
        height=form.height,
        steps=form.steps,
        guidance=form.guidance,
        references=form.references,
        base_column=False,
    )


def make_base_spec(spec: SweepSpec) -> SweepSpec:
    """Return the same picture without the LoRA."""
    return replace(spec, loras=(), strengths=(Decimal(0),))


def _find_lora(form: PlayForm, model: Model, *, server: str | None) -> LoraRef | None:
    """Return the LoRA to render with; by the server's own name of it where one is given.

    Raises:
        InvalidInput: That name is none.
    """
    wanted = form.remote_id.strip() if server else ""
    if not wanted:
        return model.lora
    there = refer_to(wanted)
    return there if model.lora is None else replace(model.lora, finetune_id=there.finetune_id)


def size_of(ratio: str, weights: Weights, references: Sequence[Reference] = ()) -> tuple[int, int] | None:
    """Return the width and height of a choice of shape in the area the weights are at home with; None for others."""
    if ratio == LIKE_IMAGE and references:
        width, height = default_size(None, None, references, weights)
        return None if width is None or height is None else (width, height)
    if ratio not in RATIOS:
        return None
    low, high = weights.sizes
    root = float(RATIOS[ratio]) ** 0.5
    sides = (weights.default_size * root, weights.default_size / root)
    width, height = (min(max(round(side / MULTIPLE) * MULTIPLE, low), high) for side in sides)
    return width, height


def list_shapes(weights: Weights, references: Sequence[Reference] = ()) -> list[tuple[str, str]]:
    """Return the choices of shape as words and value."""
    names = [LIKE_IMAGE, *RATIOS] if references else list(RATIOS)
    sizes = {name: size_of(name, weights, references) for name in names}
    shapes = [
        (f"{'As image 1' if name == LIKE_IMAGE else name} · {size[0]} × {size[1]}", name)
        for name, size in sizes.items()
        if size is not None
    ]
    return [*shapes, ("Custom", CUSTOM)]


def name_shape(width: int | None, height: int | None, weights: Weights) -> str:
    """Return which choice of shape a size is."""
    return next((name for name in RATIOS if size_of(name, weights) == (width, height)), CUSTOM)


def fill_play_form(request: RenderRequest, *, backend: str) -> PlayForm:
    """Return the form that renders `request` again, with its seed."""
    lora = request.lora
    model = Choice(kind="base", weights=request.weights)
    if lora is not None and not is_elsewhere(lora):
        model = Choice(kind="file", weights=request.weights, sha256=lora.sha256)
    return PlayForm(
        model=model,
        where=backend,
        strength=exact(request.strength) if lora is not None else "1",
        aspect=CUSTOM,
        remote_id=(lora.finetune_id or "") if lora is not None else "",
        references=request.references,
        **_list_same(request),
    )


def sweep_form(request: RenderRequest, *, backend: str, lora: str | None) -> SweepForm:
    """Return the Sweep tab's form around an image: the same seed from the base to beyond its strength."""
    return SweepForm(lora=lora, strengths="0-1.2 [7]", weights=request.weights, backends=backend, **_list_same(request))


def _list_same(request: RenderRequest) -> dict[str, Any]:
    """The fields that mean the same in an image and in both forms."""
    names = ("prompt", "width", "height", "steps", "guidance", "precision")
    return {"seed": str(request.seed), **{name: getattr(request, name) for name in names}}


def _of_base(weights: Weights) -> Model:
    return Model(choice=Choice(kind="base", weights=weights.name), weights=weights, title=weights.label)


def _of_finetune(finetune: Finetune) -> Model:
    whose = {Source.OWNED: "yours", Source.OFFICIAL: "official"}.get(finetune.source)
    return Model(
        choice=Choice(kind="finetune", finetune_id=finetune.id),
        weights=find_weights(finetune.weights),
        title=finetune.id,
        lora=finetune.lora,
        trigger_phrase=finetune.trigger_phrase,
        whose=whose or f"shared by {finetune.owner}",
        precision=finetune.precision,
        strength="" if finetune.recommended_strength is None else exact(finetune.recommended_strength),
    )
