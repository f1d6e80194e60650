"""Runs, cells, scores, controls and ratings of sweeps."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("created", sa.DateTime(), nullable=False, index=True),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text()),
    )
    op.create_table(
        "cells",
        sa.Column("identity", sa.String(), primary_key=True),
        sa.Column("blob", sa.String(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("weights", sa.String(), nullable=False),
        sa.Column("precision", sa.String(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("provenance", sa.JSON(), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
    )
    op.create_index("ix_cells_speed", "cells", ["weights", "precision", "width", "height", "steps", "created"])
    op.create_table(
        "run_cells",
        sa.Column("run_id", sa.String(), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("position", sa.Integer(), primary_key=True),
        sa.Column("identity", sa.String(), nullable=False, index=True),
        sa.Column("error", sa.Text()),
    )
    op.create_table(
        "scores",
        sa.Column("identity", sa.String(), sa.ForeignKey("cells.identity"), primary_key=True),
        sa.Column("reference", sa.String(), sa.ForeignKey("cells.identity"), primary_key=True),
        sa.Column("metric", sa.String(), primary_key=True),
        sa.Column("value", sa.Float(), nullable=False),
    )
    op.create_table(
        "controls",
        sa.Column("reference", sa.String(), sa.ForeignKey("cells.identity"), primary_key=True),
        sa.Column("lora_sha256", sa.String(), primary_key=True),
        sa.Column("difference", sa.Integer(), nullable=False),
        sa.Column("tolerance", sa.Integer(), nullable=False),
    )
    op.create_table(
        "ratings",
        sa.Column("run_id", sa.String(), primary_key=True),
        sa.Column("position", sa.Integer(), primary_key=True),
        sa.Column("rating", sa.Integer()),
        sa.Column("note", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id", "position"], ["run_cells.run_id", "run_cells.position"]),
    )


def downgrade() -> None:
    for table in ("ratings", "controls", "scores", "run_cells", "cells", "runs"):
        op.drop_table(table)
