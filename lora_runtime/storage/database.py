"""The database: SQLAlchemy engine, sessions, and the schema brought up to date by Alembic.

SQLite in WAL mode by default, PostgreSQL by `DATABASE_URL`. Modules that own tables (`evaluation/store/store.py`, ...)
declare them on `Base`; `migrations/` creates them. Foreign exceptions are translated here, so nobody else names
sqlite3.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import CursorResult, Engine, Result, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DataError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Session

from lora_runtime.errors import Conflict, InvalidInput, StorageFailed

MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 7_203_514  # any number, the same in every process


class Base(DeclarativeBase):
    """All tables."""


class Database:
    """One open database, shared by threads."""

    def __init__(self, url: str) -> None:
        """Open `url` and bring its schema up to date.

        Raises:
            InvalidInput: The URL cannot be read, or its driver is not installed.
            StorageFailed: It cannot be opened or written, or its file was emptied.
        """
        try:
            location = make_url(url)
            if location.get_backend_name() == "sqlite" and location.database:
                Path(location.database).parent.mkdir(parents=True, exist_ok=True)
                _require_not_emptied(Path(location.database))
            self.engine = _create_engine(url)
            self._upgrade()
        except (ArgumentError, ImportError) as error:
            raise InvalidInput(
                f"DATABASE_URL cannot be used: {type(error).__name__}. Write it as sqlite:////path/lab.sqlite3 or "
                "postgresql+psycopg://user:password@host/name, and install the driver it names."
            ) from error
        except (OSError, DatabaseError) as error:
            shown = location.render_as_string(hide_password=True)
            raise StorageFailed(
                f"Could not open the database {shown}: {_reason(error)}. "
                "Point KLEIN_LAB_HOME at a writable folder, or DATABASE_URL at a running server."
            ) from error

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on any exception.

        Raises:
            Conflict: A unique key is taken.
            InvalidInput: A value is none that a database holds: half a surrogate in a text, a number of 65 bits.
            StorageFailed: The disk is full, or the database is gone.
        """
        try:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                yield session
        except IntegrityError as error:
            raise Conflict(f"Somebody else wrote the same row first: {_reason(error)}. Try again.") from error
        except (DataError, UnicodeEncodeError, OverflowError) as error:
            raise InvalidInput(
                "A value cannot be kept: a text with characters that are no text (half a surrogate, NUL), or a number "
                "that is too large. Change it and try again."
            ) from error
        except DatabaseError as error:
            raise StorageFailed(
                f"The database did not take the change: {_reason(error)}. Free some space and try again."
            ) from error

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def _upgrade(self) -> None:
        """Run the migrations that are missing; of several processes that start at once, one does and the rest wait."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self.engine.connect() as connection:
            if self.engine.dialect.name == "sqlite":
                # sqlite3 would commit before each CREATE TABLE; in autocommit mode the transaction is ours.
                connection.execution_options(isolation_level="AUTOCOMMIT")
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            if self.engine.dialect.name == "sqlite":
                connection.exec_driver_sql("COMMIT")
            else:
                connection.commit()


def count_changed(result: Result[Any]) -> int:
    """Return how many rows an UPDATE changed."""
    return result.rowcount if isinstance(result, CursorResult) else 0


def _create_engine(url: str) -> Engine:
    engine = create_engine(url, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _on_connect(connection: Any, _record: object) -> None:
            try:
                with contextlib.closing(connection.cursor()) as cursor:
                    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
                        cursor.execute(f"PRAGMA {pragma}")
                # SQLite's own knows ASCII alone.
                connection.create_function("lower", 1, lambda text: text and str(text).lower(), deterministic=True)
            except Exception:
                connection.close()  # the pool does not know it yet
                raise

    return engine


def _require_not_emptied(file: Path) -> None:
    """Refuse a file of no bytes beside images or finetunes: as a new database it would not know them, and delete some.

    Raises:
        StorageFailed: It is one.
    """
    log = file.with_name(f"{file.name}-wal")
    if not file.is_file() or file.stat().st_size or (log.is_file() and log.stat().st_size):
        return
    kept = next((found for folder in ("blobs", "api") for found in (file.parent / folder).glob("??/*")), None)
    if kept is not None:
        raise StorageFailed(
            f"The database {file} is empty, and {kept.parent.parent} holds files that it should know. Put a copy of it "
            "back; or, to begin anew, move that folder away."
        )


def _reason(error: Exception) -> str:
    """The driver's own words, without SQLAlchemy's statement and parameters."""
    return str(getattr(error, "orig", None) or error)
