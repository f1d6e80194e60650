"""Which runs are under way: the next start of a server offers to go on with those."""

import sqlalchemy as sa
from alembic import op

revision = "0009_under_way"
down_revision = "0008_recommended"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("under_way", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    op.drop_column("runs", "under_way")
