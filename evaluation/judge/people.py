"""What people say of the strengths of one value of a sweep's axis: ratings and blind votes, as evidence with a number.

They lean a strength towards or away from being the best of those that hold. A click weighs at most `WEIGHT` of a scene,
so that one never outweighs what scenes show, and many do. Ratings and votes belong to images, and an image counts once,
whatever runs show it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import mean
from typing import Final

from scipy.special import expit

from evaluation.judge.votes import Ranking, rank
from evaluation.store.records import CellRecord, Vote
from evaluation.store.store import Store
from evaluation.strengths import exact

WEIGHT: Final = 0.5
"""What one click counts for, in scenes."""

SCENES: Final = 4
"""On how many scenes votes must stand to name a strength where the scenes themselves cannot."""

STARS: Final = (1, 5)


@dataclass(frozen=True, kw_only=True)
class People:
    """The ratings of each strength (1 to 5 stars) and the order that votes put strengths in, 0 being the base model.

    `scenes` counts those that were voted on.
    """

    ratings: tuple[tuple[Decimal, tuple[int, ...]], ...] = ()
    ranking: Ranking[Decimal] | None = None
    scenes: int = 0

    @property
    def votes(self) -> int:
        """How many votes there are."""
        return self.ranking.votes if self.ranking else 0

    @property
    def preferred(self) -> tuple[Decimal, ...]:
        """The strengths that votes prefer beyond chance, from low to high; none as long as they tell nobody apart."""
        return tuple(sorted(self.ranking.best)) if self.ranking and self.ranking.different else ()

    @property
    def decides(self) -> tuple[Decimal, ...]:
        """The strengths that votes may name by themselves."""
        return self.preferred if self.scenes >= SCENES else ()

    def lean(self, strength: Decimal) -> float:
        """How far people lean towards a strength, in scenes; 0 where they said nothing, or nothing either way."""
        low, high = STARS
        stars = sum(
            2 * (given - low) / (high - low) - 1 for at, all_ in self.ratings if at == strength for given in all_
        )
        standings = self.ranking.standings if self.ranking else ()
        votes = sum(one.votes * (2 * expit(one.skill) - 1) for one in standings if one.contender == strength)
        return WEIGHT * float(stars + votes)

    @property
    def sentence(self) -> str:
        """Which strengths votes prefer; nothing as long as that may be chance."""
        return f"{self._count} prefer {_join(self.preferred)}." if self.preferred else ""

    @property
    def lines(self) -> tuple[str, ...]:
        """What was rated and voted, in sentences."""
        said = []
        if self.ratings:
            rated = ", ".join(
                f"{exact(at)} {mean(given):.1f} of 5 ({len(given)} rating{'s' * (len(given) > 1)})"
                for at, given in self.ratings
            )
            said.append(f"People say: {rated}.")
        if self.ranking and self.preferred:
            voters = len(self.ranking.voters)
            said.append(
                f"{self._count} by {voters} voter{'s' * (voters > 1)}, who did not know which strength was which, "
                f"prefer {_join(self.preferred)} (p = {self.ranking.p:.2g})."
            )
        elif self.ranking:
            said.append(f"{self._count} tell{'s' * (self.votes == 1)} no strength apart yet.")
        return tuple(said)

    @property
    def _count(self) -> str:
        return f"{self.votes} vote{'s' * (self.votes > 1)}"


def find_votes(store: Store, records: Sequence[CellRecord]) -> list[Vote]:
    """Return the votes on the images of these cells, and on their base images, that the cells' organizations have."""
    organizations = {record.organization for record in records}
    images = {record.cell.identity for record in records} | {record.cell.base for record in records}
    return [vote for vote in store.votes(images) if vote.organization in organizations]


def hear(records: Sequence[CellRecord], votes: Sequence[Vote]) -> People:
    """Return what people say of the strengths of one value, of whose images `records` and `votes` tell."""
    rated = {record.cell.identity: record for record in records if record.rating is not None}
    found: dict[Decimal, list[int]] = {}
    for record in rated.values():
        found.setdefault(record.cell.request.strength, []).append(record.rating or 0)
    strengths = {record.cell.base: Decimal(0) for record in records}
    strengths |= {record.cell.identity: record.cell.request.strength for record in records}
    scenes = {record.cell.identity: record.cell.base for record in records}
    on_them = [vote for vote in votes if vote.left in strengths and vote.right in strengths]
    return People(
        ratings=tuple((strength, tuple(given)) for strength, given in sorted(found.items())),
        ranking=rank(on_them, strengths),
        scenes=len({scenes.get(vote.left) or scenes.get(vote.right) for vote in on_them}),
    )


def _join(strengths: Sequence[Decimal]) -> str:
    names = [exact(strength) for strength in strengths]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
