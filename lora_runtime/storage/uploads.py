"""Files on their way in: written chunk by chunk into a folder of their own, never longer than a limit.

What a killed process had on its way lies under a name that begins with a dot, and is removed by the next one.
"""

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lora_runtime.errors import InvalidInput, StorageFailed

_COPY_BYTES: Final = 1 << 20

LEFT_OVER_S: Final = 3600.0
"""What nobody has written to for this long, and no row needs, is nobody's: what comes in gets its row much sooner."""

_UNFINISHED: Final = (".upload-*", ".fetching-*", ".part-*", ".*.part")
"""How files and folders are called until they are whole."""


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


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left half written in `folder`, once it is `LEFT_OVER_S` old.

    Raises:
        StorageFailed: The folder is not writable.
    """
    before = time.time() - LEFT_OVER_S
    for path in {path for pattern in _UNFINISHED for path in folder.glob(pattern)}:
        try:
            if max(each.lstat().st_mtime for each in (path, *path.rglob("*"))) >= before:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except FileNotFoundError:  # it was not left over: its process has just taken it away
            continue
        except OSError as error:
            raise StorageFailed(f"Could not delete {path}: {error.strerror or error}. Delete it by hand.") from error


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
