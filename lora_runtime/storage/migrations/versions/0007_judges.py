"""Scores stand with the judge that gave them; ratings belong to images; votes, and the vectors that judges see.

Old prompt fits get the judge `unknown`, which is nobody's id: they are kept and never read beside others. A rating that
an organization gave to one image in several runs becomes one: the newest run's stars, and every note.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007_judges"
down_revision = "0006_bills"
branch_labels = None
depends_on = None

UNKNOWN = "unknown"


def upgrade() -> None:
    judge = sa.Column("judge", sa.String(), primary_key=True)
    _copy_scores([judge], "judge, ", f"CASE WHEN metric = 'clip' THEN '{UNKNOWN}' ELSE '' END, ")
    op.create_table(
        "embeddings",
        sa.Column("identity", sa.String(), sa.ForeignKey("cells.identity"), primary_key=True),
        sa.Column("judge", sa.String(), primary_key=True),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "votes",
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("left", sa.String(), sa.ForeignKey("cells.identity"), nullable=False, index=True),
        sa.Column("right", sa.String(), sa.ForeignKey("cells.identity"), nullable=False, index=True),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("voter", sa.String(), nullable=False),
        sa.Column("organization", sa.String(), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
    )
    _give_ratings_to_images()


def _copy_scores(more: list[sa.Column[str]], into: str, values: str, where: str = "") -> None:
    """Make the table anew, as a primary key cannot be changed in place, and fill it from the one before."""
    op.rename_table("scores", "scores_before")
    op.create_table(
        "scores",
        sa.Column("identity", sa.String(), sa.ForeignKey("cells.identity"), primary_key=True),
        sa.Column("reference", sa.String(), sa.ForeignKey("cells.identity"), primary_key=True),
        sa.Column("metric", sa.String(), primary_key=True),
        *more,
        sa.Column("value", sa.Float(), nullable=False),
    )
    op.execute(
        f"INSERT INTO scores (identity, reference, metric, {into}value) "
        f"SELECT identity, reference, metric, {values}value FROM scores_before {where}"
    )
    op.drop_table("scores_before")


def _give_ratings_to_images() -> None:
    given = op.get_bind().execute(
        sa.text(
            "SELECT c.identity, r.organization, o.rating, o.note FROM ratings o "
            "JOIN run_cells c ON c.run_id = o.run_id AND c.position = o.position "
            "JOIN runs r ON r.id = o.run_id ORDER BY r.created, r.id, o.position"
        )
    )
    rating: dict[tuple[str, str], int | None] = {}
    notes: dict[tuple[str, str], dict[str, None]] = {}
    for identity, organization, stars, note in given:
        key = identity, organization
        rating[key] = rating.get(key) if stars is None else stars
        notes.setdefault(key, {}).update({note: None} if note else {})
    op.drop_table("ratings")
    table = op.create_table(
        "ratings",
        sa.Column("identity", sa.String(), primary_key=True),
        sa.Column("organization", sa.String(), primary_key=True),
        sa.Column("rating", sa.Integer()),
        sa.Column("note", sa.Text(), nullable=False),
    )
    rows = [
        {"identity": key[0], "organization": key[1], "rating": stars, "note": "\n".join(notes[key])}
        for key, stars in rating.items()
    ]
    if rows:
        op.bulk_insert(table, rows)


def downgrade() -> None:
    op.rename_table("ratings", "ratings_after")
    op.create_table(
        "ratings",
        sa.Column("run_id", sa.String(), primary_key=True),
        sa.Column("position", sa.Integer(), primary_key=True),
        sa.Column("rating", sa.Integer()),
        sa.Column("note", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id", "position"], ["run_cells.run_id", "run_cells.position"]),
    )
    op.execute(
        "INSERT INTO ratings (run_id, position, rating, note) SELECT c.run_id, c.position, o.rating, o.note "
        "FROM ratings_after o JOIN run_cells c ON c.identity = o.identity "
        "JOIN runs r ON r.id = c.run_id AND r.organization = o.organization"
    )
    for table in ("ratings_after", "votes", "embeddings"):
        op.drop_table(table)
    _copy_scores([], "", "", f"WHERE judge IN ('', '{UNKNOWN}')")
