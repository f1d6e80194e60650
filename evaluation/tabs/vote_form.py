"""What the Vote tab holds and shows: its fields, a pair without anything that tells which is which, and the result."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import gradio as gr

from evaluation.axes import Training
from evaluation.captions import name_run, title_spec
from evaluation.grid import name_lora
from evaluation.judge.answer import Answer
from evaluation.judge.ballot import Contender, Count
from evaluation.judge.metrics import SCORES
from evaluation.judge.training import answer_training
from evaluation.judge.votes import Ranking, Standing
from evaluation.store.records import CellRecord, Run, Vote
from evaluation.tabs.fields import Box, Form

MAX_NAME: Final = 40
TAG: Final = 8
"""Letters of a browser's tag, which tells two voters of one name apart."""

MANY: Final = 40
"""Votes after which "nothing tells them apart" is a finding."""


class VoteForm(Form):
    """Which sweep, what of it is compared, and who votes.

    `token` is the browser's own secret; `opened` says what the stage shows.
    """

    run: Annotated[str | None, Box(gr.Dropdown, choices=[], label="Sweep", elem_id="vote-run")] = None
    ballot: Annotated[
        str | None, Box(gr.Dropdown, choices=[], label="What is compared", elem_id="vote-ballot", filterable=False)
    ] = None
    name: Annotated[
        str, Box(gr.Textbox, label="Your name", placeholder="optional", max_length=MAX_NAME, elem_id="vote-name")
    ] = ""
    token: Annotated[str, Box(gr.Textbox, visible="hidden")] = ""
    opened: tuple[str | None, str | None] = None, None

    @property
    def tag(self) -> str:
        """What tells this browser's votes from those of others, and does not tell its token."""
        return hashlib.sha256(f"voter:{self.token}".encode()).hexdigest()[:TAG]

    @property
    def voter(self) -> str:
        """The name that stands with a vote."""
        return f"{' '.join(self.name.split())[:MAX_NAME] or 'somebody'} ({self.tag})"

    def is_mine(self, vote: Vote) -> bool:
        """Whether this browser gave a vote, under whatever name."""
        return vote.voter.endswith(f"({self.tag})")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A pair as the page has it. `id` names its images by what they are made from, which tells nothing."""

    id: str
    left: str
    right: str
    prompt: str
    size: tuple[int, int]


def list_choices(history: Sequence[tuple[Run, Sequence[CellRecord]]]) -> list[tuple[str, str]]:
    """Return the sweeps that can be voted on, newest first, each as it is called and its id."""
    return [
        (call_run(run), run.id) for run, records in history if sum(record.image is not None for record in records) > 1
    ]


def call_run(run: Run) -> str:
    """Call a sweep as the list of earlier sweeps does."""
    spec = run.spec
    lora = f"{len(spec.loras)} LoRAs" if len(spec.loras) > 1 and not spec.training else name_lora(spec)
    return name_run(run.created, lora, title_spec(spec))


def view_stage(
    pairs: Sequence[Shown], *, run: Run, votes: Sequence[Vote], own: int, ranking: Ranking[Contender] | None, turn: int
) -> dict[str, Any]:
    """Return what vote.js is given: the pair in sight and the next, and how far the votes have come.

    `turn` is another one each time, so that the page hears of every answer.
    """
    progress = ranking.progress if ranking else 0.0
    others = len(votes) - own
    said = f"{own} vote{'s' * (own != 1)} of yours" + (f", {others} of others" if others else "")
    return {
        "turn": turn,
        "run": run.id,
        "pairs": [vars(pair) for pair in pairs],
        "said": said,
        "progress": round(100 * progress),
        "note": _advise(ranking, own, is_over=not pairs),
        "enough": bool(not pairs or (ranking and ranking.is_clear)),
        "own": own,
        "votes": len(votes),
    }


def _advise(ranking: Ranking[Contender] | None, own: int, *, is_over: bool) -> str:
    """What to do next, which tells nothing of who is ahead."""
    if ranking and ranking.is_clear:
        return "Enough: the order is clear. Reveal it, or vote on."
    if is_over:
        return "You have seen every pair there is. Reveal what they were; more scenes would make more pairs."
    if ranking and ranking.different:
        return "There is an order. Who is first is not clear yet: vote on, or reveal it."
    if ranking and ranking.votes >= MANY:
        return "So far nothing tells them apart, which is an answer too. Reveal it, or vote on."
    return ""


def view_result(count: Count, answers: Sequence[Answer], training: Training | None = None) -> Mapping[str, Any]:
    """Return what is revealed: the order with intervals, who voted, and what was measured."""
    told = answer_training(training, answers)
    ranking = count.ranking
    standings = ranking.standings if ranking else ()
    best = ranking.best if ranking and ranking.different else ()
    low, high = min((one.low for one in standings), default=0), max((one.high for one in standings), default=1)
    loras = {contender.lora for contender in count.contest.contenders.values()}
    return {
        "contest": count.contest.name,
        "sentence": ranking.sentence if ranking else "Nobody has voted yet.",
        "rows": [_view_standing(one, low, high, is_best=one.contender in best) for one in standings],
        "voters": [f"{voter}: {number}" for voter, number in ranking.voters.items()] if ranking else [],
        "neither": ranking.neither if ranking else 0,
        "agreements": [
            f"{SCORES[name].label} is better for the picture that was taken in {found.agreed} of {found.decided} votes "
            f"({found.agreed / found.decided:.0%})."
            for name, found in count.agreements.items()
        ],
        "both": _hold_together(best, answers),
        "answers": [
            *([(told.name, told.sentence)] if told else []),
            *((answer.label, answer.sentence) for answer in answers if answer.value.lora.sha256 in loras),
        ],
    }  # fmt: skip


def _hold_together(best: Sequence[Contender], answers: Sequence[Answer]) -> str:
    """Whether what people like best is what holds by the scenes; nothing where either names none."""
    named = {(answer.value.lora.sha256, at): mark for answer in answers for at, mark in answer.marks.items()}
    if not best or not any(answer.best is not None for answer in answers):
        return ""
    holding = [str(one) for one in best if named.get((one.lora or "", one.strength)) in ("use", "best")]
    if holding:
        return f"People and scenes agree on {', '.join(holding)}."
    return "People and scenes disagree: what people like best is not what holds by the scenes. Look at both."


def _view_standing(one: Standing[Contender], low: float, high: float, *, is_best: bool) -> Mapping[str, Any]:
    """One row: its interval as a bar from `start` to `start + width` percent, with a mark at `at`."""
    span = max(high - low, 1e-6)
    return {
        "label": str(one.contender),
        "best": is_best,
        "skill": f"{one.skill:+.1f}",
        "interval": f"{one.low:+.1f} to {one.high:+.1f}",
        "votes": one.votes,
        "start": round(100 * (one.low - low) / span, 1),
        "width": round(100 * (one.high - one.low) / span, 1),
        "at": round(100 * (one.skill - low) / span, 1),
    }
