import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from evaluation.grid import SweepSpec, plan
from evaluation.report.columns import list_columns, make_table
from evaluation.report.contact_sheet import MAX_PIXELS, MAX_SIDE, PALE_RED, _count_missing, grid_png
from evaluation.report.files import file_name, png_metadata, write_cell, write_csv, write_grid, write_table
from evaluation.store.store import CellRecord, Store
from evaluation.sweep import run_sweep
from lora_runtime.errors import NotFound, RenderFailed, StorageFailed
from lora_runtime.png import read_metadata
from tests.drawing_backend import STYLE, SUBJECT, DrawingBackend, make_drawing_spec, make_lora

HOSTILE = '=HYPERLINK("x") <img src=x onerror=alert(1)> ${alert(1)} \u202e\x07\n' + "unbreakable" * 900


def spec(**changes: Any) -> SweepSpec:
    return make_drawing_spec(**{"strengths": "0, 0.7, 1", **changes})


def sweep(store: Store, asked: SweepSpec) -> tuple[CellRecord, ...]:
    backend = DrawingBackend(fails=lambda request: RenderFailed("It broke. " * 50) if request.seed == 13 else None)
    for _ in run_sweep(asked, backend=backend, store=store):
        pass
    return store.cells(store.runs(1)[0].id)


def pending(asked: SweepSpec) -> list[CellRecord]:
    return [CellRecord(run_id="run-1", cell=cell, state="pending") for cell in plan(asked)]


def colours(image: Image.Image) -> set[Any]:
    found = image.getcolors(maxcolors=10_000_000)
    assert found is not None
    return {colour for _, colour in found}


def test_the_grid_shows_every_image_at_its_size(store: Store) -> None:
    asked = spec(seeds=[7, 8], width=128, height=160)
    records = sweep(store, asked)
    grid = grid_png(asked, records)
    for record in records:
        assert record.image is not None
        with Image.open(record.image) as image:
            assert colours(image) <= colours(grid)
    assert grid.width > 3 * 128
    assert grid.height > 2 * 160


def test_small_images_are_enlarged_by_a_whole_factor(store: Store) -> None:
    asked = spec(width=80, height=64)
    records = sweep(store, asked)
    grid = grid_png(asked, records)
    assert grid.width >= 3 * 160
    assert records[0].image is not None
    with Image.open(records[0].image) as image:
        large = image.resize((160, 128), Image.Resampling.NEAREST)
    corners = ((x, y) for y in range(60, 140) for x in range(20, 40))
    assert any(ImageChops.difference(grid.crop((x, y, x + 160, y + 128)), large).getbbox() is None for x, y in corners)


def test_a_failed_tile_says_so_and_a_pending_one_is_empty(store: Store) -> None:
    asked = spec(seeds=[7, 13])
    records = sweep(store, asked)
    assert [record.state for record in records] == ["done"] * 3 + ["failed"] * 3
    assert PALE_RED in colours(grid_png(asked, records))
    assert PALE_RED not in colours(grid_png(asked, pending(asked)))


@pytest.mark.parametrize(
    "changes",
    [
        {"strengths": "-3.2-3.1 [64]", "seeds": range(6), "width": 256, "height": 256},
        {"strengths": "0", "seeds": range(400)},
        {"strengths": "0", "width": 64, "height": 256},
        {"prompts": [HOSTILE[:9000], "short"]},
        {"prompts": [HOSTILE[:9000]]},
        {"prompts": ["日本語 🦊"], "loras": [make_lora("x" * 200), SUBJECT]},
    ],
)
def test_any_grid_is_drawn_below_the_caps(changes: dict[str, Any]) -> None:
    asked = spec(**changes)
    grid = grid_png(asked, pending(asked))
    assert grid.width * grid.height <= MAX_PIXELS
    assert max(grid.size) <= MAX_SIDE


def test_a_huge_grid_gets_smaller_tiles() -> None:
    large = replace(spec(strengths="0-1 [20]", seeds=range(20)), width=2048, height=1024)
    grid = grid_png(large, pending(large))
    assert MAX_PIXELS * 0.5 < grid.width * grid.height <= MAX_PIXELS


