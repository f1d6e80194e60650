"""What the Playground's templates are filled with: the picker's options, one image large, and the earlier ones.

A view is what to say, worked out here and tested as it is; `templates/play-*.html` say how it looks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from evaluation.captions import tell_records_apart
from evaluation.cost import format_credits
from evaluation.moments import Moment
from evaluation.report.draw import draw, part
from evaluation.report.grid_view import image_url
from evaluation.store.store import CellRecord, Run
from evaluation.strengths import format_strength
from evaluation.tabs.page import draw_error
from evaluation.tabs.playground_form import Choice, Model, PlayForm
from evaluation.trigger import has_trigger
from lora_runtime.catalogue import Endpoint, Weights, find_weights
from lora_runtime.errors import KleinLabError
from lora_runtime.registry.accounts import price, to_credits
from lora_runtime.snippets import Language, write_api_program, write_diffusers_program
from lora_runtime.strength import warn_strengths
from lora_runtime.values import RenderRequest
from lora_runtime.written import count_of


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program that makes the image again, or why there is none. `name` is its language."""

    name: str
    text: str = ""
    problem: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image large, or why there is none. `image`, `base` and `download` are addresses.

    `strength` is empty where the image is the base model's, and `base` where it is not laid beside.
    """

    state: Literal["waiting", "stopped", "error", "done"]
    request: RenderRequest
    about: str
    strength: str
    facts: tuple[str, ...]
    output_format: str
    reason: str = ""
    image: str = ""
    base: str = ""
    download: str = ""
    file_name: str = ""
    programs: tuple[Program, ...] = ()


def draw_picker(models: Sequence[Model], chosen: Model | None, reasons: Mapping[Choice, str]) -> str:
    """Return the list of models behind a button; `reasons` say by choice why one cannot run here."""
    return draw("play-picker.html", chosen=chosen, groups=view_groups(models, chosen, reasons), reasons=reasons)


def view_groups(
    models: Sequence[Model], chosen: Model | None, reasons: Mapping[Choice, str]
) -> Mapping[str, Sequence[Model]]:
    """Return the models of the picker under their headings: what cannot run is last, what is chosen is there."""
    listed = [*models, *([chosen] if chosen is not None and chosen not in models else [])]
    here = [model for model in listed if model.choice not in reasons]
    return {
        "Base models": [model for model in here if model.lora is None],
        "Finetunes": [model for model in here if model.lora is not None],
        "What cannot run here, and why": [model for model in listed if model.choice in reasons],
    }


def view_waiting(request: RenderRequest, output_format: str) -> Picture:
    """Return an image on its way, with the rows that the image will have."""
    strength = f"strength {format_strength(request.strength)}" if request.lora else ""
    images = len(request.references)
    facts = (
        f"seed {request.seed}",
        *((request.lora.name, strength) if request.lora else ("base model",)),
        f"{find_weights(request.weights).label} · {request.precision}",
        f"{request.width} × {request.height} px",
        count_of(request.steps, "step"),
        *([count_of(images, "reference image")] if images else []),
    )
    return Picture(
        state="waiting",
        request=request,
        about=", ".join(each for each in (request.prompt, strength, f"seed {request.seed}") if each),
        strength=strength if request.strength else "",
        facts=facts,
        output_format=output_format,
    )


def view_picture(
    run: Run,
    record: CellRecord,
    *,
    output_format: str,
    download: str = "",
    programs: Sequence[Program] = (),
    base: Path | None = None,
) -> Picture:
    """Return what an image shows; `download` is its address in the chosen format."""
    view = view_waiting(record.cell.request, output_format)
    if record.image is None:
        reason = record.error or "It was stopped before it was rendered."
        return replace(view, state="error" if record.error else "stopped", reason=reason)
    took = [f"{record.seconds:.2f} s"] if record.seconds is not None else []
    return replace(
        view,
        state="done",
        facts=(*view.facts, *took),
        image=image_url(record.image),
        base=image_url(base) if base else "",
        download=download,
        file_name=name_file(run.id, output_format),
        programs=tuple(programs),
    )


def write_programs(
    request: RenderRequest, *, base_url: str, finetune_id: str | None, output_format: str, note: str, with_paths: bool
) -> tuple[Program, ...]:
    """Return the programs that make an image again, each in a language; `note` is said of the server's."""

    def write(name: str, writer: Callable[[], str], note: str = "") -> Program:
        try:
            return Program(name=name, text=writer(), note=note)
        except KleinLabError as error:
            return Program(name=name, problem=str(error))

    def ask(language: Language) -> str:
        return write_api_program(
            request, language, base_url=base_url, finetune_id=finetune_id, output_format=output_format
        )

    return (
        write("curl", lambda: ask("curl"), note),
        write("Python", lambda: ask("python"), note),
        write("diffusers", lambda: write_diffusers_program(request, with_paths=with_paths)),
    )


def name_file(run_id: str, output_format: str) -> str:
    """Return what a downloaded image is called."""
    return f"{run_id}.{'jpg' if output_format == 'jpeg' else output_format}"


def draw_route(form: PlayForm, model: Model, route: tuple[Endpoint | None, str], remote: str) -> str:
    """Return where the form goes, what it costs there, and why it cannot run; `remote` is the server's address."""
    endpoint, reason = route
    place, cost = f"at {remote}" if remote else "on this machine", ""
    if remote and endpoint and not reason:
        side = model.weights.default_size
        output_px = (form.width or side) * (form.height or side)
        cost = f" · {format_credits(to_credits(price(endpoint, output_px=output_px)))}"
    return draw("play-route.html", path=endpoint.path if endpoint else "", place=place, cost=cost, reason=reason)


def draw_trigger(form: PlayForm, model: Model) -> str:
    """Return the trigger phrase of the model: whether the prompt has it, and a click that puts it in."""
    phrase = model.trigger_phrase
    return draw("play-trigger.html", phrase=phrase, there=bool(phrase) and has_trigger(form.prompt, phrase or ""))


def draw_steps(step: int, steps: int, seconds_left: float | None) -> str:
    """Return the live line of an image on its way, and its bar."""
    left = f" · about {max(1, round(seconds_left))} s left" if seconds_left and seconds_left > 0 else ""
    words = f"Step {step} of {steps}{left}" if step else "The model starts …"
    return part("progress", text=words, done=step, total=steps)


def draw_end(moment: Moment) -> str:
    """Return how a run has ended."""
    if moment.error is not None:
        return draw_error(moment.error)
    if moment.count("failed"):
        return part("message", text="It failed; the reason stands below.")
    if moment.finished and moment.finished.stopped:
        return part("message", text="Stopped.")
    warning = warn_strengths(moment.planned.spec.strengths)
    return part("message", text=f"Done in {moment.seconds_passed():.1f} s. {warning}".strip())


def view_history(history: Sequence[tuple[Run, Sequence[CellRecord]]]) -> list[tuple[str, Picture]]:
    """Return the newest images with their runs, LoRAs of one name told apart."""
    shown = [(run, cells[0]) for run, cells in history if cells]
    records = tell_records_apart([record for _, record in shown])
    return [
        (run.id, view_picture(run, record, output_format="png"))
        for (run, _), record in zip(shown, records, strict=True)
    ]


def describe_steps(weights: Weights, *, remote: bool) -> tuple[bool, str, str]:
    """Return whether steps and guidance can be changed, and a few words on each."""
    if weights.distilled:
        return False, f"Distilled to {weights.steps} steps.", "Distilled: takes none."
    if remote:
        return False, f"The API renders {weights.steps}.", f"The API uses {weights.guidance:g}."
    return True, "", ""
