"""What a person fills in on the Sweep tab, as text and numbers -> a `SweepSpec`, and back.

Prompts times seeds are the scenes, a row each; the second axis repeats them for each of its values. A field is one
record of `SweepForm`: a preset, a link and the components are read and written by it alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Final

import gradio as gr
from pydantic import BeforeValidator, Field, model_validator

from evaluation.axes import CHECKPOINT, COMPARED, LORA, TARGET, TRIGGER, SweepSpec, row_axis
from evaluation.grid import make_spec, name_lora, parse_precisions
from evaluation.strengths import DEFAULT_COUNT, parse_strengths, write_strengths
from evaluation.tabs.fields import Box, Form
from lora_runtime.backends.base import Backend
from lora_runtime.catalogue import WEIGHTS, find_weights
from lora_runtime.errors import InvalidInput
from lora_runtime.lora.training import TrainingRun
from lora_runtime.pocket import TRAINING
from lora_runtime.values import LoraRef, Precision, Reference
from lora_runtime.written import plain_signs, quote, read_whole

ROWS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "none": "None",
        LORA.name: "More LoRAs",
        TRIGGER.name: "Trigger on and off",
        "weights": "More weights",
        "precision": "More precisions",
        "backend": "More places",
    }
)
"""What the second axis, beside the scenes, can be, with its words. The last three are parts of a target."""

_SCENES: Final = MappingProxyType({"seed": "seeds", "prompt": "prompts"})
"""What `rows` said when these were a second axis, and how their fields end."""

PRECISIONS: Final[Mapping[str, str]] = MappingProxyType({"": "Best here", "bf16": "BF16", "fp8": "FP8", "fp32": "FP32"})
"""The choices of precision, with their words on the page."""

STRENGTHS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "0.7 to 0.9, same seed": "0, 0.7-0.9 (+0.05)",
        "Base to 1.2": "0-1.2 [7]",
        "Coarse": "0-2 (+0.5)",
        "Fine": "0, 0.5-1 (+0.05)",
    }
)
"""Strengths at a click. The first is what BFL's page advises to try."""


_POCKET: Final = find_weights("pocket")
_WEIGHTS: Final = [(record.label, record.name) for record in WEIGHTS.values()]
_PIXELS: Final = {"precision": 0, "step": 16, "minimum": 64, "maximum": 2048, "min_width": 110}
_NONE_FOR_0: Final = BeforeValidator(lambda value: value or None)
"""An empty number that has just appeared is 0 to the browser."""
_MORE: Final = {"visible": False, "multiselect": True}


