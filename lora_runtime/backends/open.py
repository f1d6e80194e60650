"""Backends by name: what `--backend local,remote` opens, from the settings of this process.

*Local* is whatever renders with this code: this process, or the engines of a Ray cluster where KLEIN_LAB_RAY names one,
or one engine for each of several GPUs where Ray is installed. The images are the same.
"""

import importlib.util
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_runtime.backends.base import Backend
from lora_runtime.errors import InvalidInput
from lora_runtime.registry.local import fetch_lora
from lora_runtime.settings import settings
from lora_runtime.written import quote

if TYPE_CHECKING:
    from lora_runtime.backends.cluster import ClusterBackend

logger = logging.getLogger(__name__)

BACKENDS: Final = ("local", "remote", "cluster")

INSTALL: Final = "pip install -r requirements-cluster.txt"


def parse_backends(text: str) -> tuple[str, ...]:
    """Read names such as "local" or "local,remote".

    Raises:
        InvalidInput: One of them is unknown, or there is none, or two are the same place.
    """
    names = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    for name in names or ("",):
        if name not in BACKENDS:
            raise InvalidInput(
                f"Backend: {quote(name)} is none of {', '.join(BACKENDS)}. Write one, or two as local,remote."
            )
    if {"local", "cluster"} <= set(names):
        raise InvalidInput("Backend: the images of cluster are those of local. Write one of the two.")
    return names


def parse_finetunes(texts: Sequence[str]) -> Mapping[str, str]:
    """Read `LORA=ID` pairs: under which id the server knows a LoRA of this machine, by the SHA-256 of its file.

    Raises:
        InvalidInput: One of them is no pair.
        NotFound, LoraError: There is no such LoRA here, or it cannot be read.
    """
    found = {}
    for text in texts:
        lora, _, finetune_id = text.rpartition("=")
        if not lora or not finetune_id.strip():
            raise InvalidInput(f"Finetune: {quote(text)} is not LORA=ID, such as style=my-style.")
        found[fetch_lora(lora).sha256] = finetune_id.strip()
    return found


def name_place(server: str | None) -> str:
    """Return which of `BACKENDS` renders what was rendered at the server of this address; None is this machine."""
    return "remote" if server else "local"


def open_configured() -> Mapping[str, Backend]:
    """Open what the app offers: this machine, and the remote one where KLEIN_LAB_REMOTE or BFL_API_KEY is set.

    Raises:
        InvalidInput: As `open_backend`.
    """
    chosen = settings()
    remote = bool(chosen.bfl_api_key) or "remote" in chosen.model_fields_set
    return {name: open_backend(name) for name in ("local", "remote") if remote or name != "remote"}


def open_backend(name: str, *, remote: str | None = None, finetunes: Mapping[str, str] | None = None) -> Backend:
    """Open one of `BACKENDS`. `remote` is a region or base URL in place of the setting.

    Raises:
        InvalidInput: There is no such backend, it needs what is not installed, or the base URL or the key is malformed.
        Unavailable: No Ray cluster answers.
    """
    if name == "local" and settings().on_zero_gpu:
        from lora_runtime.backends.zerogpu import ZeroGpuBackend

        return ZeroGpuBackend()
    if name == "cluster" or (name == "local" and _takes_ray()):
        return open_cluster()
    if name == "local":
        from lora_runtime.backends.local import LocalBackend

        return LocalBackend()
    if name == "remote":
        from lora_runtime.backends.remote import RemoteBackend

        key = settings().bfl_api_key
        place = remote or settings().remote
        return RemoteBackend(place, key.get_secret_value() if key else None, finetunes=finetunes)
    raise InvalidInput(f"Backend: {quote(name)} is none of {', '.join(BACKENDS)}.")


def _takes_ray() -> bool:
    """Whether *local* is more than this process: where a cluster is named, or there are GPUs that would stand idle."""
    if settings().ray:
        return True
    gpus = count_gpus() if settings().device in ("auto", "cuda") else 0
    if gpus > 1 and not has_ray():
        logger.warning("This machine has %d GPUs, and one of them renders. To use all: %s", gpus, INSTALL)
    return gpus > 1 and has_ray()


def open_cluster() -> "ClusterBackend":
    """Open the engines of the cluster of the settings; without one, those of this machine's GPUs.

    Raises:
        InvalidInput: Ray is not installed.
        Unavailable: No cluster answers there.
    """
    if not has_ray():
        raise InvalidInput(f"Backend: a cluster needs Ray, which is not installed. Install it with: {INSTALL}")
    from lora_runtime.backends.cluster import ClusterBackend

    return ClusterBackend(settings().ray)


def has_ray() -> bool:
    """Whether Ray is installed; it is not imported."""
    return importlib.util.find_spec("ray") is not None


def count_gpus(devices: Path = Path("/dev")) -> int:
    """Return how many CUDA GPUs this process may use, without asking a driver for it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in devices.glob("nvidia*"))
