"""The registry of finetunes: LoRA files under a name, with a base, a precision and a trigger phrase, shared by grants.

This is the one place where LoRAs are known: what a person uploads, downloads or adds becomes a finetune here. The rules
are those of BFL's Dashboard. A file is checked against the chosen base before it is registered, so a finetune that is
listed can be rendered. The owner calls it by its name, everybody else by `{owner}/{name}`; one that is not
granted looks exactly like one that does not exist. Files are stored once by digest; they outlive the finetune until no
task needs them. The bundled LoRAs are everybody's, owned by `official`.

A deleted finetune is gone for everybody at once, but its row stays until `purge`, so that `restore` can bring it back.
"""

import contextlib
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Final, TypeAlias

from sqlalchemy import ColumnElement, Select, delete, or_, select, update
from sqlalchemy.orm import Session

from lora_runtime.errors import Conflict, InvalidInput, NotAuthorized, NotFound
from lora_runtime.lora.check import Report, check_file, require_fit
from lora_runtime.lora.file import stream_file
from lora_runtime.lora.library import list_bundled, report_of
from lora_runtime.lora.names import check_trigger
from lora_runtime.registry.accounts import OFFICIAL, Accounts, check_organization
from lora_runtime.registry.finetune import (
    Finetune,
    Source,
    check_base,
    check_name,
    check_recommended,
    make_official,
    read_precision,
)
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database, count_changed
from lora_runtime.storage.rows import FinetuneRow, GrantRow
from lora_runtime.storage.uploads import Upload, open_upload
from lora_runtime.values import LoraRef, Precision
from lora_runtime.written import quote

SUFFIX: Final = ".safetensors"

_Base: TypeAlias = tuple[str, Precision | None]