class SweepForm(Form):
    """The fields of the Sweep tab. `rows` is a key of `ROWS`; None in a number means the weights' own default.

    `lora` may be a training run; `every` and `last` choose among its checkpoints.

    `precision` is empty for the backend's default, `backends` for the app's first backend; programs may name several
    of either with commas. `further_prompts` and `further_seeds` multiply, whatever the second axis is; a field that
    starts with `more_` counts only when `rows` is its axis. `likeness` are pictures of the look, to judge by.
    """

    lora: Annotated[str | None, Box(gr.Dropdown, label="LoRA", elem_id="lora", filterable=False)] = None
    every: Annotated[
        int | None,
        Field(ge=1),
        _NONE_FOR_0,
        Box(gr.Number, label="Every", precision=0, minimum=0, step=1, min_width=110, info="2: every second"),
    ] = None
    last: Annotated[
        int | None,
        Field(ge=1),
        _NONE_FOR_0,
        Box(gr.Number, label="The last", precision=0, minimum=0, step=1, min_width=110, info="checkpoints alone"),
    ] = None
    prompt: Annotated[str, Box(gr.Textbox, label="Prompt", lines=2, max_lines=6, elem_id="prompt")] = ""
    strengths: Annotated[
        str,
        Box(
            gr.Textbox, label="Strengths", elem_id="strengths",
            info=f"A list or ranges: 0, 0.5, 1 · 0-1.2 [7] · 0.7-0.9 (+0.05). A range alone is {DEFAULT_COUNT} values.",
        ),
    ] = ""  # fmt: skip
    seed: Annotated[
        str, Box(gr.Textbox, label="Seed", placeholder="random", elem_id="seed", scale=3, min_width=120)
    ] = ""
    rows: Annotated[
        str, Box(gr.Radio, label="Second axis", elem_id="rows", info="One more thing to vary, in every scene.")
    ] = "none"
    further_prompts: Annotated[
        str,
        Box(
            gr.Textbox, label="Further prompts", lines=3, max_lines=8,
            info="One a line. Each prompt with each seed is a scene, and a row.",
        ),
    ] = ""  # fmt: skip
    further_seeds: Annotated[str, Box(gr.Textbox, label="Further seeds", placeholder="8, 9, 10")] = ""
    likeness: Annotated[tuple[Reference, ...], Box(gr.State)] = ()
    more_loras: Annotated[
        tuple[str, ...], Box(gr.Dropdown, label="Further LoRAs", info="Finetunes are here too.", **_MORE)
    ] = ()
    more_weights: Annotated[
        tuple[str, ...],
        Box(
            gr.Dropdown, choices=_WEIGHTS, label="Further weights",
            info="Each with its own steps and guidance; the LoRA must fit them all.", **_MORE,
        ),
    ] = ()  # fmt: skip
    more_precisions: Annotated[
        tuple[str, ...],
        Box(
            gr.Dropdown, choices=[(label, name) for name, label in PRECISIONS.items() if name],
            label="Further precisions", info="The verdict says how far they are apart.", **_MORE,
        ),
    ] = ()  # fmt: skip
    more_backends: Annotated[
        tuple[str, ...],
        Box(gr.Dropdown, label="Further places", info="A remote server may bill each image.", **_MORE),
    ] = ()
    weights: Annotated[
        str, Box(gr.Dropdown, choices=_WEIGHTS, label="Weights", filterable=False, elem_id="weights")
    ] = _POCKET.name
    backends: Annotated[
        str,
        Box(
            gr.Dropdown, choices=[("This machine", "")], label="Where", filterable=False, elem_id="backends",
            info="A remote server may bill each image.",
        ),
    ] = ""  # fmt: skip
    precision: Annotated[
        str,
        Box(
            gr.Dropdown, choices=[(label, name) for name, label in PRECISIONS.items()], label="Precision",
            filterable=False, elem_id="precision",
        ),
    ] = ""  # fmt: skip
    width: Annotated[int | None, Box(gr.Number, label="Width (px)", value=_POCKET.default_size, **_PIXELS)] = None
    height: Annotated[int | None, Box(gr.Number, label="Height (px)", value=_POCKET.default_size, **_PIXELS)] = None
    steps: Annotated[
        int | None,
        Box(gr.Number, label="Steps", value=_POCKET.steps, precision=0, step=1, minimum=1, maximum=100, min_width=110),
    ] = None
    guidance: Annotated[
        float | None,
        Box(
            gr.Number, label="Guidance", value=_POCKET.guidance, step=0.5, interactive=False, min_width=110,
            info="Distilled weights take none.",
        ),
    ] = None  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _read_older(cls, kept: Any) -> Any:
        """A preset from when seeds or prompts were a second axis; those of another axis than its own did not count."""
        part = _SCENES.get(str(kept.get("rows"))) if isinstance(kept, dict) else None
        if part is None:
            return kept
        return {**kept, "rows": "none", f"further_{part}": kept.get(f"more_{part}", "")}

    def put(self) -> dict[str, Any]:
        """Return what puts the form on the page, the field of its second axis in sight."""
        values = self.write()
        return values | {
            field: gr.update(value=values[field], **shown) for field, shown in show_rows(self.rows).items()
        }


class RunOnPage(Form):
    """The run that the page shows, the strengths that are to be added to it, and where A and B stand in it.

    `watch`: new checkpoints of its training run are swept as they appear.
    """

    run_id: str | None = None
    add_values: str = ""
    watch: bool = False
    chosen: tuple[int, int] | None = None