def test_file_names_are_unique_and_say_what_they_show() -> None:
    assert [file_name(spec(), cell) for cell in plan(spec())] == [
        "seed-7_strength-0.00.png",
        "seed-7_strength-0.70.png",
        "seed-7_strength-1.00.png",
    ]
    for asked in (
        spec(prompts=["a/b", "a b"]),
        spec(loras=[STYLE, replace(STYLE, name="../../etc/passwd"), replace(SUBJECT, name="../../etc/passwd")]),
        spec(seeds=[1, 2], strengths="-1-1 [9]"),
    ):
        names = [file_name(asked, cell) for cell in plan(asked)]
        assert len({name.lower() for name in names}) == len(names)
        assert all(Path(name).name == name for name in names)
    assert file_name(asked, plan(asked)[0]) == "seed-1_strength--1.00.png"


def test_an_exported_cell_is_stamped_with_its_own_sweep(store: Store, tmp_path: Path) -> None:
    sweep(store, spec())
    asked = spec(loras=[SUBJECT])
    records = sweep(store, asked)
    assert records[0].image is not None
    kept = read_metadata(records[0].image)
    path = write_cell(tmp_path / "new" / "folder", asked, records[0])
    stamped = read_metadata(path)
    assert kept is not None
    assert stamped is not None
    assert (kept["lora"], stamped["lora"], stamped["lora_sha256"]) == (None, "subject", SUBJECT.sha256)
    assert {**stamped, "lora": None, "lora_sha256": None} == kept
    with Image.open(path) as exported, Image.open(records[0].image) as image:
        assert exported.tobytes() == image.tobytes()
    assert stamped == png_metadata(records[0].cell)


@pytest.mark.parametrize(("strength", "written"), [("0.7", 0.7), ("1", 1), ("-0.3333", -0.3333), ("0.70", 0.7)])
def test_a_strength_is_a_number_of_the_same_digits(strength: str, written: float) -> None:
    (cell,) = plan(spec(strengths=strength, base_column=False))
    assert png_metadata(cell)["strength"] == written


def test_unicode_survives_in_the_file(store: Store, tmp_path: Path) -> None:
    prompt = 'ünï 日本語 🦊 "quoted"\nsecond line'
    asked = spec(prompts=[prompt])
    path = write_cell(tmp_path, asked, sweep(store, asked)[1])
    stamped = read_metadata(path)
    assert stamped is not None
    assert stamped["prompt"] == prompt


def test_the_csv_has_every_column_and_runs_nothing(store: Store, tmp_path: Path) -> None:
    asked = spec(prompts=["=1+1", "@SUM(A1)", "plain, with comma"], strengths="-0.5")
    records = sweep(store, asked)
    store.rate(records[0].run_id, 0, 3, "-2+3")
    write_csv(tmp_path / "cells.csv", asked, store.cells(records[0].run_id))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "cells.csv").read_text(encoding="utf-8-sig"), newline="")))
    assert list(rows[0]) == list(list_columns())
    assert [row["prompt"] for row in rows[::2]] == ["'=1+1", "'@SUM(A1)", "plain, with comma"]
    assert rows[0]["note"] == "'-2+3"
    assert rows[1]["image"] == file_name(asked, records[1].cell)
    assert [row["strength"] for row in rows[:2]] == ["0.0", "-0.5"]
    assert write_table(make_table([]), ".csv").decode("utf-8-sig").splitlines() == [",".join(list_columns())]


def test_what_cannot_be_written_says_so(store: Store, tmp_path: Path) -> None:
    asked = spec()
    records = sweep(store, asked)
    (tmp_path / "file").write_text("")
    for write in (
        lambda: write_cell(tmp_path / "file", asked, records[0]),
        lambda: write_grid(tmp_path / "file" / "grid.png", asked, records),
    ):
        with pytest.raises(StorageFailed, match="the images are kept"):
            write()
    with pytest.raises(NotFound, match="no image"):
        write_cell(tmp_path, asked, pending(asked)[0])
    write_grid(tmp_path / "grid.png", asked, records)
    assert not list(tmp_path.glob(".part-*"))


def test_characters_that_no_font_has_are_told_and_the_others_are_drawn() -> None:
    plain, strange = spec(), spec(prompts=["𒀀𒀁 fox"])
    assert _count_missing(plain) == 0
    assert _count_missing(strange) == 2
    assert _count_missing(spec(prompts=["naïve café über"])) == 0
    assert grid_png(strange, pending(strange)).tobytes() != grid_png(plain, pending(plain)).tobytes()
