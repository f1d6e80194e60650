"""Blind votes: scripted voters with a known order and with none, what is asked next, and what may not tell."""

import io
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pytest
from PIL import Image

from evaluation.judge.ballot import count_votes, list_ballots, list_contests, read_blind
from evaluation.judge.votes import Contest, Ranking, agree, pick_pair, rank
from evaluation.store.records import Outcome, Vote
from evaluation.store.store import Store
from evaluation.sweep import Finished, run_sweep
from lora_runtime.png import read_metadata
from tests.drawing_backend import STYLE, SUBJECT, DrawingBackend, make_drawing_spec

STRENGTHS = tuple(Decimal(number) / 5 for number in range(7))
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
OUTCOMES: tuple[Outcome, ...] = ("left", "right", "tie", "neither")


def cast(left: str, right: str, outcome: Outcome, *, number: int = 0, voter: str = "ada") -> Vote:
    return Vote(left=left, right=right, outcome=outcome, voter=voter, created=BEGIN + timedelta(seconds=number))


def make_contest(scenes: int = 8) -> Contest[Decimal]:
    """An image is called by its scene and strength."""
    return Contest(scenes=tuple({strength: f"{scene}:{strength}" for strength in STRENGTHS} for scene in range(scenes)))


def follow_voter(seed: int, *, votes: int, random_clicks: float) -> tuple[list[Decimal], Ranking[Decimal]]:
    """The true order of a voter, best first, and what their votes say."""
    rng = random.Random(seed)
    contest = make_contest()
    order = rng.sample(STRENGTHS, len(STRENGTHS))
    given: list[Vote] = []
    for number in range(votes):
        pair = pick_pair(contest, given, rng)
        assert pair is not None
        left, right = (order.index(contest.contenders[image]) for image in (pair.left, pair.right))
        liked: Outcome = "left" if left < right else "right"
        outcome = rng.choice(OUTCOMES) if rng.random() < random_clicks else liked
        given.append(cast(pair.left, pair.right, outcome, number=number))
    ranking = rank(given, contest.contenders)
    assert ranking is not None
    return order, ranking


def test_sixty_votes_find_the_order_of_seven_strengths_through_random_clicks() -> None:
    found = [follow_voter(seed, votes=60, random_clicks=0.1) for seed in range(10)]
    assert sum([one.contender for one in ranking.standings] == order for order, ranking in found) >= 9
    assert all(ranking.different and order[0] in ranking.best for order, ranking in found)


def test_a_voter_who_clicks_at_random_tells_nobody_apart() -> None:
    rankings = [follow_voter(seed, votes=60, random_clicks=1)[1] for seed in range(20)]
    assert sum(ranking.different for ranking in rankings) <= 1
    alike = next(ranking for ranking in rankings if not ranking.different)
    assert set(alike.best) == set(STRENGTHS)
    assert alike.sentence.startswith("No difference: 60 votes of 1 voter")


def test_one_click_names_nobody_and_its_number_is_told() -> None:
    ranking = rank([cast("0:0", "0:1", "right")], {"0:0": 0, "0:1": 1})
    assert ranking is not None
    assert (ranking.votes, ranking.different, set(ranking.best)) == (1, False, {0, 1})
    assert ranking.standings[0].contender == 1


def test_skills_are_those_of_the_model() -> None:
    # 30 to 10 between two, and no tie: log 3 apart, but for the prior.
    votes = [cast("a", "b", "left" if number % 4 else "right", number=number) for number in range(40)]
    ranking = rank(votes, {"a": "a", "b": "b"})
    assert ranking is not None
    first, second = ranking.standings
    assert first.skill - second.skill == pytest.approx(np.log(3), abs=0.1)
    assert first.skill == pytest.approx(-second.skill)
    assert first.low < first.skill < first.high
    turned = rank([cast(vote.right, vote.left, _turn(vote.outcome)) for vote in votes], {"a": "a", "b": "b"})
    assert turned is not None
    assert [one.skill for one in turned.standings] == pytest.approx([one.skill for one in ranking.standings])


def _turn(outcome: Outcome) -> Outcome:
    turned: dict[Outcome, Outcome] = {"left": "right", "right": "left"}
    return turned.get(outcome, outcome)


def test_ties_and_neither_pull_together_and_other_votes_do_not_count() -> None:
    names = {"a": 1, "b": 2, "a2": 1}
    decided = [cast("a", "b", "left", number=number) for number in range(6)]
    alone = rank(decided, names)
    ties = [cast("a", "b", outcome, number=9, voter="bob") for outcome in ("tie", "neither") for _ in range(6)]
    drawn = rank([*decided, *ties, cast("a", "a2", "left"), cast("a", "elsewhere", "right")], names)
    assert alone is not None
    assert drawn is not None
    assert drawn.standings[0].skill < alone.standings[0].skill
    assert (drawn.votes, drawn.decided, drawn.neither, drawn.voters) == (18, 6, 6, {"ada": 6, "bob": 12})
    assert rank([cast("a", "a2", "left")], names) is None