class SweepPage(SweepForm, RunOnPage):
    """Everything the tab's events read."""

    @property
    def form(self) -> SweepForm:
        """The form alone."""
        return SweepForm.model_validate(self.model_dump())


def show_rows(rows: str) -> dict[str, dict[str, Any]]:
    """Return the changes that show the one field of the chosen second axis."""
    fields = {
        LORA.name: "more_loras", "weights": "more_weights", "precision": "more_precisions", "backend": "more_backends"
    }  # fmt: skip
    return {field: {"visible": axis == rows} for axis, field in fields.items()}


@dataclass(frozen=True, kw_only=True)
class Example:
    """A sweep worth looking at, one click away."""

    label: str
    lora: str
    prompt: str
    strengths: str
    seed: str


EXAMPLES: Final = (
    Example(
        label="A style fades in",
        lora="style",
        prompt="a red cat in the snow",
        strengths="0-1.2 [7]",
        seed="7",
    ),
    Example(
        label="A subject appears",
        lora="subject",
        prompt="a red ohwx on the beach",
        strengths="0-1.4 [8]",
        seed="3",
    ),
    Example(
        label="Too strong at 1.0",
        lora="overtrained",
        prompt="a blue boat on the beach",
        strengths="0, 0.5-1 (+0.1)",
        seed="7",
    ),
    Example(
        label="Which checkpoint?",
        lora=TRAINING.name,
        prompt="a green teapot in the desert",
        strengths="0-1.2 [7]",
        seed="7",
    ),
)


def make_form_spec(
    backends: Mapping[str, Backend], form: SweepForm, find_lora: Callable[[str], LoraRef | TrainingRun]
) -> SweepSpec:
    """Resolve a form into a spec; `backends` are those of the app, `find_lora` knows what its visitor can choose.

    Raises:
        KleinLabError: A field is wrong; as `make_spec`.
    """
    if not form.lora:
        raise InvalidInput("LoRA: choose one, or upload a .safetensors file.")
    more_loras = form.more_loras if form.rows == LORA.name else ()
    found = [find_lora(name) for name in (form.lora, *more_loras)]
    runs = [each for each in found if isinstance(each, TrainingRun)]
    if runs and len(found) > 1:
        raise InvalidInput(f"Second axis: the training run {runs[0].name} is swept alone. Choose another second axis.")
    return make_spec(
        choose_backends(backends, form),
        weights=list_weights(form),
        loras=[each for each in found if isinstance(each, LoraRef)],
        training=runs[0].select(every=form.every, last=form.last) if runs else None,
        prompts=list_prompts(form),
        strengths=form.strengths,
        seeds=(parse_seed(form.seed), *_list_seeds(form)),
        width=form.width,
        height=form.height,
        steps=form.steps,
        guidance=form.guidance,
        precision=list_precisions(form),
        compare_trigger=form.rows == TRIGGER.name,
        likeness=form.likeness,
    )


def choose_backends(backends: Mapping[str, Backend], form: SweepForm) -> Mapping[str, Backend]:
    """Return the backends of the app that the form names; its first one when it names none.

    Raises:
        InvalidInput: The app has no such backend.
    """
    written = (part.strip() for part in form.backends.split(","))
    names = tuple(name for name in written if name) or tuple(backends)[:1]
    more = form.more_backends if form.rows == "backend" else ()
    chosen = tuple(dict.fromkeys((*names, *more)))
    for name in chosen:
        if name not in backends:
            raise InvalidInput(f"Where: there is no backend {quote(name)} here, only {', '.join(backends)}.")
    return {name: backends[name] for name in chosen}


def list_weights(form: SweepForm) -> tuple[str, ...]:
    """Return the weights that the form names, each once."""
    more = form.more_weights if form.rows == "weights" else ()
    return tuple(dict.fromkeys((form.weights, *more)))


