"""Keys open one organization's door, and its ledger adds up."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import text

from lora_runtime.catalogue import ENDPOINTS
from lora_runtime.errors import Conflict, InvalidInput, NotAuthorized, NotFound
from lora_runtime.registry.accounts import Accounts, bill, parse_keys, price
from lora_runtime.storage.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'lab.sqlite3'}")
    yield database
    database.close()


@pytest.fixture
def accounts(database: Database) -> Accounts:
    return Accounts(database)


def test_a_key_is_shown_once_and_kept_as_a_digest(accounts: Accounts, database: Database) -> None:
    record, key = accounts.create_key("acme", label="laptop")
    assert accounts.authenticate(key) == "acme"
    assert accounts.list_keys() == (record,)
    with database.session() as session:
        rows = session.execute(text("SELECT * FROM api_keys")).all()
    assert key not in str(rows)
    assert key not in str(record)


def test_keys_of_a_variable_open_beside_those_of_the_database(database: Database) -> None:
    fixed = parse_keys("acme:secret-1, zenith:secret:2 ,acme:secret-3")
    assert "secret" not in str(fixed), "only hashes are held"
    accounts = Accounts(database, fixed=fixed)
    assert accounts.has_keys()
    assert [accounts.authenticate(key) for key in ("secret-1", "secret:2", "secret-3")] == ["acme", "zenith", "acme"]
    _, key = accounts.create_key("other")
    assert accounts.authenticate(key) == "other"
    for wrong in ("secret-2", "secret", "acme:secret-1", "x"):
        with pytest.raises(NotAuthorized):
            accounts.authenticate(wrong)
    assert {"acme", "zenith"} <= set(accounts.list_organizations())


@pytest.mark.parametrize("text", ["", "secret-1", "acme:", ":secret-1", "acme:secret-1,,"])
def test_a_variable_that_holds_no_keys_is_refused_without_showing_them(text: str) -> None:
    with pytest.raises(InvalidInput, match="KLEIN_LAB_API_KEYS: entry") as wrong:
        parse_keys(text)
    assert "secret" not in str(wrong.value)
    with pytest.raises(InvalidInput, match="reserved"):
        parse_keys("official:secret-1")


def test_every_key_is_another_and_belongs_to_one_organization(accounts: Accounts) -> None:
    keys = {accounts.create_key(organization)[1] for organization in ("acme", "acme", "zenith")}
    assert len(keys) == 3
    assert sorted(map(accounts.authenticate, keys)) == ["acme", "acme", "zenith"]
    assert [key.organization for key in accounts.list_keys("zenith")] == ["zenith"]


def test_a_revoked_key_is_none_and_keys_stay_demanded(accounts: Accounts) -> None:
    assert not accounts.has_keys()
    record, key = accounts.create_key("acme")
    assert accounts.revoke_key(record.id).revoked is not None
    with pytest.raises(NotAuthorized, match=r"^Not authenticated - Invalid Authentication$"):
        accounts.authenticate(key)
    assert accounts.has_keys()
    with pytest.raises(NotFound, match="key-none"):
        accounts.revoke_key("key-none")


@pytest.mark.parametrize("key", [None, ""])
def test_without_a_key_the_words_are_bfls(accounts: Accounts, key: str | None) -> None:
    with pytest.raises(NotAuthorized, match=r"^Not authenticated$"):
        accounts.authenticate(key)


@pytest.mark.parametrize("organization", ["", "Acme", "a/b", "x" * 65, "official", "ü"])
def test_what_is_no_organization(accounts: Accounts, organization: str) -> None:
    with pytest.raises(InvalidInput):
        accounts.create_key(organization)


def test_the_ledger_adds_up_and_a_task_is_billed_once(accounts: Accounts, database: Database) -> None:
    assert accounts.credits_of("acme") is None
    assert accounts.add_credits("acme", Decimal("10.5"), note="welcome") == Decimal("10.5")
    with database.session() as session:
        bill(session, "acme", "task-1", 1400)
    assert accounts.credits_of("acme") == Decimal("9.1")
    assert accounts.spent("acme") == (1, Decimal("1.4"))
    with pytest.raises(Conflict), database.session() as session:
        bill(session, "acme", "task-1", 1400)
    assert accounts.credits_of("acme") == Decimal("9.1")
    with pytest.raises(InvalidInput, match="three decimals"):
        accounts.add_credits("acme", Decimal("0.0001"))


def test_a_secret_is_made_once(accounts: Accounts, database: Database) -> None:
    secret = accounts.read_secret("results")
    assert len(secret) >= 32
    assert Accounts(database).read_secret("results") == secret
    assert accounts.read_secret("other") != secret


@pytest.mark.parametrize(
    ("endpoint", "output_px", "input_px", "millicredits"),
    [
        ("flux-2-klein-4b", 1024 * 1024, 0, 1400),  # $0.014
        ("flux-2-klein-9b", 1024 * 1024, 0, 1500),  # $0.015
        ("flux-2-klein-4b", 1024 * 1024, 1024 * 1024, 1500),  # $0.015, one input megapixel
        ("flux-2-klein-9b", 1024 * 1024, 1024 * 1024, 1700),  # $0.017
        ("flux-2-klein-9b-finetuned", 1440 * 1440, 0, 1700),  # 1.98 MP is two
        ("flux-2-klein-4b-finetuned", 64 * 64, 0, 1400),
    ],
)
def test_prices_are_those_that_were_published(endpoint: str, output_px: int, input_px: int, millicredits: int) -> None:
    assert price(ENDPOINTS[endpoint], output_px=output_px, input_px=input_px) == millicredits
