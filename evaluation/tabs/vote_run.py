"""What happens on the Vote tab: open a sweep, show a pair, keep a vote, take it back, reveal.

The page holds the pair in sight and the next one, so that a vote shows the next at once; it says which pair it voted on
and which it shows now. A picture is shown as a copy without its metadata, at an address made of its pixels. Who has a
sweep's id may vote on it; the votes count for the sweep's organization, each under its voter's name.
"""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import gradio as gr

from evaluation.judge.answer import tell_cells
from evaluation.judge.ballot import Contender, count_contest, list_ballots, read_blind
from evaluation.judge.training import list_named
from evaluation.judge.votes import Contest, Pair, pick_pair, rank
from evaluation.report.draw import draw, part
from evaluation.report.grid_view import image_url
from evaluation.store.records import CellRecord, Outcome, Run, Vote
from evaluation.store.store import Store
from evaluation.tabs.page import Caller, Changes, Said, draw_error, keep_file
from evaluation.tabs.vote_form import Shown, VoteForm, call_run, list_choices, view_result, view_stage
from lora_runtime.errors import InvalidInput, KleinLabError, NotFound
from lora_runtime.written import quote

LINK: Final = "vote"
"""`?vote=RUN` opens the tab on a sweep: the link for others."""

RUNS: Final = 50
"""How many sweeps the list offers."""

OUTCOMES: Final[Mapping[str, Outcome]] = {"left": "left", "right": "right", "tie": "tie", "neither": "neither"}

EMPTY: Final[Mapping[str, Any]] = {
    "turn": 0, "run": "", "pairs": [], "said": "", "progress": 0, "note": "", "enough": False, "own": 0, "votes": 0,
}  # fmt: skip
"""The stage when there is nothing to vote on."""


