"""What people and judges think of images: ratings, votes, and the vectors that judges see.

All belong to the image, by its identity: what was rated, voted on or looked at in one run is known in every run that
shows the same image. Ratings and votes are an organization's own; what a judge sees is everybody's.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

import numpy as np
import numpy.typing as npt
from sqlalchemy import and_, delete, or_, select
from sqlalchemy.orm import Session

from evaluation.store.records import Outcome, Vote
from evaluation.store.rows import CellRow, EmbeddingRow, RatingRow, RunCellRow, RunRow, VoteRow
from lora_runtime.errors import InvalidInput, NotFound
from lora_runtime.written import quote

MAX_NOTE: Final = 2000
MAX_VOTER: Final = 80

FLOATS: Final = np.dtype("<f4")
"""How vectors are kept."""


def read_votes(session: Session, identities: Iterable[str], organization: str | None) -> tuple[Vote, ...]:
    """Return the votes between two of these images, oldest first; None is every organization."""
    known = list(set(identities))
    both = select(VoteRow).where(VoteRow.left.in_(known), VoteRow.right.in_(known)).order_by(VoteRow.number)
    if organization is not None:
        both = both.where(VoteRow.organization == organization)
    return tuple(
        Vote(
            left=row.left,
            right=row.right,
            outcome=row.outcome,
            voter=row.voter,
            created=row.created.replace(tzinfo=UTC),
            organization=row.organization,
        )
        for row in session.scalars(both)
    )


def add_vote(
    session: Session, left: str, right: str, outcome: Outcome, *, voter: str, organization: str, created: datetime
) -> None:
    """Keep a vote between two images.

    Raises:
        InvalidInput: The voter has no name, or one that is too long.
        NotFound: One of them is no image.
    """
    if not voter.strip() or len(voter) > MAX_VOTER:
        raise InvalidInput(f"Voter: {quote(voter)} is no name. Give one of 1 to {MAX_VOTER} characters.")
    for identity in (left, right):
        if session.get(CellRow, identity) is None:
            raise NotFound(f"There is no image {quote(identity)} to vote on. It may have been deleted.")
    session.add(
        VoteRow(left=left, right=right, outcome=outcome, voter=voter, organization=organization, created=created)
    )


def remove_vote(session: Session, vote: Vote) -> None:
    """Take the voter's last vote like `vote` away; nothing where it has gone already."""
    like = select(VoteRow).where(
        VoteRow.left == vote.left,
        VoteRow.right == vote.right,
        VoteRow.voter == vote.voter,
        VoteRow.organization == vote.organization,
    )
    row = session.scalars(like.order_by(VoteRow.number.desc()).limit(1)).first()
    if row is not None:
        session.delete(row)


def check_rating(rating: int | None, note: str) -> None:
    """Check a rating (1 to 5, or None) and a note.

    Raises:
        InvalidInput: The rating is not from 1 to 5, or the note too long.
    """
    if rating is not None and not 1 <= rating <= 5:
        raise InvalidInput(f"Rating: {rating} is not from 1 to 5.")
    if len(note) > MAX_NOTE:
        raise InvalidInput(f"Note: {len(note)} characters are too many; at most {MAX_NOTE} are allowed.")


def keep_rating(session: Session, run: RunRow, position: int, rating: int | None, note: str) -> None:
    """Keep what the organization of a run thinks of the image at a position, in place of an earlier rating.

    Raises:
        NotFound: There is no such cell.
    """
    cell = session.get(RunCellRow, (run.id, position))
    if cell is None:
        raise NotFound(f"Run {run.id} has no cell {position}.")
    session.merge(RatingRow(identity=cell.identity, organization=run.organization, rating=rating, note=note))


def read_embeddings(session: Session, identities: Iterable[str], judge: str) -> dict[str, npt.NDArray[np.float32]]:
    """Return the vectors by which a judge (its id) knows these images, as far as it has seen them."""
    seen = select(EmbeddingRow.identity, EmbeddingRow.vector)
    seen = seen.where(EmbeddingRow.judge == judge, EmbeddingRow.identity.in_(list(set(identities))))
    return {
        identity: np.frombuffer(vector, FLOATS).astype(np.float32, copy=False)
        for identity, vector in session.execute(seen)
    }


def keep_embeddings(session: Session, judge: str, vectors: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Keep the vectors of images that a judge has seen."""
    for identity, vector in vectors.items():
        session.merge(EmbeddingRow(identity=identity, judge=judge, vector=vector.astype(FLOATS).tobytes()))


def forget_images(session: Session, identities: set[str]) -> None:
    """Remove the votes and vectors of images that go."""
    session.execute(delete(VoteRow).where(or_(VoteRow.left.in_(identities), VoteRow.right.in_(identities))))
    session.execute(delete(EmbeddingRow).where(EmbeddingRow.identity.in_(identities)))


def forget_opinions(session: Session, identities: set[str], organization: str) -> None:
    """Remove what an organization thinks of those of these images that stand in none of its runs any more."""
    elsewhere = (
        select(RunCellRow.identity)
        .join(RunRow, and_(RunRow.id == RunCellRow.run_id, RunRow.organization == organization))
        .where(RunCellRow.identity.in_(identities), RunCellRow.deleted.is_(None))
    )
    gone = identities - set(session.scalars(elsewhere))
    session.execute(delete(RatingRow).where(RatingRow.organization == organization, RatingRow.identity.in_(gone)))
    on_gone = or_(VoteRow.left.in_(gone), VoteRow.right.in_(gone))
    session.execute(delete(VoteRow).where(VoteRow.organization == organization, on_gone))
