"""Backends by name: what `--backend local,remote` opens, from the settings of this process."""

from collections.abc import Mapping, Sequence
from typing import Final

from lora_runtime.backends.base import Backend
from lora_runtime.errors import InvalidInput
from lora_runtime.registry.local import fetch_lora
from lora_runtime.settings import settings
from lora_runtime.written import quote

BACKENDS: Final = ("local", "remote")


def parse_backends(text: str) -> tuple[str, ...]:
    """Read names such as "local" or "local,remote".

    Raises:
        InvalidInput: One of them is unknown, or there is none.
    """
    names = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    for name in names or ("",):
        if name not in BACKENDS:
            raise InvalidInput(
                f"Backend: {quote(name)} is none of {', '.join(BACKENDS)}. Write one, or both as local,remote."
            )
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
    return {name: open_backend(name) for name in BACKENDS if remote or name != "remote"}


def open_backend(name: str, *, remote: str | None = None, finetunes: Mapping[str, str] | None = None) -> Backend:
    """Open one of `BACKENDS`. `remote` is a region or base URL in place of the setting.

    Raises:
        InvalidInput: There is no such backend, or the base URL or the key is malformed.
    """
    if name == "local" and settings().on_zero_gpu:
        from lora_runtime.backends.zerogpu import ZeroGpuBackend

        return ZeroGpuBackend()
    if name == "local":
        from lora_runtime.backends.local import LocalBackend

        return LocalBackend()
    if name == "remote":
        from lora_runtime.backends.remote import RemoteBackend

        key = settings().bfl_api_key
        place = remote or settings().remote
        return RemoteBackend(place, key.get_secret_value() if key else None, finetunes=finetunes)
    raise InvalidInput(f"Backend: {quote(name)} is none of {', '.join(BACKENDS)}.")
