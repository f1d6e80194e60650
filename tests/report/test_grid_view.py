"""What a grid and its cards say, and that hostile texts stay text: one grid, one card for the page and the report."""

import json
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest
from gradio.utils import diff

from evaluation.grid import plan
from evaluation.judge.answer import Answer
from evaluation.judge.evidence import Value
from evaluation.report.cards import view_answers, view_verdict
from evaluation.report.draw import draw
from evaluation.report.grid_view import image_url, view_cell, view_grid, view_plan
from evaluation.store.records import CellRecord, Verdict
from evaluation.tabs.live_grid import draw_grid
from tests.drawing_backend import STYLE, SUBJECT, make_drawing_spec

HOSTILE = '"><img src=x onerror=alert(1)> ${alert(1)} </style></script> {{ 7*7 }} {% raw %} \u202e'
GOOD = Verdict(ok=True, summary="Every strength acted.", findings=(HOSTILE,))
ANSWER = Answer(
    value=Value(lora=STYLE, weights="pocket", precision="bf16", backend="local", trigger=None),
    label=HOSTILE,
    word="use",
    low=Decimal("0.5"),
    high=Decimal(1),
    best=Decimal("0.5"),
    sentence="0.5 to 1: from 0.5 on it shows.",
    lines=(HOSTILE,),
    marks={Decimal("0.5"): "best", Decimal(1): "use"},
)
UNSURE = replace(ANSWER, word="cannot_tell", low=None, high=None, best=None, sentence="a: 0.5; b: 1.", marks={})


def record(position: int = 1, **changes: object) -> CellRecord:
    cell = plan(make_drawing_spec(seeds=[7, 8]))[position]
    found = {"state": "done", "image": Path("/blobs/a b.png"), "seconds": 0.5, **changes}
    return CellRecord(run_id="run-1", cell=cell, **found)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "running", "kind", "state", "says"),
    [
        ({}, False, "done", "0.50 s", "Strength 0.50, seed 7, done in 0.50 s. Choose it to compare."),
        ({"seconds": None}, False, "done", "kept", "Strength 0.50, seed 7, done in kept. Choose it to compare."),
        ({"state": "failed", "image": None, "error": "It broke."}, False, "failed", "failed",
         "Strength 0.50, seed 7, failed: It broke."),
        ({"state": "failed", "image": None}, False, "failed", "failed",
         "Strength 0.50, seed 7, failed: no reason was given"),
        ({"state": "pending", "image": None}, True, "waiting", "waiting", "Strength 0.50, seed 7, waiting"),
        ({"state": "pending", "image": None}, False, "left", "not rendered", "Strength 0.50, seed 7, not rendered"),
    ],
)  # fmt: skip
def test_a_cell_says_what_it_is(changes: dict[str, object], running: bool, kind: str, state: str, says: str) -> None:
    view = view_cell(record(**changes), running=running)
    assert (view.kind, view.state, view.says) == (kind, state, says)
    assert (view.image is None) == (changes.get("image", "there") is None)


def test_scores_ratings_and_notes_are_shown_and_a_base_has_no_score() -> None:
    measured = {"scores": {"ssim": 0.987, "clip": 21.25}, "rating": 4, "note": "good"}
    view = view_cell(record(**measured), place=lambda path: path.name)
    assert (view.scores, view.rating, view.note, view.image) == (("Fit 21.2", "SSIM 0.99"), 4, "good", "a b.png")
    assert view_cell(record(0, **measured)).scores == ()
    assert image_url(Path("/blobs/a b.png")) == "gradio_api/file=/blobs/a%20b.png"


def test_a_selection_keeps_its_rows_and_leaves_the_other_places_empty() -> None:
    spec = make_drawing_spec(seeds=[7, 8])
    view = view_grid(spec, [record(4), record(2), record(1)])
    assert view.heads == ("0.50", "1.00")
    assert [(row.label, [cell and cell.position for cell in row.cells]) for row in view.rows] == [
        ("seed 7", [1, 2]),
        ("seed 8", [4, None]),
    ]
    assert view.labelled
    assert view.facts[:2] == ("2 seeds", "LoRA style")
    assert not view_grid(make_drawing_spec(), [record()]).labelled
    several = make_drawing_spec(loras=[STYLE, SUBJECT], prompts=["a red fox"])
    assert view_grid(several, []).facts[:2] == ("seed 7", "2 LoRAs")


