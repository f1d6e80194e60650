"""A training run: the checkpoints of one training, in the order of their steps, each named by what differs.

Trainers keep a file every so many steps or epochs, in one folder or in a folder each: AI-Toolkit writes
`x_000001500.safetensors` and at the end `x.safetensors`, kohya `x-000010` or `x-step00000500`, diffusers and PEFT
`checkpoint-500/`. Names that say no number are ordered by what the header says, else as a person would order them.

Every file is checked like any LoRA; one that does not fit is a checkpoint that says why. All trainers write in place,
so a training under way has a file that is half there: `watch` waits until it is whole and has stopped changing.
"""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Final, Literal, TypeAlias

from safetensors import SafetensorError, safe_open

from lora_runtime.errors import InvalidInput, KleinLabError, NotFound
from lora_runtime.lora.file import ADAPTER_FILE, list_files
from lora_runtime.lora.library import read_lora
from lora_runtime.lora.names import clean_name
from lora_runtime.values import LoraRef
from lora_runtime.written import shorten

LOOK_S: Final = 3.0
"""How long a file must not have changed to count as written, and how often a growing folder is looked at."""

END: Final = "end"
"""What the file without a number is called, which trainers write last."""

Unit: TypeAlias = Literal["step", "epoch"]

_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"\d+|[^\W\d_]+|[\W_]+")
_UNIT = re.compile(r"(?:^|[\W_\d])(?:(?P<epoch>epochs?|ep|e)|(?P<step>steps?|checkpoint|iter|s))[\W_]*$", re.IGNORECASE)
_LONG: Final = 5
"""Digits from which a number that stands alone counts steps or epochs; shorter ones may be a version."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One file of a training run. `label` is what differs: "1500", "epoch 10", "end".

    `lora` is None where the file does not fit, and `problem` says why.
    """

    label: str
    lora: LoraRef | None = None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """The checkpoints of one training, the first one first. `folder` is where it grows, None where it does not.

    `every` and `last` are what `select` chose by.
    """

    name: str
    checkpoints: tuple[Checkpoint, ...]
    folder: Path | None = None
    every: int | None = None
    last: int | None = None

    def select(self, *, every: int | None = None, last: int | None = None) -> "TrainingRun":
        """Return the run with each N-th checkpoint, counted back from the last, and of those the last few.

        Raises:
            InvalidInput: One of the numbers is below 1.
        """
        for name, number in (("Every", every), ("Last", last)):
            if number is not None and number < 1:
                raise InvalidInput(f"{name}: {number} selects no checkpoint. Give a whole number from 1.")
        kept = self.checkpoints[::-1][:: every or 1][:last]
        return replace(self, checkpoints=kept[::-1], every=every, last=last)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a file stands in its run, by what it says of itself; `number` is None where it says nothing."""

    number: int | None
    label: str
    natural: tuple[tuple[int, int, str], ...]


def find_checkpoints(folder: Path) -> tuple[Path, ...]:
    """Return the checkpoint files of a folder: its own, and the one of each folder in it that holds one."""
    inside = (_find_only(each) for each in sorted(folder.iterdir()) if each.is_dir() and not each.name.startswith("."))
    return (*list_files(folder), *(path for path in inside if path is not None))


def is_training_run(folder: Path) -> bool:
    """Whether a folder has several checkpoints."""
    return folder.is_dir() and len(find_checkpoints(folder)) > 1


def read_folder(folder: Path) -> TrainingRun:
    """Return the training run of a folder, its files checked.

    Raises:
        NotFound: There is no such folder, or it has no checkpoint.
    """
    if not folder.is_dir():
        raise NotFound(f"There is no folder {shorten(str(folder), 200)}. Give the one that the trainer writes to.")
    paths = find_checkpoints(folder)
    if not paths:
        raise NotFound(f"The folder {folder} has no .safetensors file yet. Choose another folder, or watch it.")
    return replace(read_files(paths, name=clean_name(folder.resolve().name)), folder=folder.resolve())


def read_files(paths: Sequence[Path], *, name: str = "") -> TrainingRun:
    """Return the training run that files make, each checked; without a `name` it is called by what they share."""
    ordered = order_files(paths)
    called = name or name_run([_name_file(path, paths) for path in paths])
    return TrainingRun(name=called, checkpoints=tuple(_read_checkpoint(path, label, called) for path, label in ordered))


def order_files(paths: Sequence[Path], *, by_folder: bool = True) -> tuple[tuple[Path, str], ...]:
    """Return files in the order of their training, each with its label; no label comes twice.

    `by_folder`: files of one name are told apart by their folders' names.
    """
    names = [_name_file(path, paths) if by_folder else path.stem for path in paths]
    places = _place(names, [_read_metadata(path) for path in paths])
    ordered = sorted(zip(paths, places, strict=True), key=lambda item: _order(item[1]))
    labels = _tell_apart([place.label for _, place in ordered])
    return tuple((path, label) for (path, _), label in zip(ordered, labels, strict=True))


def name_run(names: Sequence[str]) -> str:
    """Return what files share of their names, without the word that comes before a number; else "training"."""
    words = [_WORD.findall(name.rpartition("/")[2]) for name in names]
    shared = [own[0] for own in takewhile(lambda own: len(set(own)) == 1, zip(*words, strict=False))]
    while len(names) > 1 and shared and (_UNIT.fullmatch(shared[-1]) or not shared[-1].strip(" -_.")):
        shared.pop()
    return clean_name("".join(shared)) if shared else "training"


def is_whole(path: Path) -> bool:
    """Whether a file is written to its end: its header is there, and describes as many bytes as there are."""
    return _open_header(path) is not None


def watch(folder: Path, cancel: threading.Event, *, look_s: float = LOOK_S) -> Iterator[TrainingRun]:
    """Yield the training run of a folder as it stands, and again each time it has more whole checkpoints.

    A file counts once it is whole and two looks find it unchanged. Ends with `cancel`.
    """
    before: Mapping[Path, tuple[int, int]] = {}
    told: frozenset[Path] = frozenset()
    while not cancel.is_set():
        now = _look(folder)
        ready = frozenset(path for path, state in now.items() if before.get(path) == state and is_whole(path))
        if ready - told:
            told = ready
            run = read_files(sorted(ready), name=clean_name(folder.resolve().name))
            yield replace(run, folder=folder.resolve())
        before = now
        cancel.wait(look_s)


def list_ready(folder: Path, *, now: float) -> tuple[Path, ...]:
    """Return the checkpoints of a folder that are whole and were not written to for `LOOK_S` before `now`."""
    found = ((path, written_ns / 1e9) for path, (_, written_ns) in _look(folder).items())
    return tuple(path for path, written in found if now - written >= LOOK_S and is_whole(path))


def _look(folder: Path) -> Mapping[Path, tuple[int, int]]:
    """The size of each file that is there, and when it was written."""
    found = {}
    for path in find_checkpoints(folder) if folder.is_dir() else ():
        try:
            status = path.stat()
        except FileNotFoundError:  # the trainer keeps only its last few
            continue
        found[path] = status.st_size, status.st_mtime_ns
    return found


def _find_only(folder: Path) -> Path | None:
    """The LoRA of a folder of one checkpoint: PEFT's file, or the only one."""
    files = list_files(folder)
    if folder / ADAPTER_FILE in files:
        return folder / ADAPTER_FILE
    return files[0] if len(files) == 1 else None


