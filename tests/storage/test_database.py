"""The database opens anywhere, keeps transactions whole, and speaks in our errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import text

from evaluation.store.rows import CellRow
from lora_runtime.errors import Conflict, InvalidInput, StorageFailed
from lora_runtime.storage.database import MIGRATIONS, Base, Database
from lora_runtime.storage.rows import TaskRow


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path / 'deep' / 'lab.sqlite3'}")


def test_a_new_file_has_the_schema_and_opens_again(database: Database) -> None:
    with database.session() as session:
        assert session.execute(text("SELECT count(*) FROM alembic_version")).scalar_one() == 1
        assert session.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
    again = Database(str(database.engine.url))
    again.close()
    database.close()


def test_the_migrations_make_the_tables_of_the_code(database: Database) -> None:
    assert {row.__tablename__ for row in (CellRow, TaskRow)} < set(Base.metadata.tables)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    database.close()


def test_an_exception_rolls_back(database: Database) -> None:
    with database.session() as session:
        session.execute(text("CREATE TABLE t (x INTEGER UNIQUE)"))

    def insert_and_fail() -> None:
        with database.session() as session:
            session.execute(text("INSERT INTO t VALUES (1)"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        insert_and_fail()
    with database.session() as session:
        assert session.execute(text("SELECT count(*) FROM t")).scalar_one() == 0
        session.execute(text("INSERT INTO t VALUES (1)"))
    with pytest.raises(Conflict), database.session() as session:
        session.execute(text("INSERT INTO t VALUES (1)"))
    database.close()


@pytest.mark.parametrize("value", ["\ud800", 10**30, -(2**64)])
def test_what_no_database_holds_is_the_callers_to_change(database: Database, value: object) -> None:
    with database.session() as session:
        session.execute(text("CREATE TABLE t (x)"))
    with pytest.raises(InvalidInput, match="cannot be kept"), database.session() as session:
        session.execute(text("INSERT INTO t VALUES (:x)"), {"x": value})
    database.close()


def test_processes_that_start_at_once_migrate_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'lab.sqlite3'}"
    code = f"from lora_runtime.storage.database import Database; Database({url!r}).close()"
    started = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[1] for process in started] == [b""] * 4


def test_what_images_cost_before_it_had_a_column_is_kept(database: Database) -> None:
    """The last step but one wrote it as text among the facts of how an image was made."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0005_cells")
        for identity, facts in (("a", {"device": "cpu", "cost": "4.5", "request_id": "r1"}), ("b", {"device": "cpu"})):
            values = {"identity": identity, "provenance": json.dumps(facts), "created": "2026-11-25 00:00:00"}
            connection.execute(
                text(
                    "INSERT INTO cells (identity, blob, request, weights, precision, width, height, steps, seconds, "
                    "provenance, created) VALUES (:identity, 'b', '', 'pocket', 'fp32', 64, 64, 4, 1, :provenance, "
                    ":created)"
                ),
                values,
            )
        connection.commit()
    database.close()
    again = Database(database.engine.url.render_as_string(hide_password=False))
    with again.session() as session:
        rows = [session.get_one(CellRow, identity) for identity in "ab"]
    assert [(row.cost, row.request_id, row.provenance) for row in rows] == [
        (4.5, "r1", {"device": "cpu"}), (None, None, {"device": "cpu"}),
    ]  # fmt: skip
    again.close()


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "lab.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(StorageFailed, match="not a database"):
        Database(f"sqlite:///{tmp_path / 'lab.sqlite3'}")


def test_an_unwritable_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageFailed, match="KLEIN_LAB_HOME"):
        Database(f"sqlite:///{tmp_path / 'file' / 'lab.sqlite3'}")


@pytest.mark.parametrize("url", ["nonsense", "sqlite://user:hunter2@/lab.sqlite3", "oddbase://user:hunter2@host/name"])
def test_a_bad_url_is_said_without_its_password(url: str) -> None:
    with pytest.raises(InvalidInput, match="DATABASE_URL") as caught:
        Database(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("kept", ["blobs/ab/abc.png", "api/cd/cde.safetensors"])
def test_an_emptied_file_beside_images_is_not_taken_for_a_new_one(tmp_path: Path, kept: str) -> None:
    url = f"sqlite:///{tmp_path / 'lab.sqlite3'}"
    (tmp_path / "lab.sqlite3").touch()
    Database(url).close()  # nothing is there yet that it should know
    (tmp_path / kept).parent.mkdir(parents=True)
    (tmp_path / kept).touch()
    Database(url).close()
    (tmp_path / "lab.sqlite3").write_bytes(b"")
    with pytest.raises(StorageFailed, match=r"lab\.sqlite3 is empty, and .* Put a copy of it back"):
        Database(url)
    assert (tmp_path / "lab.sqlite3").read_bytes() == b""