def test_a_plan_has_the_base_and_few_rows() -> None:
    view = view_plan([Decimal("0.5"), Decimal(1)], 9, (64, 48))
    assert view.heads == ("0 · base", "0.50", "1.00")
    assert [len(row.cells) for row in view.rows] == [3] * 4
    assert view.size == (64, 48)


@pytest.mark.parametrize("live", [True, False])
def test_hostile_texts_stay_text(live: bool) -> None:
    spec = make_drawing_spec(prompts=[HOSTILE], loras=[replace(STYLE, name=HOSTILE)])
    failed = CellRecord(run_id="run-1", cell=plan(spec)[1], state="failed", error=HOSTILE, note=HOSTILE)
    grid = view_grid(spec, [failed])
    cards = (view_verdict(GOOD), *view_answers(GOOD, [ANSWER, ANSWER], problem=HOSTILE))
    drawn = [
        draw("grid.html", grid=grid, live=live, heading=HOSTILE),
        *(draw("cell.html", cell=cell, grid=grid, live=live, heading="h") for cell in grid.rows[0].cells),
        *(draw("card.html", card=card, live=live) for card in cards),
    ]
    texts = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("img", "script")
            assert not [name for name, _ in attrs if name.startswith("on")]

        def handle_data(self, data: str) -> None:
            texts.append(data)

    for html in drawn:
        Reader().feed(html)
    assert HOSTILE in texts


def test_a_redraw_of_a_large_grid_sends_the_cells_that_changed() -> None:
    spec = make_drawing_spec(seeds=list(range(20)), strengths="0-1.9 [20]")
    waiting = [CellRecord(run_id="run-1", cell=cell, state="pending") for cell in plan(spec)]
    grid = draw_grid(spec, waiting, running=True)
    ended = [replace(each, state="done", image=Path("/blobs/a.png"), seconds=0.5) for each in waiting[:2]]
    after = grid.with_cells(ended)
    edits = diff(grid.value(), after.value())
    assert [path for _, path, _ in edits] == [["cells", "0"], ["cells", "1"]]
    assert len(json.dumps(edits)) < 2 * 700
    assert len(json.dumps(after.value())) > 100_000
    assert diff(after.value(), after.with_cells([]).value()) == []


def test_the_strengths_of_the_answer_are_marked() -> None:
    spec = make_drawing_spec()
    records = [CellRecord(run_id="run-1", cell=cell, state="pending") for cell in plan(spec)]
    assert draw_grid(spec, records, answers=[ANSWER]).value()["advised"] == [1, 2]
    assert draw_grid(spec, records, answers=[UNSURE]).value()["advised"] == []


def test_the_answer_begins_with_its_word() -> None:
    (card,) = view_answers(GOOD, [ANSWER])
    assert (card.kind, card.word, card.sentence, card.lines) == (
        "told",
        "0.5 to 1",
        "from 0.5 on it shows.",
        (HOSTILE,),
    )
    (apart,) = view_answers(GOOD, [UNSURE], problem="No judge.")
    assert (apart.word, apart.sentence, apart.hint) == ("", "a: 0.5; b: 1.", "No judge.")


@pytest.mark.parametrize(
    ("verdict", "measuring", "said"),
    [
        (replace(GOOD, ok=None), False, "When the sweep ends"),
        (GOOD, False, "No LoRA whose strength varies"),
        (GOOD, True, "Measuring"),
        (replace(GOOD, ok=False), False, "Not before the sweep can be trusted"),
    ],
)
def test_without_an_answer_the_card_says_why(verdict: Verdict, measuring: bool, said: str) -> None:
    (card,) = view_answers(verdict, measuring=measuring)
    assert card.kind == "open"
    assert card.sentence.startswith(said)


@pytest.mark.parametrize(("ok", "heading"), [(True, "Trustworthy"), (False, "Do not trust this sweep")])
def test_a_verdict_is_said_in_words(ok: bool, heading: str) -> None:
    card = view_verdict(replace(GOOD, ok=ok))
    assert (card.heading, card.sentence, card.lines) == (heading, "Every strength acted.", (HOSTILE,))
