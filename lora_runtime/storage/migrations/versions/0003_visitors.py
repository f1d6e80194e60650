"""Whose a run is and what made it; deletions that can be undone; presets of the sweep form.

Columns named `deleted` are null until their row is deleted: a UTC time in `run_cells`, seconds since 1970 in
`finetunes`, as the other times of those tables.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("organization", sa.String(), nullable=False, server_default="local"))
    op.add_column("runs", sa.Column("origin", sa.String(), nullable=False, server_default="sweep"))
    op.create_index("ix_runs_organization", "runs", ["organization", "created"])
    op.add_column("run_cells", sa.Column("deleted", sa.DateTime()))
    op.add_column("finetunes", sa.Column("deleted", sa.Double()))
    op.create_table(
        "presets",
        sa.Column("organization", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("form", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("presets")
    op.drop_column("finetunes", "deleted")
    op.drop_column("run_cells", "deleted")
    op.drop_index("ix_runs_organization", "runs")
    op.drop_column("runs", "origin")
    op.drop_column("runs", "organization")
