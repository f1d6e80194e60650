"""What a server asked for an image, and what it calls the request, in columns of their own."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0006_bills"
down_revision = "0005_cells"
branch_labels = None
depends_on = None

BILL = ("cost", "request_id")


def upgrade() -> None:
    op.add_column("cells", sa.Column("cost", sa.Double()))
    op.add_column("cells", sa.Column("request_id", sa.Text()))
    connection = op.get_bind()
    fill = sa.text(
        "UPDATE cells SET cost = :cost, request_id = :request_id, provenance = :provenance WHERE identity = :identity"
    )
    for identity, provenance in connection.execute(sa.text("SELECT identity, provenance FROM cells")).all():
        facts = json.loads(provenance) if isinstance(provenance, str) else provenance
        if facts.keys() & set(BILL):
            bill = {
                "cost": float(facts["cost"]) if "cost" in facts else None,
                "request_id": facts.get("request_id"),
                "provenance": json.dumps({name: fact for name, fact in facts.items() if name not in BILL}),
            }
            connection.execute(fill, {"identity": identity, **bill})


def downgrade() -> None:
    for name in BILL:
        op.drop_column("cells", name)
