"""Where on the network a finetune was fetched from: the same address is not fetched twice."""

import sqlalchemy as sa
from alembic import op

revision = "0004_sources"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("finetunes", sa.Column("sources", sa.JSON()))


def downgrade() -> None:
    op.drop_column("finetunes", "sources")
