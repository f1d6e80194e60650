"""Ratings and votes in the answer: they lean it by their number, a click by less than a scene, an image once."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from evaluation.judge.answer import Answer, answer_cells, answer_run
from evaluation.judge.people import SCENES, People
from evaluation.judge.votes import rank
from evaluation.store.records import Vote
from evaluation.store.store import Store
from evaluation.sweep import Finished, run_sweep
from tests.drawing_backend import DrawingBackend, make_drawing_spec
from tests.judge.test_answer import CURVE, say, show

RIGHT = ("0.8", "0.9", "1")
"""All right by the scenes; the one in the middle is best as long as nobody says more."""


def vote_for(winner: str, *others: str, times: int = 1, scenes: int = 8) -> People:
    """What people say who take one strength before each of the others, `times` over."""
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    pairs = [(winner, other) for _ in range(times) for other in others]
    votes = [
        Vote(left=first, right=second, outcome="left", voter="ada", created=begin + timedelta(seconds=number))
        for number, (first, second) in enumerate(pairs)
    ]
    return People(ranking=rank(votes, {name: Decimal(name) for name in (winner, *others)}), scenes=scenes)


def ask(people: People, *, kept: Sequence[int] = (8, 8, 8), judge: str | None = "judge") -> Answer:
    curve = {name: (CURVE[name][0], number) for name, number in zip(RIGHT, kept, strict=True)}
    return say(replace(show(curve), people=people, judge=judge))


def test_votes_choose_between_strengths_that_are_all_right_and_the_sentence_says_so() -> None:
    before, after = ask(People()), ask(vote_for("0.8", "0.9", "1", times=6))
    assert (before.best, before.votes) == (Decimal("0.9"), 0)
    assert (after.best, after.votes, after.facts["votes"]) == (Decimal("0.8"), 12, 12)
    assert (after.low, after.high) == (before.low, before.high), "votes choose in the range, they do not make it"
    assert after.sentence.endswith("12 votes prefer 0.8.")
    assert after.marks[Decimal("0.8")] == "best"
    assert any(line.startswith("12 votes by 1 voter, who did not know") for line in after.lines)


@pytest.mark.parametrize(
    "people",
    [vote_for("0.8", "1"), People(ratings=((Decimal("0.8"), (5,)), (Decimal("0.9"), (1,)), (Decimal("1"), (3,))))],
    ids=["a vote", "a rating each"],
)
def test_a_click_never_outweighs_a_scene_let_alone_eight(people: People) -> None:
    assert ask(people, kept=(6, 8, 8)).best != Decimal("0.8")
    assert ask(people, kept=(8, 8, 8)).best == Decimal("0.8"), "where scenes are even, it is told"
    assert all(abs(people.lean(Decimal(name))) <= 0.5 for name in RIGHT)
    assert "prefer" not in ask(people).sentence, "one click may be chance"


def test_many_votes_outweigh_a_scene() -> None:
    assert ask(vote_for("0.8", "0.9", "1", times=6), kept=(7, 8, 8)).best == Decimal("0.8")


def test_without_a_judge_votes_on_enough_scenes_name_the_strength() -> None:
    many = vote_for("0.8", "0.9", "1", times=6)
    assert ask(People(), judge=None).word == "cannot_tell"
    few = ask(replace(many, scenes=SCENES - 1), judge=None)
    assert (few.word, few.best) == ("cannot_tell", None)
    assert few.sentence.endswith("12 votes prefer 0.8."), "told all the same"
    found = ask(replace(many, scenes=SCENES), judge=None)
    assert (found.word, found.best) == ("use", Decimal("0.8"))
    assert "without a judge" in found.sentence
    lost = ask(vote_for("1.6", "0.9", "1", times=6), judge=None)
    assert lost.word == "cannot_tell", "votes name no strength at which scenes are lost or that was not tried"


def test_a_vote_and_a_rating_are_in_the_answer_at_once_and_an_image_counts_once(store: Store) -> None:
    runs = []
    for seeds in ([7], [7, 8]):
        *_, finished = run_sweep(make_drawing_spec(seeds=seeds), backend=DrawingBackend(), store=store)
        assert isinstance(finished, Finished)
        runs.append(finished.run_id)
    _, half, full = (record.cell for record in store.cells(runs[0]))
    store.rate(runs[0], 2, 5)
    store.vote(half.identity, full.identity, "right", voter="ada")
    store.vote(full.base, full.identity, "right", voter="bob")
    both = [record for run in runs for record in store.cells(run)]
    for (answer,) in (answer_run(store, runs[0]), answer_run(store, runs[1]), answer_cells(store, both)):
        assert answer.votes == 2
        assert "People say: 1 5.0 of 5 (1 rating)." in answer.lines
        assert "2 votes tell no strength apart yet." in answer.lines
    store.rate(runs[0], 2, 3)
    assert "People say: 1 3.0 of 5 (1 rating)." in answer_run(store, runs[1])[0].lines


def test_votes_of_another_organization_are_not_in_the_answer(store: Store) -> None:
    *_, finished = run_sweep(make_drawing_spec(), backend=DrawingBackend(), store=store)
    assert isinstance(finished, Finished)
    _, half, full = (record.cell.identity for record in store.cells(finished.run_id))
    store.vote(half, full, "left", organization="visitor-1")
    assert answer_run(store, finished.run_id)[0].votes == 0
