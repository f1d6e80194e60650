"""What a person fills in on the Sweep tab, as text and numbers -> a `SweepSpec`, and back.

The main LoRA, prompt, seed, weights, precision and place make the first row; the second axis adds rows below it.
Nothing here knows Gradio.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from pydantic import TypeAdapter, ValidationError

from evaluation.axes import LORA, PROMPT, SEED, TARGET, TRIGGER, SweepSpec, row_axis
from evaluation.grid import make_spec, parse_precisions
from evaluation.strengths import format_strengths, parse_strengths
from lora_runtime.backends.base import Backend
from lora_runtime.errors import InvalidInput
from lora_runtime.values import LoraRef, Precision
from lora_runtime.written import plain_signs, quote, read_whole

ROWS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "none": "One row",
        SEED.name: "More seeds",
        PROMPT.name: "More prompts",
        LORA.name: "More LoRAs",
        TRIGGER.name: "Trigger on and off",
        "weights": "More weights",
        "precision": "More precisions",
        "backend": "More places",
    }
)
"""What the second axis can be, with its words on the page. The last three are parts of a target."""

PRECISIONS: Final[Mapping[str, str]] = MappingProxyType({"": "Best here", "bf16": "BF16", "fp8": "FP8", "fp32": "FP32"})
"""The choices of precision, with their words on the page."""

"""Backends in the words of the page."""

STRENGTHS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "0.7 to 0.9, same seed": "0, 0.7-0.9 (+0.05)",
        "Base to 1.2": "0-1.2 [7]",
        "Coarse": "0-2 (+0.5)",
        "Fine": "0, 0.5-1 (+0.05)",
    }
)
"""Strengths at a click. The first is what BFL's page advises to try."""


@dataclass(frozen=True, kw_only=True)
class SweepForm:
    """The fields of the Sweep tab. `rows` is a key of `ROWS`; None in a number means the weights' own default.

    `precision` is empty for the backend's default, `backends` for the app's first backend; programs may name several
    of either with commas. A field that starts with `more_` counts only when `rows` is its axis.
    """

    lora: str | None
    prompt: str
    strengths: str
    seed: str
    weights: str
    rows: str = "none"
    more_seeds: str = ""
    more_prompts: str = ""
    more_loras: tuple[str, ...] = ()
    more_weights: tuple[str, ...] = ()
    more_precisions: tuple[str, ...] = ()
    more_backends: tuple[str, ...] = ()
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    precision: str = ""
    backends: str = ""


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
)


def make_form_spec(backends: Mapping[str, Backend], form: SweepForm, find_lora: Callable[[str], LoraRef]) -> SweepSpec:
    """Resolve a form into a spec; `backends` are those of the app, `find_lora` knows the LoRAs of its visitor.

    Raises:
        KleinLabError: A field is wrong; as `make_spec`.
    """
    if not form.lora:
        raise InvalidInput("LoRA: choose one, or upload a .safetensors file.")
    more_loras = form.more_loras if form.rows == LORA.name else ()
    return make_spec(
        choose_backends(backends, form),
        weights=list_weights(form),
        loras=tuple(find_lora(name) for name in (form.lora, *more_loras)),
        prompts=(form.prompt, *_list_prompts(form)),
        strengths=form.strengths,
        seeds=(parse_seed(form.seed), *_list_seeds(form)),
        width=form.width,
        height=form.height,
        steps=form.steps,
        guidance=form.guidance,
        precision=list_precisions(form),
        compare_trigger=form.rows == TRIGGER.name,
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
    several = len(axis.values(spec)) > 1
    weights = tuple(dict.fromkeys(target.weights for target in spec.targets))
    precisions = tuple(dict.fromkeys(target.precision for target in spec.targets))
    backends = tuple(dict.fromkeys(target.backend for target in spec.targets))
    kinds = {"weights": weights, "backend": backends, "precision": precisions}
    rows = axis.name
    if axis is TARGET:
        rows = next(kind for kind, values in kinds.items() if len(values) > 1)
    by_default = len(precisions) > 1 and rows != "precision"  # each place or base has a best one of its own
    return SweepForm(
        lora=spec.loras[0].name if spec.loras else None,
        prompt=spec.prompts[0],
        strengths=format_strengths(spec.strengths),
        seed=str(spec.seeds[0]),
        weights=spec.weights,
        rows=rows if several else "none",
        more_seeds=", ".join(str(seed) for seed in spec.seeds[1:]),
        more_prompts="\n".join(spec.prompts[1:]),
        more_loras=tuple(lora.name for lora in spec.loras[1:]),
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


def dump_form(form: SweepForm) -> str:
    """Return the form as JSON, for a preset."""
    return _forms().dump_json(form).decode()


def load_form(text: str) -> SweepForm:
    """Read a form that was kept; a field that it lacks is as at the start.

    Raises:
        InvalidInput: It is no form.
    """
    try:
        return _forms().validate_json(text)
    except ValidationError as error:
        raise InvalidInput("Preset: it cannot be read any more. Delete it, and save it again.") from error


def count_cells(form: SweepForm, backends: int = 1) -> tuple[int, int]:
    """Return how many rows and columns the form makes on so many backends, strength 0 among them.

    Raises:
        InvalidInput: The strengths, the seeds or the precisions cannot be read.
    """
    columns = len({*parse_strengths(form.strengths), 0})
    rows = {
        SEED.name: 1 + len(_list_seeds(form)),
        PROMPT.name: 1 + len(_list_prompts(form)),
        LORA.name: len(dict.fromkeys((form.lora, *form.more_loras))),
        TRIGGER.name: 2,
    }
    return rows.get(form.rows, 1) * len(list_weights(form)) * len(list_precisions(form)) * backends, columns


def parse_seed(text: str) -> int | None:
    """Read a seed; an empty text or -1 means a random one.

    Raises:
        InvalidInput: It is not a whole number.
    """
    if not text.strip():
        return None
    seed = read_whole("Seed", text.strip(), remedy="Write one such as 7, or leave it empty for a random one.")
    return None if seed == -1 else seed


def _list_seeds(form: SweepForm) -> tuple[int | None, ...]:
    if form.rows != SEED.name:
        return ()
    return tuple(parse_seed(part) for part in plain_signs(form.more_seeds).split(",") if part.strip())


def _list_prompts(form: SweepForm) -> tuple[str, ...]:
    if form.rows != PROMPT.name:
        return ()
    return tuple(line for line in form.more_prompts.splitlines() if line.strip())


@lru_cache(maxsize=1)
def _forms() -> TypeAdapter[SweepForm]:
    return TypeAdapter(SweepForm)
