"""Files on their way in: written chunk by chunk into a folder of their own, never longer than a limit."""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lora_runtime.errors import InvalidInput, StorageFailed

_COPY_BYTES: Final = 1 << 20


class Upload:
    """A file on its way in, in a folder of its own; never longer than the limit."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._written = 0

    def write(self, chunk: bytes) -> None:
        """Append to the file.

        Raises:
            InvalidInput: It exceeds the limit.
            StorageFailed: The disk is full or not writable.
        """
        self._written += len(chunk)
        check_size(self.path.name, self._written, max_bytes=self._max_bytes)
        try:
            with self.path.open("ab") as file:
                file.write(chunk)
        except OSError as error:
            raise StorageFailed(
                f"Could not take {self.path.name}: {error.strerror or error}. Free some space."
            ) from error

    def copy(self, path: Path) -> None:
        """Append a file of this machine.

        Raises:
            InvalidInput, StorageFailed: As for `write`; the latter also when `path` cannot be read.
        """
        for chunk in _read(path):
            self.write(chunk)


def check_size(name: str, size_bytes: int, *, max_bytes: int) -> None:
    """Refuse a file that is too large.

    Raises:
        InvalidInput: It is.
    """
    if size_bytes > max_bytes:
        raise InvalidInput(
            f"{name} is larger than {max_bytes / 1024**2:.0f} MiB, which is the limit here. "
            "Raise KLEIN_LAB_LORA_MAX_BYTES, or train with a lower rank."
        )


def _read(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_COPY_BYTES):
                yield chunk
    except OSError as error:
        raise StorageFailed(f"Could not read {path.name}: {error.strerror or error}. Choose it again.") from error


@contextlib.contextmanager
def open_upload(folder: Path, file_name: str, *, max_bytes: int) -> Iterator[Upload]:
    """Take in a file named `file_name` below `folder`; it is deleted at the end.

    Raises:
        StorageFailed: The folder is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own = tempfile.TemporaryDirectory(dir=folder, prefix=".upload-")
    except OSError as error:
        raise StorageFailed(f"Could not write to {folder}: {error.strerror or error}. Free some space.") from error
    with own:
        # The name is shown in messages about the file, so it is kept as far as it is harmless.
        path = Path(own.name) / (re.sub(r"[^\w.-]+", "-", Path(file_name).name)[-100:].lstrip(".") or "lora")
        path.touch()
        yield Upload(path, max_bytes=max_bytes)
