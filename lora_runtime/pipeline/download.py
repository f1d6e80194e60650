"""Fetch klein's weights from the Hub, on request only; licence, gate and disk space are said before the first byte.

What comes is the diffusers folder, without BFL's single file of the same transformer beside it. For FP8 it is BFL's
single FP8 file in place of the folder's transformer. `find.py` then finds both in the Hub's cache.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from lora_runtime.catalogue import Weights
from lora_runtime.errors import InvalidInput, StorageFailed, Unavailable
from lora_runtime.pipeline.memory import count_fp8_file, count_transformer, download_bytes
from lora_runtime.values import Precision

_HTTP_ERROR: Final[type[Exception]] = HfHubHTTPError.__mro__[1]  # the HTTP client's root: httpx's or httpx2's

Answer = TypeVar("Answer")

SPARE_BYTES: Final = 1_000_000_000
"""What the disk should have left afterwards."""

_SINGLE_FILES: Final = "flux-2-*.safetensors"
_TRANSFORMER: Final = "transformer/*.safetensors*"


class Hosted(Protocol):
    """What is on the Hub, and how it is called here."""

    @property
    def label(self) -> str:
        """Its name for people."""
        ...

    @property
    def hub_id(self) -> str | None:
        """Its repository."""
        ...


@dataclass(frozen=True, kw_only=True)
class Download:
    """What a download of weights will fetch: repositories, bytes, and the licence that comes with it."""

    weights: Weights
    precision: Precision
    size_bytes: int
    folder: Path

    def describe(self) -> str:
        """Say it in one sentence each."""
        gate = " It is gated: accept the licence on its page once." if self.weights.gated else ""
        return (
            f"{self.weights.label} ({self.precision}) from huggingface.co/{self.weights.hub_id}: "
            f"{self.size_bytes / 1e9:.1f} GB into {self.folder}.\nLicence: {self.weights.licence}.{gate}"
        )


@dataclass(frozen=True, kw_only=True)
class HubDownload:
    """Files of one repository, by patterns, and the licence that comes with them."""

    label: str
    hub_id: str
    licence: str
    size_bytes: int
    files: tuple[str, ...]

    def describe(self) -> str:
        """Say it in one sentence each."""
        return (
            f"{self.label} from huggingface.co/{self.hub_id}: {self.size_bytes / 1e6:,.0f} MB into "
            f"{constants.HF_HUB_CACHE}.\nLicence: {self.licence}."
        )

    def run(self) -> None:
        """Fetch it; what is here already is not fetched again, and a download that was cut off goes on.

        Raises:
            Unavailable: The Hub cannot be reached, or refuses.
            StorageFailed: The disk is full or not writable.
        """
        fetch(self, lambda: huggingface_hub.snapshot_download(self.hub_id, allow_patterns=list(self.files)))


def plan_download(weights: Weights, precision: Precision) -> Download:
    """Check everything that can be checked without a byte.

    Raises:
        InvalidInput: The weights are bundled, or not published at `precision`.
        Unavailable: They are gated and nobody is logged in.
        StorageFailed: The disk has too little room.
    """
    if weights.bundled:
        raise InvalidInput(f"{weights.label} comes with this project; there is nothing to download.")
    if precision == "fp32" or (precision == "fp8" and weights.fp8_hub_id is None):
        raise InvalidInput(f"{weights.label} is not published at {precision}. Choose bf16 or fp8.")
    if weights.gated and huggingface_hub.get_token() is None:
        raise Unavailable(
            f"{weights.label} is gated. Accept its licence ({weights.licence}) at huggingface.co/{weights.hub_id}, "
            "then log in with `hf auth login` or set HF_TOKEN."
        )
    size = download_bytes(weights)
    if precision == "fp8":
        size += count_fp8_file(weights) - 2 * sum(count_transformer(weights))
    folder = require_disk(f"{weights.label} at {precision}", size)
    return Download(weights=weights, precision=precision, size_bytes=size, folder=folder)


def run_download(download: Download) -> None:
    """Fetch it; what is here already is not fetched again, and a download that was cut off goes on.

    Raises:
        Unavailable: The Hub cannot be reached, or refuses.
        StorageFailed: The disk is full or not writable.
    """
    weights = download.weights
    fp8 = download.precision == "fp8"
    ignored = [_SINGLE_FILES, *([_TRANSFORMER] if fp8 else [])]
    fetch(weights, lambda: huggingface_hub.snapshot_download(str(weights.hub_id), ignore_patterns=ignored))
    if fp8:
        name = f"{weights.single_file}-fp8.safetensors"
        fetch(weights, lambda: huggingface_hub.hf_hub_download(str(weights.fp8_hub_id), name))


def fetch(what: Hosted, ask: Callable[[], Answer]) -> Answer:
    """Ask the Hub for something of `what`, and turn what goes wrong into a sentence.

    Raises:
        Unavailable: The Hub cannot be reached, or refuses.
        StorageFailed: The disk is full or not writable.
    """
    try:
        return ask()
    except GatedRepoError as error:
        raise Unavailable(
            f"The Hub refuses {what.label}: your account has not accepted its licence. Do so at "
            f"huggingface.co/{what.hub_id}, then try again."
        ) from error
    except RepositoryNotFoundError as error:
        raise Unavailable(
            f"The Hub does not show {what.label}. Log in with `hf auth login`, or check HF_TOKEN."
        ) from error
    except (HfHubHTTPError, _HTTP_ERROR, LocalEntryNotFoundError, ConnectionError) as error:
        raise Unavailable(
            f"The Hub could not be reached for {what.label}: {error}. What came so far is kept; try again."
        ) from error
    except OSError as error:
        raise StorageFailed(
            f"Could not write {what.label} to {constants.HF_HUB_CACHE}: {error}. Free some space and try again."
        ) from error


def require_disk(label: str, size_bytes: int) -> Path:
    """Return the Hub's cache folder, whose disk must have room for `size_bytes`.

    Raises:
        StorageFailed: It has too little.
    """
    folder = Path(constants.HF_HUB_CACHE)
    free = _free_disk(folder)
    if free < size_bytes + SPARE_BYTES:
        raise StorageFailed(
            f"{label} needs {size_bytes / 1e9:.1f} GB, but the disk of {folder} has {free / 1e9:.1f} GB free. "
            "Free some space, or set HF_HUB_CACHE to a folder on another disk."
        )
    return folder


def _free_disk(folder: Path) -> int:
    """The bytes that are free where `folder` is or will be."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free
