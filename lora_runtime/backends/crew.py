"""What engines of a cluster say of themselves, and what follows when there are several: one status, one list.

An engine is left out, with a sentence, where its images would not be those of the others: when it runs other code.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

from lora_runtime.values import ModelStatus, RenderEvent
from lora_runtime.written import list_some

CORES: Final = 8
"""Cores an engine on a machine without a GPU."""

_PIXEL_PACKAGES: Final = ("torch", "diffusers", "transformers", "peft")


@dataclass(frozen=True, kw_only=True)
class Member:
    """An engine: where it is, what it computes on, which code it runs, and what it says of each model."""

    name: str
    node: str
    device: str
    code: str
    pid: int
    cache_bytes: int
    statuses: tuple[ModelStatus, ...]


@dataclass(frozen=True, kw_only=True)
class Said:
    """What an engine says at once of a call: once, how many `rows` of its kind it takes; then events.

    `lacks` are the requests whose files are not on its machine, and did not come with them.
    """

    rows: int = 0
    lacks: tuple[int, ...] = ()
    events: tuple[RenderEvent, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """An engine as people see it. `state` is `working`, `idle`, `starting`, or the sentence why it is left out."""

    name: str
    device: str
    state: str
    runs: tuple[str, ...]
    rendered: int


def share_out(resources: Mapping[str, float]) -> list[dict[str, float]]:
    """Return what each engine of a machine is given: a GPU and its share of the cores, or up to `CORES` cores."""
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    if gpus:
        return [{"CPU": cpus // gpus, "GPU": 1}] * gpus
    engines = -(-cpus // CORES)
    return [{"CPU": cpus // max(1, engines), "GPU": 0}] * engines


@lru_cache(maxsize=1)
def read_code() -> str:
    """Return a digest of what decides pixels here: this package, and the versions of the libraries."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent.parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    for package in _PIXEL_PACKAGES:
        digest.update(version(package).partition("+")[0].encode())
    return digest.hexdigest()[:16]


def say_left_out(member: Member, code: str) -> str:
    """Return why an engine is not dealt to; empty when it is."""
    if member.code != code:
        return (
            f"{member.name} runs another version of this program or of {list_some(_PIXEL_PACKAGES)}, so its images "
            "could differ. Install the same there, and start Ray there again."
        )
    if not any(status.available for status in member.statuses):
        return f"{member.name} can run no weights: {member.statuses[0].reason}"
    return ""


def merge_statuses(members: Sequence[Member]) -> Sequence[ModelStatus]:
    """Return one status per weights and precision: it can run where any engine can.

    The note says on how many engines, and of the others why not. Of two checkpoints under one name the one that more
    engines have is meant. The default precision of weights, which comes first, is that of most engines.
    """
    found: dict[tuple[str, str], list[tuple[Member, ModelStatus]]] = {}
    for member in members:
        for status in member.statuses:
            found.setdefault((status.weights, status.precision), []).append((member, status))
    defaults: dict[str, Counter[str]] = {}
    for member in members:
        for weights in dict.fromkeys(each.weights for each in member.statuses):
            first = next(each for each in member.statuses if each.weights == weights)
            defaults.setdefault(weights, Counter())[first.precision] += 1
    order = list(defaults)
    return sorted(
        (_merge(each) for each in found.values()),
        key=lambda status: (order.index(status.weights), -defaults[status.weights][status.precision]),
    )


def _merge(said: Sequence[tuple[Member, ModelStatus]]) -> ModelStatus:
    able = [(member, status) for member, status in said if status.available]
    if not able:
        return said[0][1]
    digest = Counter(status.digest for _, status in able).most_common(1)[0][0]
    same = [status for _, status in able if status.digest == digest]
    others = [f"not on {member.name}: {status.reason}" for member, status in said if not status.available]
    others += [f"not on {member.name}: it has another checkpoint" for member, status in able if status.digest != digest]
    count = f"{len(same)} engine{'s' if len(same) > 1 else ''}"
    return replace(same[0], note="; ".join(filter(None, (count, same[0].note, *others))))
