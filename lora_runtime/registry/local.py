"""The LoRAs of the person at this machine, who is the organization `local`: what they type, and what they had before.

What they type may be a path or a place on the network, so this is for the command line alone: a name that came over the
network is looked up in `shelf.py`. What is downloaded becomes a finetune, and is found again without asking anybody.
"""

import contextlib
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lora_runtime.errors import KleinLabError, NotFound, StorageFailed
from lora_runtime.lora.check import check_file
from lora_runtime.lora.download import Source, fetch, parse_source
from lora_runtime.lora.file import list_files
from lora_runtime.lora.library import find_bundled, find_file, name_of, read_lora
from lora_runtime.lora.names import clean_name, number_name
from lora_runtime.registry.accounts import LOCAL
from lora_runtime.registry.finetune import Finetune
from lora_runtime.registry.finetunes import SUFFIX, Finetunes
from lora_runtime.registry.shelf import Shelf
from lora_runtime.settings import Settings, settings
from lora_runtime.storage.blobs import Blobs
from lora_runtime.storage.database import Database
from lora_runtime.values import LoraRef
from lora_runtime.written import list_some, quote

logger = logging.getLogger(__name__)

_NOTE: Final = ".source.json"
"""Beside a LoRA that was kept in the folder and came from the network: where from."""


def open_blobs(chosen: Settings) -> Blobs:
    """The API's own files: finetunes, input images, results. Never served as a folder."""
    return Blobs(chosen.home / "api")


def open_finetunes(database: Database, blobs: Blobs, chosen: Settings) -> Finetunes:
    """Return the registry; LoRAs that lie in `home/loras`, where they were once kept, become finetunes of `local`."""
    finetunes = Finetunes(database, blobs, max_bytes=chosen.lora_max_bytes)
    _take_in(finetunes, chosen.home / "loras")
    return finetunes


@contextlib.contextmanager
def open_registry() -> Iterator[Finetunes]:
    """Open the registry of the settings, for one command.

    Raises:
        InvalidInput, StorageFailed: The database cannot be opened.
    """
    chosen = settings()
    with contextlib.closing(Database(chosen.sqlalchemy_url())) as database:
        yield open_finetunes(database, open_blobs(chosen), chosen)


def fetch_lora(text: str, *, adapter: str | None = None) -> LoraRef:
    """Return the LoRA of that name, file, folder, or place on the network; of several adapters in it, this one.

    The last is downloaded the first time, and kept as a finetune.

    Raises:
        NotFound: Neither a known name nor a file; the message lists the names.
        LoraError: The file is damaged, for no klein model, or could not be fetched.
        InvalidInput: An address or a file that cannot hold a LoRA, or it has no such adapter.
    """
    found = fetch_file(text)
    return read_lora(found, adapter=adapter) if isinstance(found, Path) else found


def fetch_file(text: str) -> Path | LoraRef:
    """Return the file that a bundled name or a path means, unread; else the finetune that `fetch_lora` returns.

    Raises:
        NotFound, LoraError, InvalidInput: See `fetch_lora`.
    """
    bundled = find_bundled(text)
    if bundled is not None:
        return bundled
    if clean_name(text) == text:  # a path has other characters, but for one in the folder where the command runs
        with open_registry() as finetunes:
            known = {ref.name: ref for ref in Shelf(finetunes).list(LOCAL)}
        if text in known:
            return known[text]
    there = find_file(text)
    if there is not None:
        return there
    source = parse_source(text)
    with open_registry() as finetunes:
        if source is not None:
            return _fetch(finetunes, source).lora
        names = list_some(ref.name for ref in Shelf(finetunes).list(LOCAL))
    raise NotFound(
        f"There is no LoRA named {quote(text)}. Known names: {names}. Or give the path of a .safetensors file, "
        "or owner/repo on the Hub."
    )


def find_moved(path: Path, sha256: str) -> Path:
    """Return where a file with these contents is: at `path`, or where the registry keeps it since it was taken in."""
    if path.is_file():
        return path
    kept = open_blobs(settings()).place(f"{sha256}{SUFFIX}")
    return kept if kept.is_file() else path


def _fetch(finetunes: Finetunes, source: Source) -> Finetune:
    known = finetunes.fetched_from(LOCAL, _digest(source))
    if known is not None:
        return known
    into = open_blobs(settings()).folder
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into, prefix=".fetching-") as folder:
            fetched = fetch(source, Path(folder), max_bytes=settings().lora_max_bytes)
            report = check_file(fetched.path)
            sources = [_digest(source), _digest(fetched.exact)]
            same = next((each for each in finetunes.list(LOCAL) if each.lora.sha256 == report.file.sha256), None)
            if same is not None:
                finetunes.add_sources(same, sources)
                return same
            return finetunes.keep(LOCAL, report, number_name(clean_name(fetched.name)), sources=sources)
    except OSError as error:
        raise StorageFailed(
            f"Could not keep {source}: {error.strerror or error}. Free some space and try again."
        ) from error


def _take_in(finetunes: Finetunes, folder: Path) -> None:
    """Register every LoRA of `folder` under the name it had there, then delete its file; one that fails stays."""
    for path in list_files(folder):
        try:
            report, name, note = check_file(path), name_of(path), path.with_name(f"{path.stem}{_NOTE}")
            names = (name, f"{name}-{report.file.sha256[:6]}")  # as it was told apart from another file of that name
            sources = json.loads(note.read_text("utf-8"))["keys"] if note.is_file() else ()
            kept = finetunes.keep(LOCAL, report, names, sources=sources)
            logger.info("%s is the finetune %s now.", path, kept.id)
            for done in (path, note):
                done.unlink(missing_ok=True)
        except (KleinLabError, OSError, ValueError) as error:
            logger.warning("%s stays where it is, and is not listed: %s", path, error)


def _digest(source: Source) -> str:
    """A source as the registry names it: an address may hold a token, which must not be written down."""
    return hashlib.sha256(repr(source).encode()).hexdigest()
