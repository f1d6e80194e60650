"""A report that opens anywhere: one HTML file with its images, grids, verdicts, answers, charts, ratings and notes.

It asks for nothing from outside and runs no script; its content security policy says so to the browser. Images are
data URIs, re-encoded so that a report of many stays small enough to send: all share one budget, and each gets the
largest side whose file fits its share. Small ones, such as the pocket klein's, come out nearly as they were.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from PIL import Image

from evaluation.axes import SweepSpec
from evaluation.captions import call_loras, list_settings, narrow_spec
from evaluation.judge.answer import Answer
from evaluation.report.cards import Card, view_answers, view_verdict
from evaluation.report.chart import list_measures, view_chart
from evaluation.report.columns import make_table
from evaluation.report.draw import draw
from evaluation.report.grid_view import GridView, view_grid
from evaluation.report.heat_map import HeatView, view_heat
from evaluation.store.records import CellRecord, Run
from lora_runtime.errors import InvalidInput
from lora_runtime.values import LoraRef

MAX_IMAGES: Final = 400
CHARTS: Final = ("clip", "ssim", "rating")
"""What is drawn of what there is."""

BUDGET_BYTES: Final = 10_000_000
"""For all images of a report; base64 makes a third more of it."""
LARGEST_BYTES: Final = 220_000
"""For one image, where there are few."""
SIDES: Final = (1024, 896, 768, 640, 512, 448, 384, 320, 256, 192, 128)
"""Longest sides in pixels that are tried, from best to smallest."""
QUALITY: Final = 82
"""Of WebP."""
BYTES_PER_PIXEL: Final = 0.16
"""What a detailed picture takes at that quality: where to begin, so that most are encoded once."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One run: what was held, what was found, and its grid."""

    facts: tuple[tuple[str, str], ...]
    cards: tuple[Card, ...]
    grid: GridView
    heat: HeatView | None = None


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
    held = {run.id: narrow_spec(run.spec, own) for run, own in groups if own}
    names = call_loras(held.values())
    table = make_table(records)
    called = ", ".join(dict.fromkeys(names.values()))
    said = [answer for run, own in groups if own for answer in answers.get(run.id, ())]
    return draw(
        "report.html",
        title=f"LoRA strengths: {called}" if names else "Images of the base model",
        made=(now or datetime.now(UTC)).strftime("%d %B %Y, %H:%M UTC"),
        count=len(records),
        sections=[
            _section(run, held[run.id], own, answers.get(run.id, ()), embedded, names) for run, own in groups if own
        ],
        charts=[view_chart(table, name, answers=said) for name in CHARTS if name in list_measures(table)],
        live=False,
    )


def embed_images(paths: Iterable[Path], *, budget_bytes: int = BUDGET_BYTES) -> dict[Path, str]:
    """Return a data URI for each image; the same file is encoded once."""
    distinct = list(dict.fromkeys(paths))
    share = min(LARGEST_BYTES, budget_bytes // max(len(distinct), 1))
    return {path: _embed(path, share) for path in distinct}


def _section(
    run: Run,
    held: SweepSpec,
    records: Sequence[CellRecord],
    answers: Sequence[Answer],
    embedded: Mapping[Path, str],
    names: Mapping[LoraRef, str],
) -> Section:
    cards = (view_verdict(run.verdict),) if run.verdict else ()
    if run.verdict and answers:
        cards = (*view_answers(run.verdict, answers, training=run.spec.training), *cards)
    return Section(
        facts=(*list_settings(held, names), ("Run", f"{run.id}, {run.created:%d %b %Y %H:%M} UTC")),
        cards=cards,
        grid=view_grid(run.spec, records, place=embedded.__getitem__),
        heat=view_heat(run.spec.training, answers),
    )


def _embed(path: Path, share: int) -> str:
    with Image.open(path) as file:
        image = file.convert("RGB")
    data = b""
    for side in SIDES:
        if side**2 * BYTES_PER_PIXEL > share and side != SIDES[-1] and max(image.size) > side:
            continue
        small = image.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, format="WEBP", quality=QUALITY, method=3)
        data = buffer.getvalue()
        if len(data) <= share:
            break
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"
