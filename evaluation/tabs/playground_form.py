"""What a person fills in on the Playground, as text and numbers -> a sweep of one cell, and back. No Gradio here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from evaluation.grid import SweepSpec, make_spec, parse_precisions
from evaluation.strengths import exact
from evaluation.tabs.playground_models import Choice
from evaluation.tabs.sweep_form import SweepForm, parse_seed
from lora_runtime.backends.base import Backend
from lora_runtime.catalogue import Weights
from lora_runtime.errors import InvalidInput
from lora_runtime.lora.library import is_elsewhere, refer_to
from lora_runtime.references import MULTIPLE
from lora_runtime.requests import check_strength, default_size
from lora_runtime.values import LoraRef, Precision, Reference, RenderRequest
from lora_runtime.written import quote, read_decimal

SLIDER: Final = (0.0, 2.0)
"""The strengths of the slider; the box beside it takes every strength there is."""

CUSTOM: Final = "custom"
LIKE_IMAGE: Final = "image"

RATIOS: Final[Mapping[str, Fraction]] = MappingProxyType(
    {name: Fraction(*map(int, name.split(":"))) for name in ("1:1", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16")}
)
"""Shapes of a picture, width to height."""

FORMATS: Final = ("png", "jpeg", "webp")


@dataclass(frozen=True, kw_only=True)
class PlayForm:
    """The fields of the Playground. `model` is a key of `playground_models`, `where` a backend of the app.

    An empty seed is a new one for each image. `remote_id` is what the remote server calls the finetune; empty where it
    recognises the file.
    """

    model: str
    where: str
    prompt: str
    strength: str = "1"
    seed: str = ""
    aspect: str = "1:1"
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    precision: str = ""
    remote_id: str = ""
    references: tuple[Reference, ...] = ()
    output_format: str = "png"


def make_play_spec(backends: Mapping[str, Backend], form: PlayForm, choice: Choice) -> SweepSpec:
    """Resolve the form into a sweep of one cell; `choice` is what its model is for whoever asks.

    Raises:
        KleinLabError: A field is wrong; as `make_spec`.
    """
    if form.where not in backends:
        raise InvalidInput(f"Where: there is no backend {quote(form.where)} here, only {', '.join(backends)}.")
    lora = find_lora_of(form, choice)
    return make_spec(
        {form.where: backends[form.where]},
        weights=choice.weights.name,
        loras=() if lora is None else (lora,),
        prompts=(form.prompt,),
        strengths="0" if lora is None else exact(parse_strength(form.strength)),
        seeds=(parse_seed(form.seed),),
        precision=choose_precision(form.precision) or choice.precision,
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


def find_lora_of(form: PlayForm, choice: Choice) -> LoraRef | None:
    """Return the LoRA to render with; by the remote server's own name of it where one is given.

    Raises:
        InvalidInput: That name is none.
    """
    wanted = form.remote_id.strip() if form.where == "remote" else ""
    if not wanted:
        return choice.lora
    there = refer_to(wanted)
    return there if choice.lora is None else replace(choice.lora, finetune_id=there.finetune_id)


def parse_strength(text: str) -> Decimal:
    """Read one strength, exactly as it is written; a comma may stand for the point.

    Raises:
        InvalidInput: It is no number, or out of range.
    """
    return check_strength(read_decimal("Strength", text))


def choose_precision(text: str) -> Precision | None:
    """Read the precision; an empty text is the endpoint's own.

    Raises:
        InvalidInput: There is no such precision.
    """
    found = parse_precisions(text)
    return found[0] if found else None


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
    key = f"base:{request.weights}"
    if lora is not None and not is_elsewhere(lora):
        key = f"file:{request.weights}/{lora.sha256}"
    return PlayForm(
        model=key,
        where=backend,
        prompt=request.prompt,
        strength=exact(request.strength) if lora is not None else "1",
        seed=str(request.seed),
        aspect=CUSTOM,
        width=request.width,
        height=request.height,
        steps=request.steps,
        guidance=request.guidance,
        precision=request.precision,
        remote_id=(lora.finetune_id or "") if lora is not None else "",
        references=request.references,
    )


def sweep_form(request: RenderRequest, *, backend: str, lora: str | None) -> SweepForm:
    """Return the Sweep tab's form around an image: the same seed from the base to beyond its strength."""
    return SweepForm(
        lora=lora,
        prompt=request.prompt,
        strengths="0-1.2 [7]",
        seed=str(request.seed),
        weights=request.weights,
        width=request.width,
        height=request.height,
        steps=request.steps,
        guidance=request.guidance,
        precision=request.precision,
        backends=backend,
    )
