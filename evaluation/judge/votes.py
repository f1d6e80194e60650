"""What people see when they do not know which is which: blind votes between two images of one scene, and their order.

A voter is shown two images of one prompt and seed, sides at random, and takes the left, the right, calls it a tie, or
wants neither. `pick_pair` asks what is least known next; `rank` puts the contenders (strengths, or checkpoints) in
order by the Bradley-Terry model with Davidson's ties, with a bootstrap interval, and says whether there is any order at
all. A vote belongs to its two images: it counts wherever they are shown.

Source: Bradley and Terry 1952, doi:10.2307/2334029; Davidson 1970, doi:10.2307/2283595 (ties).
"""

import math
import random
from collections import Counter
from collections.abc import Container, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

from evaluation.store.records import Vote

Values: TypeAlias = npt.NDArray[np.float64]
T = TypeVar("T", bound=Hashable)

PRIOR: Final = 2.0
"""Standard deviation of skills before any vote, in log-odds: it keeps one who never lost from an endless lead."""

SAMPLES: Final = 200
"""How often votes are drawn again for an interval."""

TOLERANCE: Final = 1e-6
"""Newton's steps end below it."""

INTERVAL: Final = 0.95
CHANCE: Final = 0.05
"""Below this probability under "all are alike", the order is more than chance."""


@dataclass(frozen=True, kw_only=True)
class Standing(Generic[T]):
    """One contender: its skill (log-odds of being taken, mean 0) with its interval, and the votes it was part of."""

    contender: T
    skill: float
    low: float
    high: float
    votes: int


@dataclass(frozen=True, kw_only=True)
class Ranking(Generic[T]):
    """The order of contenders, best first, and how sure it is.

    `best` are those that cannot be told from the first: all of them where nothing is `different`. `neither` counts
    votes that wanted none of the two; for the order they are ties. `voters` says who gave how many.
    """

    standings: tuple[Standing[T], ...]
    best: tuple[T, ...]
    different: bool
    p: float
    votes: int
    decided: int
    neither: int
    voters: Mapping[str, int]

    @property
    def is_clear(self) -> bool:
        """Whether the first can be told from all others, beyond chance."""
        return self.different and len(self.best) == 1

    @property
    def progress(self) -> float:
        """How far these votes have come from chance, 0 to 1: nothing of which is ahead."""
        return 1.0 if self.is_clear else min(0.95, math.log(self.p) / math.log(CHANCE))

    @property
    def sentence(self) -> str:
        """The order in words, with its numbers."""
        people = f"{self.votes} vote{'s' * (self.votes > 1)} of {len(self.voters)} voter{'s' * (len(self.voters) > 1)}"
        if not self.different:
            return f"No difference: {people} tell nobody apart (p = {self.p:.2f})."
        first = ", ".join(str(contender) for contender in self.best)
        alike = "is liked best" if len(self.best) == 1 else "are liked best and cannot be told apart"
        return f"{first} {alike} ({people})."


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """In how many of the decided votes a score is higher for the image that was taken."""

    agreed: int
    decided: int


