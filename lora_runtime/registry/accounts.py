"""Organizations, their API keys and their credits.

A key is shown once, when it is made; only its SHA-256 is kept, which is enough for 256 random bits. The ledger has one
row for each task that ended well and one for each amount that was added; a balance is their sum, never a stored number,
so nothing can be billed twice or lost. Amounts are thousandths of a credit in the tables, `Decimal` credits outside.

Where no command line is at hand, as on a Space, keys come from a variable instead; of those too only the hash is held.

An organization whose credits were never set is not metered: its tasks are written down, and nothing is refused.
"""

import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Final

from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.orm import Session

from lora_runtime.catalogue import Endpoint
from lora_runtime.errors import Conflict, InvalidInput, NotAuthorized, NotFound
from lora_runtime.storage.database import Database
from lora_runtime.storage.rows import FinetuneRow, KeyRow, LedgerRow, OrganizationRow, SecretRow, TaskRow
from lora_runtime.written import quote

LOCAL: Final = "local"
"""The organization of whoever sits at this machine, as long as there are no keys."""

OFFICIAL: Final = "official"
"""The owner of the bundled finetunes. It has no keys, and no finetune goes by its name either."""

KEYS_SEEN_S: Final = 1.0
"""How long it is believed that there are no keys."""

MEGAPIXEL: Final = 1024 * 1024
_ID = re.compile(r"[a-z0-9_-]{1,64}")
_PREFIX = "kll_"


@dataclass(frozen=True, kw_only=True)
class Key:
    """What may be shown of a key. `id` is its public name, `revoked` when it stopped working (seconds since 1970)."""

    id: str
    organization: str
    label: str
    created: float
    revoked: float | None


class Accounts:
    """The organizations of one database. `fixed` are keys that are not in it, as `parse_keys` returns them."""

    def __init__(self, database: Database, *, fixed: Mapping[str, str] = MappingProxyType({})) -> None:
        self._database = database
        self._fixed = fixed
        self._has_keys = bool(fixed)
        self._looked = -math.inf
        for organization in set(fixed.values()):
            self.add_organization(organization)

    def add_organization(self, organization: str) -> None:
        """Make sure that `organization` is there.

        Raises:
            InvalidInput: It is no possible id, or reserved.
        """
        check_organization(organization)
        try:
            with self._database.session() as session:
                if session.get(OrganizationRow, organization) is None:
                    session.add(OrganizationRow(id=organization, created=time.time(), metered=False, served=0.0))
        except Conflict:  # another process added it in between, which is as good
            return

    def list_organizations(self) -> tuple[str, ...]:
        """Every organization by name: those that were given a key, credits or a finetune, and `local`."""
        with self._database.session() as session:
            return tuple(session.scalars(select(OrganizationRow.id).order_by(OrganizationRow.id)))

    def forget_organizations(self, prefix: str) -> None:
        """Remove organizations with this `prefix` that have nothing: no finetune, task, key or credit."""
        owned = (table.organization_id == OrganizationRow.id for table in (FinetuneRow, TaskRow, KeyRow, LedgerRow))
        idle = [~exists().where(owns) for owns in owned]
        with self._database.session() as session:
            session.execute(
                delete(OrganizationRow)
                .where(OrganizationRow.id.startswith(prefix, autoescape=True), *idle)
                .execution_options(synchronize_session=False)
            )

    def create_key(self, organization: str, *, label: str = "") -> tuple[Key, str]:
        """Make a key for `organization` (which is added when new); return its record and the key itself, only now."""
        self.add_organization(organization)
        key = _PREFIX + secrets.token_urlsafe(32)
        row = KeyRow(
            id=f"key-{secrets.token_hex(4)}",
            organization_id=organization,
            label=label,
            digest=_digest(key),
            created=time.time(),
            revoked=None,
        )
        with self._database.session() as session:
            session.add(row)
        self._has_keys = True
        return _key(row), key

    def list_keys(self, organization: str | None = None) -> tuple[Key, ...]:
        """Every key, oldest first; of one organization when given."""
        query = select(KeyRow).order_by(KeyRow.created, KeyRow.id)
        if organization is not None:
            query = query.where(KeyRow.organization_id == organization)
        with self._database.session() as session:
            return tuple(map(_key, session.scalars(query)))

    def revoke_key(self, key_id: str) -> Key:
        """Let a key work no more, from the next request on.

        Raises:
            NotFound: There is no such key.
        """
        with self._database.session() as session:
            row = session.get(KeyRow, key_id)
            if row is None:
                raise NotFound(f"There is no key {quote(key_id)}. `keys list` shows their ids.")
            row.revoked = row.revoked or time.time()
            return _key(row)

    def has_keys(self) -> bool:
        """Whether a key was ever made: from then on they are demanded, even when all are revoked.

        The first one that another process makes is seen within `KEYS_SEEN_S`.
        """
        if not self.knows_keys():
            looked = time.monotonic()
            with self._database.session() as session:
                found = session.scalars(select(KeyRow.id).limit(1)).first() is not None
            self._has_keys, self._looked = self._has_keys or found, looked
        return self._has_keys

    def knows_keys(self) -> bool:
        """Whether `has_keys` answers without asking the database."""
        return self._has_keys or time.monotonic() - self._looked < KEYS_SEEN_S

    def authenticate(self, key: str | None) -> str:
        """Return the organization of `key`.

        Raises:
            NotAuthorized: No key was given, or it is unknown or revoked; in BFL's words.
        """
        if not key:
            raise NotAuthorized("Not authenticated")
        digest = _digest(key)
        # All of them are compared, each in constant time: how long it takes says nothing about a key.
        fixed = [owner for known, owner in self._fixed.items() if hmac.compare_digest(known, digest)]
        if fixed:
            return fixed[0]
        with self._database.session() as session:
            row = session.scalars(select(KeyRow).where(KeyRow.digest == digest)).first()
        if row is None or row.revoked is not None:
            raise NotAuthorized("Not authenticated - Invalid Authentication")
        return row.organization_id

    def add_credits(self, organization: str, credits_: Decimal, *, note: str = "") -> Decimal:
        """Add to the balance (or take from it) and meter the organization from now on; return the new balance.

        Raises:
            InvalidInput: The amount has more than three decimals.
        """
        amount = credits_ * 1000
        if not amount.is_finite() or amount != int(amount) or abs(amount) > 10**15:
            raise InvalidInput(f"Credits: {credits_} is not an amount with at most three decimals.")
        self.add_organization(organization)
        with self._database.session() as session:
            change = update(OrganizationRow).where(OrganizationRow.id == organization)
            session.execute(change.values(metered=True))
            _book(session, organization, int(amount), note=note)
            session.flush()
            return to_credits(balance(session, organization))

    def credits_of(self, organization: str) -> Decimal | None:
        """Return the balance, or None when the organization is not metered."""
        with self._database.session() as session:
            row = session.get(OrganizationRow, organization)
            return to_credits(balance(session, organization)) if row is not None and row.metered else None

    def spent(self, organization: str) -> tuple[int, Decimal]:
        """Return how many tasks were billed to `organization`, and the credits they cost together."""
        query = select(func.count(), func.coalesce(func.sum(LedgerRow.millicredits), 0)).where(
            LedgerRow.organization_id == organization, LedgerRow.task_id.is_not(None)
        )
        with self._database.session() as session:
            count, total = session.execute(query).one()
        return int(count), to_credits(-int(total))

    def read_secret(self, name: str) -> str:
        """Return a random secret of this installation, made at first use; the same in every process."""
        with self._database.session() as session:
            row = session.get(SecretRow, name)
        if row is not None:
            return row.value
        try:
            with self._database.session() as session:
                session.add(SecretRow(name=name, value=secrets.token_urlsafe(48)))
        except Conflict:  # another process made it in between: both use that one
            pass
        with self._database.session() as session:
            return session.get_one(SecretRow, name).value