class Finetunes:
    """The finetunes of one database. `max_bytes` limits a file."""

    def __init__(self, database: Database, blobs: Blobs, *, max_bytes: int) -> None:
        self._database = database
        self._blobs = blobs
        self.max_bytes = max_bytes

    @contextlib.contextmanager
    def upload(self, file_name: str) -> Iterator[Upload]:
        """Take a file in, chunk by chunk, for `add`; what was not added is deleted at the end."""
        with open_upload(self._blobs.folder, file_name, max_bytes=self.max_bytes) as upload:
            yield upload

    def add_file(self, organization: str, path: Path, **fields: str | None) -> Finetune:
        """Add a file of this machine; `fields` and errors are those of `add`."""
        if not path.is_file():
            raise NotFound(f"There is no file {path}.")
        with self.upload(path.name) as upload:
            upload.copy(path)
            return self.add(organization, upload, **fields)

    def add(
        self,
        organization: str,
        upload: Upload,
        *,
        name: str | None,
        weights: str | None,
        precision: str | None = None,
        trigger_phrase: str | None = None,
        adapter: str | None = None,
    ) -> Finetune:
        """Register an uploaded file. Without a `trigger_phrase` the one that the file names is taken, if any.

        Of a file with several adapters, the one that `adapter` names is registered alone.

        It takes the place of a deleted finetune of the same name, which then cannot be restored.

        Raises:
            InvalidInput: The name, base, precision, trigger phrase or adapter is none.
            LoraError: The file is damaged, or was not made for this base.
            Conflict: The organization has a finetune of that name.
        """
        name = check_name(name or "")
        report = check_file(upload.path, adapter=adapter)
        base = check_base(weights or "", precision)
        require_fit(report, base[0])
        phrase = report.trigger_phrase if trigger_phrase is None else check_trigger(trigger_phrase)
        self.require_free(organization, name)
        try:
            return self._register(organization, name, report, base, phrase)
        except Conflict:
            self.require_free(organization, name)
            raise

    def keep(self, organization: str, report: Report, names: Iterable[str], *, sources: Sequence[str] = ()) -> Finetune:
        """Register a checked file for the base it was made for, under the first of `names` that no other file has.

        The names may be of any script. One that a deleted finetune has is left to it. `sources` are the digests of the
        places on the network that it came from.
        """
        base = check_base(report.fits[0], None)
        for name in names:
            if name not in self._list_names(organization):
                with contextlib.suppress(Conflict):  # taken meanwhile
                    return self._register(organization, name, report, base, report.trigger_phrase, sources)
            with contextlib.suppress(NotFound):
                there = self.find(organization, f"{organization}/{name}")
                if there.lora.sha256 == report.file.sha256:
                    return there
        raise Conflict(f"{organization} already has a finetune of every name that {report.file.name} could have.")

    def fetched_from(self, organization: str, source: str) -> Finetune | None:
        """Return the finetune that `organization` got from a place on the network before, by the place's digest."""
        query = select(FinetuneRow).where(FinetuneRow.organization_id == organization, FinetuneRow.deleted.is_(None))
        with self._database.session() as session:
            rows = session.scalars(query).all()
        return next((self.find(organization, row.name) for row in rows if source in (row.sources or ())), None)

    def add_sources(self, finetune: Finetune, sources: Sequence[str]) -> None:
        """Note further places on the network that a finetune came from; a bundled one needs none."""
        with self._database.session() as session:
            for row in session.scalars(_called(finetune.owner, finetune.name)):
                row.sources = [*(row.sources or ()), *sources]

    def list(self, organization: str, *, source: Source | None = None) -> tuple[Finetune, ...]:
        """Return what `organization` can use: its own, then those shared with it, then the official ones; by name."""
        query = (
            select(FinetuneRow)
            .outerjoin(GrantRow, (GrantRow.finetune_id == FinetuneRow.id) & (GrantRow.organization_id == organization))
            .where(or_(FinetuneRow.organization_id == organization, GrantRow.organization_id.is_not(None)))
            .where(FinetuneRow.deleted.is_(None))
            .order_by(FinetuneRow.organization_id != organization, FinetuneRow.organization_id, FinetuneRow.name)
        )
        with self._database.session() as session:
            rows = session.scalars(query).all()
            grants = _grants(session, [row.id for row in rows if row.organization_id == organization])
        seen = [
            self._owned(row, grants.get(row.id, ())) if row.organization_id == organization else self._shared(row)
            for row in rows
        ]
        return tuple(finetune for finetune in (*seen, *self._official) if source in (None, finetune.source))

    def find(self, organization: str, finetune_id: str) -> Finetune:
        """Return the finetune that `organization` calls `finetune_id`.

        A name without an owner is one of their own, or else an official one: `style` is `official/style` to everybody
        who has no `style`.

        Raises:
            NotFound: There is none, or it is not shared with them: both look the same.
        """
        owner, slash, name = finetune_id.rpartition("/")
        owner = owner if slash else organization
        if owner != OFFICIAL:
            with self._database.session() as session:
                row = session.scalars(_called(owner, name)).first()
                if row is not None and owner == organization:
                    return self._owned(row, _grants(session, [row.id]).get(row.id, ()))
                if row is not None and session.get(GrantRow, (row.id, organization)) is not None:
                    return self._shared(row)
        if owner == OFFICIAL or not slash:
            for finetune in self._official:
                if finetune.name == name:
                    return finetune
        raise _not_found(finetune_id)

    def edit(
        self,
        organization: str,
        finetune_id: str,
        *,
        weights: str | None = None,
        precision: str | None = None,
        trigger_phrase: str | None = None,
        recommended_strength: str | None = None,
    ) -> Finetune:
        """Change base, precision, trigger phrase or recommended strength; None leaves one as it is, "" clears it.

        A new base without a precision takes the base's default one. Tasks that were accepted are not touched.

        Raises:
            NotFound, NotAuthorized: It is not there, or not theirs.
            InvalidInput, LoraMismatch: The file does not fit the new base, the base has no such precision, or a value
                is none.
        """
        before = self._find_own(organization, finetune_id)
        chosen, at = before.weights, before.precision
        if weights is not None:
            chosen, at = check_base(weights, precision)
            require_fit(report_of(before.lora), chosen, name=before.name)
        elif precision is not None:
            chosen, at = check_base(before.weights, precision)
        with self._database.session() as session:
            row = _require_row(session, organization, before.name)
            row.weights, row.precision, row.updated = chosen, at, time.time()
            if trigger_phrase is not None:
                row.trigger_phrase = check_trigger(trigger_phrase)
            if recommended_strength is not None:
                checked = check_recommended(recommended_strength)
                row.recommended_strength = None if checked is None else f"{checked.normalize():f}"
        return self.find(organization, before.name)

    def grant(self, organization: str, finetune_id: str, to: str) -> Finetune:
        """Share it with the organization `to`; sharing twice is as good as once.

        Raises:
            NotFound, NotAuthorized: It is not there, or not theirs.
            InvalidInput: `to` is the owner, or no possible organization id.
        """
        before = self._find_own(organization, finetune_id)
        if check_organization(to) == organization:
            raise InvalidInput(f"{before.name} is yours already. Name another organization.")
        with contextlib.suppress(Conflict), self._database.session() as session:  # granted meanwhile: as good
            row = _require_row(session, organization, before.name)
            if session.get(GrantRow, (row.id, to)) is None:
                session.add(GrantRow(finetune_id=row.id, organization_id=to, created=time.time()))
        return self.find(organization, before.name)

    def revoke(self, organization: str, finetune_id: str, to: str) -> Finetune:
        """Take a grant back. Tasks that were accepted go on.

        Raises:
            NotFound: There is no such finetune, or it is not shared with `to`.
        """
        before = self._find_own(organization, finetune_id)
        if to not in before.granted_to:
            raise NotFound(f"{before.name} is not shared with {quote(to)}.")
        with self._database.session() as session:
            row = _require_row(session, organization, before.name)
            session.execute(delete(GrantRow).where(GrantRow.finetune_id == row.id, GrantRow.organization_id == to))
        return self.find(organization, before.name)

    def remove(self, organization: str, finetune_id: str) -> Finetune:
        """Delete it until `restore`. Tasks that were accepted go on: its file stays until the last of them has ended.

        Raises:
            NotFound, NotAuthorized: It is not there, or not theirs.
        """
        before = self._find_own(organization, finetune_id)
        with self._database.session() as session:
            row = _require_row(session, organization, before.name)
            row.deleted = time.time()
        return before

    def restore(self, organization: str, finetune_id: str) -> Finetune:
        """Take a deletion back, grants included.

        Raises:
            NotFound: None of that name is deleted, or it has gone for good.
        """
        owner, slash, name = finetune_id.rpartition("/")
        gone = (FinetuneRow.organization_id == organization, FinetuneRow.deleted.is_not(None))
        named = _is(owner if slash else organization, name)
        with self._database.session() as session:
            restored = session.execute(update(FinetuneRow).where(*gone, *named).values(deleted=None))
        if count_changed(restored) == 0:
            raise NotFound(f"{organization} has no deleted finetune {quote(finetune_id)} to restore. Add it again.")
        return self.find(organization, name)

    def list_deleted(self, organization: str) -> tuple[Finetune, ...]:
        """Return what `restore` could bring back, the latest deletion first."""
        query = (
            select(FinetuneRow)
            .where(FinetuneRow.organization_id == organization, FinetuneRow.deleted.is_not(None))
            .order_by(FinetuneRow.deleted.desc())
        )
        with self._database.session() as session:
            rows = session.scalars(query).all()
            grants = _grants(session, [row.id for row in rows])
        return tuple(self._owned(row, grants.get(row.id, ())) for row in rows)

    def expire(self, prefix: str, before: float, *, deleted: float) -> None:
        """Delete what organizations whose id begins with `prefix` added before a time, as if at the time `deleted`."""
        theirs = FinetuneRow.organization_id.startswith(prefix, autoescape=True), FinetuneRow.created < before
        kept = or_(FinetuneRow.deleted.is_(None), FinetuneRow.deleted > deleted)
        with self._database.session() as session:
            session.execute(update(FinetuneRow).where(*theirs, kept).values(deleted=deleted))

    def purge(self, before: float) -> int:
        """Remove for good what was deleted before `before` (seconds since 1970), of everybody; return how many.

        The files go with the next tidying of the workers, when no other finetune and no task needs them.
        """
        with self._database.session() as session:
            return count_changed(session.execute(delete(FinetuneRow).where(FinetuneRow.deleted < before)))

    def require_free(self, organization: str, name: str) -> None:
        """Refuse a name that a finetune of `organization` has.

        Raises:
            Conflict: It has; a deleted one does not count.
        """
        with self._database.session() as session:
            if session.scalars(_called(organization, name)).first() is not None:
                raise Conflict(f"{organization} already has a finetune named {quote(name)}. Choose another name.")

    def blobs(self) -> frozenset[str]:
        """The keys of all files that finetunes need, deleted ones that can be restored among them."""
        with self._database.session() as session:
            return frozenset(session.scalars(select(FinetuneRow.blob)))

    def _register(
        self, organization: str, name: str, report: Report, base: _Base, phrase: str | None, sources: Sequence[str] = ()
    ) -> Finetune:
        """Store the file and its row; raises Conflict when the name is taken."""
        Accounts(self._database).add_organization(organization)
        blob = self._blobs.put(stream_file(report.file), suffix=SUFFIX)
        now = time.time()
        row = FinetuneRow(
            id=uuid.uuid4().hex,
            organization_id=organization,
            name=name,
            weights=base[0],
            precision=base[1],
            trigger_phrase=phrase,
            blob=blob,
            size_bytes=report.file.size_bytes,
            created=now,
            updated=now,
            sources=list(sources) or None,
        )
        with self._database.session() as session:
            session.execute(delete(FinetuneRow).where(*_is(organization, name), FinetuneRow.deleted.is_not(None)))
            session.add(row)
        return self._owned(row, ())

    def _list_names(self, organization: str) -> frozenset[str]:
        """The names that its finetunes have, deleted ones too, and those of the bundled LoRAs and their owner."""
        with self._database.session() as session:
            own = session.scalars(select(FinetuneRow.name).where(FinetuneRow.organization_id == organization)).all()
        return frozenset((*own, OFFICIAL, *(ref.name for ref in list_bundled())))

    def _find_own(self, organization: str, finetune_id: str) -> Finetune:
        found = self.find(organization, finetune_id)
        if found.source is not Source.OWNED:
            raise NotAuthorized(f"{finetune_id} belongs to {found.owner}. Only its owner can change or delete it.")
        return found

    @cached_property
    def _official(self) -> Sequence[Finetune]:
        """The bundled LoRAs on every base they fit: `style` on the distilled one, `style-base` on the Base."""
        return [make_official(ref, weights) for ref in list_bundled() for weights in report_of(ref).fits]

    def _owned(self, row: FinetuneRow, granted_to: tuple[str, ...]) -> Finetune:
        return self._finetune(row, row.name, Source.OWNED, granted_to)

    def _shared(self, row: FinetuneRow) -> Finetune:
        return self._finetune(row, f"{row.organization_id}/{row.name}", Source.THIRD_PARTY, ())

    def _finetune(self, row: FinetuneRow, shown: str, source: Source, granted_to: tuple[str, ...]) -> Finetune:
        sha256 = row.blob.removesuffix(SUFFIX)
        return Finetune(
            id=shown,
            owner=row.organization_id,
            name=row.name,
            source=source,
            weights=row.weights,
            precision=read_precision(row.precision),
            trigger_phrase=row.trigger_phrase,
            lora=LoraRef(
                name=shown, path=self._blobs.place(row.blob), sha256=sha256, trigger_phrase=row.trigger_phrase
            ),
            size_bytes=row.size_bytes,
            created=row.created,
            updated=row.updated,
            blob=row.blob,
            recommended_strength=Decimal(row.recommended_strength) if row.recommended_strength else None,
            granted_to=granted_to,
            deleted=row.deleted,
        )


def _is(owner: str, name: str) -> tuple[ColumnElement[bool], ...]:
    return FinetuneRow.organization_id == owner, FinetuneRow.name == name


def _called(owner: str, name: str) -> Select[FinetuneRow]:
    return select(FinetuneRow).where(*_is(owner, name), FinetuneRow.deleted.is_(None))


def _require_row(session: Session, owner: str, name: str) -> FinetuneRow:
    row = session.scalars(_called(owner, name)).first()
    if row is None:  # deleted since it was looked up
        raise _not_found(name)
    return row


def _grants(session: Session, finetune_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    query = select(GrantRow).where(GrantRow.finetune_id.in_(finetune_ids)).order_by(GrantRow.organization_id)
    grants: dict[str, tuple[str, ...]] = {}
    for row in session.scalars(query):
        grants[row.finetune_id] = (*grants.get(row.finetune_id, ()), row.organization_id)
    return grants


def _not_found(finetune_id: str) -> NotFound:
    return NotFound(
        f"Finetune {quote(finetune_id)} was not found among yours and those shared with you. "
        "Write one of another organization as {owner}/{name}; GET /v1/my_finetunes lists what you can use."
    )
