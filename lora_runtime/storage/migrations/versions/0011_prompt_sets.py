"""Prompts that an organization keeps under a name, like presets of the form."""

import sqlalchemy as sa
from alembic import op

revision = "0011_prompt_sets"
down_revision = "0010_training_runs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "prompt_sets",
        sa.Column("organization", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("form", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("prompt_sets")