def _read_checkpoint(path: Path, label: str, run: str) -> Checkpoint:
    try:
        return Checkpoint(label=label, lora=replace(read_lora(path), name=clean_name(f"{run}-{label}")))
    except KleinLabError as error:
        return Checkpoint(label=label, problem=str(error))


def _name_file(path: Path, paths: Sequence[Path]) -> str:
    """The name that says which checkpoint a file is; its folder's too, where files have one name."""
    alike = sum(each.name == path.name for each in paths) > 1
    return f"{path.resolve().parent.name}/{path.stem}" if alike else path.stem


def _place(names: Sequence[str], headers: Sequence[Mapping[str, str]]) -> list[_Place]:
    """Say where each file stands: by the number in its name, else by its header, else by its name."""
    at, unit, shape = _find_counter(names)
    numbers = [
        int(_NUMBER.findall(name)[at]) if at is not None and _NUMBER.sub("#", name) == shape else None for name in names
    ]
    if all(number is None for number in numbers):
        numbers = [_read_count(header, "step") for header in headers]
        unit = "step"
        if None in numbers or len(set(numbers)) < len(numbers):
            return [
                _Place(number=None, label=label, natural=_natural(name))
                for name, label in zip(names, _cut(names), strict=True)
            ]
    labels = ["" if number is None else f"epoch {number}" if unit == "epoch" else str(number) for number in numbers]
    unnumbered = [name for name, number in zip(names, numbers, strict=True) if number is None]
    cut = iter([END] if len(unnumbered) == 1 else _cut(unnumbered))
    return [
        _Place(number=number, label=label or next(cut), natural=_natural(name))
        for name, number, label in zip(names, numbers, labels, strict=True)
    ]


