"""Names in any script stay themselves, and two LoRAs of one name are told apart, wherever a name goes."""

import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.captions import call_loras, tell_records_apart
from evaluation.grid import make_spec, plan
from evaluation.report.columns import make_table
from evaluation.report.files import file_name, png_metadata, write_cell, write_csv, write_table
from evaluation.report.html import html_report
from evaluation.store.store import CellRecord, Store
from evaluation.sweep import run_sweep
from lora_runtime.lora.library import find_lora, make_name
from lora_runtime.lora.names import clean_name, keep_first_name, make_api_name, tell_apart
from lora_runtime.png import read_metadata
from tests.drawing_backend import STYLE, SUBJECT, DrawingBackend, make_drawing_spec, make_lora

no_deadline = settings(deadline=None)  # a busy machine is no failure

SCRIPTS = ["风格", "стиль", "สไตล์", "स्टाइल", "أسلوب", "スタイル", "größe-ñ", "style_v2"]


def sweep(store: Store, loras: list[object]) -> tuple[CellRecord, ...]:
    for _ in run_sweep(make_drawing_spec(loras=loras), backend=DrawingBackend(), store=store):
        pass
    return store.cells(store.runs(1)[0].id)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *((name, name) for name in SCRIPTS),
        ("My LoRA (v2)", "my-lora-v2"),
        ("МОЙ Стиль", "мой-стиль"),
        ("u\u0308ber", "über"),
        ("../../etc/passwd", "etc-passwd"),
        ("🦊", "lora"),
        ("a\u202eb\0c", "a-b-c"),
        ("", "lora"),
        ("x" * 500, "x" * 64),
        ("狐" * 500, "狐" * 60),
    ],
)
def test_a_name_keeps_its_script(text: str, name: str) -> None:
    assert clean_name(text) == name


@pytest.mark.parametrize(
    ("text", "name"), [("Größe Ñ", "grosse-n"), ("Straße", "strasse"), ("风格", "lora"), ("My LoRA", "my-lora")]
)
def test_a_finetune_gets_a_name_that_the_api_takes(text: str, name: str) -> None:
    assert make_api_name(text) == make_name(f"{text}.safetensors") == name


@no_deadline
@given(st.text(max_size=300))
def test_a_name_is_one_already_and_fits_into_a_file_name(text: str) -> None:
    for clean in (clean_name, make_api_name):
        assert clean(clean(text)) == clean(text)
        assert 1 <= len(clean(text)) <= 64
        assert len(clean(text).encode()) <= 180
    assert not set(clean_name(text)) & set("/\\.:\0 \n'\"<>")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_name_stays_itself_from_the_file_to_every_table(store: Store, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.safetensors"
    shutil.copyfile(make_lora(name).path, path)
    kept = find_lora(str(path))
    assert kept.name == name
    records = sweep(store, [kept, STYLE])
    spec = store.runs(1)[0].spec
    assert [cell.row_label for cell in plan(spec)][:: len(spec.strengths)] == [name, "style"]
    written = write_cell(tmp_path, spec, records[1])
    assert written.name == f"lora-01-{name}_seed-7_strength-0.50.png"
    stamped = read_metadata(written)
    assert stamped is not None
    assert stamped["lora"] == name
    for ending in (".csv", ".jsonl"):
        assert name in write_table(make_table(records), ending).decode("utf-8-sig")
    assert name in html_report([(store.runs(1)[0], records)], {})


def test_a_csv_says_to_excel_that_it_is_utf8(store: Store, tmp_path: Path) -> None:
    records = sweep(store, [replace(STYLE, name="风格")])
    write_csv(tmp_path / "cells.csv", store.runs(1)[0].spec, records)
    for data in ((tmp_path / "cells.csv").read_bytes(), write_table(make_table(records), ".csv")):
        assert data.startswith(b"\xef\xbb\xbfrun,")
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
        assert {row["lora"] for row in rows} == {"风格"}


def test_two_of_one_name_both_have_the_digits_of_their_file() -> None:
    other = replace(SUBJECT, name="style")
    assert [ref.name for ref in tell_apart([STYLE, other])] == [
        f"style-{STYLE.sha256[:6]}",
        f"style-{SUBJECT.sha256[:6]}",
    ]
    assert tell_apart([STYLE, SUBJECT, STYLE]) == (STYLE, SUBJECT, STYLE), "one file is no clash"
    assert [ref.name for ref in keep_first_name([STYLE, other])] == ["style", f"style-{SUBJECT.sha256[:6]}"]


@pytest.mark.parametrize(("folders", "called"), [(("a", "乙"), ("a-mine", "乙-mine")), (("a", "b/a"), None)])
def test_two_files_of_one_name_are_two_rows(
    store: Store, tmp_path: Path, folders: tuple[str, str], called: tuple[str, str] | None
) -> None:
    paths, digits = [], []
    for folder in folders:
        paths.append(tmp_path / folder / "mine.safetensors")
        paths[-1].parent.mkdir(parents=True)
        made = make_lora(f"mine-{folder.replace('/', '-')}")
        shutil.copyfile(made.path, paths[-1])
        digits.append(f"mine-{made.sha256[:6]}")
    spec = make_spec(
        DrawingBackend(), loras=[str(path) for path in paths], prompts=["a red fox"], strengths="0, 1", seeds=[7]
    )
    names = list(called or digits)
    cells = plan(spec)
    assert [cell.row_label for cell in cells[::2]] == names
    assert [png_metadata(cell)["lora"] for cell in cells[::2]] == names
    assert [file_name(spec, cell).partition("_")[0] for cell in cells[::2]] == [
        f"lora-0{number}-{name}" for number, name in enumerate(names, start=1)
    ]


def test_runs_of_two_files_of_one_name_are_told_apart_in_the_log(store: Store) -> None:
    sweep(store, [STYLE])
    sweep(store, [replace(SUBJECT, name="style")])
    called = {f"style-{ref.sha256[:6]}" for ref in (STYLE, SUBJECT)}
    records = tell_records_apart([record for run in store.runs() for record in store.cells(run.id)])
    assert {record.cell.request.lora.name for record in records if record.cell.request.lora} == called
    assert set(call_loras(run.spec for run in store.runs()).values()) == called
    report = html_report([(run, store.cells(run.id)) for run in store.runs()], {})
    assert all(f"<bdi>{name}</bdi>" in report or name in report for name in called)
    assert tell_records_apart(store.cells(store.runs(1)[0].id)) == store.cells(store.runs(1)[0].id), (
        "one run has no clash"
    )
