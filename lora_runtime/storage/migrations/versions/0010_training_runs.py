"""Files that were dropped at once are the checkpoints of a training run."""

import sqlalchemy as sa
from alembic import op

revision = "0010_training_runs"
down_revision = "0009_under_way"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "training_runs",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column(
            "organization_id",
            sa.String(),
            sa.ForeignKey("organizations.id", ondelete="CASCADE"),
            nullable=False,
            index=True,
        ),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("checkpoints", sa.JSON(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.UniqueConstraint("organization_id", "name"),
    )


def downgrade() -> None:
    op.drop_table("training_runs")