def _find_counter(names: Sequence[str]) -> tuple[int | None, Unit, str]:
    """Which of the numbers in the names counts the training, in which unit, and the shape of the names that have it."""
    shapes = Counter(shape for name in names if "#" in (shape := _NUMBER.sub("#", name)))
    if not shapes:
        return None, "step", ""
    shape = max(shapes, key=lambda each: (shapes[each], each.count("#")))
    own = [name for name in names if _NUMBER.sub("#", name) == shape]
    columns = list(zip(*(_NUMBER.findall(name) for name in own), strict=True))
    before = [own[0][: match.start()] for match in _NUMBER.finditer(own[0])]
    units = [_read_unit(text) for text in before]
    found: list[tuple[bool, int, int]] = []
    for index, values in enumerate(columns):
        counts = len(set(values)) > 1 if len(own) > 1 else units[index] is not None or len(values[0]) >= _LONG
        if counts:
            found.append((units[index] == "step", len(set(values)), index))
    if not found:
        return None, "step", shape
    _, _, index = max(found)
    return index, units[index] or "step", shape


def _read_unit(text: str) -> Unit | None:
    """What the number after `text` counts, if it says so: "style-e" epochs, "checkpoint-" steps."""
    match = _UNIT.search(text)
    return None if match is None else "epoch" if match["epoch"] else "step"


def _order(place: _Place) -> tuple[bool, int, tuple[tuple[int, int, str], ...]]:
    return place.number is None, place.number or 0, place.natural


def _natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A key that puts "v2" before "v10"."""
    parts = re.split(r"(\d+)", text.casefold())
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part)


def _cut(names: Sequence[str]) -> list[str]:
    """Each name without what all begin and end with, at the borders of words; numbers where all are one name."""
    if len(names) < 2:
        return list(names)
    if len(set(names)) == 1:
        return [f"file {number}" for number, _ in enumerate(names, start=1)]
    words = [re.findall(r"[^\W_]+|[\W_]+", name) for name in names]
    shortest = min(map(len, words))
    start = next((i for i in range(shortest) if len({each[i] for each in words}) > 1), shortest)
    end = next((i for i in range(shortest - start) if len({each[-1 - i] for each in words}) > 1), shortest - start)
    cut = ["".join(each[start : len(each) - end]).strip(" -_.") for each in words]
    return [short or name for short, name in zip(cut, names, strict=True)]


def _tell_apart(labels: Sequence[str]) -> list[str]:
    """Labels of which none comes twice: the second is "1500 (2)"."""
    seen: Counter[str] = Counter()
    told = []
    for label in labels:
        seen[label] += 1
        told.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return told


def _read_metadata(path: Path) -> Mapping[str, str]:
    return _open_header(path) or {}


def _open_header(path: Path) -> Mapping[str, str] | None:
    """The metadata of a file; None where it is not whole, which the library tells by its size."""
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, UnicodeError):
        return None


def _read_count(metadata: Mapping[str, str], unit: Unit) -> int | None:
    """How long was trained, by the keys of kohya, OneTrainer and AI-Toolkit."""
    texts = [metadata.get(key) for key in (f"ss_{unit}s", f"ss_{unit}", f"global_{unit}", unit)]
    try:
        info = json.loads(metadata.get("training_info", "{}"))
    except (ValueError, RecursionError):
        info = {}
    texts.append(str(info.get(unit)) if isinstance(info, dict) else None)
    return next((int(text) for text in texts if text and text.isdecimal()), None)
