"""What is known of the kept LoRAs without reading them again: one small file beside them.

A library of fifty LoRAs is tens of gigabytes; to list it must not mean to hash it. An entry counts while the file's
size and time are what they were, and the catalogue has the same weights. It only serves to list and to find by name:
what is rendered is read and hashed anew when it is attached. The index can be deleted at any time.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

from lora_runtime.catalogue import WEIGHTS
from lora_runtime.values import LoraRef

_INDEX = "index.json"


def recall(path: Path, *, name: str) -> LoraRef | None:
    """Return what is known of the kept file `path`, which is called `name`, if it has not changed since."""
    entry = _read(path.parent).get(path.stem)
    match entry:
        case {
            "stamp": stamp, "sha256": str(sha256), "trigger_phrase": str() | None as phrase, "fits": list(fits),
        } if stamp == _stamp(path):  # fmt: skip
            return LoraRef(name=name, path=path, sha256=sha256, trigger_phrase=phrase, fits=tuple(fits))
    return None


def remember(ref: LoraRef) -> None:
    """Note what was just read of a kept file."""
    entry = {
        "stamp": _stamp(ref.path), "sha256": ref.sha256, "trigger_phrase": ref.trigger_phrase, "fits": ref.fits,
    }  # fmt: skip
    folder = ref.path.parent
    entries = {name: old for name, old in _read(folder).items() if (folder / f"{name}.safetensors").is_file()}
    part = folder / f".{ref.name}.index"
    with contextlib.suppress(OSError):  # without an index the next listing takes longer, no more
        part.write_text(json.dumps(entries | {ref.path.stem: entry}), "utf-8")
        part.replace(folder / _INDEX)


def _read(folder: Path) -> dict[str, Any]:
    try:
        entries = json.loads((folder / _INDEX).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _stamp(path: Path) -> list[int | str]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, *WEIGHTS]
