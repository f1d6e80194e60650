"""A sweep as it is drawn, on the page and in the report: strengths across, the second axis down.

Everything that is said of a cell is worked out here, in Python; `templates/grid.html` and `cell.html` only lay it out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias
from urllib.parse import quote

from evaluation.axes import SweepSpec, list_rows, list_scenes
from evaluation.captions import list_facts, title_spec
from evaluation.judge.answer import Answer, Mark, find_answer
from evaluation.judge.evidence import Scene
from evaluation.report.columns import list_columns
from evaluation.store.records import CellRecord
from evaluation.strengths import format_strength, name_strength

Kind: TypeAlias = Literal["done", "failed", "waiting", "left", "planned"]
"""What a cell shows: its picture, why there is none, that it will come, that nothing renders it, only its place."""

EVIDENCE: Final = "evidence"
MARKS: Final[Mapping[Mark, str]] = MappingProxyType(
    {"best": "✓ best", "use": "✓ holds", "faint": "○ hardly seen", "lost": "✕ lost"}
)
"""What the evidence says of a picture, in two words that stand under it."""

PLANNED_ROWS: Final = 4
"""How many rows of a grid that is only planned are drawn; more would push the page down for nothing."""


@dataclass(frozen=True, kw_only=True)
class CellView:
    """One cell. `image` is where its picture is: an address, or the picture itself as a data URI.

    `says` names the cell to who does not see it, `about` its picture; `state` is the line below, such as "0.52 s".
    `measured` is what may stand there instead: by name, in words and as a number, or as a mark.
    """

    kind: Kind
    position: int = 0
    strength: str = ""
    says: str = ""
    about: str = ""
    state: str = ""
    image: str | None = None
    size: tuple[int, int] = (1, 1)
    reason: str = ""
    rating: int = 0
    note: str = ""
    scores: tuple[str, ...] = ()
    measured: Mapping[str, tuple[str, float | str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CheckpointView:
    """What stands over the rows of a checkpoint: what it is called, and why it was not rendered where it was not.

    Its first scene is in sight; `more` of them are shown when the box `fold` is ticked.
    """

    label: str
    problem: str = ""
    fold: str = ""
    more: int = 0


@dataclass(frozen=True, kw_only=True)
class RowView:
    """One value of the second axis; a cell is None where a selection has none of that strength.

    `label` is the row's own, `heading` what stands over it. Of a training run, `checkpoint` stands over its first row,
    and the others are shown with the box `fold`.
    """

    label: str
    heading: str
    cells: tuple[CellView | None, ...]
    checkpoint: CheckpointView | None = None
    fold: str = ""


@dataclass(frozen=True, kw_only=True)
class GridView:
    """A whole grid. `own`: whoever looks may rate it. `labelled`: its rows have headings."""

    title: str
    facts: tuple[str, ...]
    heads: tuple[str, ...]
    rows: tuple[RowView, ...]
    size: tuple[int, int]
    labelled: bool
    run_id: str = ""
    own: bool = True


def image_url(path: Path) -> str:
    """Return the address of a file under the blobs folder: the very bytes that were written.

    It is relative to the page, so that it also holds behind a proxy that serves the app under a prefix.
    """
    return f"gradio_api/file={quote(path.as_posix())}"


def view_grid(
    spec: SweepSpec,
    records: Sequence[CellRecord],
    *,
    place: Callable[[Path], str] = image_url,
    running: bool = False,
    own: bool = True,
    answers: Sequence[Answer] = (),
) -> GridView:
    """Return the grid of a sweep, or of some of its cells; `place` says where the page finds an image."""
    strengths = sorted({record.cell.request.strength for record in records})
    rows = []
    for _, same in groupby(sorted(records, key=lambda record: record.cell.row), key=lambda record: record.cell.row):
        found = {record.cell.request.strength: record for record in same}
        cells = (
            view_cell(found[each], place=place, running=running, answers=answers) if each in found else None
            for each in strengths
        )
        first = next(iter(found.values())).cell
        row = RowView(label=first.row_label, heading=first.row_label, cells=tuple(cells))
        rows.append((first.row, row))
    return GridView(
        title=title_spec(spec),
        facts=list_facts(spec),
        heads=tuple(name_strength(each) for each in strengths),
        rows=_group(spec, rows, records[0].run_id if records else ""),
        size=(spec.width, spec.height),
        labelled=len(list_rows(spec)) > 1,
        run_id=records[0].run_id if records else "",
        own=own,
    )


def view_plan(strengths: Sequence[Decimal], rows: int, size: tuple[int, int]) -> GridView:
    """Return the empty grid that a form would fill, so that nothing jumps when it does."""
    values = strengths if Decimal(0) in strengths else (Decimal(0), *strengths)
    drawn = min(rows, PLANNED_ROWS)
    width = len(values)
    cells = tuple(CellView(kind="planned", position=position) for position in range(drawn * width))
    return GridView(
        title="Press Run sweep: the same seed at every strength, side by side.",
        facts=("Strength 0 is the base model, without the LoRA",),
        heads=tuple(name_strength(value) for value in values),
        rows=tuple(
            RowView(label="", heading="", cells=tuple(cells[at : at + len(values)]))
            for at in range(0, len(cells), len(values))
        ),
        size=size,
        labelled=False,
    )


def _group(spec: SweepSpec, rows: Sequence[tuple[int, RowView]], run_id: str) -> tuple[RowView, ...]:
    """Return the rows by their numbers; those of a training run by checkpoint, with the ones that do not fit."""
    if spec.training is None:
        return tuple(row for _, row in rows)
    scenes = list_scenes(spec)
    fitting = iter(range(len(spec.loras)))
    grouped: list[RowView] = []
    for number, stage in enumerate(spec.training.stages):
        if stage.problem:
            refused = CheckpointView(label=stage.label, problem=stage.problem)
            grouped.append(RowView(label=stage.label, heading="", cells=(), checkpoint=refused))
            continue
        place = next(fitting)
        own = [(at % len(scenes), row) for at, row in rows if at // len(scenes) == place]
        fold = f"fold-{run_id}-{number}" if len(own) > 1 else ""
        head = CheckpointView(label=stage.label, fold=fold, more=len(own) - 1)
        grouped += [
            replace(row, heading=scenes[scene], checkpoint=None if index else head, fold=fold if index else "")
            for index, (scene, row) in enumerate(own)
        ]
    return tuple(grouped)


def view_cell(
    record: CellRecord,
    *,
    place: Callable[[Path], str] = image_url,
    running: bool = False,
    answers: Sequence[Answer] = (),
) -> CellView:
    """Return what one cell shows; `running` tells a cell that will come from one that nothing renders."""
    cell, request = record.cell, record.cell.request
    kind: Kind = record.state if record.state != "pending" else "waiting" if running else "left"
    state = {"failed": "failed", "waiting": "waiting", "left": "not rendered"}.get(kind) or (
        "kept" if record.seconds is None else f"{record.seconds:.2f} s"
    )
    reason = (record.error or "no reason was given") if kind == "failed" else ""
    said = {"done": f"done in {state}. Choose it to compare.", "failed": f"failed: {reason}"}.get(kind, state)
    return CellView(
        kind=kind,
        position=cell.position,
        strength=name_strength(request.strength),
        says=f"Strength {format_strength(request.strength)}, seed {request.seed}, {said}",
        about=f"{cell.column_label}, seed {request.seed}: {request.prompt}",
        state=state,
        image=place(record.image) if record.image else None,
        size=(request.width, request.height),
        reason=reason,
        rating=record.rating or 0,
        note=record.note,
        scores=tuple(
            f"{words} {record.scores[name]:.{digits}f}"
            for name, words, digits in (("clip", "Fit", 1), ("ssim", "SSIM", 2))
            if name in record.scores and request.strength
        ),
        measured=_measure(record, answers) if kind == "done" else {},
    )


def list_measures() -> list[tuple[str, str]]:
    """Return what may stand under a cell: names and words."""
    return [(EVIDENCE, "Evidence"), *((name, column.label) for name, column in list_columns("measure").items())]


def _measure(record: CellRecord, answers: Sequence[Answer]) -> dict[str, tuple[str, float | str]]:
    """What is known of a picture, by name: in words, and as the number or the mark that colours it."""
    found: dict[str, tuple[str, float | str]] = {}
    answer = find_answer(record, answers)
    request = record.cell.request
    if answer and (mark := answer.mark(Scene(prompt=request.prompt, seed=request.seed), request.strength)):
        found[EVIDENCE] = (MARKS[mark], mark)
    for name, column in list_columns("measure").items():
        value = column.value(record)
        if isinstance(value, int | float):
            digits = column.measure.digits if column.measure else 0
            found[name] = (column.say(value) if name == "rating" else f"{value:.{digits}f}", float(value))
    return found
