"""The strength that the owner of a finetune recommends, as it was written: a decimal."""

import sqlalchemy as sa
from alembic import op

revision = "0008_recommended"
down_revision = "0007_judges"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("finetunes", sa.Column("recommended_strength", sa.String()))


def downgrade() -> None:
    op.drop_column("finetunes", "recommended_strength")
