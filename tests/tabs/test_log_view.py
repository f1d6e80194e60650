"""What of the log is shown: every filter, their options, groups, order; and that no text becomes markup."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from evaluation.tabs.log import draw_bar, draw_log
from evaluation.tabs.log_detail import MOST, draw_detail, draw_facts, draw_rating, draw_side_by_side

from evaluation.grid import plan
from evaluation.log import FILTERS, LogView, find_record, make_page, read_key, read_view, sort_view, summarize
from evaluation.store.records import CellRecord
from evaluation.store.store import Store
from lora_runtime.errors import InvalidInput, NotFound
from tests.drawing_backend import STYLE, SUBJECT, make_drawing_spec

HOSTILE = '"><img src=x onerror=alert(1)> ${alert(1)} </script> {{prompt}} \u202e'


def known(run_id: str, rating: int | None = None, **changes: Any) -> list[CellRecord]:
    return [
        CellRecord(
            run_id=run_id,
            cell=cell,
            state="done",
            image=Path(f"/blobs/{run_id}-{cell.position}.png"),
            created=datetime(2026, 11, 22, 10, cell.position, tzinfo=UTC),
            scores={"ssim": 1 - cell.column / 10, "clip": 15 - cell.column},
            rating=rating if cell.column else None,
        )
        for cell in plan(make_drawing_spec(**changes))
    ]


def log() -> list[CellRecord]:
    style = known("run-b", rating=4, prompts=["a red fox", "a BLUE owl"], strengths="0, 0.7, 1")
    subject = known("run-a", loras=[SUBJECT], seeds=[7, 8], strengths="0, 1")
    failed = replace(subject[-1], state="failed", image=None, created=None, scores={}, error="Out of memory.")
    return [*style, *subject[:-1], replace(failed, origin="api")]


def shown(view: LogView) -> list[tuple[str, int]]:
    return [record.key for record in make_page(log(), view).records]


@pytest.mark.parametrize(
    ("view", "keys"),
    [
        ({}, [*(("run-b", n) for n in range(6)), *(("run-a", n) for n in range(4))]),
        ({"text": "owl  blue"}, [("run-b", 3), ("run-b", 4), ("run-b", 5)]),
        ({"text": "MEMORY"}, [("run-a", 3)]),
        ({"chosen": {"lora": "subject"}}, [("run-a", 0), ("run-a", 1), ("run-a", 2), ("run-a", 3)]),
        ({"chosen": {"rating": "3"}}, [("run-b", 1), ("run-b", 2), ("run-b", 4), ("run-b", 5)]),
        ({"chosen": {"rating": "5"}}, []),
        ({"chosen": {"rating": "none", "seed": "8"}}, [("run-a", 2), ("run-a", 3)]),
        ({"chosen": {"state": "failed"}}, [("run-a", 3)]),
        ({"chosen": {"origin": "api"}}, [("run-a", 3)]),
        ({"chosen": {"run": "run-a", "precision": "fp32", "backend": "drawing"}}, [("run-a", n) for n in range(4)]),
        ({"low": Decimal("0.7"), "high": Decimal("0.9")}, [("run-b", 1), ("run-b", 4)]),
        ({"sort": "strength", "descending": True, "text": "owl"}, [("run-b", 5), ("run-b", 4), ("run-b", 3)]),
        ({"sort": "clip", "descending": False, "text": "subject"}, [("run-a", n) for n in (1, 0, 2, 3)]),
    ],
)  # fmt: skip
def test_a_view_shows_what_it_names(view: dict[str, Any], keys: list[tuple[str, int]]) -> None:
    assert shown(LogView(**view)) == keys


def test_options_are_those_that_would_show_something() -> None:
    everything = make_page(log(), LogView())
    assert everything.options["lora"] == (("style", 6), ("subject", 4))
    assert everything.options["rating"] == (("4", 4), ("3", 4), ("2", 4), ("1", 4), ("none", 6))
    assert everything.options["seed"] == (("7", 8), ("8", 2))
    chosen = make_page(log(), LogView(chosen={"seed": "8"}))
    assert chosen.options["lora"] == (("subject", 2),), "style has no seed 8"
    assert chosen.options["seed"] == (("7", 8), ("8", 2)), "its own choice can still be changed"
    gone = make_page(log(), LogView(chosen={"lora": "deleted-lora"}))
    assert ("deleted-lora", 0) in gone.options["lora"]


def test_groups_have_their_counts_and_means() -> None:
    page = make_page(log(), LogView(group="lora"))
    assert [(group.title, len(group.records)) for group in page.groups] == [("style", 6), ("subject", 4)]
    assert summarize(page.groups[0].records) == ["6 images", "prompt fit 13.5", "SSIM 0.85", "★ 4.0 (4 rated)"]
    strengths = make_page(log(), LogView(group="strength"))
    assert [group.title for group in strengths.groups] == ["Strength 0 · base", "Strength 0.7", "Strength 1"]
    runs = make_page(log(), LogView(group="run")).groups
    assert runs[0].title == "22 Nov 10:00 · style · a red fox"
    html = draw_log(page)
    assert html.count("data-fold") == html.count('aria-expanded="true"') == 2


def test_pages_end_where_more_begins() -> None:
    html = draw_log(make_page(log(), LogView(rows=7, group="lora")))
    assert html.count("<tr data-id") == 7
    assert "Show more (3 left)" in html
    assert "Show more" not in draw_log(make_page(log(), LogView()))


def test_what_the_page_says_is_read_with_care() -> None:
    asked = {"lora": "style", "seed": "", "low": "0,5", "high": "nonsense", "group": "everything", "evil": "x"}
    view = read_view(LogView(rows=600, sort="seed"), asked)
    assert (dict(view.chosen), view.low, view.high, view.group, view.rows) == (
        {"lora": "style"},
        Decimal("0.5"),
        None,
        "",
        60,
    )
    assert view.is_filtered
    assert not LogView(text="  ").is_filtered
    assert read_view(LogView(), {"low": "NaN"}).low is None
    assert sort_view(view, "no such column") == view
    assert sort_view(sort_view(view, "clip"), "clip").descending
    for wrong in ("", "run-1", "run-1/", "run-1/x", "/1"):
        with pytest.raises(NotFound):
            read_key(wrong)


def test_a_record_is_found_by_its_id(store: Store) -> None:
    run_id = store.create_run(make_drawing_spec(), plan(make_drawing_spec()))
    assert find_record(store, f"{run_id}/2").cell.position == 2
    for wrong in (f"{run_id}/3", "run-0/0", "x"):
        with pytest.raises(NotFound):
            find_record(store, wrong)


def test_no_text_becomes_markup() -> None:
    hostile = replace(STYLE, name=HOSTILE)
    records = [
        replace(record, note=HOSTILE, error=HOSTILE)
        for record in known("run-c", prompts=[HOSTILE, "x"], loras=[hostile], rating=3)
    ]
    for view in (LogView(), LogView(group="prompt"), LogView(group="lora"), LogView(chart=True), LogView(group="run")):
        page = make_page(records, view)
        for html in (draw_bar(page), draw_log(page)):
            assert "<img src=x" not in html
            assert "</script>" not in html
    for html in (
        draw_detail(records[1]), draw_facts(records[1]), draw_rating(records[1]),
        draw_detail(replace(records[1], image=None)), draw_side_by_side(records[:4], opened=1),
    ):  # fmt: skip
        assert "<img src=x" not in html


def test_side_by_side_names_only_what_differs() -> None:
    html = draw_side_by_side(known("run-a", strengths="0, 0.7, 1"), opened=7)
    captions = html[html.index('class="figures"') :]
    assert captions.count("<span>Strength</span>") == 3
    assert "<span>Seed</span>" not in captions
    assert "seed 7" in html[: html.index('class="figures"')]
    two_seeds = draw_side_by_side(known("run-a", strengths="1", base_column=False, seeds=[1, 2]), opened=8)
    assert "<span>Seed</span> <b><bdi>2</bdi></b>" in two_seeds
    assert "strength 1.00" in two_seeds


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (known("run-a")[:1], "Pick 2 to 8 rows"),
        (known("run-a", strengths="0-1 [9]"), f"Pick 2 to {MOST} rows"),
        ([replace(record, image=None) for record in known("run-a")], "has no image"),
    ],
)
def test_what_cannot_be_compared_says_why(records: Sequence[CellRecord], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        draw_side_by_side(records, opened=1)


def test_an_empty_log_says_what_to_do() -> None:
    assert "Run a first sweep" in draw_log(make_page([], LogView()))
    assert "clear all filters" in draw_log(make_page(log(), LogView(text="nothing like it")))
    assert "3 images deleted." in draw_log(make_page([], LogView()), deleted=3)
    assert set(FILTERS) >= {"lora", "weights", "precision", "backend", "run", "origin", "rating", "seed", "state"}
