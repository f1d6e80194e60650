"""The Vote tab's handlers as plain calls: what a page is given and what not, whose votes are whose, undo, reveal."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image

from evaluation.judge.ballot import Contender, Count
from evaluation.judge.votes import Contest, rank
from evaluation.store.records import Vote
from evaluation.store.store import Store
from evaluation.sweep import Finished, run_sweep
from evaluation.tabs.page import Caller, Said
from evaluation.tabs.vote_form import VoteForm, view_result
from evaluation.tabs.vote_run import VoteRun
from tests.drawing_backend import STYLE, SUBJECT, DrawingBackend, make_drawing_spec
from tests.judge.test_answer import CURVE, say, show

CALLER, OTHER = Caller(session="one", organization="local"), Caller(session="two", organization="other")
ADA, BOB = VoteForm(name="Ada", token="a" * 48), VoteForm(name="Bob", token="b" * 48)


def sweep(store: Store, backend: DrawingBackend | None = None, **changes: Any) -> str:
    *_, finished = run_sweep(make_drawing_spec(**changes), backend=backend or DrawingBackend(), store=store)
    assert isinstance(finished, Finished)
    return finished.run_id


@pytest.fixture
def tab(store: Store) -> VoteRun:
    return VoteRun(store=store)


def open_run(tab: VoteRun, run_id: str, form: VoteForm = ADA) -> dict[str, Any]:
    return dict(tab.open(CALLER, form.model_copy(update={"run": run_id}), Said()))


def press(tab: VoteRun, run_id: str, shown: dict[str, Any], outcome: str, form: VoteForm = ADA) -> dict[str, Any]:
    """Vote on the pair in sight, as the page does: it shows the next one already."""
    first, *more = shown["stage"]["pairs"]
    value = {"outcome": outcome, "next": more[0]["id"] if more else ""}
    said = Said(act="vote", id=first["id"], value=value)
    return dict(tab.act(CALLER, form.model_copy(update={"run": run_id}), said))


def strengths_of(store: Store, run_id: str) -> dict[str, Decimal]:
    return {record.cell.identity: record.cell.request.strength for record in store.cells(run_id)}


def prefer(store: Store, run_id: str, better: Callable[[Decimal], Decimal]) -> Callable[[dict[str, Any]], str]:
    """A voter who follows a hidden order of strengths."""
    known = strengths_of(store, run_id)

    def choose(shown: dict[str, Any]) -> str:
        left, right = (better(known[each]) for each in shown["stage"]["pairs"][0]["id"].split("."))
        return "left" if left > right else "right"

    return choose


def test_a_page_is_given_nothing_that_tells_the_strength(tab: VoteRun, store: Store) -> None:
    run_id = sweep(store, strengths="0.37, 0.91", prompts=["a red fox"])
    shown = open_run(tab, run_id)
    stage = shown["stage"]
    assert [set(pair) for pair in stage["pairs"]] == [{"id", "left", "right", "prompt", "size"}] * 2
    assert not re.search(r"0\.37|0\.91|0,37|strength|seed|second", json.dumps(stage))
    for pair in stage["pairs"]:
        for side, identity in zip(("left", "right"), pair["id"].split("."), strict=True):
            path = Path(unquote(pair[side].removeprefix("gradio_api/file=")))
            stored = store.image(identity)
            assert stored is not None
            with Image.open(path) as copy, Image.open(stored.path) as image:
                assert copy.info == {}, "no cell in its metadata"
                assert copy.tobytes() == image.convert("RGB").tobytes()
            assert path.name == "picture.png"


def test_a_vote_shows_the_pair_that_was_ready_and_is_kept_under_its_voter(tab: VoteRun, store: Store) -> None:
    run_id = sweep(store)
    before = open_run(tab, run_id)
    after = press(tab, run_id, before, "left")
    assert after["stage"]["pairs"][0] == before["stage"]["pairs"][1]
    assert after["stage"]["turn"] != before["stage"]["turn"]
    (vote,) = store.votes(strengths_of(store, run_id))
    assert (f"{vote.left}.{vote.right}", vote.outcome) == (before["stage"]["pairs"][0]["id"], "left")
    assert re.fullmatch(r"Ada \([0-9a-f]{8}\)", vote.voter)
    assert "a" * 8 not in vote.voter, "a token is a secret"
    assert vote.organization == "local"
    assert after["stage"]["said"] == "1 vote of yours"
    theirs = open_run(tab, run_id, BOB)
    assert theirs["stage"]["said"] == "0 votes of yours, 1 of others"
    press(tab, run_id, theirs, "tie", BOB)
    assert {vote.voter.split()[0] for vote in store.votes(strengths_of(store, run_id))} == {"Ada", "Bob"}


def test_each_pair_is_asked_once_of_each_voter_and_then_it_is_over(tab: VoteRun, store: Store) -> None:
    run_id = sweep(store)
    shown, asked = open_run(tab, run_id), []
    while shown["stage"]["pairs"]:
        asked.append(frozenset(shown["stage"]["pairs"][0]["id"].split(".")))
        shown = press(tab, run_id, shown, "tie")
    assert len(asked) == len(set(asked)) == 3, "three strengths, three pairs"
    assert shown["stage"]["note"].startswith("You have seen every pair")
    assert open_run(tab, run_id, BOB)["stage"]["pairs"], "others have not"


def test_equal_pictures_are_not_asked_for(tab: VoteRun, store: Store) -> None:
    still = DrawingBackend(acts=lambda strength: min(strength, Decimal("0.5")))
    run_id = sweep(store, still)
    shown, asked = open_run(tab, run_id), []
    while shown["stage"]["pairs"]:
        asked.append({strengths_of(store, run_id)[each] for each in shown["stage"]["pairs"][0]["id"].split(".")})
        shown = press(tab, run_id, shown, "left")
    assert sorted(map(sorted, asked)) == [[Decimal(0), Decimal("0.5")], [Decimal(0), Decimal(1)]]


def test_undo_takes_the_last_own_vote_back_and_shows_its_pair(tab: VoteRun, store: Store) -> None:
    run_id = sweep(store)
    first = open_run(tab, run_id)
    after = press(tab, run_id, first, "left")
    press(tab, run_id, open_run(tab, run_id, BOB), "right", BOB)
    form = ADA.model_copy(update={"run": run_id, "name": "Ada L."})
    back = dict(tab.act(CALLER, form, Said(act="undo", id=after["stage"]["pairs"][0]["id"])))
    assert [pair["id"] for pair in back["stage"]["pairs"]] == [
        first["stage"]["pairs"][0]["id"], after["stage"]["pairs"][0]["id"],
    ]  # fmt: skip
    (vote,) = store.votes(strengths_of(store, run_id))
    assert vote.voter.startswith("Bob"), "votes of others stay, whoever voted last"
    again = dict(tab.act(CALLER, form, Said(act="undo", id="")))
    assert len(store.votes(strengths_of(store, run_id))) == 1
    assert again["stage"]["pairs"]


def test_ten_votes_that_follow_one_order_are_enough_and_the_reveal_names_it(tab: VoteRun, store: Store) -> None:
    run_id = sweep(store, strengths="0, 0.5, 1", seeds=[7, 8, 9, 10], prompts=["a red fox", "a boat"])
    choose = prefer(store, run_id, lambda strength: -abs(strength - Decimal("0.5")))
    shown, noted = open_run(tab, run_id), []
    for _ in range(24):
        noted.append(shown["stage"]["note"])
        shown = press(tab, run_id, shown, choose(shown))
    assert noted[0] == ""
    assert shown["stage"]["note"].startswith("Enough: the order is clear")
    assert shown["stage"]["enough"]
    form = ADA.model_copy(update={"run": run_id})
    html = tab.act(CALLER, form, Said(act="reveal"))["result"]
    assert "0.5 is liked best (24 votes of 1 voter)." in html
    assert html.index(">0.5<") < min(html.index(">1<"), html.index(">0 (base)<"))
    assert re.search(r"Ada \([0-9a-f]{8}\): 24", html)
    assert re.search(r"SSIM to base is better for the picture that was taken in \d+ of 24 votes", html)
    assert "24 votes prefer 0.5." in html, "and the answer has them"
    assert tab.act(CALLER, form, Said(act="on"))["result"] == ""


def test_the_reveal_says_whether_people_and_scenes_agree() -> None:
    measured = say(show(CURVE))
    lora, best = measured.value.lora.sha256, measured.best
    assert best is not None
    names = {f"{at}": Contender(lora=lora, strength=at, label=str(at)) for at in (best, Decimal("1.6"))}
    for taken, words in ((str(best), f"agree on {best}."), ("1.6", "disagree")):
        votes = [
            Vote(
                left=taken,
                right=other,
                outcome="left",
                voter="ada",
                created=datetime(2026, 1, 1, 0, number, tzinfo=UTC),
            )
            for number in range(12)
            for other in names
            if other != taken
        ]
        count = Count(contest=Contest(scenes=()), ranking=rank(votes, names), agreements={})
        assert words in view_result(count, [measured])["both"]
    nobody = Count(contest=Contest(scenes=()), ranking=None, agreements={})
    assert view_result(nobody, [measured])["both"] == ""


def test_a_voter_who_ties_everything_finds_nothing(tab: VoteRun, store: Store) -> None:
    run_id = sweep(store, seeds=list(range(14)))
    shown = open_run(tab, run_id)
    for _ in range(42):
        shown = press(tab, run_id, shown, "tie")
    html = tab.act(CALLER, ADA.model_copy(update={"run": run_id}), Said(act="reveal"))["result"]
    assert "No difference: 42 votes" in html
    assert "liked best" not in html


def test_checkpoints_are_contenders_and_a_part_can_be_chosen(tab: VoteRun, store: Store) -> None:
    twin = replace(SUBJECT, name="style")  # two files of one name stay apart
    run_id = sweep(store, loras=[STYLE, twin], strengths="0, 1")
    shown = open_run(tab, run_id)
    names = shown["ballot"]["choices"]
    assert len(names) == 4
    assert (
        len({strengths_of(store, run_id)[each] for pair in shown["stage"]["pairs"] for each in pair["id"].split(".")})
        == 2
    )
    part = ADA.model_copy(update={"ballot": next(name for name in names if name.endswith("1: which LoRA"))})
    asked = open_run(tab, run_id, part)["stage"]["pairs"]
    assert [{strengths_of(store, run_id)[each] for each in pair["id"].split(".")} for pair in asked] == [{Decimal(1)}]


def test_a_list_that_was_passed_by_changes_nothing(tab: VoteRun, store: Store) -> None:
    run_id = sweep(store)
    shown = open_run(tab, run_id)
    form = ADA.model_copy(update={"run": run_id, "ballot": shown["ballot"]["value"], "opened": shown["opened"]})
    assert tab.choose(CALLER, form, Said()) == {}
    other = form.model_copy(update={"run": sweep(store, prompts=["a boat"])})
    assert tab.choose(CALLER, other, Said())["stage"]["run"] == other.run


def test_what_a_page_makes_up_is_no_vote(tab: VoteRun, store: Store) -> None:
    run_id, elsewhere = sweep(store), sweep(store, prompts=["a boat"])
    mine, theirs = (list(strengths_of(store, each)) for each in (run_id, elsewhere))
    form = ADA.model_copy(update={"run": run_id})
    for named, value in (
        (f"{mine[0]}.{theirs[1]}", {"outcome": "left"}), (f"{mine[0]}.{mine[0]}", {"outcome": "left"}),
        ("", {"outcome": "left"}), (f"{mine[0]}.{mine[1]}", {"outcome": "best"}), (f"{mine[0]}.{mine[1]}", None),
    ):  # fmt: skip
        assert tab.act(CALLER, form, Said(act="vote", id=named, value=value))["stage"]["pairs"]
    assert not store.votes([*mine, *theirs])
    assert tab.act(CALLER, form, Said(act="dance")) == {}


def test_a_link_to_nothing_and_a_sweep_without_pictures_say_what_to_do(tab: VoteRun, store: Store) -> None:
    shown = open_run(tab, "run-gone")
    assert "There is no sweep" in shown["problem"]
    assert "python -m" not in shown["problem"]
    assert shown["stage"]["pairs"] == []
    alone = sweep(store, strengths="0")
    assert "no two pictures of one scene" in open_run(tab, alone)["problem"]


def test_the_list_has_own_sweeps_and_the_one_that_was_linked(tab: VoteRun, store: Store) -> None:
    assert "run a sweep first" in tab.refresh(CALLER, ADA, Said())["problem"]
    run_id = sweep(store)
    assert tab.refresh(CALLER, ADA, Said())["run"]["value"] == run_id, "the newest is opened at the first time"
    assert "run a sweep first" in tab.refresh(OTHER, BOB, Said())["problem"]
    shown = tab.open(OTHER, BOB.model_copy(update={"run": run_id}), Said())
    assert [found for _, found in shown["run"]["choices"]] == [run_id]
    assert shown["stage"]["pairs"]
