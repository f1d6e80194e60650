"""What leaves the lab: a labelled grid as one PNG, each cell as a PNG of its own, and a CSV of all cells.

The grid carries its own legend: every tile is labelled with its strength, so that a cropped screenshot still says what
it shows. A tile without an image says why.
"""

import csv
import io
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from evaluation.contact_sheet import grid_png
from evaluation.grid import ASKS_AT_ZERO, LORA, PRECISION, PROMPT, Cell, SweepSpec, row_axis
from evaluation.store import CellRecord
from evaluation.strengths import format_strength
from evaluation.table import COLUMNS, Value
from lora_runtime.errors import NotFound, StorageFailed
from lora_runtime.png import Metadata, request_metadata, restamp_png

__all__ = ["cells_csv", "file_name", "grid_png", "png_metadata", "write_cell", "write_csv", "write_grid"]

# A spreadsheet runs a text that begins with one of these. Source: OWASP, "CSV Injection".
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def png_metadata(cell: Cell) -> Metadata:
    """Return the `klein_lab` chunk of a cell of a sweep; at strength 0 it still names the sweep's LoRA."""
    server = cell.target.digest if cell.target.backend in ASKS_AT_ZERO else None
    return request_metadata(cell.request, identity=cell.identity, server=server)


def file_name(spec: SweepSpec, cell: Cell) -> str:
    """Return the name of a cell's file, such as `seed-7_strength-0.70.png`; unique within the sweep."""
    row = ""
    if row_axis(spec) is PROMPT:
        row = f"prompt-{cell.row + 1:02}_"
    elif row_axis(spec) is LORA:
        row = f"lora-{cell.row + 1:02}-{_slug(cell.row_label)}_"
    elif row_axis(spec) is PRECISION:
        row = f"{_slug(cell.row_label)}_"
    return f"{row}seed-{cell.request.seed}_strength-{format_strength(cell.request.strength)}.png"


def cells_csv(records: Sequence[CellRecord]) -> str:
    """Return a CSV with every column of the table.

    A text that a spreadsheet would run as a formula gets an apostrophe in front; numbers stay numbers.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    for record in records:
        writer.writerow([_inert(column.value(record)) for column in COLUMNS.values()])
    return buffer.getvalue()


def write_cell(folder: Path, spec: SweepSpec, record: CellRecord) -> Path:
    """Write a cell's image into `folder`, stamped with this sweep's own cell, and return its path.

    Raises:
        NotFound: The cell has no image.
        StorageFailed: The folder cannot be written.
    """
    if record.image is None:
        raise NotFound(f"Cell {record.cell.position} of run {record.run_id} has no image.")
    path = folder / file_name(spec, record.cell)
    _write(path, restamp_png(record.image, png_metadata(record.cell)))
    return path


def write_grid(path: Path, spec: SweepSpec, records: Sequence[CellRecord]) -> None:
    """Write the labelled grid.

    Raises:
        StorageFailed: The folder cannot be written.
    """
    buffer = io.BytesIO()
    grid_png(spec, records).save(buffer, format="PNG")
    _write(path, buffer.getvalue())


def write_csv(path: Path, spec: SweepSpec, records: Sequence[CellRecord]) -> None:
    """Write the CSV, in UTF-8; its images are the files that `write_cell` puts beside it.

    Raises:
        StorageFailed: The folder cannot be written.
    """
    beside = [
        replace(record, image=Path(file_name(spec, record.cell))) if record.image else record for record in records
    ]
    _write(path, cells_csv(beside).encode())


def _inert(value: Value) -> Value:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _slug(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9]+", "-", name).strip("-")[:40] or "lora"


def _write(path: Path, data: bytes) -> None:
    """Write a whole file or none."""
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
