"""The tables behind `store.py`; `lora_runtime/storage/migrations` creates them.

Times are UTC without a zone, which SQLite and PostgreSQL keep alike. Records with a fixed shape are JSON text.
"""

from datetime import datetime

from sqlalchemy import JSON, BigInteger, DateTime, Double, Float, ForeignKey, Index, String, Text, false
from sqlalchemy.orm import Mapped, mapped_column

from evaluation.store.records import Outcome
from lora_runtime.storage.database import Base


class RunRow(Base):
    """A sweep that was started; its cells follow from `spec`. `organization` is whose it is, `origin` what made it.

    `under_way`: a server goes on with it, or ended while it did.
    """

    __tablename__ = "runs"
    __table_args__ = (Index("ix_runs_organization", "organization", "created"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    organization: Mapped[str]
    origin: Mapped[str]
    created: Mapped[datetime] = mapped_column(DateTime, index=True)
    spec: Mapped[str] = mapped_column(Text)
    verdict: Mapped[str | None] = mapped_column(Text)
    under_way: Mapped[bool] = mapped_column(default=False, server_default=false())


class CellRow(Base):
    """The image of an identity."""

    __tablename__ = "cells"
    __table_args__ = (Index("ix_cells_speed", "weights", "precision", "width", "height", "steps", "created"),)

    identity: Mapped[str] = mapped_column(primary_key=True)
    blob: Mapped[str]
    request: Mapped[str] = mapped_column(Text)
    weights: Mapped[str]
    precision: Mapped[str]
    width: Mapped[int]
    height: Mapped[int]
    steps: Mapped[int]
    seconds: Mapped[float] = mapped_column(Float)
    cost: Mapped[float | None] = mapped_column(Double)
    request_id: Mapped[str | None] = mapped_column(Text)
    provenance: Mapped[dict[str, str]] = mapped_column(JSON)
    created: Mapped[datetime] = mapped_column(DateTime)


class RunCellRow(Base):
    """A cell of a run: what it is, how its last try failed, and when somebody deleted it from the log.

    At strength 0 it still has the LoRA of its sweep. `words` is what a search looks through, in lower case.
    """

    __tablename__ = "run_cells"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    identity: Mapped[str] = mapped_column(index=True)
    lora: Mapped[str | None] = mapped_column(Text)
    lora_sha256: Mapped[str | None]
    strength: Mapped[float] = mapped_column(Double)
    prompt: Mapped[str] = mapped_column(Text)
    seed: Mapped[int] = mapped_column(BigInteger)
    weights: Mapped[str]
    precision: Mapped[str]
    backend: Mapped[str]
    width: Mapped[int]
    height: Mapped[int]
    steps: Mapped[int]
    guidance: Mapped[float] = mapped_column(Double)
    words: Mapped[str] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    deleted: Mapped[datetime | None] = mapped_column(DateTime)


class ScoreRow(Base):
    """A metric's value for an image against the base image (its own where it needs none), by the judge of this id.

    `judge` is empty where no model is asked, and `unknown` for scores from before judges had ids.
    """

    __tablename__ = "scores"

    identity: Mapped[str] = mapped_column(ForeignKey("cells.identity"), primary_key=True)
    base: Mapped[str] = mapped_column("reference", ForeignKey("cells.identity"), primary_key=True)
    metric: Mapped[str] = mapped_column(primary_key=True)
    judge: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float] = mapped_column(Float)


class ControlRow(Base):
    """How far a LoRA at strength 0 was from the base image `base`."""

    __tablename__ = "controls"

    base: Mapped[str] = mapped_column("reference", ForeignKey("cells.identity"), primary_key=True)
    lora_sha256: Mapped[str] = mapped_column(primary_key=True)
    difference: Mapped[int]
    tolerance: Mapped[int]


class EmbeddingRow(Base):
    """The vector by which a judge knows an image: little-endian float32."""

    __tablename__ = "embeddings"

    identity: Mapped[str] = mapped_column(ForeignKey("cells.identity"), primary_key=True)
    judge: Mapped[str] = mapped_column(primary_key=True)
    vector: Mapped[bytes]


class RatingRow(Base):
    """What an organization thinks of the image of an identity, in all its runs; the image may yet be to come."""

    __tablename__ = "ratings"

    identity: Mapped[str] = mapped_column(primary_key=True)
    organization: Mapped[str] = mapped_column(primary_key=True)
    rating: Mapped[int | None]
    note: Mapped[str] = mapped_column(Text)


class VoteRow(Base):
    """A blind choice between two images, as they were shown."""

    __tablename__ = "votes"

    number: Mapped[int] = mapped_column(primary_key=True)
    left: Mapped[str] = mapped_column(ForeignKey("cells.identity"), index=True)
    right: Mapped[str] = mapped_column(ForeignKey("cells.identity"), index=True)
    outcome: Mapped[Outcome] = mapped_column(String)
    voter: Mapped[str]
    organization: Mapped[str]
    created: Mapped[datetime] = mapped_column(DateTime)


class KeptRow(Base):
    """What an organization keeps under a name, as JSON."""

    __abstract__ = True

    organization: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    form: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime] = mapped_column(DateTime)


class PresetRow(KeptRow):
    """A sweep form."""

    __tablename__ = "presets"


class PromptSetRow(KeptRow):
    """Prompts, `{subject}` and `{trigger}` not filled in."""

    __tablename__ = "prompt_sets"
