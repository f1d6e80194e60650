"""The HTML of the Playground: plain strings, every text escaped, no templates (see `evaluation.tabs.markup`).

What can be clicked says by `data-event` which event of its component it is, and by other `data-` attributes what about;
`playground.js` passes that on.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from evaluation.report.grid_view import image_url
from evaluation.store.store import CellRecord, Run
from evaluation.strengths import format_strength
from evaluation.tabs.markup import draw_message
from evaluation.tabs.playground_models import Choice, Route
from lora_runtime.catalogue import Weights, find_weights
from lora_runtime.values import Reference, RenderRequest

_CHEVRON: Final = (
    '<svg class="chevron" width="12" height="8" viewBox="0 0 12 8" aria-hidden="true">'
    '<path d="M1 1.5l5 5 5-5" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linecap="round"/></svg>'
)


PROGRAMS: Final = ("curl", "Python", "diffusers")
"""The languages in which an image's program is copied."""

_COMMAND: Final = re.compile(r"`([^`]+)`")


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program that makes the image again, or why there is none. `name` is its language."""

    name: str
    text: str = ""
    problem: str = ""
    note: str = ""


def draw_picker(choices: Sequence[Choice], chosen: Choice | None, missing: Mapping[str, str]) -> str:
    """Return the list of models behind a button; `missing` says by key why one cannot run here."""
    here = [choice for choice in choices if choice.key not in missing]
    bases = [choice for choice in here if choice.lora is None]
    tuned = [choice for choice in here if choice.lora is not None]
    if chosen is not None and chosen.key not in {choice.key for choice in choices}:
        tuned.insert(0, chosen)
    others = [choice for choice in choices if choice.key in missing]
    value = (
        f'<span class="title"><bdi>{escape(chosen.title)}</bdi></span>{_tags(chosen)}'
        if chosen
        else '<span class="title">Choose a model</span>'
    )
    named = {"Base models": bases, "Finetunes": tuned, "What cannot run here, and why": others}
    groups = "".join(_group(title, listed, chosen, missing) for title, listed in named.items())
    return (
        '<div class="picker"><span class="picker-label" id="play-model-label">Model</span>'
        '<button type="button" class="picker-button" aria-haspopup="listbox" aria-expanded="false" '
        'aria-controls="play-models" aria-labelledby="play-model-label play-model-value">'
        f'<span class="picker-value" id="play-model-value">{value}</span>{_CHEVRON}</button>'
        '<div class="picker-menu" hidden><div role="listbox" id="play-models" aria-labelledby="play-model-label">'
        f'{groups}</div><button type="button" class="picker-manage" data-event="expand">Manage finetunes '
        '<span aria-hidden="true">→</span></button></div></div>'
    )


def draw_route(route: Route, place: str, *, cost: str = "") -> str:
    """Return which endpoint a choice goes to, and why it cannot run there if it cannot."""
    address = (
        f"<code>POST {escape(route.endpoint.path)}</code>" if route.endpoint else "No endpoint of the API renders it"
    )
    line = f'<p class="route">{address} <span>{escape(place)}{escape(cost)}</span></p>'
    return line + (draw_problem(route.reason) if route.reason else "")


def draw_problem(text: str) -> str:
    """Return why there is no route."""
    return f'<p class="cannot" role="status"><bdi>{_prose(text)}</bdi></p>'


def draw_trigger(phrase: str | None, *, there: bool) -> str:
    """Return the trigger phrase of the finetune: whether the prompt has it, and a click that puts it in."""
    if not phrase:
        return ""
    shown = f"<bdi>{escape(phrase)}</bdi>"
    if there:
        return f'<p class="phrase good">The trigger phrase <b>{shown}</b> is in the prompt.</p>'
    return (
        '<p class="phrase warn"><span>The trigger phrase is missing.</span> '
        f'<button type="button" data-event="click" data-focus="insert">Insert <b>{shown}</b></button></p>'
    )


def draw_strip(references: Sequence[Reference], problem: str = "") -> str:
    """Return the reference images in their order, each with buttons to move and remove it."""
    items = "".join(_thumb(index, reference, len(references)) for index, reference in enumerate(references))
    error = f'<div class="error" role="alert"><bdi>{escape(problem)}</bdi></div>' if problem else ""
    empty = '<p class="hint">PNG, JPEG or WebP. The prompt calls them “image 1”, “image 2”.</p>' if not items else ""
    return f'{error}<ol class="strip">{items}</ol>{empty}' if items else f"{error}{empty}"


def draw_steps(step: int, steps: int, *, seconds_left: float | None) -> str:
    """Return the live line of an image on its way, and its bar."""
    if not step:
        return draw_message("The model starts …", running=True)
    left = f" · about {max(1, round(seconds_left))} s left" if seconds_left and seconds_left > 0 else ""
    share = round(100 * step / steps) if steps else 0
    return (
        f'<div class="progress busy"><p role="status" aria-live="polite">Step {step} of {steps}{left}</p>'
        f'<div class="bar" aria-hidden="true"><span style="width:{share}%"></span></div></div>'
    )


def draw_empty() -> str:
    """Return the frame before the first image."""
    return (
        '<div class="frame ghost"><p><b>Your image appears here</b>Write what to draw and press Generate.<br>'
        "Every image stays below, with the code that makes it again.</p></div>"
    )


def draw_waiting(request: RenderRequest, output_format: str) -> str:
    """Return the frame of an image on its way, with the rows that the image will have."""
    return (
        f'<div class="frame busy" aria-busy="true"><div class="blank" {_ratio(request)}></div></div>'
        f"{_draw_actions(request, output_format, None, settings=False)}{_draw_words(request)}"
    )


def draw_picture(
    run: Run,
    record: CellRecord,
    *,
    download: str,
    output_format: str,
    programs: Sequence[Program],
    base: Path | None = None,
) -> str:
    """Return one image large: what made it, what can be done with it, and its programs.

    `download` is its address in the chosen format; with `base` the base model's image lies beside it under a slider.
    """
    request = record.cell.request
    if record.image is None:
        missing = _draw_missing(run, record)
        return f"{missing}{_draw_actions(request, output_format, None, settings=True)}{_draw_words(request)}"
    link = (download, f"{run.id}.{'jpg' if output_format == 'jpeg' else output_format}")
    frame = _draw_compared(request, record.image, base) if base else _draw_frame(request, record.image)
    took = f"{record.seconds:.2f} s" if record.seconds is not None else ""
    return (
        f"{frame}{_draw_actions(request, output_format, link, settings=True, with_base=base is not None)}"
        f"{''.join(map(_draw_program, programs))}{_draw_words(request, took)}"
    )


def draw_history(history: Sequence[tuple[Run, CellRecord]], selected: str) -> str:
    """Return the newest images as buttons, the newest first."""
    items = "".join(_draw_item(run, record, selected) for run, record in history)
    return f'<h2 class="heading">Earlier images</h2><ol class="history">{items}</ol>' if items else ""


def describe_steps(weights: Weights, *, remote: bool) -> tuple[bool, str, str]:
    """Return whether steps and guidance can be changed, and a few words on each."""
    if weights.distilled:
        return False, f"Distilled to {weights.steps} steps.", "Distilled: takes none."
    if remote:
        return False, f"The API renders {weights.steps}.", f"The API uses {weights.guidance:g}."
    return True, "", ""


def _group(title: str, choices: Sequence[Choice], chosen: Choice | None, missing: Mapping[str, str]) -> str:
    if not choices:
        return ""
    label = f"play-group-{title.split()[0].lower()}"
    options = "".join(
        f'<div role="option" tabindex="-1" data-key="{escape(choice.key)}" '
        f'aria-selected="{"true" if chosen and choice.key == chosen.key else "false"}"'
        f"{' class=missing' if choice.key in missing else ''}>"
        f'<span class="title"><bdi>{escape(choice.title)}</bdi></span>{_tags(choice)}'
        f"{_missing_line(missing.get(choice.key, ''))}</div>"
        for choice in choices
    )
    return f'<div role="group" aria-labelledby="{label}"><p id="{label}" role="presentation">{title}</p>{options}</div>'


def _missing_line(reason: str) -> str:
    return f'<span class="why">{_prose(reason)}</span>' if reason else ""


def _tags(choice: Choice) -> str:
    if choice.lora is None:
        made = "distilled" if choice.weights.distilled else "base, undistilled"
        tags = [f"{choice.weights.steps} steps, {made}", choice.weights.licence]
    else:
        precision = f" · {choice.precision.upper()}" if choice.precision else ""
        tags = [f"{choice.weights.label}{precision}", choice.whose]
    return "".join(f'<span class="tag"><bdi>{escape(tag)}</bdi></span>' for tag in tags if tag)


def _thumb(index: int, reference: Reference, count: int) -> str:
    number = index + 1
    buttons = [
        ("left", "←", f"Move image {number} to the front", index > 0),
        ("right", "→", f"Move image {number} back", number < count),
        ("remove", "✕", f"Remove image {number}", True),
    ]
    drawn = "".join(
        f'<button type="button" data-event="click" data-act="{act}" data-index="{index}" aria-label="{label}" '
        f'data-focus="{act}-{index}"{"" if possible else " disabled"}>{sign}</button>'
        for act, sign, label, possible in buttons
    )
    return (
        f'<li><img src="{escape(image_url(reference.path))}" alt="Reference image {number}"><b>{number}</b>'
        f"<div>{drawn}</div></li>"
    )


def _facts(request: RenderRequest, more: Sequence[str]) -> str:
    lora = [request.lora.name, f"strength {format_strength(request.strength)}"] if request.lora else ["base model"]
    images = len(request.references)
    facts = [
        f"seed {request.seed}",
        *lora,
        f"{find_weights(request.weights).label} · {request.precision}",
        f"{request.width} × {request.height} px",
        f"{request.steps} steps",
        f"{images} reference image{'s' if images > 1 else ''}" if images else "",
        *more,
    ]
    return f'<ul class="facts">{"".join(f"<li><bdi>{escape(fact)}</bdi></li>" for fact in facts if fact)}</ul>'


def _draw_frame(request: RenderRequest, image: Path) -> str:
    return (
        f'<div class="frame"><img class="sole" {_ratio(request)} src="{escape(image_url(image))}" '
        f'alt="{escape(_alt(request))}" width="{request.width}" height="{request.height}"></div>'
    )


def _draw_compared(request: RenderRequest, image: Path, base: Path) -> str:
    strength = f"strength {format_strength(request.strength)}"
    return (
        f'<div class="frame compared"><div class="stage slider" {_ratio(request)}>'
        f'<figure class="b"><img src="{escape(image_url(image))}" alt="{escape(_alt(request))}">'
        f"<figcaption>{strength}</figcaption></figure>"
        f'<figure class="a"><img src="{escape(image_url(base))}" alt="The base model: {escape(request.prompt)}">'
        '<figcaption>base</figcaption></figure><div class="split" aria-hidden="true"></div></div></div>'
        f'<label class="range">Base <input type="range" min="0" max="100" value="50" step="1" data-split '
        f'data-focus="split" aria-label="How much of the base image is shown, in percent"> {strength}</label>'
    )


def _draw_actions(
    request: RenderRequest,
    output_format: str,
    link: tuple[str, str] | None,
    *,
    settings: bool,
    with_base: bool = False,
) -> str:
    """The rows of buttons. `link` is the address of the download and its file name; without it there is no image yet,
    and the buttons keep their places.
    """
    there = link is not None
    words = f"Download {output_format.upper()}"
    download = _action("", words, "", enabled=False)
    if link is not None:
        download = f'<a class="action" href="{escape(link[0])}" download="{escape(link[1])}">{words}</a>'
    base = _action("clear", "Hide the base", "base") if with_base else ""
    if not base and request.lora is not None and request.strength:
        base = _action("play", "Compare with base", "base", enabled=there)
    sweep = _action("select", "Sweep this", "sweep", enabled=there) if request.lora is not None else ""
    copies = "".join(
        f'<button type="button" class="action" data-copy="{name}" aria-expanded="false" data-focus="copy-{name}"'
        f"{'' if there else ' disabled'}>{name}</button>"
        for name in PROGRAMS
    )
    return (
        f'<div class="actions">{download}{base}{_action("edit", "Use these settings", "use", enabled=settings)}{sweep}'
        '<span class="copies" role="group" aria-label="Copy code that makes this image again">'
        f'<span class="word">Copy as</span>{copies}</span></div>'
        '<div class="copied" role="status" aria-live="polite"></div>'
    )


def _draw_words(request: RenderRequest, took: str = "") -> str:
    return f'<p class="prompt"><bdi>{escape(request.prompt)}</bdi></p>{_facts(request, [took])}'


def _draw_missing(run: Run, record: CellRecord) -> str:
    words = record.error or "It was stopped before it was rendered."
    again = _action("retry", "Try again" if record.error else "Render it now", "retry")
    kind, role = ("error", "alert") if record.error else ("stopped", "status")
    return (
        f'<div class="frame ghost {kind}" data-run="{escape(run.id)}"><p role="{role}">'
        f"<b>No image</b><bdi>{escape(words)}</bdi></p>{again}</div>"
    )


def _draw_program(program: Program) -> str:
    head = f'<section class="program" data-program="{escape(program.name)}" aria-label="{escape(program.name)}" hidden>'
    if program.problem:
        return f'{head}<p class="hint warn"><bdi>{escape(program.problem)}</bdi></p></section>'
    note = f'<p class="hint">{escape(program.note)}</p>' if program.note else ""
    return f'{head}{note}<pre tabindex="0" dir="ltr"><code>{escape(program.text)}</code></pre></section>'


def _draw_item(run: Run, record: CellRecord, selected: str) -> str:
    request = record.cell.request
    what = f"{request.lora.name}, strength {format_strength(request.strength)}" if request.lora else "base model"
    label = f"{what}, seed {request.seed}: {request.prompt[:80]}"
    current = ' aria-current="true"' if run.id == selected else ""
    inner = f'<img src="{escape(image_url(record.image))}" alt="" loading="lazy">' if record.image else "<span>✕</span>"
    state = "" if record.image else ", failed" if record.error else ", stopped"
    return (
        f'<li><button type="button" data-event="click" data-run="{escape(run.id)}" data-focus="{escape(run.id)}" '
        f'aria-label="Show {escape(label)}{state}" title="{escape(label)}"{current}>{inner}</button></li>'
    )


def _action(event: str, words: str, focus: str, *, enabled: bool = True) -> str:
    off = "" if enabled else " disabled"
    return f'<button type="button" class="action" data-event="{event}" data-focus="{focus}"{off}>{words}</button>'


def _prose(text: str) -> str:
    """A sentence whose `commands` are set as code."""
    return _COMMAND.sub(r"<code>\1</code>", escape(text))


def _ratio(request: RenderRequest) -> str:
    return f'style="--ratio:{request.width / request.height:.5f}"'


def _alt(request: RenderRequest) -> str:
    strength = f", strength {format_strength(request.strength)}" if request.lora else ""
    return f"{request.prompt}{strength}, seed {request.seed}"