def list_precisions(form: SweepForm) -> tuple[Precision | None, ...]:
    """Return the precisions that the form names, each once; None is the backend's default.

    Raises:
        InvalidInput: One of them is unknown.
    """
    first: tuple[Precision | None, ...] = parse_precisions(form.precision) or (None,)
    more = parse_precisions(",".join(form.more_precisions)) if form.rows == "precision" else ()
    return tuple(dict.fromkeys((*first, *more)))


def list_places(backends: Mapping[str, Backend]) -> list[tuple[str, str]]:
    """Return the choices of where to render, as words and value; the app's first backend needs no value."""
    (_, first), *others = backends.items()
    return [(first.label, ""), *((backend.label, name) for name, backend in others)]


def fill_form(spec: SweepSpec) -> SweepForm:
    """Return the form that makes `spec` again, its seeds resolved. Of targets that differ in two ways, it has one."""
    axis = row_axis(spec)
    weights = tuple(dict.fromkeys(target.weights for target in spec.targets))
    precisions = tuple(dict.fromkeys(target.precision for target in spec.targets))
    backends = tuple(dict.fromkeys(target.backend for target in spec.targets))
    kinds = {"weights": weights, "backend": backends, "precision": precisions}
    rows = axis.name if axis in COMPARED and axis is not CHECKPOINT else "none"
    if axis is TARGET:
        rows = next(kind for kind, values in kinds.items() if len(values) > 1)
    by_default = len(precisions) > 1 and rows != "precision"  # each place or base has a best one of its own
    return SweepForm(
        lora=name_lora(spec) if spec.loras else None,
        every=spec.training.every if spec.training else None,
        last=spec.training.last if spec.training else None,
        prompt=spec.prompts[0],
        strengths=write_strengths(spec.strengths),
        seed=str(spec.seeds[0]),
        weights=spec.weights,
        rows=rows,
        further_prompts="\n".join(spec.prompts[1:]),
        further_seeds=", ".join(str(seed) for seed in spec.seeds[1:]),
        likeness=spec.likeness,
        more_loras=() if spec.training else tuple(lora.name for lora in spec.loras[1:]),
        more_weights=weights[1:],
        more_precisions=() if by_default else precisions[1:],
        more_backends=backends[1:],
        width=spec.width,
        height=spec.height,
        steps=spec.steps,
        guidance=spec.guidance,
        precision="" if by_default else precisions[0],
        backends="" if backends[0] == "local" else backends[0],
    )


def count_cells(form: SweepForm, backends: int = 1, checkpoints: int = 1) -> tuple[int, int]:
    """Return how many rows and columns the form makes on so many backends, strength 0 among them.

    `checkpoints` is how many there are when its LoRA is a training run.

    Raises:
        InvalidInput: The strengths, the seeds or the precisions cannot be read.
    """
    columns = len({*parse_strengths(form.strengths), 0})
    scenes = len(list_prompts(form)) * (1 + len(_list_seeds(form)))
    rows = {LORA.name: len(dict.fromkeys((form.lora, *form.more_loras))), TRIGGER.name: 2}
    targets = len(list_weights(form)) * len(list_precisions(form)) * backends
    kept = min(-(-checkpoints // (form.every or 1)), form.last or checkpoints)
    return scenes * rows.get(form.rows, 1) * targets * kept, columns


def list_prompts(form: SweepForm) -> tuple[str, ...]:
    """Return the prompt and the further ones."""
    return (form.prompt, *(line for line in form.further_prompts.splitlines() if line.strip()))


def parse_seed(text: str, label: str = "Seed") -> int | None:
    """Read a seed of the field of this label; an empty text or -1 means a random one.

    Raises:
        InvalidInput: It is not a whole number.
    """
    if not text.strip():
        return None
    seed = read_whole(label, text.strip(), remedy="Write one such as 7, or leave it empty for a random one.")
    return None if seed == -1 else seed


def _list_seeds(form: SweepForm) -> tuple[int | None, ...]:
    written = plain_signs(form.further_seeds).split(",")
    return tuple(parse_seed(part, "Further seeds") for part in written if part.strip())
