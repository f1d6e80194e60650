"""A training run in a sweep: which one is meant by what was typed, and how its sweep grows while it is trained."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.grid import SweepSpec, extend_training
from lora_runtime.errors import InvalidInput, NotFound
from lora_runtime.lora.library import find_bundled_run
from lora_runtime.lora.training import LOOK_S, TrainingRun, is_training_run, read_files, read_folder, watch


@dataclass(frozen=True, kw_only=True)
class Given:
    """What was typed: LoRAs, or the folder or files of a training run; which of its checkpoints; to watch it grow."""

    loras: Sequence[str] = ()
    checkpoints: Sequence[Path] = ()
    every: int | None = None
    last: int | None = None
    watched: bool = False


def list_specs(
    given: Given,
    make: Callable[[TrainingRun | None], SweepSpec],
    cancel: threading.Event,
    *,
    look_s: float = LOOK_S,
) -> Iterator[SweepSpec]:
    """Yield the spec that `make` makes; of a watched folder again each time it has more, so that only new ones render.

    Raises:
        InvalidInput: A training run beside other LoRAs, or what is to be watched is no folder.
        NotFound: There is no such folder or file.
    """
    if not given.watched:
        run = find_training(given)
        yield make(run.select(every=given.every, last=given.last) if run else None)
        return
    spec: SweepSpec | None = None
    for run in watch(_find_folder(given), cancel, look_s=look_s):
        spec = extend_training(spec, run) if spec else make(run.select(every=given.every, last=given.last))
        yield spec


def find_training(given: Given) -> TrainingRun | None:
    """Return the training run that is meant: checkpoints, or a LoRA that is a folder of several; None for neither.

    Raises:
        InvalidInput, NotFound: As `list_specs`.
    """
    folders = [folder for lora in given.loras if (folder := _find_run(lora))]
    if len(given.loras) + bool(given.checkpoints) > 1 and (folders or given.checkpoints):
        raise InvalidInput("A training run is swept alone: give --checkpoints, or one --lora that is its folder.")
    if folders or len(given.checkpoints) == 1:
        (path,) = folders or given.checkpoints
        return read_files([path]) if path.is_file() else read_folder(path)
    for path in given.checkpoints:
        if not path.is_file():
            raise NotFound(f"Checkpoints: there is no file {path}. Give one folder, or the files of one training.")
    return read_files(given.checkpoints) if given.checkpoints else None


def _find_folder(given: Given) -> Path:
    """The one folder to watch; it may be empty, as the training has just begun."""
    named = [*(Path(lora).expanduser() for lora in given.loras), *given.checkpoints]
    if len(named) != 1 or not named[0].is_dir():
        raise InvalidInput("Watch: give the one folder that the trainer writes to, as --checkpoints FOLDER.")
    return named[0]


def _find_run(text: str) -> Path | None:
    """The folder of several checkpoints that a LoRA means: the bundled one of that name, or a path."""
    try:
        path = find_bundled_run(text) or Path(text).expanduser()
        return path if is_training_run(path) else None
    except (OSError, RuntimeError, ValueError):  # no path at all: too long, no such user's home, a NUL
        return None
