"""What the Comparison tab says of the log: its rows, one image, several side by side; and what its handlers keep."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from evaluation.grid import plan
from evaluation.log import read_keys, read_page
from evaluation.log_search import LogView
from evaluation.report.draw import draw
from evaluation.store.records import CellRecord
from evaluation.store.rows import RunRow
from evaluation.store.store import Store
from evaluation.sweep import run_sweep
from evaluation.tabs.comparison_form import (
    MOST,
    list_picture_facts,
    view_bar,
    view_log,
    view_picture,
    view_side_by_side,
)
from evaluation.tabs.comparison_run import ComparisonRun
from evaluation.tabs.page import Caller, Said
from lora_runtime.errors import InvalidInput, NotFound
from tests.drawing_backend import STYLE, SUBJECT, DrawingBackend, make_drawing_spec

CALLER = Caller(session="s", organization="local")


def known(**changes: Any) -> list[CellRecord]:
    return [
        CellRecord(
            run_id="run-a", cell=cell, state="done", image=Path(f"/blobs/{cell.position}.png"), seconds=1.5,
            created=datetime(2026, 11, 22, 10, tzinfo=UTC), scores={"ssim": 0.5, "clip": 15.0}, rating=3,
        )
        for cell in plan(make_drawing_spec(**changes))
    ]  # fmt: skip


def sweep(store: Store, **changes: Any) -> str:
    *_, finished = run_sweep(make_drawing_spec(**changes), backend=DrawingBackend(), store=store)
    return finished.run_id  # type: ignore[union-attr]


def values(**changes: Any) -> dict[str, Any]:
    return {"text": "", "selected": "", "view": LogView(), "deleted": (), "mark": None, **changes}


def after(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """What the page holds once it has drawn an answer."""
    return {name: changes.get(name, value) for name, value in before.items()}


def test_rows_are_said_in_words(store: Store) -> None:
    run_id = sweep(store, strengths="0, 1")
    store.rate(run_id, 1, 4, "sharp")
    page = read_page(store, LogView(chosen={"rating": "4"}, sort="ssim"))
    shown = view_log(page, selected=f"{run_id}/1", deleted=3)
    assert (shown.count, shown.undo, shown.empty) == ("1 of 2 images", "3 images deleted.", "")
    ((row,),) = (group.rows for group in shown.groups)
    said = {cell.column: (cell.text, cell.kind) for cell in row.cells}
    assert said["strength"] == ("1.00", "number")
    assert (said["rating"][0], said["clip"][0], said["note"]) == ("★★★★", "–", ("sharp", "wide"))
    assert row.about == "strength 1.00, seed 7"
    assert [(head.name, head.order) for head in shown.heads if head.order != "none"] == [("ssim", "descending")]
    bar = view_bar(page)
    assert [(pill.name, pill.chosen) for pill in bar.pills] == [("rating", "4")], "one choice is none"
    assert (bar.clear, bar.low) == (True, "")


def test_an_empty_log_says_what_to_do(store: Store) -> None:
    empty = read_page(store, LogView())
    assert view_log(empty).empty == "new"
    sweep(store)
    assert view_log(read_page(store, LogView(text="nothing"))).empty == "filtered"


def test_side_by_side_names_only_what_differs() -> None:
    said: Any = view_side_by_side(known(strengths="0, 0.7, 1"))
    assert [dict(item["facts"])["Strength"] for item in said["items"]] == ["0.00", "0.70", "1.00"]
    assert all("Seed" not in dict(item["facts"]) for item in said["items"])
    assert said["where"] == "style · a red fox · seed 7 · pocket klein · fp32"
    seeds: Any = view_side_by_side(known(strengths="1", base_column=False, seeds=[1, 2]))
    assert [dict(item["facts"])["Seed"] for item in seeds["items"]] == ["1", "2"]
    assert seeds["where"].startswith("strength 1.00 · style")


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (known()[:1], "Pick 2 to 8 rows"),
        (known(strengths="0-1 [9]"), f"Pick 2 to {MOST} rows"),
        ([replace(record, image=None) for record in known()], "has no image"),
    ],
)
def test_what_cannot_be_compared_says_why(records: Sequence[CellRecord], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        view_side_by_side(records)


def test_one_image_has_all_that_made_it() -> None:
    record = known()[1]
    facts = dict(list_picture_facts(record))
    assert facts["Size"] == "64 × 64 px"
    assert (facts["Prompt fit (CLIP)"], facts["SSIM to base"], facts["Took"]) == ("15.0", "0.500", "1.50 s")
    assert "References" not in facts
    assert view_picture(record).size == (512, 512)


def test_no_text_becomes_markup() -> None:
    hostile = '"><img src=x onerror=alert(1)> ${alert(1)} </script> {{prompt}}'
    records = [
        replace(record, note=hostile, error=hostile)
        for record in known(prompts=[hostile], loras=[replace(STYLE, name=hostile)])
    ]
    for html in (
        draw("picture.html", picture=view_picture(records[1])),
        draw("picture.html", picture=view_picture(replace(records[1], image=None))),
        draw("picture-facts.html", facts=list_picture_facts(records[1])),
        draw("compare-picks.html", said=str(view_side_by_side(records))),
    ):
        assert "<img src=x" not in html


def test_deletions_come_back_batch_by_batch_and_only_to_their_owner(store: Store) -> None:
    run, run_id = ComparisonRun(store=store), sweep(store)
    asked = values(selected=f"{run_id}/1")
    somebody = Caller(session="t", organization="other")
    run.act(somebody, asked, Said(act="delete", value=[f"{run_id}/0"]))
    assert len(read_keys(store, LogView())) == 3
    for position in (1, 2):
        changes = run.act(CALLER, asked, Said(act="delete", value=[f"{run_id}/{position}", "nonsense"]))
        asked = after(asked, changes)
    assert asked["selected"] == "", "what was deleted is not looked at any more"
    assert "2 images deleted." in changes["table"]
    assert [len(read_keys(store, LogView()))] == [1]
    for left in (2, 3):
        asked = after(asked, run.act(CALLER, asked, Said(act="undo")))
        assert len(read_keys(store, LogView())) == left
    assert asked["deleted"] == ()


def test_an_image_that_is_deleted_does_not_come_back_as_that_of_another_run(store: Store) -> None:
    run = ComparisonRun(store=store)
    older, newer = sweep(store), sweep(store)
    asked = values(selected=f"{older}/1")
    shown = run.act(CALLER, asked, Said(act="open", id=f"{newer}/1"))
    assert f"<dt>Also in</dt><dd><bdi>{older}</bdi></dd>" in shown["facts"]
    changes = run.act(CALLER, asked, Said(act="delete", value=[f"{newer}/1"]))
    asked = after(asked, changes)
    assert ("1 image deleted." in changes["table"], asked["selected"]) == (True, "")
    assert [store.cells(run_id)[1].deleted for run_id in (older, newer)] == [True, True]
    asked = after(asked, run.act(CALLER, asked, Said(act="undo")))
    assert read_keys(store, LogView()) == tuple((newer, position) for position in range(3))
    view = LogView(chosen={"run": older})
    run.act(CALLER, {**asked, "view": view}, Said(act="delete", value=[f"{older}/1"]))
    assert [store.cells(run_id)[1].deleted for run_id in (older, newer)] == [True, False], "the run that was looked at"


def test_a_file_has_one_row_an_image_and_the_rows_that_were_picked(store: Store) -> None:
    run = ComparisonRun(store=store)
    older, newer = sweep(store), sweep(store)
    for picked, runs in (([], [newer] * 3), ([f"{older}/1"], [older])):
        written = Path(str(run.export(CALLER, values(), Said(act=".jsonl", value=picked))["file"]))
        assert [json.loads(line)["run"] for line in written.read_text().splitlines()] == runs
    report = Path(str(run.export(CALLER, values(), Said(act=".html"))["file"])).read_text()
    assert report.count("<img") == 6, "a report has each run whole"


def test_a_rating_and_a_note_are_kept_apart(store: Store) -> None:
    run, run_id = ComparisonRun(store=store), sweep(store)
    assert run.rate(CALLER, values(), Said(id=f"{run_id}/1", value="seven")) == {}
    run.rate(CALLER, values(), Said(id=f"{run_id}/1", value="4"))
    run.write_note(CALLER, values(selected=f"{run_id}/1", note="sharp"), Said())
    assert run.write_note(CALLER, values(selected=f"{run_id}/1", note="sharp"), Said()) == {}, "nothing is new"
    assert [(each.rating, each.note) for each in store.cells(run_id)[1:2]] == [(4, "sharp")]
    run.rate(CALLER, values(), Said(id=f"{run_id}/1", value="0"))
    assert store.cells(run_id)[1].rating is None
    with pytest.raises(NotFound):
        run.rate(Caller(session="t", organization="other"), values(), Said(id=f"{run_id}/1", value="1"))


def test_a_page_that_follows_is_drawn_when_there_is_something_new(store: Store) -> None:
    run = ComparisonRun(store=store)
    asked = values()
    asked = after(asked, run.refresh(CALLER, asked, Said()))
    assert run.follow(CALLER, asked, Said()) == {}
    sweep(store)
    changes = run.follow(CALLER, asked, Said())
    assert "3 images" in changes["table"]
    assert run.follow(CALLER, after(asked, changes), Said()) == {}


def test_equal_images_count_once_and_runs_that_are_called_alike_have_their_ids(store: Store) -> None:
    runs = [sweep(store, strengths="0, 1"), sweep(store, strengths="0, 1")]
    store.rate(runs[0], 1, 4)
    with store.database.session() as session:  # in one minute, however long the second took
        session.execute(update(RunRow).values(created=datetime(2026, 11, 22, 10)))
    page = read_page(store, LogView(group="prompt"))
    assert view_log(page).count == "2 images"
    assert page.groups[0].facts[0] == "2 images"
    assert "★ 4.0 (1 rated)" in page.groups[0].facts
    words = {option.value: option.words for option in page.options["run"]}
    assert all(words[run_id].endswith(f" · {run_id}") for run_id in runs)
    drawn = ComparisonRun(store=store).refresh(CALLER, values(view=LogView(chart=True, measure="ssim")), Said())
    assert drawn["table"].count('class="dot"') == 2


def test_a_report_of_a_filter_names_what_is_in_it(store: Store) -> None:
    run = ComparisonRun(store=store)
    sweep(store, loras=[STYLE, SUBJECT], strengths="0, 1")
    view = LogView(chosen={"lora": SUBJECT.sha256})
    report = Path(str(run.export(CALLER, values(view=view), Said(act=".html"))["file"])).read_text()
    assert "LoRA strengths: subject" in report
    assert "style</" not in report
    assert "style, subject" not in report


def test_a_chart_is_drawn_of_what_the_filters_show(store: Store) -> None:
    run = ComparisonRun(store=store)
    sweep(store)
    sweep(store, seeds=[8])
    view = LogView(chart=True, chosen={"seed": "8"}, measure="no such measure")
    drawn = run.refresh(CALLER, values(view=view), Said())["table"]
    assert drawn.count('class="dot"') == 3
    assert "SSIM to base against strength" in drawn
    assert "Which strength?" in drawn
    failed = Path(str(run.export(CALLER, values(view=view), Said(act=".csv"))["file"]))
    assert len(failed.read_text().splitlines()) == 4
