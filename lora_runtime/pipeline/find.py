"""Where a checkpoint lies, or why it cannot run here; and its digest. No torch: the app asks this at start-up.

A checkpoint is a folder in diffusers' layout: bundled, below `KLEIN_LAB_MODELS_DIR`, or in the Hub's cache. Its
transformer may also be one of BFL's single files (`flux-2-klein-4b.safetensors`, `flux-2-klein-4b-fp8.safetensors`) in
the same places; the folder then needs only the transformer's config.json. FP8 takes BFL's file where there is one.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from huggingface_hub import try_to_load_from_cache

from lora_runtime.catalogue import Weights
from lora_runtime.errors import Unavailable
from lora_runtime.settings import settings
from lora_runtime.values import Precision

BUNDLED = Path(__file__).parent.parent / "pocket" / "weights"
_SAMPLE_BYTES = 1 << 20
_WEIGHTED: Final = ("transformer", "text_encoder", "vae")
"""The parts of a folder that hold weights."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint: a diffusers folder, and BFL's single file where the transformer comes from one."""

    folder: Path
    transformer: Path | None = None


def find_checkpoint(weights: Weights) -> Path:
    """Return the diffusers folder of `weights`, the transformer in it.

    Raises:
        Unavailable: It is not on this machine, or not whole; the message says how to get it.
    """
    return _require_whole(_find_folder(weights), weights)


def find_parts(weights: Weights, precision: Precision) -> Checkpoint:
    """Return what to load for `weights` at `precision`. An FP8 file never serves another precision.

    Raises:
        Unavailable: Something is missing; the message says what, and how to get it.
    """
    folder = _find_folder(weights)
    if weights.bundled:
        return Checkpoint(folder=_require_whole(folder, weights))
    if precision == "fp8" and (single := _find_single_file(weights, "fp8")):
        return Checkpoint(folder=_require_whole(folder, weights, transformer=False), transformer=single)
    if not any((folder / "transformer").glob("*.safetensors*")) and (single := _find_single_file(weights, "bf16")):
        return Checkpoint(folder=_require_whole(folder, weights, transformer=False), transformer=single)
    return Checkpoint(folder=_require_whole(folder, weights))


@lru_cache(maxsize=32)
def read_digest(folder: Path, transformer: Path | None = None) -> str:
    """A digest of the exact checkpoint: 16 hex digits over every weight and config file.

    Files over 2 MiB are sampled (size, first and last MiB): reading 18 GB to name a checkpoint would cost a minute,
    and the first MiB holds the header with every tensor's shape and offset.
    """
    digest = hashlib.sha256()
    for path in sorted(_files(folder)):
        if transformer is None or path.parent.name != "transformer" or path.suffix == ".json":
            add_file(digest, path, path.relative_to(folder).as_posix())
    if transformer is not None:
        add_file(digest, transformer, "transformer")
    return digest.hexdigest()[:16]


def add_file(digest: "hashlib._Hash", path: Path, name: str) -> None:
    """Add a file to a digest: name and size, and all of it or, over 2 MiB, its first and last MiB."""
    size = path.stat().st_size
    digest.update(f"{name}\0{size}\0".encode())
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLE_BYTES))
        if size > _SAMPLE_BYTES:
            file.seek(max(_SAMPLE_BYTES, size - _SAMPLE_BYTES))
            digest.update(file.read())


def _files(folder: Path) -> Iterator[Path]:
    for pattern in ("*.json", "*/*.json", "*/*.safetensors", "*/*.jinja", "*/*.txt"):
        yield from folder.glob(pattern)


def _find_folder(weights: Weights) -> Path:
    if weights.bundled:
        return BUNDLED / weights.name
    models = settings().models_dir
    cached = try_to_load_from_cache(str(weights.hub_id), "model_index.json")
    if models is not None and (models / weights.name).is_dir():
        own = models / weights.name
        if (own / "model_index.json").is_file() or not isinstance(cached, str):
            return own
    if isinstance(cached, str):
        return Path(cached).parent
    gated = f" (accept its licence at huggingface.co/{weights.hub_id} first)" if weights.gated else ""
    raise Unavailable(
        f"{weights.label} is not on this machine. Download it with `python -m lora_runtime download {weights.name}` or "
        f"`hf download {weights.hub_id}`{gated}, or put its diffusers folder at $KLEIN_LAB_MODELS_DIR/{weights.name}."
    )


def _find_single_file(weights: Weights, precision: Precision) -> Path | None:
    """BFL's single file of the transformer at this very precision, if it is here."""
    name = f"{weights.single_file}{'-fp8' if precision == 'fp8' else ''}.safetensors"
    models = settings().models_dir
    if models is not None:
        for path in (models / name, models / weights.name / name):
            if path.is_file():
                return path
    repository = weights.fp8_hub_id if precision == "fp8" else weights.hub_id
    cached = try_to_load_from_cache(str(repository), name) if repository else None
    return Path(cached) if isinstance(cached, str) else None


def _require_whole(folder: Path, weights: Weights, *, transformer: bool = True) -> Path:
    """Every part that model_index.json names must be there with its weights, every shard that an index names too.

    `transformer` says whether its weights are among them; its config.json always is.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise Unavailable(f"{folder} is not a diffusers folder of {weights.label}: it has no model_index.json.")
    parts = [name for name, entry in json.loads(index.read_text()).items() if isinstance(entry, list) and entry[0]]
    missing = [part for part in parts if not (folder / part).is_dir()]
    weighted = [part for part in _WEIGHTED if part in parts and part not in missing]
    missing += [f"{part}/config.json" for part in weighted if not (folder / part / "config.json").is_file()]
    if not transformer:
        weighted = [part for part in weighted if part != "transformer"]
    for part in weighted:
        indexes = list((folder / part).glob("*.safetensors.index.json"))
        shards = {name for path in indexes for name in json.loads(path.read_text())["weight_map"].values()}
        missing += [f"{part}/{name}" for name in shards if not (folder / part / name).is_file()]
        if not indexes and not any((folder / part).glob("*.safetensors")):
            missing.append(f"{part}/*.safetensors")
    if missing:
        raise Unavailable(
            f"{weights.label} in {folder} is not whole: {', '.join(sorted(missing)[:3])} is missing. Download it again."
        )
    return folder
