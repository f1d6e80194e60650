"""What a person fills in on the Sweep tab, as text and numbers -> a `SweepSpec`, and back.

The main LoRA, prompt and seed make the first row; the second axis adds rows below it. Nothing here knows Gradio.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from evaluation.grid import LORA, PROMPT, SEED, SweepSpec, make_spec, parse_precisions, row_axis
from evaluation.strengths import format_strengths, parse_strengths
from lora_runtime.backends.base import Backend
from lora_runtime.errors import InvalidInput
from lora_runtime.values import LoraRef

ROWS: Final[Mapping[str, str]] = MappingProxyType(
    {"none": "One row", SEED.name: "More seeds", PROMPT.name: "More prompts", LORA.name: "More LoRAs"}
)
"""What the second axis can be, with its words on the page."""

PRECISIONS: Final[Mapping[str, str]] = MappingProxyType(
    {"": "Best here", "bf16": "BF16", "fp8": "FP8", "bf16,fp8": "BF16 and FP8, side by side", "fp32": "FP32"}
)
"""The choices of precision, with their words on the page; two of them make two rows."""

PLACES: Final[Mapping[str, str]] = MappingProxyType({"local": "This machine", "remote": "The remote server"})
"""Backends in the words of the page."""


@dataclass(frozen=True, kw_only=True)
class SweepForm:
    """The fields of the Sweep tab. `rows` is a key of `ROWS`; None in a number means the weights' own default.

    `precision` is a text such as "bf16" or "bf16,fp8"; empty is the backend's default. `backends` is one such as
    "remote" or "local,remote"; empty is the app's first.
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
        prompt="a large red cat in the snow",
        strengths="0-1.2 [7]",
        seed="7",
    ),
    Example(
        label="A subject appears",
        lora="subject",
        prompt="a large ohwx in the forest",
        strengths="0-1 (+0.2)",
        seed="3",
    ),
    Example(
        label="Too strong at 1.0",
        lora="overtrained",
        prompt="a large blue boat on the beach",
        strengths="0, 0.5, 0.7-0.9 (+0.05), 1",
        seed="11",
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
        weights=form.weights,
        loras=tuple(find_lora(name) for name in (form.lora, *more_loras)),
        prompts=(form.prompt, *_list_prompts(form)),
        strengths=form.strengths,
        seeds=(parse_seed(form.seed), *_list_seeds(form)),
        width=form.width,
        height=form.height,
        steps=form.steps,
        guidance=form.guidance,
        precision=parse_precisions(form.precision),
    )


def choose_backends(backends: Mapping[str, Backend], form: SweepForm) -> Mapping[str, Backend]:
    """Return the backends of the app that the form names; its first one when it names none.

    Raises:
        InvalidInput: The app has no such backend.
    """
    names = _list_backends(form) or tuple(backends)[:1]
    for name in names:
        if name not in backends:
            raise InvalidInput(f"Where: there is no backend {name!r} here, only {', '.join(backends)}.")
    return {name: backends[name] for name in names}


def list_places(backends: Sequence[str]) -> list[tuple[str, str]]:
    """Return the choices of where to render, as words and value; the app's first backend needs no value."""
    first, *others = backends
    single = [(PLACES.get(first, first), ""), *((PLACES.get(name, name), name) for name in others)]
    return [*single, ("Both, side by side", ",".join(backends))] if others else single


def fill_form(spec: SweepSpec) -> SweepForm:
    """Return the form that makes `spec` again, its seeds resolved."""
    axis = row_axis(spec)
    rows = axis.name if len(axis.values(spec)) > 1 and axis.name in ROWS else "none"
    precision = ",".join(dict.fromkeys(target.precision for target in spec.targets))
    backends = ",".join(dict.fromkeys(target.backend for target in spec.targets))
    return SweepForm(
        lora=spec.loras[0].name if spec.loras else None,
        prompt=spec.prompts[0],
        strengths=format_strengths(spec.strengths),
        seed=str(spec.seeds[0]),
        weights=spec.weights,
        rows=rows,
        more_seeds=", ".join(str(seed) for seed in spec.seeds[1:]),
        more_prompts="\n".join(spec.prompts[1:]),
        more_loras=tuple(lora.name for lora in spec.loras[1:]),
        width=spec.width,
        height=spec.height,
        steps=spec.steps,
        guidance=spec.guidance,
        precision=precision if precision in PRECISIONS else "",
        backends="" if backends == "local" else backends,
    )


def count_cells(form: SweepForm) -> tuple[int, int]:
    """Return how many rows and columns the form makes, strength 0 among them.

    Raises:
        InvalidInput: The strengths, the seeds or the precisions cannot be read.
    """
    targets = max(1, len(parse_precisions(form.precision))) * max(1, len(_list_backends(form)))
    strengths = parse_strengths(form.strengths)
    columns = len({*strengths, 0})
    loras = form.more_loras if form.rows == LORA.name else ()
    rows = 1 + len(_list_seeds(form)) + len(_list_prompts(form)) + len(loras) + targets - 1
    return rows, columns


def parse_seed(text: str) -> int | None:
    """Read a seed; an empty text or -1 means a random one.

    Raises:
        InvalidInput: It is not a whole number.
    """
    written = text.strip()
    if written in ("", "-1"):
        return None
    try:
        return int(written)
    except ValueError as error:
        shown = written if len(written) <= 40 else f"{written[:39]}…"
        raise InvalidInput(
            f"Seed: {shown!r} is not a whole number. Write one such as 7, or leave it empty for a random one."
        ) from error


def draw_seed() -> str:
    """Return a new random seed, short enough to read out."""
    return str(secrets.randbelow(10**6))


def _list_backends(form: SweepForm) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in form.backends.split(",") if part.strip()))


def _list_seeds(form: SweepForm) -> tuple[int | None, ...]:
    if form.rows != SEED.name:
        return ()
    return tuple(parse_seed(part) for part in form.more_seeds.split(",") if part.strip())


def _list_prompts(form: SweepForm) -> tuple[str, ...]:
    if form.rows != PROMPT.name:
        return ()
    return tuple(line for line in form.more_prompts.splitlines() if line.strip())
