"""LoRA files that are there without asking anybody: the bundled ones by name, and any file or folder of this machine.

What was kept under a name is a finetune: `registry/finetunes.py`. What a person types is found by `registry/typed.py`.
"""

import hashlib
import re
from functools import lru_cache
from pathlib import Path

from lora_runtime.errors import InvalidInput, NotFound
from lora_runtime.lora.check import Report, check_file
from lora_runtime.lora.file import ADAPTER_FILE, find_config, has_ending, list_files
from lora_runtime.lora.names import clean_name, make_api_name
from lora_runtime.lora.other_files import HEAD_BYTES, tell_other_file
from lora_runtime.values import LoraRef
from lora_runtime.written import list_some, quote, shorten

BUNDLED = Path(__file__).parent.parent / "pocket" / "loras"
"""The pocket's LoRAs: style, subject, overtrained; and a folder for each training run."""

_FINETUNE = re.compile(r"([\w.-]{1,128}/)?[\w.-]{1,128}", re.ASCII)
_BUNDLED_ORDER = ("style", "subject", "overtrained")


def list_bundled() -> tuple[LoraRef, ...]:
    """Every LoRA that came with this program."""
    paths = (BUNDLED / f"{name}.safetensors" for name in _BUNDLED_ORDER)
    return tuple(read_lora(path) for path in paths if path.is_file())


def find_lora(name_or_path: str, *, adapter: str | None = None) -> LoraRef:
    """Return the bundled LoRA of that name, or the one in that file or folder; of several adapters in it, this one.

    Raises:
        NotFound: Neither; the message lists the names.
        LoraError: The file is damaged, or for no klein model.
        InvalidInput: A file that cannot hold a LoRA, or it has no such adapter.
    """
    path = find_bundled(name_or_path) or find_file(name_or_path)
    if path is None:
        names = list_some(_BUNDLED_ORDER)
        raise NotFound(
            f"There is no LoRA named {quote(name_or_path)}. Bundled: {names}. Or give the path of a .safetensors file."
        )
    return read_lora(path, adapter=adapter)


def find_bundled(name: str) -> Path | None:
    """Return the file of a bundled LoRA, if it is one's name."""
    path = BUNDLED / f"{name}.safetensors"
    return path if name in _BUNDLED_ORDER and path.is_file() else None


def list_bundled_runs() -> tuple[Path, ...]:
    """Return the folder of every training run that came with this program."""
    return tuple(sorted(each for each in BUNDLED.iterdir() if each.is_dir())) if BUNDLED.is_dir() else ()


def find_bundled_run(name: str) -> Path | None:
    """Return the folder of a bundled training run, if it is one's name."""
    return next((folder for folder in list_bundled_runs() if folder.name == name), None)


def find_file(text: str) -> Path | None:
    """Return the LoRA file that a path means, unread; None where nothing is there.

    Raises:
        NotFound: A folder without one, or with several.
        InvalidInput: A file that cannot hold a LoRA.
    """
    there = _expand(text)
    if there is not None and there.is_dir():
        return _find_in_folder(there)
    if there is not None:
        _require_ending(there)
    return there


def read_lora(path: Path, *, adapter: str | None = None) -> LoraRef:
    """Return the LoRA of a file, checked; it is called like its file, or like its folder where that is PEFT's.

    Raises:
        NotFound, LoraError, InvalidInput: As for `find_lora`.
    """
    path = path.resolve()
    report = _checked(path, _changed_ns(path), adapter)
    return LoraRef(
        name=name_of(path),
        path=path,
        sha256=report.file.sha256,
        trigger_phrase=report.trigger_phrase,
        adapter=adapter,
    )


def make_name(file_name: str) -> str:
    """Return the name that a finetune gets from its file's: the API's, of a to z, digits, hyphens and underscores."""
    name = Path(file_name).name
    return make_api_name(Path(name).stem if has_ending(name) else name)


def refer_to(finetune_id: str) -> LoraRef:
    """Return a finetune that only the server of the remote backend has, such as `my-style` or `their-org/style`.

    Nothing is known of its file here: that it fits the weights, the server checks.

    Raises:
        InvalidInput: The id has other characters.
    """
    if not _FINETUNE.fullmatch(finetune_id):
        raise InvalidInput(
            f"{finetune_id!r} is not a finetune id: write NAME or ORGANIZATION/NAME, of letters, digits, hyphens and "
            "underscores."
        )
    digest = hashlib.sha256(f"finetune:{finetune_id}".encode()).hexdigest()  # part of the identity of every cell of it
    return LoraRef(name=finetune_id, path=None, sha256=digest, finetune_id=finetune_id)


def is_elsewhere(ref: LoraRef) -> bool:
    """Whether only the server of the remote backend has the file of `ref`."""
    return ref.path is None


def path_of(ref: LoraRef) -> Path:
    """Return the file of `ref`.

    Raises:
        NotFound: It was never on this machine.
    """
    if ref.path is None:
        raise NotFound(f"The finetune {ref.name} has no file on this machine: it can only be rendered remotely.")
    return ref.path


def report_of(ref: LoraRef) -> Report:
    """The file's report, kept in memory while the file does not change.

    Raises:
        NotFound: The file has gone, or was never on this machine.
        LoraError: It is damaged or for no klein model.
    """
    path = path_of(ref)
    try:
        return _checked(path, _changed_ns(path), ref.adapter)
    except OSError as error:
        raise NotFound(f"The file of the LoRA {ref.name} has gone: {path}. Choose it again.") from error


def name_of(path: Path) -> str:
    """From the file's name; from its folder's where PEFT gives every file the same name."""
    in_folder = path.name == ADAPTER_FILE and find_config(path) is not None
    return clean_name(path.resolve().parent.name if in_folder else path.stem)


def _expand(text: str) -> Path | None:
    """`text` as the path of something that exists."""
    try:
        path = Path(text).expanduser()
        return path if text.strip() and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long for a name, no such user's home, a NUL
        return None


def _find_in_folder(folder: Path) -> Path:
    """The LoRA of a folder: PEFT's own file, or the only one there is."""
    files = list_files(folder)
    if folder / ADAPTER_FILE in files:
        return folder / ADAPTER_FILE
    if len(files) == 1:
        return files[0]
    if not files:
        raise NotFound(f"The folder {folder} has no .safetensors file. Choose another folder.")
    listed = list_some(file.name for file in files)
    raise NotFound(f"The folder {folder} has {len(files)} .safetensors files: {listed}. Choose one of them.")


def _require_ending(path: Path) -> None:
    """Refuse a file of another ending, by what it is where that can be told."""
    if has_ending(path.name):
        return
    with path.open("rb") as file:
        other = tell_other_file(file.read(HEAD_BYTES), path.stat().st_size)
    ending = "is not a .safetensors file. Convert it with the tool that made it, or rename it if it is one."
    raise InvalidInput(f"{shorten(str(path), 200)} {other or ending}")


@lru_cache(maxsize=256)
def _checked(path: Path, _changed_ns: tuple[int, ...], adapter: str | None) -> Report:
    return check_file(path, adapter=adapter)


def _changed_ns(path: Path) -> tuple[int, ...]:
    """When the file and its settings were last written."""
    config = find_config(path)
    return tuple(file.stat().st_mtime_ns for file in (path, config) if file is not None)
