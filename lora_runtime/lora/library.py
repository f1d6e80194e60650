"""Find LoRA files by name: the bundled ones, and those kept in the home folder."""

import re
import shutil
from functools import lru_cache
from pathlib import Path

from lora_runtime.errors import Conflict, InvalidInput, LoraError, NotFound, StorageFailed
from lora_runtime.lora.check import Report, check_file
from lora_runtime.settings import settings
from lora_runtime.values import LoraRef

BUNDLED = Path(__file__).parent.parent / "pocket" / "loras"
"""The pocket's LoRAs: style, subject, overtrained."""

_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_BUNDLED_ORDER = ("style", "subject", "overtrained")


def list_loras() -> tuple[LoraRef, ...]:
    """Every LoRA known by name: the bundled ones first, then the kept ones by name.

    A kept file that cannot be read is left out here; `find_lora` says what is wrong with it.
    """
    refs = []
    for path in (*_bundled(), *sorted(_home().glob("*.safetensors"))):
        try:
            refs.append(_ref(path))
        except (LoraError, NotFound):
            continue
    return tuple(refs)


def find_lora(name_or_path: str) -> LoraRef:
    """Return the LoRA of that name, or of that file.

    Raises:
        NotFound: Neither a known name nor a file; the message lists the names.
        LoraError: The file is damaged or for no klein model.
    """
    for folder in (BUNDLED, _home()):
        path = folder / f"{name_or_path}.safetensors"
        if _NAME.fullmatch(name_or_path) and path.is_file():
            return _ref(path)
    path = Path(name_or_path).expanduser()
    if path.suffix == ".safetensors" and path.is_file():
        return _ref(path)
    names = ", ".join(ref.name for ref in list_loras()) or "none yet"
    raise NotFound(
        f"There is no LoRA named {name_or_path!r}. Known names: {names}. Or give the path of a .safetensors file."
    )


def keep_lora(path: Path, *, name: str | None = None) -> LoraRef:
    """Check a LoRA file and copy it into the home folder, so that its sweeps can be resumed and repeated.

    `name` defaults to the file's name, made of lowercase letters, digits, hyphens and underscores.

    Raises:
        LoraError: It would not load.
        InvalidInput: The name has other characters.
        Conflict: Another file already has that name.
        StorageFailed: The copy could not be written.
    """
    report = check_file(path)
    chosen = name if name is not None else _name_of(path)
    if not _NAME.fullmatch(chosen):
        raise InvalidInput(f"{chosen!r} is not a name: use 1 to 64 lowercase letters, digits, hyphens and underscores.")
    for target in (BUNDLED / f"{chosen}.safetensors", _home() / f"{chosen}.safetensors"):
        if target.is_file():
            existing = _ref(target)
            if existing.sha256 == report.file.sha256:
                return existing
            raise Conflict(f"There is already another LoRA named {chosen!r}. Choose another name.")
    _copy(path, _home() / f"{chosen}.safetensors")
    return _ref(_home() / f"{chosen}.safetensors")


def report_of(ref: LoraRef) -> Report:
    """The file's report, kept in memory while the file does not change."""
    return _checked(ref.path, ref.path.stat().st_mtime_ns)


def _ref(path: Path) -> LoraRef:
    report = _checked(path.resolve(), path.stat().st_mtime_ns)
    return LoraRef(
        name=_name_of(path), path=path.resolve(), sha256=report.file.sha256, trigger_phrase=report.trigger_phrase
    )


@lru_cache(maxsize=256)
def _checked(path: Path, _changed_ns: int) -> Report:
    return check_file(path)


def _bundled() -> list[Path]:
    return [path for name in _BUNDLED_ORDER if (path := BUNDLED / f"{name}.safetensors").is_file()]


def _home() -> Path:
    return settings().home / "loras"


def _name_of(path: Path) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()).strip("-")[:64] or "lora"


def _copy(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.parent / f".part-{target.name}"
        shutil.copyfile(source, part)
        part.replace(target)
    except OSError as error:
        raise StorageFailed(
            f"Could not keep {source.name} in {target.parent}: {error.strerror or error}. "
            "Free some space and try again."
        ) from error
