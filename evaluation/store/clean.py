"""Every hour, delete what a visitor left and what was deleted a day ago: nothing of a visitor's stays behind.

What somebody deletes can be taken back for a day. The work of visitors who are kept apart goes when it is as old as
`KLEIN_LAB_KEEP_HOURS` says; that of `local` and of organizations with keys stays. What a killed process left half
written goes too. Uploads that are no finetune and downloads lie in Gradio's cache, which deletes them itself.
"""

import logging
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

from evaluation.store.store import Store
from lora_runtime.errors import KleinLabError
from lora_runtime.registry.accounts import Accounts
from lora_runtime.registry.finetunes import Finetunes
from lora_runtime.registry.visitors import VISITOR_PREFIX
from lora_runtime.settings import Settings
from lora_runtime.storage.uploads import remove_leftovers

logger = logging.getLogger(__name__)

UNDO: Final = timedelta(days=1)
"""How long a deletion can be taken back."""

EVERY_S: Final = 3600.0


class Registry(Protocol):
    """The part of the server that is cleaned."""

    accounts: Accounts
    finetunes: Finetunes


class Cleaning:
    """The thread that cleans up, from `start` to `close`."""

    def __init__(self, store: Store, registry: Registry, settings: Settings) -> None:
        self._store = store
        self._registry = registry
        self._settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="klein-cleaning", daemon=True)

    def start(self) -> None:
        """Clean now, and then every hour."""
        self._thread.start()

    def close(self) -> None:
        """Stop; a cleaning under way is finished first."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while True:
            try:
                clean(self._store, self._registry, self._settings, now=datetime.now(UTC))
            except KleinLabError as error:
                logger.warning("The cleaning is tried again in an hour: %s", error)
            if self._stop.wait(EVERY_S):
                return


def clean(store: Store, registry: Registry, settings: Settings, *, now: datetime) -> None:
    """Delete what is due at `now`.

    Raises:
        StorageFailed: A file or the database could not be written; the rest is done the next time.
    """
    undone = now - UNDO
    if settings.visitors == "apart" and settings.keep_hours > 0:
        before, deleted = now - timedelta(hours=settings.keep_hours), undone - timedelta(seconds=1)
        store.expire(VISITOR_PREFIX, before, deleted=deleted)
        registry.finetunes.expire(VISITOR_PREFIX, before.timestamp(), deleted=deleted.timestamp())
        _forget_prompts(settings.home / "prompts", before)
    gone = store.purge(undone) + registry.finetunes.purge(undone.timestamp())
    registry.accounts.forget_organizations(VISITOR_PREFIX)
    for folder in ("blobs", "prompts"):
        remove_leftovers(settings.home / folder)
    if gone:
        logger.info("%d images and finetunes were deleted for good.", gone)


def _forget_prompts(folder: Path, before: datetime) -> None:
    """Delete kept prompt embeddings that nobody has used since."""
    for path in folder.glob("*"):
        if path.is_file() and path.stat().st_mtime < before.timestamp():
            path.unlink(missing_ok=True)
