"""What `inspect` prints: a LoRA as one JSON object, whether or not it would load.

The keys are the same either way. A file that does not load says as much about itself as can be read.
"""

from pathlib import Path
from typing import Final, TypeAlias

from lora_runtime.errors import KleinLabError
from lora_runtime.lora.check import (
    Report,
    check_file,
    find_nearest,
    find_problems,
    measure_blocks,
    read_contents,
    read_trigger_phrase,
)
from lora_runtime.lora.file import read_file
from lora_runtime.lora.formats import Layer, read_layers
from lora_runtime.written import MOST_LISTED, shorten

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None

KEYS: Final = (
    "ok", "format", "base", "trained_on", "rank", "alpha", "trigger_phrase", "matched", "unmatched", "notices",
    "problems", "sha256", "norms",
)  # fmt: skip


def describe_file(path: Path, *, adapter: str | None = None) -> dict[str, Json]:
    """Return `KEYS` of a file.

    `ok`: it would load. `base`: the weights it fits. `rank`, `alpha` (scale x rank): the different values, none for a
    LoKr of whole factors. `matched`: how many modules it adapts. `unmatched`: keys and modules that do not fit the
    nearest klein, the first ten of them. `problems`: why it would not load. `norms`: the size of the weight change, by
    block.
    """
    try:
        return _nothing() | _describe(check_file(path, adapter=adapter))
    except KleinLabError as error:
        return _nothing() | _describe_broken(path, adapter) | {"problems": [str(error)]}


def describe_missing(error: KleinLabError) -> dict[str, Json]:
    """Return `KEYS` of what could not be found."""
    return _nothing() | {"problems": [str(error)]}


def _nothing() -> dict[str, Json]:
    document: dict[str, Json] = dict.fromkeys(KEYS)
    return document | {"ok": False, "problems": [], "notices": [], "unmatched": []}


def _describe(report: Report) -> dict[str, Json]:
    return {
        "ok": True,
        "format": report.spelling,
        "base": list(report.fits),
        "trained_on": report.trained_on,
        "rank": list(report.ranks),
        "alpha": _alphas(report.layers),
        "trigger_phrase": report.trigger_phrase,
        "matched": len(report.layers),
        "notices": list(report.notices),
        "sha256": report.file.sha256,
        "norms": dict(measure_blocks(report)),
    }


def _describe_broken(path: Path, adapter: str | None) -> dict[str, Json]:
    """What can be read of a file before it stops making sense."""
    document: dict[str, Json] = {}
    try:
        file = read_file(path)
        document |= {"sha256": file.sha256, "trigger_phrase": read_trigger_phrase(file)}
        found = read_layers(*read_contents(path, adapter=adapter))
    except KleinLabError:  # the caller has this error already
        return document
    unmatched = find_problems(found, find_nearest(found).shape)
    return document | {
        "format": found.spelling,
        "rank": [*sorted({layer.rank for layer in found.layers if layer.rank is not None})],
        "alpha": _alphas(found.layers),
        "matched": len(found.layers) + len(found.unmatched) - len(unmatched),
        "unmatched": [*(shorten(name) for name in unmatched[:MOST_LISTED]), *_count_rest(unmatched)],
        "notices": list(found.notices),
    }


def _count_rest(names: list[str]) -> list[str]:
    return [f"and {len(names) - MOST_LISTED} more"] if len(names) > MOST_LISTED else []


def _alphas(layers: tuple[Layer, ...]) -> list[Json]:
    return [*sorted({round(layer.scale * layer.rank, 6) for layer in layers if layer.rank is not None})]
