"""The HTML of one image of the log with all that made it, and of several side by side with what differs."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from types import MappingProxyType
from typing import Final

from evaluation.judge.metrics import SCORES
from evaluation.log import ORIGINS, write_key
from evaluation.report.grid_view import image_url
from evaluation.store.records import CellRecord
from evaluation.strengths import format_strength
from lora_runtime.catalogue import find_weights
from lora_runtime.errors import InvalidInput

LEAST, MOST = 2, 8
"""How many images can stand side by side."""

SETTINGS: Final[Mapping[str, Callable[[CellRecord], str]]] = MappingProxyType(
    {
        "Strength": lambda record: format_strength(record.cell.request.strength),
        "LoRA": lambda record: record.cell.request.lora.name if record.cell.request.lora else "none",
        "Prompt": lambda record: record.cell.request.prompt,
        "Seed": lambda record: str(record.cell.request.seed),
        "Weights": lambda record: find_weights(record.cell.request.weights).label,
        "Precision": lambda record: record.cell.request.precision,
        "Where": lambda record: record.cell.target.backend,
        "Size": lambda record: f"{record.cell.request.width} × {record.cell.request.height} px",
        "Steps": lambda record: str(record.cell.request.steps),
        "Guidance": lambda record: f"{record.cell.request.guidance:g}",
        "References": lambda record: str(len(record.cell.request.references)),
    }
)
"""What decides the pixels of an image, in words."""


def draw_detail(record: CellRecord) -> str:
    """Return one image large, with its prompt."""
    request = record.cell.request
    picture = f'<div class="error"><b>Failed.</b> <bdi>{escape(record.error or "")}</bdi></div>'
    if record.image is not None:
        url = escape(image_url(record.image))
        picture = (
            f'<img src="{url}" alt="{escape(_about(record))}" width="{max(request.width, 512)}" '
            f'height="{max(request.width, 512) * request.height // request.width}">'
            f'<p class="hint"><a href="{url}" download="{escape(record.run_id)}-{record.cell.position}.png">'
            "Save this PNG</a>: lossless, its settings inside.</p>"
        )
    title = f"Strength {format_strength(request.strength)}, seed {request.seed}"
    return (
        f'<article class="detail" aria-label="{title}" data-id="{escape(write_key(record))}">'
        f'<div class="detail-head"><h3 tabindex="-1">{title}</h3>'
        '<button type="button" data-step="-1" aria-label="The row above" title="The row above">↑</button>'
        '<button type="button" data-step="1" aria-label="The row below" title="The row below">↓</button>'
        '<button type="button" data-close aria-label="Close" title="Close (Esc)">✕</button></div>'
        f'{picture}<p class="prompt"><bdi>{escape(request.prompt)}</bdi></p></article>'
    )


def draw_facts(record: CellRecord) -> str:
    """Return all that made an image, and what was measured of it."""
    facts = {name: value(record) for name, value in SETTINGS.items() if name not in ("Prompt", "References")}
    if record.cell.request.references:
        facts["References"] = SETTINGS["References"](record)
    facts |= {score.label: _number(name, record) for name, score in SCORES.items() if name in record.scores}
    if record.seconds is not None:
        facts["Took"] = f"{record.seconds:.2f} s"
    if record.cost is not None:
        facts["Cost"] = f"{record.cost:g} credits"
    facts["Made in"] = f"{ORIGINS[record.origin]} · {record.run_id}"
    rows = "".join(f"<dt>{escape(name)}</dt><dd><bdi>{escape(value)}</bdi></dd>" for name, value in facts.items())
    return f'<dl class="facts-list">{rows}</dl>'


def draw_rating(record: CellRecord) -> str:
    """Return the stars of a record as radio buttons: arrow keys move, and 0 to 5 rate from anywhere in the panel."""
    choices = "".join(
        f'<label title="{words}"><input type="radio" name="stars" value="{stars}" aria-label="{words}"'
        f"{' checked' if stars == (record.rating or 0) else ''}>"
        f'<span aria-hidden="true">{"★" if stars else "none"}</span></label>'
        for stars, words in enumerate(("Not rated", "1 star", "2 stars", "3 stars", "4 stars", "5 stars"))
    )
    return (
        f'<fieldset class="rate" data-id="{escape(write_key(record))}"><legend>Rating</legend><div>{choices}</div>'
        '</fieldset><p class="hint">Keys 1 to 5 rate, 0 takes it away, ↑ ↓ go through the rows.</p>'
    )


def draw_side_by_side(records: Sequence[CellRecord], *, opened: int) -> str:
    """Return a dialog of images, each captioned with the settings that differ; `opened` tells one opening from another.

    Raises:
        InvalidInput: Too few, too many, or one without an image.
    """
    if not LEAST <= len(records) <= MOST:
        raise InvalidInput(f"Pick {LEAST} to {MOST} rows to compare; these are {len(records)}.")
    if any(record.image is None for record in records):
        raise InvalidInput("One of the picked rows has no image, as it failed. Pick others.")
    settings = {name: [value(record) for record in records] for name, value in SETTINGS.items()}
    differ = {name: values for name, values in settings.items() if len(set(values)) > 1}
    shared = " · ".join(
        values[0] if name in ("LoRA", "Prompt", "Weights", "Precision", "Size") else f"{name.lower()} {values[0]}"
        for name, values in settings.items()
        if name not in differ and name in ("LoRA", "Prompt", "Seed", "Weights", "Precision", "Strength")
    )
    figures = "".join(
        _draw_figure(record, index, {name: values[index] for name, values in differ.items()})
        for index, record in enumerate(records)
    )
    return (
        f'<dialog class="side-by-side" data-opened="{opened}" aria-labelledby="side-title" '
        f'style="--count:{len(records)}"><header><div><h2 id="side-title">{len(records)} images side by side</h2>'
        f'<p class="hint"><bdi>{escape(shared)}</bdi></p></div>'
        '<button type="button" data-one aria-pressed="false">One at a time</button>'
        '<button type="button" data-close aria-label="Close" title="Close (Esc)">✕</button></header>'
        f'<div class="figures">{figures}</div>'
        '<p class="hint keys">← → move · Enter shows one at a time, in the same place · Esc closes</p></dialog>'
    )


def _draw_figure(record: CellRecord, index: int, differ: Mapping[str, str]) -> str:
    request = record.cell.request
    facts = "".join(
        f"<li><span>{escape(name)}</span> <b><bdi>{escape(value)}</bdi></b></li>" for name, value in differ.items()
    )
    scores = "".join(
        f"<li><span>{escape(score.label)}</span> {_number(name, record)}</li>"
        for name, score in SCORES.items()
        if name in record.scores and name != "mean_difference"
    )
    stars = f'<li class="stars" aria-label="{record.rating} of 5">{"★" * record.rating}</li>' if record.rating else ""
    note = f'<li class="note"><bdi>{escape(record.note)}</bdi></li>' if record.note else ""
    if record.image is None:
        raise ValueError("a record without an image has no figure")
    return (
        f'<figure><button type="button" tabindex="{"-1" if index else "0"}" aria-label="Image {index + 1}: '
        f'{escape(_about(record))}"><img src="{escape(image_url(record.image))}" alt="" width="{request.width}" '
        f'height="{request.height}"></button><figcaption><ul>{facts}{scores}{stars}{note}</ul></figcaption></figure>'
    )


def _about(record: CellRecord) -> str:
    request = record.cell.request
    return f"Strength {format_strength(request.strength)}, seed {request.seed}: {request.prompt}"


def _number(name: str, record: CellRecord) -> str:
    return f"{record.scores[name]:.{3 if name == 'ssim' else 1}f}"
