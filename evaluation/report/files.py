"""What leaves the lab: a labelled grid, an animation over strengths, each cell as a PNG, and all cells as a table.

The grid carries its own legend: every tile is labelled with its strength, so that a cropped screenshot still says what
it shows. A tile without an image says why.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import pandas as pd

from evaluation.axes import CHECKPOINT, LORA, TARGET, TRIGGER, SweepSpec, row_axis
from evaluation.grid import Cell
from evaluation.report.animation import strengths_webp
from evaluation.report.columns import make_table, write_jsonl
from evaluation.report.contact_sheet import grid_bytes
from evaluation.store.store import CellRecord
from evaluation.strengths import format_strength
from lora_runtime.errors import InvalidInput, NotFound, StorageFailed
from lora_runtime.lora.names import clean_name
from lora_runtime.png import Metadata, request_metadata, restamp_png
from lora_runtime.written import quote

TABLES: Final = (".csv", ".jsonl", ".parquet")
"""The endings of files that hold a table."""

# A spreadsheet runs a text that begins with one of these. Source: OWASP, "CSV Injection".
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def png_metadata(cell: Cell) -> Metadata:
    """Return the `klein_lab` chunk of a cell of a sweep; at strength 0 it still names the sweep's LoRA."""
    return request_metadata(cell.request, identity=cell.identity, server=cell.target.server)


def file_name(spec: SweepSpec, cell: Cell) -> str:
    """Return the name of a cell's file, such as `seed-7_strength-0.70.png`; unique within the sweep."""
    axis, scenes = row_axis(spec), len(spec.prompts) * len(spec.seeds)
    place, scene = divmod(cell.row, scenes)
    row = ""
    if axis in (LORA, CHECKPOINT):
        row = f"{axis.name}-{place + 1:02}-{_slug(axis.label(spec, spec.loras[place]))}_"
    elif axis is TRIGGER:
        row = f"{'with' if spec.triggers[place].there else 'without'}-trigger_"
    elif axis is TARGET:
        row = f"{_slug(axis.label(spec, spec.targets[place]))}_"
    if len(spec.prompts) > 1:
        row += f"prompt-{scene // len(spec.seeds) + 1:02}_"
    return f"{row}seed-{cell.request.seed}_strength-{format_strength(cell.request.strength)}.png"


def write_table(table: pd.DataFrame, ending: str) -> bytes:
    """Return a table as the bytes of a file: CSV, JSON lines or Parquet.

    In a CSV a text that a spreadsheet would run as a formula gets an apostrophe in front; numbers stay numbers.

    Raises:
        InvalidInput: The ending is none of `TABLES`.
    """
    if ending == ".csv":
        inert = table.astype(object).map(_inert)
        return inert.to_csv(index=False).encode("utf-8-sig")  # begins with the mark by which Excel knows UTF-8
    if ending == ".jsonl":
        return write_jsonl(table).encode()
    if ending == ".parquet":
        return table.to_parquet(index=False, engine="pyarrow")
    raise InvalidInput(f"Take away: {quote(ending)} is none of {', '.join(TABLES)} and .html.")


def write_cell(folder: Path, spec: SweepSpec, record: CellRecord) -> Path:
    """Write a cell's image into `folder`, stamped with this sweep's own cell, and return its path.

    Raises:
        NotFound: The cell has no image.
        StorageFailed: The folder cannot be written.
    """
    if record.image is None:
        raise NotFound(f"Cell {record.cell.position} of run {record.run_id} has no image.")
    path = folder / file_name(spec, record.cell)
    write_file(path, restamp_png(record.image, png_metadata(record.cell)))
    return path


def write_grid(path: Path, spec: SweepSpec, records: Sequence[CellRecord]) -> None:
    """Write the labelled grid.

    Raises:
        StorageFailed: The folder cannot be written.
    """
    write_file(path, grid_bytes(spec, records))


def write_animation(path: Path, spec: SweepSpec, records: Sequence[CellRecord]) -> None:
    """Write the animation over strengths.

    Raises:
        StorageFailed: The folder cannot be written.
    """
    write_file(path, strengths_webp(spec, records))


def write_csv(path: Path, spec: SweepSpec, records: Sequence[CellRecord]) -> None:
    """Write the CSV; its images are the files that `write_cell` puts beside it.

    Raises:
        StorageFailed: The folder cannot be written.
    """
    beside = [
        replace(record, image=Path(file_name(spec, record.cell))) if record.image else record for record in records
    ]
    write_file(path, write_table(make_table(beside), ".csv"))


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file or none.

    Raises:
        StorageFailed: The folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file:
            file.write(data)
        whole = Path(file.name)
        whole.chmod(0o644)
        whole.replace(path)
    except OSError as error:
        raise StorageFailed(
            f"Could not write {path}: {error.strerror or error}. Choose another folder; the images are kept in the lab."
        ) from error


def _inert(text: object) -> object:
    return f"'{text}" if isinstance(text, str) and text.startswith(_FORMULA) else text


def _slug(label: str) -> str:
    """A label as part of a file's name, in its own script."""
    return clean_name(label)[:40].strip("-")
