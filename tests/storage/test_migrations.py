"""Data of earlier versions: what the migrations make of it, there and back."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine, text

from lora_runtime.storage.database import MIGRATIONS, Database
from tests.postgres import serve_postgres

SPEC = {
    "backend": "drawing", "weights": "pocket", "precision": "fp32", "digest": "d", "steps": 4, "guidance": 1.0,
    "loras": [], "prompts": ["a cat"], "seeds": [7], "strengths": ["0", "0.5"], "width": 64, "height": 64,
}  # fmt: skip
"""As a spec was written then."""


def move(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    (command.upgrade if revision == "0003" else command.downgrade)(config, revision)


def insert(connection: Connection, table: str, **values: Any) -> None:
    names = ", ".join(values)
    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES (:{', :'.join(values)})"), values)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of the version before judges: two images, three runs, four ratings, two scores."""
    with serve_postgres() if request.param == "postgres" else nullcontext(f"sqlite:///{tmp_path / 'lab'}") as address:
        fill(address)
        yield address


def fill(address: str) -> None:
    engine = create_engine(address)
    with engine.begin() as connection:
        move(connection, "0003")
        for name in ("base", "half"):
            facts = {"weights": "pocket", "precision": "fp32", "width": 64, "height": 64, "steps": 4, "seconds": 1.0}
            insert(connection, "cells", identity=name, blob=name, request="{}", provenance=json.dumps({}),
                   created="2026-01-01 00:00:00", **facts)  # fmt: skip
        for number, owner in enumerate(("local", "local", "others")):
            insert(connection, "runs", id=f"run-{number}", created=f"2026-01-0{number + 1} 00:00:00",
                   spec=json.dumps(SPEC), organization=owner, origin="sweep")  # fmt: skip
            for position, name in enumerate(("base", "half")):
                insert(connection, "run_cells", run_id=f"run-{number}", position=position, identity=name)
        for run, position, stars, note in ((0, 1, 2, "dull"), (1, 1, 4, "sharp"), (1, 0, None, "plain"), (2, 1, 1, "")):
            insert(connection, "ratings", run_id=f"run-{run}", position=position, rating=stars, note=note)
        insert(connection, "scores", identity="half", reference="half", metric="clip", value=14.6)
        insert(connection, "scores", identity="half", reference="base", metric="ssim", value=0.5)
    engine.dispose()


def test_old_scores_have_an_unknown_judge_and_ratings_belong_to_images(url: str) -> None:
    database = Database(url)
    with database.session() as session:
        scores = session.execute(text("SELECT metric, judge, value FROM scores ORDER BY metric")).all()
        assert [tuple(row) for row in scores] == [("clip", "unknown", 14.6), ("ssim", "", 0.5)]
        ratings = session.execute(
            text("SELECT identity, organization, rating, note FROM ratings ORDER BY organization, identity")
        ).all()
    assert [tuple(row) for row in ratings] == [
        ("base", "local", None, "plain"),
        ("half", "local", 4, "dull\nsharp"),
        ("half", "others", 1, ""),
    ]
    database.close()


def test_a_way_back(url: str) -> None:
    Database(url).close()
    engine = create_engine(url)
    with engine.begin() as connection:
        insert(connection, "scores", identity="half", reference="half", metric="clip", judge="new@1", value=40.3)
        move(connection, "0006_bills")
        scores = connection.execute(text("SELECT metric, value FROM scores ORDER BY metric")).all()
        assert [tuple(row) for row in scores] == [("clip", 14.6), ("ssim", 0.5)]
        ratings = connection.execute(
            text("SELECT run_id, position, rating FROM ratings ORDER BY run_id, position")
        ).all()
    engine.dispose()
    assert [tuple(row) for row in ratings] == [
        ("run-0", 0, None), ("run-0", 1, 4), ("run-1", 0, None), ("run-1", 1, 4), ("run-2", 1, 1),
    ]  # fmt: skip