def test_what_is_asked_next_is_what_is_least_known() -> None:
    names = ("a", "b", "c")
    contest: Contest[str] = Contest(scenes=tuple({name: f"{scene}{name}" for name in names} for scene in range(2)))
    votes = [cast("0a", "0b", "left", number=number) for number in range(12)]
    pairs = [pick_pair(contest, votes, random.Random(seed)) for seed in range(40)]
    asked = [{pair.left, pair.right} for pair in pairs if pair is not None]
    assert len(asked) == 40
    assert all(any(image.endswith("c") for image in pair) for pair in asked), "nobody has seen c"
    sides = [pair.left.endswith("c") for pair in pairs if pair is not None]
    assert 8 < sum(sides) < 32, "sides are drawn"
    assert {image[0] for pair in asked for image in pair} == {"0", "1"}, "scenes take turns"
    assert pick_pair(Contest(scenes=({"a": "x"}, {"b": "y"})), [], random.Random(0)) is None


def test_agreement_is_counted_in_decided_votes() -> None:
    votes: Sequence[Vote] = [
        cast("a", "b", "left"), cast("b", "a", "left"), cast("a", "b", "tie"), cast("a", "c", "left"),
    ]  # fmt: skip
    found = agree(votes, {"a": 2.0, "b": 1.0})
    assert (found.agreed, found.decided) == (1, 2)


def test_votes_on_a_run_count_in_every_run_that_has_the_images(store: Store) -> None:
    spec = make_drawing_spec(loras=[STYLE, SUBJECT])
    runs = []
    for asked in (spec, make_drawing_spec(loras=[STYLE])):
        *_, finished = run_sweep(asked, backend=DrawingBackend(), store=store)
        assert isinstance(finished, Finished)
        runs.append(finished.run_id)
    (contest,) = list_contests(store.cells(runs[0]))
    assert [str(contender) for contender in contest.scenes[0]] == [
        "0 (base)", "style 0.5", "style 1", "subject 0.5", "subject 1",
    ]  # fmt: skip
    images = {str(contender): image for contender, image in contest.scenes[0].items()}
    for _ in range(5):
        store.vote(images["0 (base)"], images["style 1"], "right", voter="ada")
        store.vote(images["subject 1"], images["style 1"], "right", voter="bob")
    (count,) = count_votes(store, runs[0])
    assert count.ranking is not None
    assert (count.ranking.votes, str(count.ranking.standings[0].contender)) == (10, "style 1")
    assert set(count.agreements) == {"ssim", "mean_difference"}
    (alone,) = count_votes(store, runs[1])
    assert alone.ranking is not None
    assert (alone.ranking.votes, alone.ranking.voters) == (5, {"ada": 5})
    assert [str(one.contender) for one in alone.ranking.standings] == ["1", "0 (base)"]


def test_a_blind_copy_tells_nothing(store: Store) -> None:
    *_, finished = run_sweep(make_drawing_spec(), backend=DrawingBackend(), store=store)
    assert isinstance(finished, Finished)
    for record in store.cells(finished.run_id):
        assert record.image is not None
        assert read_metadata(record.image) is not None
        data = read_blind(record.image)
        with Image.open(io.BytesIO(data)) as copy, Image.open(record.image) as image:
            assert copy.info == {}
            assert copy.tobytes() == image.convert("RGB").tobytes()


def test_nobody_is_asked_twice_for_the_same_two_images() -> None:
    contest = make_contest(scenes=1)
    asked: set[frozenset[str]] = set()
    while (pair := pick_pair(contest, [], random.Random(len(asked)), without=asked)) is not None:
        assert frozenset((pair.left, pair.right)) not in asked
        asked.add(frozenset((pair.left, pair.right)))
    assert len(asked) == 21, "each two of seven, once"


def test_progress_rises_until_the_order_is_clear() -> None:
    votes = [cast("a", "b", "left", number=number) for number in range(12)]
    found = [rank(votes[: number + 1], {"a": "a", "b": "b"}) for number in range(12)]
    steps = [ranking.progress for ranking in found if ranking]
    assert steps == sorted(steps)
    assert (steps[-1], steps[0] < 0.5) == (1, True)
    assert [ranking.is_clear for ranking in found if ranking].index(True) >= 4, "a few clicks may be chance"


def test_a_run_of_several_loras_is_voted_on_whole_or_by_its_parts(store: Store) -> None:
    *_, finished = run_sweep(make_drawing_spec(loras=[STYLE, SUBJECT]), backend=DrawingBackend(), store=store)
    assert isinstance(finished, Finished)
    whole, *parts = list_ballots(store.cells(finished.run_id))
    assert len(whole.contenders) == 5
    assert [(part.name.rpartition(", ")[2], [str(one) for one in part.scenes[0]]) for part in parts] == [
        ("drawing: style: which strength", ["0 (base)", "style 0.5", "style 1"]),
        ("drawing: subject: which strength", ["0 (base)", "subject 0.5", "subject 1"]),
        ("drawing: 0.5: which LoRA", ["style 0.5", "subject 0.5"]),
        ("drawing: 1: which LoRA", ["style 1", "subject 1"]),
    ]


def test_the_last_vote_can_be_taken_back_by_its_voter(store: Store) -> None:
    *_, finished = run_sweep(make_drawing_spec(), backend=DrawingBackend(), store=store)
    assert isinstance(finished, Finished)
    _, half, full = (record.cell.identity for record in store.cells(finished.run_id))
    for voter in ("ada", "bob", "ada"):
        store.vote(half, full, "left", voter=voter)
    *_, last = store.votes([half, full])
    store.take_back(last)
    assert [vote.voter for vote in store.votes([half, full])] == ["ada", "bob"]