def parse_keys(text: str) -> Mapping[str, str]:
    """Read `ORGANIZATION:KEY` pairs, divided by commas, into the organizations by the SHA-256 of their key.

    Raises:
        InvalidInput: An entry is no such pair; the message names its place, never the key.
    """
    found: dict[str, str] = {}
    for number, entry in enumerate(text.split(","), start=1):
        organization, _, key = (part.strip() for part in entry.partition(":"))
        if not organization or not key:
            raise InvalidInput(
                f"KLEIN_LAB_API_KEYS: entry {number} is not ORGANIZATION:KEY. Write them as acme:KEY,other:KEY."
            )
        found[_digest(key)] = check_organization(organization)
    return MappingProxyType(found)


def check_organization(organization: str) -> str:
    """Return `organization` when it can be the id of one.

    Raises:
        InvalidInput: It has other characters, or is reserved.
    """
    if not _ID.fullmatch(organization):
        raise InvalidInput(
            f"{quote(organization)} is not an organization id: use 1 to 64 lowercase letters, digits, hyphens and "
            "underscores."
        )
    if organization == OFFICIAL:
        raise InvalidInput(f"The organization id {OFFICIAL!r} is reserved for the bundled finetunes. Choose another.")
    return organization


def price(endpoint: Endpoint, *, output_px: int, input_px: int = 0) -> int:
    """Thousandths of a credit for one image: the first megapixel, then each further one, input images included.

    A megapixel is 1024 x 1024; parts of one count as a whole.
    Source: BFL's formula, (firstMP + (outputMP - 1) * mpPrice) + inputMP * mpPrice, and a bill of 4.5 for 1.98 MP.
    """
    further = max(0, math.ceil(output_px / MEGAPIXEL) - 1) + math.ceil(input_px / MEGAPIXEL)
    return endpoint.price.first_mp + further * endpoint.price.further_mp


def to_credits(millicredits: int) -> Decimal:
    """Thousandths as credits."""
    return Decimal(millicredits) / 1000


def lock_organization(session: Session, organization: str) -> OrganizationRow:
    """Let other transactions on this organization wait until this one ends: counts and sums then hold."""
    session.execute(
        update(OrganizationRow)
        .where(OrganizationRow.id == organization)
        .values(served=OrganizationRow.served)
        .execution_options(synchronize_session=False)
    )
    return session.get_one(OrganizationRow, organization, populate_existing=True)


def balance(session: Session, organization: str) -> int:
    """The sum of the ledger, in thousandths of a credit."""
    total = select(func.coalesce(func.sum(LedgerRow.millicredits), 0))
    return int(session.scalars(total.where(LedgerRow.organization_id == organization)).one())


def bill(session: Session, organization: str, task_id: str, millicredits: int) -> None:
    """Write a task on the bill; a second time is a `Conflict`, for a task has one row."""
    _book(session, organization, -millicredits, task_id=task_id)


def _book(
    session: Session, organization: str, millicredits: int, *, task_id: str | None = None, note: str = ""
) -> None:
    session.add(
        LedgerRow(
            organization_id=organization, task_id=task_id, millicredits=millicredits, note=note, created=time.time()
        )
    )


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _key(row: KeyRow) -> Key:
    return Key(id=row.id, organization=row.organization_id, label=row.label, created=row.created, revoked=row.revoked)
