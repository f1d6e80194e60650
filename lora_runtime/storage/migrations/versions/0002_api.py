"""Organizations, keys, credits, finetunes, tasks and webhook deliveries of the HTTP API.

Times are seconds since 1970, amounts thousandths of a credit.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_accounts()
    _create_finetunes()
    _create_tasks()


def _create_accounts() -> None:
    op.create_table(
        "organizations",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("metered", sa.Boolean(), nullable=False),
        sa.Column("served", sa.Double(), nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("organization_id", sa.String(), sa.ForeignKey("organizations.id"), nullable=False, index=True),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False, unique=True),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("revoked", sa.Double()),
    )
    op.create_table(
        "ledger",
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("organization_id", sa.String(), sa.ForeignKey("organizations.id"), nullable=False, index=True),
        sa.Column("task_id", sa.String(), unique=True),
        sa.Column("millicredits", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("value", sa.String(), nullable=False),
    )


def _create_finetunes() -> None:
    op.create_table(
        "finetunes",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("organization_id", sa.String(), sa.ForeignKey("organizations.id"), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("weights", sa.String(), nullable=False),
        sa.Column("precision", sa.String()),
        sa.Column("trigger_phrase", sa.String()),
        sa.Column("blob", sa.String(), nullable=False, index=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("updated", sa.Double(), nullable=False),
        sa.UniqueConstraint("organization_id", "name"),
    )
    op.create_table(
        "grants",
        sa.Column("finetune_id", sa.String(), sa.ForeignKey("finetunes.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("organization_id", sa.String(), primary_key=True, index=True),
        sa.Column("created", sa.Double(), nullable=False),
    )


def _create_tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("id", sa.String(), nullable=False, unique=True),
        sa.Column("organization_id", sa.String(), sa.ForeignKey("organizations.id"), nullable=False),
        sa.Column("endpoint", sa.String(), nullable=False),
        sa.Column("finetune", sa.String()),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("lora_blob", sa.String(), index=True),
        sa.Column("output_format", sa.String(), nullable=False),
        sa.Column("millicredits", sa.BigInteger(), nullable=False),
        sa.Column("base_url", sa.String(), nullable=False),
        sa.Column("webhook_url", sa.String()),
        sa.Column("webhook_secret", sa.String()),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("claimed_by", sa.String()),
        sa.Column("claimed_until", sa.Double(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("started", sa.Double()),
        sa.Column("ended", sa.Double()),
        sa.Column("expires", sa.Double(), index=True),
        sa.Column("result_blob", sa.String()),
        sa.Column("details", sa.JSON()),
    )
    op.create_index("ix_tasks_waiting", "tasks", ["status", "organization_id", "number"])
    op.create_table(
        "deliveries",
        sa.Column("task_id", sa.String(), sa.ForeignKey("tasks.id"), primary_key=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("due", sa.Double(), nullable=False),
        sa.Column("attempts", sa.JSON(), nullable=False),
    )
    op.create_index("ix_deliveries_due", "deliveries", ["state", "due"])


def downgrade() -> None:
    for table in ("deliveries", "tasks", "grants", "finetunes", "secrets", "ledger", "api_keys", "organizations"):
        op.drop_table(table)