@dataclass(frozen=True, kw_only=True)
class Contest(Generic[T]):
    """What is voted on, as `name` says. `scenes`: for each scene the image of each contender, by its identity."""

    scenes: tuple[Mapping[T, str], ...]
    name: str = ""

    @property
    def contenders(self) -> Mapping[str, T]:
        """Whose each image is."""
        return {image: contender for scene in self.scenes for contender, image in scene.items()}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two images of one scene, by identity, to be shown side by side with nothing that tells which is which."""

    left: str
    right: str


@dataclass(frozen=True, kw_only=True)
class _Counts(Generic[T]):
    """Votes as numbers: `wins[i, j]` times i was taken before j, `ties[i, j]` (symmetric) times neither was."""

    contenders: tuple[T, ...]
    wins: Values
    ties: Values


def rank(votes: Sequence[Vote], contenders: Mapping[str, T], *, seed: int = 0) -> Ranking[T] | None:
    """Put the contenders that `votes` speak of in order; None when they speak of none.

    `contenders` says whose image an identity is; votes on other images, or between two of the same, do not count.
    """
    counting = sorted(_select(votes, contenders), key=lambda vote: vote.created)
    if not counting:
        return None
    counts = _count(counting, contenders)
    skills = _fit(counts.wins[None], counts.ties[None]).skills[0]
    rng = np.random.default_rng(seed)
    drawn = _draw_again(counts, rng)
    p = _test_alike(counting, contenders, counts)
    order = np.argsort(-skills, kind="stable")
    ends = 50 * (1 - INTERVAL), 50 * (1 + INTERVAL)
    low, high = np.percentile(drawn, ends, axis=0)
    ahead = np.percentile(drawn[:, order[0], None] - drawn, ends[0], axis=0)
    part = (counts.wins + counts.wins.T + counts.ties).sum(axis=1)
    outcomes = Counter(vote.outcome for vote in counting)
    return Ranking(
        standings=tuple(
            Standing(
                contender=counts.contenders[i],
                skill=float(skills[i]),
                low=float(low[i]),
                high=float(high[i]),
                votes=int(part[i]),
            )
            for i in order
        ),
        best=tuple(counts.contenders[i] for i in order if p >= CHANCE or ahead[i] <= 0),
        different=p < CHANCE,
        p=p,
        votes=len(counting),
        decided=outcomes["left"] + outcomes["right"],
        neither=outcomes["neither"],
        voters=Counter(vote.voter for vote in counting),
    )


def agree(votes: Sequence[Vote], scores: Mapping[str, float]) -> Agreement:
    """Compare votes with a score of the images, of which more should be better; a score that is alike agrees not."""
    decided = agreed = 0
    for vote in votes:
        if vote.outcome in ("left", "right") and vote.left in scores and vote.right in scores:
            taken, other = (vote.left, vote.right) if vote.outcome == "left" else (vote.right, vote.left)
            decided += 1
            agreed += scores[taken] > scores[other]
    return Agreement(agreed=agreed, decided=decided)


def pick_pair(
    contest: Contest[T], votes: Sequence[Vote], rng: random.Random, *, without: Container[frozenset[str]] = frozenset()
) -> Pair | None:
    """Return the two images whose vote tells most about the order; None when no scene has two contenders.

    `without` are pairs of images not to ask for.

    That is the pair with the largest product of what is unknown (the variance of the difference of skills) and what a
    vote can tell (less, the surer its outcome). Of its scenes the one with the fewest votes is shown; equals, sides
    and order are drawn.
    """
    contenders = contest.contenders
    counting = _select(votes, contenders)
    seen = Counter(frozenset((vote.left, vote.right)) for vote in counting)
    everyone = tuple(dict.fromkeys(contender for scene in contest.scenes for contender in scene))
    together = {
        pair: scenes
        for pair in combinations(range(len(everyone)), 2)
        if (scenes := _find_images(contest, everyone[pair[0]], everyone[pair[1]], without))
    }
    if not together:
        return None
    counts = _count(counting, contenders, everyone)
    fit = _fit(counts.wins[None], counts.ties[None])
    gain = fit.spread[0] * fit.information[0]
    first, second = max(together, key=lambda pair: (gain[pair], rng.random()))
    chosen = min(together[first, second], key=lambda pair: (seen[frozenset(pair)], rng.random()))
    rng.shuffle(chosen)
    return Pair(left=chosen[0], right=chosen[1])


def _find_images(contest: Contest[T], first: T, second: T, without: Container[frozenset[str]]) -> list[list[str]]:
    """The images of two contenders in each scene that has both."""
    both = ([scene[first], scene[second]] for scene in contest.scenes if first in scene and second in scene)
    return [images for images in both if frozenset(images) not in without]


def _select(votes: Sequence[Vote], contenders: Mapping[str, T]) -> list[Vote]:
    """The votes between images of two different contenders."""
    return [
        vote
        for vote in votes
        if vote.left in contenders and vote.right in contenders and contenders[vote.left] != contenders[vote.right]
    ]


def _count(votes: Sequence[Vote], contenders: Mapping[str, T], everyone: tuple[T, ...] = ()) -> _Counts[T]:
    spoken_of = [contenders[image] for vote in votes for image in (vote.left, vote.right)]
    names = everyone or tuple(dict.fromkeys(spoken_of))
    place = {name: number for number, name in enumerate(names)}
    wins, ties = np.zeros((2, len(names), len(names)))
    for vote in votes:
        left, right = place[contenders[vote.left]], place[contenders[vote.right]]
        if vote.outcome == "left":
            wins[left, right] += 1
        elif vote.outcome == "right":
            wins[right, left] += 1
        else:
            ties[left, right] += 1
            ties[right, left] += 1
    return _Counts(contenders=names, wins=wins, ties=ties)


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """Skills (B, n); for each pair the variance of their difference, and Fisher's information of one vote (B, n, n)."""

    skills: Values
    spread: Values
    information: Values


