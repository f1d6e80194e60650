"""Where a checkpoint lies, or why it cannot run here; and its digest. No torch: the app asks this at start-up.

A checkpoint is a folder in diffusers' layout: bundled, below `KLEIN_LAB_MODELS_DIR`, or in the Hub's cache.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from lora_runtime.catalogue import Weights
from lora_runtime.errors import Unavailable
from lora_runtime.settings import settings

BUNDLED = Path(__file__).parent.parent / "pocket" / "weights"
_SAMPLE_BYTES = 1 << 20


def find_checkpoint(weights: Weights) -> Path:
    """Return the folder of `weights`.

    Raises:
        Unavailable: It is not on this machine, or not whole; the message says how to get it.
    """
    if weights.bundled:
        return _require_whole(BUNDLED / weights.name, weights)
    models = settings().models_dir
    if models is not None and (models / weights.name).is_dir():
        return _require_whole(models / weights.name, weights)
    cached = try_to_load_from_cache(str(weights.hub_id), "model_index.json")
    if isinstance(cached, str):
        return _require_whole(Path(cached).parent, weights)
    gated = "" if weights.licence == "Apache-2.0" else f" (accept its licence at huggingface.co/{weights.hub_id} first)"
    raise Unavailable(
        f"{weights.label} is not on this machine. Download it with `hf download {weights.hub_id}`{gated}, or put its "
        f"diffusers folder at $KLEIN_LAB_MODELS_DIR/{weights.name}."
    )


@lru_cache(maxsize=32)
def read_digest(folder: Path) -> str:
    """A digest of the exact checkpoint: 16 hex digits over every weight and config file.

    Files over 2 MiB are sampled (size, first and last MiB): reading 18 GB to name a checkpoint would cost a minute,
    and the first MiB holds the header with every tensor's shape and offset.
    """
    digest = hashlib.sha256()
    for path in sorted(_files(folder)):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
            if size > _SAMPLE_BYTES:
                file.seek(max(_SAMPLE_BYTES, size - _SAMPLE_BYTES))
                digest.update(file.read())
    return digest.hexdigest()[:16]


def _files(folder: Path) -> Iterator[Path]:
    for pattern in ("*.json", "*/*.json", "*/*.safetensors", "*/*.jinja", "*/*.txt"):
        yield from folder.glob(pattern)


def _require_whole(folder: Path, weights: Weights) -> Path:
    """Every part that model_index.json names must be there, every shard that an index names too."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise Unavailable(f"{folder} is not a diffusers folder of {weights.label}: it has no model_index.json.")
    parts = [name for name, entry in json.loads(index.read_text()).items() if isinstance(entry, list) and entry[0]]
    missing = [part for part in parts if not (folder / part).is_dir()]
    for shard_index in folder.glob("*/*.safetensors.index.json"):
        shards = set(json.loads(shard_index.read_text())["weight_map"].values())
        missing += [f"{shard_index.parent.name}/{name}" for name in shards if not (shard_index.parent / name).is_file()]
    if missing:
        raise Unavailable(
            f"{weights.label} in {folder} is not whole: {', '.join(sorted(missing)[:3])} is missing. Download it again."
        )
    return folder
