"""The queue's laws hold on both databases."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_runtime.registry.accounts import Accounts
from lora_runtime.storage.database import Database
from tests.postgres import make_database


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty one with three organizations."""
    url = f"sqlite:///{tmp_path / 'lab.sqlite3'}"
    if request.param == "postgresql":
        url = make_database(request.getfixturevalue("postgres"))
    database = Database(url)
    for organization in ("acme", "zenith", "third"):
        Accounts(database).add_organization(organization)
    yield database
    database.close()
