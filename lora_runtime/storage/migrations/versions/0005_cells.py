"""What a cell of a run is, in columns, so that the log of all images is one query: filled from the spec of each run.

`words` is what a search looks through, in lower case, as SQLite's own `lower` knows ASCII alone.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005_cells"
down_revision = "0004_sources"
branch_labels = None
depends_on = None

NAMES = ("lora", "lora_sha256", "strength", "prompt", "seed", "weights", "precision", "backend", "width", "height",
         "steps", "guidance", "words")  # fmt: skip

OF_TARGET = ("weights", "precision", "backend", "steps", "guidance")


def upgrade() -> None:
    op.add_column("run_cells", sa.Column("lora", sa.Text()))
    op.add_column("run_cells", sa.Column("lora_sha256", sa.String()))
    for name in ("prompt", "words"):
        op.add_column("run_cells", sa.Column(name, sa.Text(), nullable=False, server_default=""))
    for name in ("weights", "precision", "backend"):
        op.add_column("run_cells", sa.Column(name, sa.String(), nullable=False, server_default=""))
    for name in ("width", "height", "steps"):
        op.add_column("run_cells", sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
    for name in ("strength", "guidance"):
        op.add_column("run_cells", sa.Column(name, sa.Double(), nullable=False, server_default="0"))
    op.add_column("run_cells", sa.Column("seed", sa.BigInteger(), nullable=False, server_default="0"))
    connection = op.get_bind()
    values = ", ".join(f"{name} = :{name}" for name in NAMES)
    fill = sa.text(f"UPDATE run_cells SET {values} WHERE run_id = :run_id AND position = :position")
    for run_id, spec in connection.execute(sa.text("SELECT id, spec FROM runs")).all():
        cells = [
            {**cell, "words": _words(run_id, cell), "run_id": run_id, "position": position}
            for position, cell in enumerate(_list_cells(json.loads(spec)))
        ]
        connection.execute(fill, cells)


def downgrade() -> None:
    for name in NAMES:
        op.drop_column("run_cells", name)


def _list_cells(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The cells of a spec, row by row: the one of targets, LoRAs, prompts, seeds and triggers with several values."""
    for target in _list_targets(spec):
        for lora in spec["loras"] or [{"name": None, "sha256": None}]:
            for prompt in spec["prompts"]:
                for seed in spec["seeds"]:
                    for trigger in spec.get("triggers") or [None]:
                        for strength in spec["strengths"]:
                            yield {
                                "lora": lora["name"],
                                "lora_sha256": lora["sha256"],
                                "strength": float(strength),
                                "prompt": _put(trigger, prompt),
                                "seed": seed,
                                "width": spec["width"],
                                "height": spec["height"],
                                **{name: target[name] for name in OF_TARGET},
                            }


def _list_targets(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Older specs have the first target's fields in themselves, and of further ones what differs."""
    if "targets" in spec:
        found: list[dict[str, Any]] = spec["targets"]
        return found
    return [spec, *({**spec, **further} for further in spec.get("further_targets", ()))]


def _put(trigger: dict[str, Any] | None, prompt: str) -> str:
    """The prompt with the trigger phrase, or without it and the blanks and commas around it."""
    if trigger is None:
        return prompt
    phrase = re.escape(trigger["phrase"])
    has = re.compile(phrase, re.IGNORECASE).search
    if trigger["there"]:
        return prompt if has(prompt) else f"{trigger['phrase']} {prompt}".strip()
    while has(prompt):
        prompt = re.sub(rf"\s*{phrase}\s*", " ", prompt, flags=re.IGNORECASE)
        prompt = re.sub(r"\s+,", ",", re.sub(r",(\s*,)+", ",", prompt)).strip(" ,\n\t")
    return prompt


def _words(run_id: str, cell: dict[str, Any]) -> str:
    texts = (cell["prompt"], cell["lora"] or "", run_id, cell["weights"], cell["precision"])
    return "\n".join(texts).lower()
