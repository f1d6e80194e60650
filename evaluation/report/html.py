"""A report that opens anywhere: one HTML file with its images, grids, verdicts, answers, charts, ratings and notes.

It asks for nothing from outside and runs no script; its content security policy says so to the browser. The template
escapes every text; the only markup it takes as it is are the charts, which escape their own (`chart.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Final

from evaluation.axes import list_rows
from evaluation.captions import call_loras
from evaluation.judge.answer import Answer
from evaluation.report.chart import draw_chart, list_measures
from evaluation.report.draw import draw
from evaluation.report.embed import embed_images
from evaluation.store.records import CellRecord, Run
from evaluation.strengths import name_strength
from lora_runtime.catalogue import find_weights
from lora_runtime.errors import InvalidInput
from lora_runtime.values import LoraRef

MAX_IMAGES: Final = 400
CHARTS: Final = ("clip", "ssim", "rating")
"""What is drawn of what there is."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One cell of a grid. `image` is a data URI, or None when the cell has none."""

    anchor: str
    strength: str
    about: str
    image: str | None
    error: str | None
    scores: tuple[str, ...]
    rating: int | None
    note: str
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One run: what was held, what was found, and its grid; a tile is None where the report has no cell."""

    run: Run
    title: str
    facts: tuple[tuple[str, str], ...]
    answers: tuple[Answer, ...]
    strengths: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Tile | None, ...]], ...]


def html_report(
    groups: Sequence[tuple[Run, Sequence[CellRecord]]],
    answers: Mapping[str, Sequence[Answer]],
    *,
    now: datetime | None = None,
) -> str:
    """Return the report of cells of one run or several, with the answers of each run by its id.

    Raises:
        InvalidInput: There is nothing to report, or too much.
    """
    records = [record for _, own in groups for record in own]
    if not records:
        raise InvalidInput("Nothing to report: no row is left. Clear a filter, or pick some rows.")
    images = [record.image for record in records if record.image is not None]
    if len(images) > MAX_IMAGES:
        raise InvalidInput(f"A report holds up to {MAX_IMAGES} images; these are {len(images)}. Filter or pick some.")
    embedded = embed_images(images)
    names = call_loras(run.spec for run, _ in groups)
    said = [answer for run, own in groups if own for answer in answers.get(run.id, ())]
    charts = [
        draw_chart(records, name, chart_id=f"chart-{name}", answers=said)
        for name in CHARTS
        if name in list_measures(records)
    ]
    return draw(
        "report.html",
        title=_title(names),
        made=(now or datetime.now(UTC)).strftime("%d %B %Y, %H:%M UTC"),
        count=len(records),
        sections=[_section(run, own, answers.get(run.id, ()), embedded, names) for run, own in groups if own],
        charts=charts,
    )


def _section(
    run: Run,
    records: Sequence[CellRecord],
    answers: Sequence[Answer],
    embedded: Mapping[Path, str],
    names: Mapping[LoraRef, str],
) -> Section:
    spec = run.spec
    several = len(list_rows(spec)) > 1
    strengths = sorted({record.cell.request.strength for record in records})
    rows = []
    ordered = sorted(records, key=lambda record: record.cell.row)
    for _, same in groupby(ordered, key=lambda record: record.cell.row):
        own = list(same)
        by_strength = {record.cell.request.strength: record for record in own}
        tiles = tuple(_tile(by_strength[each], embedded) if each in by_strength else None for each in strengths)
        rows.append((own[0].cell.row_label if several else "", tiles))
    return Section(
        run=run,
        title=spec.prompts[0] if len(spec.prompts) == 1 else f"{len(spec.prompts)} prompts",
        facts=_facts(run, names),
        answers=tuple(answers),
        strengths=tuple(name_strength(each) for each in strengths),
        rows=tuple(rows),
    )


def _tile(record: CellRecord, embedded: Mapping[Path, str]) -> Tile:
    request = record.cell.request
    scores = tuple(
        f"{words} {record.scores[name]:.{digits}f}"
        for name, words, digits in (("clip", "Fit", 1), ("ssim", "SSIM", 2))
        if name in record.scores and request.strength
    )
    return Tile(
        anchor=f"{record.run_id}-{record.cell.position}",
        strength=name_strength(request.strength),
        about=f"{record.cell.column_label}, seed {request.seed}: {request.prompt}",
        image=embedded[record.image] if record.image else None,
        error=record.error,
        scores=scores,
        rating=record.rating,
        note=record.note,
        size=(request.width, request.height),
    )


def _facts(run: Run, names: Mapping[LoraRef, str]) -> tuple[tuple[str, str], ...]:
    spec = run.spec
    guidance = f", guidance {spec.guidance:g}" if spec.guidance != 1 else ""
    facts = (
        ("LoRA", ", ".join(names[lora] for lora in spec.loras) or "none"),
        ("Seed", ", ".join(str(seed) for seed in spec.seeds)),
        ("Weights", ", ".join(dict.fromkeys(find_weights(target.weights).label for target in spec.targets))),
        ("Precision", ", ".join(dict.fromkeys(target.precision for target in spec.targets))),
        ("Rendered by", ", ".join(dict.fromkeys(target.backend for target in spec.targets))),
        ("Size", f"{spec.width} × {spec.height} px"),
        ("Steps", f"{spec.steps}{guidance}"),
        ("Run", f"{run.id}, {run.created:%d %b %Y %H:%M} UTC"),
    )
    if len(spec.prompts) > 1:
        return (*facts, *((f"Prompt {number}", prompt) for number, prompt in enumerate(spec.prompts, start=1)))
    return facts


def _title(names: Mapping[LoraRef, str]) -> str:
    return f"LoRA strengths: {', '.join(dict.fromkeys(names.values()))}" if names else "Images of the base model"
