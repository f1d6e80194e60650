"""The tables behind `accounts.py`, `finetunes.py` and `tasks.py`; `migrations/` creates them.

Times are seconds since 1970, amounts thousandths of a credit: both are kept alike by SQLite and PostgreSQL.
"""

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from lora_runtime.storage.database import Base


class OrganizationRow(Base):
    """An owner of keys, finetunes and credits. `served` is when a task of it was last taken from the queue."""

    __tablename__ = "organizations"

    id: Mapped[str] = mapped_column(primary_key=True)
    created: Mapped[float]
    metered: Mapped[bool]
    served: Mapped[float]


class KeyRow(Base):
    """A key, by its SHA-256."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    label: Mapped[str]
    digest: Mapped[str] = mapped_column(unique=True)
    created: Mapped[float]
    revoked: Mapped[float | None]


class LedgerRow(Base):
    """Thousandths of a credit that came (positive) or went (negative)."""

    __tablename__ = "ledger"

    number: Mapped[int] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    task_id: Mapped[str | None] = mapped_column(unique=True)
    millicredits: Mapped[int] = mapped_column(BigInteger)
    note: Mapped[str]
    created: Mapped[float]


class SecretRow(Base):
    """A random value that every process of this installation shares."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class FinetuneRow(Base):
    """A registered LoRA. `sources` are digests of the places on the network that it was fetched from.

    `recommended_strength` is a decimal.
    """

    __tablename__ = "finetunes"
    __table_args__ = (UniqueConstraint("organization_id", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    name: Mapped[str]
    weights: Mapped[str]
    precision: Mapped[str | None]
    trigger_phrase: Mapped[str | None]
    blob: Mapped[str] = mapped_column(index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created: Mapped[float]
    updated: Mapped[float]
    deleted: Mapped[float | None] = mapped_column(default=None)
    sources: Mapped[list[str] | None] = mapped_column(JSON, default=None)
    recommended_strength: Mapped[str | None] = mapped_column(default=None)


class TrainingRunRow(Base):
    """The checkpoints of one training, in order: label, SHA-256 of the finetune's file, or why it does not fit."""

    __tablename__ = "training_runs"
    __table_args__ = (UniqueConstraint("organization_id", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    checkpoints: Mapped[list[dict[str, str]]] = mapped_column(JSON)
    created: Mapped[float]


class GrantRow(Base):
    """A finetune shared with an organization."""

    __tablename__ = "grants"

    finetune_id: Mapped[str] = mapped_column(ForeignKey("finetunes.id", ondelete="CASCADE"), primary_key=True)
    organization_id: Mapped[str] = mapped_column(primary_key=True, index=True)
    created: Mapped[float]


class TaskRow(Base):
    """A render asked for over HTTP.

    It is claimed by one process until `claimed_until`; whoever comes later may claim it again. Its result, when there
    is one, can be fetched until `expires`.
    """

    __tablename__ = "tasks"
    __table_args__ = (Index("ix_tasks_waiting", "status", "organization_id", "number"),)

    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    endpoint: Mapped[str]
    finetune: Mapped[str | None]
    status: Mapped[str]
    request: Mapped[str] = mapped_column(Text)
    lora_blob: Mapped[str | None] = mapped_column(index=True)
    output_format: Mapped[str]
    millicredits: Mapped[int] = mapped_column(BigInteger)
    base_url: Mapped[str]
    webhook_url: Mapped[str | None]
    webhook_secret: Mapped[str | None]
    created: Mapped[float]
    claimed_by: Mapped[str | None]
    claimed_until: Mapped[float]
    attempts: Mapped[int]
    started: Mapped[float | None]
    ended: Mapped[float | None]
    expires: Mapped[float | None] = mapped_column(index=True)
    result_blob: Mapped[str | None]
    details: Mapped[dict[str, object] | None] = mapped_column(JSON)


class DeliveryRow(Base):
    """A webhook that is owed: `pending` until it was `delivered`, or `dropped` after the last attempt."""

    __tablename__ = "deliveries"
    __table_args__ = (Index("ix_deliveries_due", "state", "due"),)

    task_id: Mapped[str] = mapped_column(ForeignKey("tasks.id"), primary_key=True)
    state: Mapped[str]
    due: Mapped[float]
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
