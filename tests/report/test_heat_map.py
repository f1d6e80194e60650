"""A training run as it is drawn: its heat map, its one card, and its grid with scenes folded away."""

from dataclasses import replace
from pathlib import Path

from evaluation.grid import plan
from evaluation.judge.answer import answer_from
from evaluation.report.cards import view_answers
from evaluation.report.draw import draw
from evaluation.report.grid_view import view_grid
from evaluation.report.heat_map import view_heat
from evaluation.store.records import CellRecord, Verdict
from tests.drawing_backend import make_drawing_spec
from tests.judge.test_training import FAINT, GONE, GOOD, WORSE, train
from tests.training_runs import make_drawn_run

GOOD_VERDICT = Verdict(ok=True, summary="Every strength acted.")
STAGES = {"250": FAINT, "1000": GOOD, "1500": WORSE, "3000": GONE}


def test_the_heat_map_says_in_numbers_and_signs_what_holds_where() -> None:
    training, evidence = train(STAGES, copied=("3000",))
    heat = view_heat(training, answer_from(evidence))
    assert heat is not None
    assert heat.heads == ("0.50", "1.00")
    assert [row.label for row in heat.rows] == ["250", "1000", "1500", "3000"]
    shown = {row.label: [(cell.text, cell.kind, cell.level) for cell in row.cells if cell] for row in heat.rows}
    assert shown == {
        "250": [("8/8", "faint", 4), ("8/8", "faint", 4)],
        "1000": [("8/8", "faint", 4), ("8/8", "chosen", 4)],
        "1500": [("6/8", "holds", 3), ("4/8", "lost", 2)],
        "3000": [("1/8", "copies", 0), ("0/8", "copies", 0)],
    }
    assert next(words for _, words in heat.legend) == "use this"
    html = draw("heat.html", heat=heat)
    assert "8 of 8 scenes pass: use this" in html
    assert view_heat(None, answer_from(evidence)) is None
    assert view_heat(training, ()) is None


def test_a_training_run_has_one_card_that_names_checkpoint_and_strength() -> None:
    training, evidence = train(STAGES)
    (card,) = view_answers(GOOD_VERDICT, answer_from(evidence), training=training)
    assert (card.heading, card.word) == ("Which checkpoint, at which strength?", "Use checkpoint 1000 at 1")
    assert len(card.lines) == 4
    (none,) = view_answers(GOOD_VERDICT, answer_from(evidence[:1]), training=training)
    assert (none.word, none.sentence[:24]) == ("", "No checkpoint is named. ")


def test_checkpoints_head_their_rows_and_scenes_fold_away() -> None:
    run = make_drawn_run(["500", "1000", "1500"], problems={"1000": "It was <cut> off."})
    spec = make_drawing_spec(loras=(), training=run, seeds=[7, 8])
    records = [CellRecord(run_id="run-1", cell=cell, state="done", image=Path("/a.png")) for cell in plan(spec)]
    view = view_grid(spec, records)
    heads = [
        row.checkpoint and (row.checkpoint.label, row.checkpoint.problem, row.checkpoint.more) for row in view.rows
    ]
    assert heads == [("500", "", 1), None, ("1000", "It was <cut> off.", 0), ("1500", "", 1), None]
    assert [(row.heading, row.fold) for row in view.rows] == [
        ("seed 7", ""), ("seed 8", "fold-run-1-0"), ("", ""), ("seed 7", ""), ("seed 8", "fold-run-1-2")
    ]  # fmt: skip
    assert len({row.label for row in view.rows}) == 5
    html = draw("grid.html", grid=view, live=True)
    assert "It was &lt;cut&gt; off." in html
    assert html.count('type="checkbox"') == 2
    one = view_grid(replace(spec, seeds=(7,)), records[:3])
    assert next(row.heading for row in one.rows) == "", "one scene needs no words"
