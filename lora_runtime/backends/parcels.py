"""Files that travel to the machines that need them: packed by whoever asks, kept there under the digest of the content.

A LoRA's digest covers its file, its PEFT settings and which of its adapters is meant; a reference image's is of its
bytes. What arrives is checked against it before it is kept. The folder may be deleted at any time: what is missing is
asked for again.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from lora_runtime.errors import InvalidInput, LoraUnreadable, NotFound, StorageFailed
from lora_runtime.lora.file import ADAPTER_CONFIG, find_config
from lora_runtime.lora.library import path_of, read_lora
from lora_runtime.values import LoraRef, Reference, RenderRequest

Item: TypeAlias = LoraRef | Reference
Parcel: TypeAlias = Mapping[str, bytes]
"""File name -> content; the first is the LoRA or the image itself."""


def list_items(request: RenderRequest) -> tuple[Item, ...]:
    """Return the files that a request needs."""
    return (*((request.lora,) if request.lora else ()), *request.references)


def pack(item: Item) -> Parcel:
    """Return the content of a LoRA or a reference image.

    Raises:
        NotFound: Its file has gone, or was never on this machine.
    """
    path = path_of(item) if isinstance(item, LoraRef) else item.path
    config = find_config(path) if isinstance(item, LoraRef) else None
    try:
        return {file.name: file.read_bytes() for file in (path, config) if file is not None}
    except OSError as error:
        what = f"the LoRA {item.name}" if isinstance(item, LoraRef) else "a reference image"
        raise NotFound(f"The file of {what} has gone: {path}. Choose it again.") from error


class Shelf:
    """What has arrived on this machine, one folder an item."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, item: Item) -> Path | None:
        """Return the file of a LoRA or a reference image, if it is here."""
        return next((path for path in self._place(item).glob("*") if path.name != ADAPTER_CONFIG), None)

    def keep(self, item: Item, parcel: Parcel) -> Path:
        """Keep what arrived, whole or not at all.

        Raises:
            LoraUnreadable, InvalidInput: It is not what was meant: its file changed after it was chosen.
            StorageFailed: The disk is full or not writable.
        """
        place = self._place(item)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=".part-") as folder:
                arrived = Path(folder, "files")
                arrived.mkdir()
                for name, data in parcel.items():
                    with (arrived / name).open("wb") as file:
                        file.write(data)
                        file.flush()
                        os.fsync(file.fileno())
                _check(item, arrived / next(iter(parcel)))
                if self.find(item) is None:
                    shutil.rmtree(place, ignore_errors=True)  # somebody tidied up half of it
                    arrived.rename(place)
        except OSError as error:
            if self.find(item) is None:  # else another engine of this machine was quicker
                raise StorageFailed(
                    f"Could not keep {place}: {error.strerror or error}. Free some space there and try again."
                ) from error
        return place / next(iter(parcel))

    def localise(self, request: RenderRequest) -> RenderRequest:
        """Return the request with the paths of this machine.

        Raises:
            NotFound: One of its files is not here.
        """
        lora = replace(request.lora, path=self._find(request.lora)) if request.lora else None
        references = tuple(replace(reference, path=self._find(reference)) for reference in request.references)
        return replace(request, lora=lora, references=references)

    def _find(self, item: Item) -> Path:
        path = self.find(item)
        if path is None:
            raise NotFound(f"The file {item.sha256} has not arrived in {self._folder}. Try again.")
        return path

    def _place(self, item: Item) -> Path:
        return Path(self._folder, item.sha256[:2], item.sha256)


def _check(item: Item, path: Path) -> None:
    if isinstance(item, LoraRef):
        if read_lora(path, adapter=item.adapter).sha256 != item.sha256:
            raise LoraUnreadable(f"{item.path} changed after it was chosen. Choose it again.")
    elif hashlib.sha256(path.read_bytes()).hexdigest() != item.sha256:
        raise InvalidInput(f"Image: {item.path} changed after it was chosen. Choose it again.")