def _fit(wins: Values, ties: Values) -> _Fit:
    """Fit each of B sets of counts, (B, n, n) each, by Newton's method on the log posterior, which has one summit.

    With d the half difference of two skills, taking the first, the second or none go as exp(d), exp(-d), exp(tie).
    """
    batch, n, _ = wins.shape
    theta = np.zeros((batch, n + 1))  # n skills, then the log weight of a tie
    prior = np.eye(n + 1) / PRIOR**2
    played = wins + wins.transpose(0, 2, 1) + ties
    won = wins.sum(axis=2) - wins.sum(axis=1)
    diagonal = np.arange(n)
    for _ in range(50):
        half = (theta[:, :n, None] - theta[:, None, :n]) / 2
        tie = np.broadcast_to(theta[:, n, None, None], half.shape)
        first, second, none = softmax(np.stack([half, -half, tie]), axis=0)
        lead = first - second
        gradient = np.empty_like(theta)
        gradient[:, :n] = (won - (played * lead).sum(axis=2)) / 2
        gradient[:, n] = (ties - played * none).sum(axis=(1, 2)) / 2
        gradient -= theta @ prior
        information = (first + second - lead**2) / 4
        weight = played * information
        hessian = np.zeros((batch, n + 1, n + 1))
        hessian[:, :n, :n] = -weight
        hessian[:, diagonal, diagonal] += weight.sum(axis=2)
        hessian[:, :n, n] = hessian[:, n, :n] = -(played * lead * none).sum(axis=2) / 2
        hessian[:, n, n] = (played * none * (1 - none)).sum(axis=(1, 2)) / 2
        hessian += prior
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        largest = np.abs(step).max(axis=1, keepdims=True)
        theta += step / np.maximum(largest, 1)
        if largest.max() < TOLERANCE:
            break
    inverse = np.linalg.inv(hessian)[:, :n, :n]
    variance = inverse[:, diagonal, diagonal]
    spread = variance[:, :, None] + variance[:, None, :] - 2 * inverse
    skills = theta[:, :n] - theta[:, :n].mean(axis=1, keepdims=True)
    return _Fit(skills=skills, spread=spread, information=information)


def _draw_again(counts: _Counts[T], rng: np.random.Generator) -> Values:
    """The skills (SAMPLES, n) by votes that are drawn from the votes, with replacement."""
    pool = np.stack([counts.wins, np.triu(counts.ties)])
    total = int(pool.sum())
    drawn = rng.multinomial(total, pool.ravel() / total, size=SAMPLES).reshape(SAMPLES, *pool.shape).astype(float)
    return _fit(drawn[:, 0], drawn[:, 1] + drawn[:, 1].transpose(0, 2, 1)).skills


def _test_alike(votes: Sequence[Vote], contenders: Mapping[str, T], counts: _Counts[T]) -> float:
    """A p value for "all are alike": how often a voter who clicks at random would look as sure as these, at most.

    If all are alike, a decided vote is a fair coin, whatever was asked and whenever one stopped. So we bet on each vote
    by what the votes before it say; the odds won are a martingale, and 1 in its highest value is a p value.
    Source: Ramdas et al. 2023, arXiv:2210.01948 (testing by betting).
    """
    place = {name: number for number, name in enumerate(counts.contenders)}
    steps = [_count(votes[number : number + 1], contenders, counts.contenders) for number in range(len(votes))]
    wins, ties = (np.stack([getattr(step, name) for step in steps]) for name in ("wins", "ties"))
    before = _fit(np.cumsum(wins, axis=0) - wins, np.cumsum(ties, axis=0) - ties).skills
    odds = 0.0
    highest = 0.0
    for vote, skills in zip(votes, before, strict=True):
        if vote.outcome in ("left", "right"):
            lead = skills[place[contenders[vote.left]]] - skills[place[contenders[vote.right]]]
            odds += math.log(2 * expit(lead if vote.outcome == "left" else -lead))
            highest = max(highest, odds)
    return math.exp(-highest)
