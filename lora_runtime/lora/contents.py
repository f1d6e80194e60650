"""The keys of a file, sorted: the layers of each adapter, what changes nothing, and the rest.

A file may hold several adapters: PEFT writes each under its name, and some trainers put a second copy (an average of
the weights) under another wrapper. One of them is chosen by its name. What changes nothing here is left out with a
notice: a text encoder's layers, differences of zero, a trainer's own counters.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_runtime.errors import InvalidInput, LoraUnreadable, LoraUnsupported
from lora_runtime.lora.file import LoraFile, is_zero, keep_tensors, read_number
from lora_runtime.lora.module_names import DEFAULT, TEXT_ENCODER, Name, Part, Place, read_name, read_stem
from lora_runtime.written import list_some, quote, shorten

_DIFFERENCE = re.compile(r"[._](diff|diff_b|bias)$")
"""What a weight or bias becomes larger by: of zeros, nothing."""
_SCALAR = re.compile(r"[._]scalar$")
"""LyCORIS' trained factor. It multiplies it into the matrices when it saves, and leaves 1 behind, if anything."""
_STATE = re.compile(
    r"(?:^|[._])(?:optimizer|optim|scheduler|lr_scheduler|grad_scaler|rng_state|exp_avg|exp_avg_sq|global_step|num_updates"
    r"|ema_decay|trainer_state|loss_history|position_ids)(?=[._]|$)|^(?:step|steps|epoch|epochs|decay|seed|iteration)$"
)


@dataclass(frozen=True, kw_only=True)
class Module:
    """One module as a file writes it, and the keys of its parts."""

    place: Place
    parts: Mapping[Part, str]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a file holds. `adapters`: name -> its keys, those that its layers share with others included.

    `unmatched` would change something and is none of these. `notices` say what was left out.
    """

    adapters: Mapping[str, tuple[str, ...]]
    names: Mapping[str, Name]
    unmatched: tuple[str, ...]
    text_encoder: tuple[str, ...]
    notices: tuple[str, ...] = field(default=())


def sort_keys(file: LoraFile) -> Contents:
    """Sort the keys of `file`."""
    text_encoder = tuple(key for key in file.tensors if TEXT_ENCODER.search(key))
    others = sorted(file.tensors.keys() - set(text_encoder))
    names = {key: name for key in others if (name := read_name(key)) is not None}
    rest = [key for key in others if key not in names]
    idle = _find_idle(file, rest)
    notices = []
    if text_encoder:
        notices.append(f"{len(text_encoder)} text-encoder tensors are left out: only the transformer is adapted.")
    if idle:
        notices.append(
            f"{len(idle)} tensors that change nothing are left out, for example {quote(min(idle))}: differences of "
            "zero or the trainer's own state."
        )
    return Contents(
        adapters=_tell_adapters(names),
        names=names,
        unmatched=tuple(key for key in rest if key not in idle),
        text_encoder=text_encoder,
        notices=tuple(notices),
    )


def choose_adapter(file: LoraFile, contents: Contents, adapter: str | None) -> tuple[LoraFile, Contents]:
    """Return the file and contents of one adapter: the only one, or that of this name.

    Raises:
        InvalidInput: There is none of that name.
        LoraUnsupported: There are several and none was named; the message lists them.
    """
    known = contents.adapters
    listed = list_some(known)
    if adapter is not None and adapter not in known:
        raise InvalidInput(f"{file.name} has no adapter {quote(adapter)}. It has: {listed or 'none'}.")
    if len(known) < 2:
        return file, contents
    if adapter is None:
        raise LoraUnsupported(
            f"{file.name} holds {len(known)} adapters: {listed}. Choose one by its name (on the command line "
            f"`--adapter {shorten(next(iter(known)), 40)}`), or save one of them alone."
        )
    kept = keep_tensors(file, {*known[adapter], *contents.unmatched})
    return kept, sort_keys(kept)


def group_modules(contents: Contents) -> list[Module]:
    """The modules of `contents`, by their names; of two keys that say the same the first counts (`refuse_doubles`)."""
    modules: dict[str, tuple[Place, dict[Part, str]]] = {}
    for key, name in contents.names.items():
        modules.setdefault(name.place.module, (name.place, {}))[1].setdefault(name.part, key)
    return [Module(place=place, parts=parts) for place, parts in modules.values()]


def refuse_doubles(file: LoraFile, contents: Contents) -> None:
    """Refuse two keys that are the same part of one module.

    Raises:
        LoraUnreadable: There are such.
    """
    seen: dict[tuple[str, Part], str] = {}
    for key, name in contents.names.items():
        first = seen.setdefault((name.place.module, name.part), key)
        if first != key:
            raise LoraUnreadable(
                f"{file.name} has two matrices for {shorten(name.place.own)}: {quote(first)} and {quote(key)}. "
                "Export it with one spelling."
            )


def _tell_adapters(names: Mapping[str, Name]) -> dict[str, tuple[str, ...]]:
    """Adapters apart by PEFT's names; without such, by wrappers that adapt the very same modules."""
    named = sorted({name.adapter for name in names.values() if name.adapter is not None})
    if len(named) > 1:
        return {
            adapter: tuple(key for key, name in names.items() if name.adapter in (adapter, None)) for adapter in named
        }
    by_wrapper: dict[str, dict[str, Name]] = {}
    for key, name in names.items():
        by_wrapper.setdefault(name.place.wrapper, {})[key] = name
    adapted = {
        frozenset((target, name.part) for name in group.values() for target in name.place.targets)
        for group in by_wrapper.values()
    }
    # The plainest wrapper first.
    by_wrapper = dict(sorted(by_wrapper.items(), key=lambda item: (len(item[0]), item[0])))
    if len(by_wrapper) > 1 and len(adapted) == 1:
        return {wrapper or "bare": tuple(group) for wrapper, group in by_wrapper.items()}
    return {named[0] if named else DEFAULT: tuple(names)} if names else {}


def _find_idle(file: LoraFile, keys: list[str]) -> frozenset[str]:
    """Those of `keys`, which no layer has, that change nothing."""
    idle = {key for key in keys if _is_idle(file, key)}
    stems: dict[str, list[str]] = {}
    for key in keys:
        stems.setdefault(read_stem(key), []).append(key)
    for group in stems.values():  # a layer that klein has not, but whose product is zero
        factors = [key for key in group if re.search(r"[._]lora[._](A|B|up|down)\b", key)]
        if len(factors) > 1 and any(is_zero(file, key) for key in factors):
            idle.update(group)
    return frozenset(idle)


def _is_idle(file: LoraFile, key: str) -> bool:
    if _DIFFERENCE.search(key):
        return is_zero(file, key)
    if _SCALAR.search(key):
        return file.tensors[key].shape in ((), (1,)) and read_number(file, key) == 1
    return _STATE.search(key) is not None