@dataclass(frozen=True, kw_only=True)
class _Poll:
    """A sweep that is voted on: one of its contests, the votes on that, and which of them are this browser's."""

    run: Run
    records: Mapping[str, CellRecord]
    ballots: Sequence[Contest[Contender]]
    contest: Contest[Contender]
    votes: tuple[Vote, ...] = ()
    own: tuple[Vote, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VoteRun:
    """The handlers over one store. `_copies`: where the blind copy of a picture lies."""

    store: Store
    _copies: dict[Path, Path] = field(default_factory=dict)

    def load(self, caller: Caller, form: VoteForm, said: Said) -> Changes:
        """When a page opens: open the sweep that its address names."""
        linked = caller.http.query_params.get(LINK) if caller.http else None
        return self.open(caller, form.model_copy(update={"run": linked, "ballot": None}), said) if linked else {}

    def refresh(self, caller: Caller, form: VoteForm, said: Said) -> Changes:
        """Offer what was rendered meanwhile; what is chosen stays. The newest sweep is chosen at the first time."""
        choices = self._list_runs(caller, form.run)
        if form.run or not choices:
            text = (
                "" if choices else "Nothing to vote on yet: run a sweep first, then choose blind between its pictures."
            )
            return {"run": gr.update(choices=choices), "problem": part("hint", text=text)}
        return self.open(caller, form.model_copy(update={"run": choices[0][1]}), said)

    def choose(self, caller: Caller, form: VoteForm, said: Said) -> Changes:
        """Open what was chosen; a list that was only passed by tells it too, and changes nothing."""
        return {} if form.opened == (form.run, form.ballot) else self.open(caller, form, said)

    def open(self, caller: Caller, form: VoteForm, said: Said) -> Changes:
        """Show the first pair of a sweep."""
        try:
            poll = self._find(form)
        except KleinLabError as error:
            choices = self._list_runs(caller, None)
            cleared = gr.update(choices=choices, value=None), gr.update(choices=[], value=None)
            return {"run": cleared[0], "ballot": cleared[1], "problem": draw_error(error), "stage": EMPTY, "result": ""}
        names = [ballot.name for ballot in poll.ballots]
        return {
            "run": gr.update(choices=self._list_runs(caller, poll.run.id), value=poll.run.id),
            "ballot": gr.update(choices=names, value=poll.contest.name, visible=len(names) > 1),
            "opened": (poll.run.id, poll.contest.name),
            **self._stage(form, poll),
        }

    def act(self, caller: Caller, form: VoteForm, said: Said) -> Changes:
        """Do what was pressed on the stage or below the result; what goes wrong leaves a pair to go on with."""
        try:
            poll = self._find(form)
            match said.act:
                case "vote":
                    return self._vote(form, poll, said)
                case "undo":
                    return self._undo(form, poll, said)
                case "reveal":
                    return self._reveal(form, poll)
                case "on":
                    return self._stage(form, poll)
        except KleinLabError as error:
            return {"problem": draw_error(error), "stage": {**EMPTY, "turn": time.monotonic_ns()}}
        return {}

    def _vote(self, form: VoteForm, poll: _Poll, said: Said) -> Changes:
        pair, outcome = _find_pair(poll, said.id), OUTCOMES.get(said.named.get("outcome", ""))
        if pair is None or outcome is None:
            return self._stage(form, poll)
        self.store.vote(pair.left, pair.right, outcome, voter=form.voter, organization=poll.run.organization)
        return self._stage(form, self._count(form, poll), first=_find_pair(poll, said.named.get("next", "")))

    def _undo(self, form: VoteForm, poll: _Poll, said: Said) -> Changes:
        """Show the last pair of this browser again, with its sides; the one in sight comes after it."""
        if not poll.own:
            return self._stage(form, poll, first=_find_pair(poll, said.id))
        last = poll.own[-1]
        self.store.take_back(last)
        pair = Pair(left=last.left, right=last.right)
        return self._stage(form, self._count(form, poll), first=pair, second=_find_pair(poll, said.id))

    def _reveal(self, form: VoteForm, poll: _Poll) -> Changes:
        records = tuple(poll.records.values())
        answers, problem = tell_cells(self.store, records)
        result = view_result(count_contest(poll.contest, records, poll.votes), answers, poll.run.spec.training)
        return {"result": draw("vote-result.html", result=result, problem=problem), "problem": ""}

    def _find(self, form: VoteForm) -> _Poll:
        """The sweep that the page votes on.

        Raises:
            NotFound, InvalidInput: There is none, or nothing in it to choose between.
        """
        if not form.run:
            raise InvalidInput("Choose a sweep to vote on.")
        try:
            run, records = self.store.look(form.run)
        except NotFound as error:
            # Not the error's own words: those tell whoever sits at the machine which command lists the runs.
            text = f"There is no sweep {quote(form.run)} here. The link may be cut short, or the sweep was deleted."
            raise NotFound(text) from error
        ballots = list_ballots(records, kind="checkpoint" if run.spec.training else "LoRA")
        if not ballots:
            raise InvalidInput(
                "This sweep has no two pictures of one scene yet. Continue it on the Sweep tab, then vote."
            )
        asked = next((ballot for ballot in ballots if ballot.name == form.ballot), None)
        contest = asked or self._choose_ballot(run, records, ballots)
        known = {record.cell.identity: record for record in records}
        return self._count(form, _Poll(run=run, records=known, ballots=ballots, contest=contest))

    def _choose_ballot(
        self, run: Run, records: Sequence[CellRecord], ballots: Sequence[Contest[Contender]]
    ) -> Contest[Contender]:
        """What to begin with: all; of a training run, which makes too many, the checkpoints at the advised strength."""
        if run.spec.training is None:
            return ballots[0]
        answers, _ = tell_cells(self.store, records)
        advised = {answer.best for answer, _ in list_named(run.spec.training, records, answers)[:1]}
        at = (ballot for ballot in ballots if {one.strength for one in ballot.contenders.values()} == advised)
        return next(at, ballots[0])

    def _count(self, form: VoteForm, poll: _Poll) -> _Poll:
        """The poll with the votes that there are now."""
        votes = self.store.votes(poll.contest.contenders, organization=poll.run.organization)
        return replace(poll, votes=votes, own=tuple(vote for vote in votes if form.is_mine(vote)))

    def _stage(self, form: VoteForm, poll: _Poll, *, first: Pair | None = None, second: Pair | None = None) -> Changes:
        """Show a pair, and make the next one ready."""
        without = {frozenset((vote.left, vote.right)) for vote in poll.own}
        shown: list[Shown] = []
        for wanted in (first, second):
            pair = wanted if wanted and _key(wanted) not in without else None
            if found := self._show(poll, without, pair):
                shown.append(found)
                without.add(frozenset(found.id.split(_BETWEEN)))
        ranking = rank(poll.votes, poll.contest.contenders)
        stage = view_stage(
            shown, run=poll.run, votes=poll.votes, own=len(poll.own), ranking=ranking, turn=time.monotonic_ns()
        )
        return {"stage": stage, "result": "", "problem": "", "voted": poll.run.id}

    def _show(self, poll: _Poll, without: set[frozenset[str]], pair: Pair | None) -> Shown | None:
        """A pair as the page shows it: the one that is wanted, or the most telling whose pictures are not the same."""
        while pair := pair or pick_pair(poll.contest, poll.votes, random.Random(), without=without):
            left, right = poll.records[pair.left], poll.records[pair.right]
            copies = self._copy(left), self._copy(right)
            if None not in copies and copies[0] != copies[1]:
                request = left.cell.request
                return Shown(
                    id=f"{pair.left}{_BETWEEN}{pair.right}",
                    left=copies[0] or "",
                    right=copies[1] or "",
                    prompt=request.prompt,
                    size=(request.width, request.height),
                )
            without.add(_key(pair))
            pair = None
        return None

    def _copy(self, record: CellRecord) -> str | None:
        """The address of a blind copy; equal pictures have the same."""
        if record.image is None:
            return None
        copy = self._copies.get(record.image)
        if copy is None or not copy.exists():  # Gradio empties its cache after a day
            copy = self._copies[record.image] = Path(keep_file(read_blind(record.image), "picture.png"))
        return image_url(copy)

    def _list_runs(self, caller: Caller, chosen: str | None) -> list[tuple[str, str]]:
        """The caller's sweeps, and the one that is open, be it somebody else's."""
        choices = list_choices(self.store.history(RUNS, organization=caller.organization, origin="sweep"))
        if chosen and chosen not in {run_id for _, run_id in choices}:
            choices = [(call_run(self.store.run(chosen)), chosen), *choices]
        return choices


_BETWEEN: Final = "."


def _key(pair: Pair) -> frozenset[str]:
    return frozenset((pair.left, pair.right))


def _find_pair(poll: _Poll, written: str) -> Pair | None:
    """The pair that the page names, if its images stand in one scene: a page may send anything."""
    left, _, right = written.partition(_BETWEEN)
    fits = left != right and any({left, right} <= set(scene.values()) for scene in poll.contest.scenes)
    return Pair(left=left, right=right) if fits else None
