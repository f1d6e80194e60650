"""Content-addressed files: a file's name is the SHA-256 of its bytes.

A file is written under a temporary name in the same folder, synced and renamed, so that a crash or a full disk leaves
either the whole file or nothing. The same bytes are stored once.
"""

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from lora_runtime.errors import NotFound, StorageFailed


class Blobs:
    """A folder of files, `ab/abcdef….png`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, data: bytes | Iterable[bytes], *, suffix: str = "") -> str:
        """Store `data` and return its key, the hex SHA-256 followed by `suffix` (".png").

        Raises:
            StorageFailed: The disk is full or not writable; nothing is left behind.
        """
        chunks = (data,) if isinstance(data, bytes) else data
        digest = hashlib.sha256()
        with self._disk_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            file = tempfile.NamedTemporaryFile(dir=self.folder, prefix=".part-", delete=False)  # noqa: SIM115
        temporary = Path(file.name)
        try:
            with file:
                for chunk in chunks:  # an error of the source itself is not the disk's
                    digest.update(chunk)
                    with self._disk_errors():
                        file.write(chunk)
                with self._disk_errors():
                    file.flush()
                    os.fsync(file.fileno())
            key = digest.hexdigest() + suffix
            with self._disk_errors():
                self._publish(temporary, self.place(key))
        finally:
            temporary.unlink(missing_ok=True)
        return key

    def path(self, key: str) -> Path:
        """Return the file of `key`.

        Raises:
            NotFound: There is no such file.
        """
        path = self.place(key)
        if not path.is_file():
            raise NotFound(f"The file {key} is not in {self.folder}. Was it deleted by hand?")
        return path

    def place(self, key: str) -> Path:
        """Return where the file of `key` is, or would be."""
        return Path(self.folder, key[:2], key)

    def remove(self, key: str) -> None:
        """Delete the file of `key`; one that has gone already is as good.

        Raises:
            StorageFailed: The folder is not writable.
        """
        with self._disk_errors():
            self.place(key).unlink(missing_ok=True)

    def keys(self, suffix: str, *, unchanged_s: float) -> tuple[str, ...]:
        """Every key that ends in `suffix` and was not written within the last `unchanged_s` seconds."""
        before = time.time() - unchanged_s
        with self._disk_errors():
            return tuple(path.name for path in self.folder.glob(f"??/*{suffix}") if path.stat().st_mtime < before)

    def __contains__(self, key: str) -> bool:
        return self.place(key).is_file()

    def _publish(self, temporary: Path, target: Path) -> None:
        target.parent.mkdir(exist_ok=True)
        temporary.chmod(0o644)
        temporary.replace(target)
        _sync_folder(target.parent)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageFailed(
                f"Could not write to {self.folder}: {error.strerror or error}. "
                "Free some space or point KLEIN_LAB_HOME at a writable folder, then run it again: what is done is kept."
            ) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; a folder cannot be opened for this on Windows."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
