"""What an organization keeps under names: forms of the Sweep tab, to fill it with them again, and prompt sets.

A preset holds what was written, not what it resolved to: "random" stays random, and a LoRA is a name. The form itself
is opaque text here; who writes it reads it.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from evaluation.store.rows import KeptRow, PresetRow
from lora_runtime.errors import Conflict, InvalidInput, NotFound
from lora_runtime.storage.database import Database
from lora_runtime.written import quote

MAX_NAME: Final = 60
MAX_PRESETS: Final = 200
MAX_FORM: Final = 100_000
"""Characters of one form; a prompt alone may have 10,000, and there may be several."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A form under a name; `form` is JSON."""

    name: str
    form: str


class Presets:
    """The presets of one database, or what else is kept alike in a table; errors call it `called`."""

    def __init__(self, database: Database, rows: type[KeptRow] = PresetRow, called: str = "Preset") -> None:
        self._database = database
        self._rows = rows
        self._called = called

    def list(self, organization: str) -> tuple[Preset, ...]:
        """Return the presets of `organization` by name."""
        query = select(self._rows).where(self._rows.organization == organization).order_by(self._rows.name)
        with self._database.session() as session:
            return tuple(map(_preset, session.scalars(query)))

    def find(self, organization: str, name: str) -> Preset:
        """Return one preset.

        Raises:
            NotFound: There is none of that name.
        """
        with self._database.session() as session:
            return _preset(self._find_row(session, organization, name))

    def save(self, organization: str, name: str, form: str) -> Preset | None:
        """Keep `form` under `name`; return the preset whose place it took, if there was one.

        Raises:
            InvalidInput: The name is empty or too long, the form too large, or there are too many presets.
        """
        name = " ".join(name.split())
        if not name:
            raise InvalidInput(f"{self._called}: write a name for it, such as “my style, fine”.")
        if len(name) > MAX_NAME or not name.isprintable():
            raise InvalidInput(
                f"{self._called}: this name has {len(name)} characters; {MAX_NAME} at most, all of them printable. "
                "Shorten it."
            )
        if len(form) > MAX_FORM:
            raise InvalidInput(f"{self._called}: it is longer than {MAX_FORM} characters. Shorten its prompts.")
        try:
            return self._write(organization, name, form)
        except Conflict:  # another window inserted the same name first: its row is the one to replace
            return self._write(organization, name, form)

    def delete(self, organization: str, name: str) -> Preset:
        """Delete a preset and return it; `save` brings it back.

        Raises:
            NotFound: There is none of that name.
        """
        with self._database.session() as session:
            row = self._find_row(session, organization, name)
            session.delete(row)
            return _preset(row)

    def _write(self, organization: str, name: str, form: str) -> Preset | None:
        with self._database.session() as session:
            row = session.get(self._rows, (organization, name))
            if row is not None:
                before = _preset(row)
                row.form = form
                return before
            own = select(func.count()).where(self._rows.organization == organization)
            if session.scalars(own).one() >= MAX_PRESETS:
                raise InvalidInput(f"{self._called}: there are {MAX_PRESETS} already. Delete one of them first.")
            created = datetime.now(UTC).replace(tzinfo=None)
            session.add(self._rows(organization=organization, name=name, form=form, created=created))
            return None

    def _find_row(self, session: Session, organization: str, name: str) -> KeptRow:
        row = session.get(self._rows, (organization, name))
        if row is None:
            called = self._called.lower()
            raise NotFound(f"There is no {called} named {quote(name)}. It may have been deleted in another window.")
        return row


def _preset(row: KeptRow) -> Preset:
    return Preset(name=row.name, form=row.form)
