"""Find LoRA files by name, path or address: bundled, kept in the home folder, anywhere on disk, or on the network.

What came from the network is kept in the home folder under a name, with a note of where it came from: the next time it
is found there, without asking anybody. Delete it to fetch it anew.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from lora_runtime.errors import Conflict, InvalidInput, KleinLabError, LoraError, NotFound, StorageFailed
from lora_runtime.lora.check import Report, check_file
from lora_runtime.lora.download import Source, fetch, parse_source
from lora_runtime.lora.file import ADAPTER_FILE, LoraFile, copy_file, find_config, has_ending, list_files
from lora_runtime.lora.index import recall, remember
from lora_runtime.lora.names import clean_name, keep_first_name, make_api_name
from lora_runtime.lora.other_files import HEAD_BYTES, tell_other_file
from lora_runtime.settings import settings
from lora_runtime.values import LoraRef
from lora_runtime.written import list_some, quote, shorten

BUNDLED = Path(__file__).parent.parent / "pocket" / "loras"
"""The pocket's LoRAs: style, subject, overtrained."""

_FINETUNE = re.compile(r"([\w.-]{1,128}/)?[\w.-]{1,128}", re.ASCII)
_BUNDLED_ORDER = ("style", "subject", "overtrained")
_NOTE = ".source.json"
"""Beside a kept LoRA that came from the network: where from."""


def list_loras() -> tuple[LoraRef, ...]:
    """Every LoRA known by name: the bundled ones first, then the kept ones by name.

    A kept file that cannot be read is left out here; `find_lora` says what is wrong with it.
    """
    refs = []
    for path in (*_bundled(), *list_files(_home())):
        try:
            refs.append(_ref(path))
        except (LoraError, NotFound):
            continue
    return keep_first_name(refs)


def find_lora(name_or_path: str, *, adapter: str | None = None) -> LoraRef:
    """Return the LoRA of that name, file, folder, or place on the network; of several adapters in it, this one.

    The last is downloaded the first time, so this is for the person at this machine: a name that came over the network
    is looked up in `list_loras`.

    Raises:
        NotFound: Neither a known name nor a file; the message lists the names.
        LoraError: The file is damaged, for no klein model, or could not be fetched.
        InvalidInput: An address or a file that cannot hold a LoRA, or it has no such adapter.
    """
    return _ref(find_file(name_or_path), adapter)


def find_file(name_or_path: str) -> Path:
    """Return the file that `find_lora` would check. What comes from the network has been checked already.

    Raises:
        NotFound, LoraNotFetched, InvalidInput: See `find_lora`.
    """
    for path in (*_bundled(), *list_files(_home())):
        if _name_of(path) == name_or_path:
            return path
    there = _expand(name_or_path)
    if there is not None and there.is_dir():
        return _find_in_folder(there)
    if there is not None:
        _require_ending(there)
        return there
    told_apart = next((ref.path for ref in list_loras() if ref.name == name_or_path), None)
    if told_apart is not None:
        return told_apart
    source = parse_source(name_or_path)
    if source is not None:
        return (_find_fetched(source) or _fetch_and_keep(source)).path
    names = list_some(ref.name for ref in list_loras())
    raise NotFound(
        f"There is no LoRA named {quote(name_or_path)}. Known names: {names}. Or give the path of a .safetensors file, "
        "or owner/repo on the Hub."
    )


def keep_lora(path: Path, *, name: str | None = None, adapter: str | None = None) -> LoraRef:
    """Check a LoRA file and copy it into the home folder, so that its sweeps can be resumed and repeated.

    `path` may be a folder of PEFT's; its adapter_config.json becomes part of the kept file. Of several adapters the one
    that is named is kept alone. `name` defaults to the
    file's name, made of lowercase letters, digits, hyphens and underscores.

    Raises:
        LoraError: It would not load.
        InvalidInput: The name has other characters.
        Conflict: Another file already has that name.
        StorageFailed: The copy could not be written.
    """
    path = _find_in_folder(path) if path.is_dir() else path
    report = check_file(path, adapter=adapter)
    chosen = name if name is not None else _name_of(path)
    if clean_name(chosen) != chosen:
        raise InvalidInput(f"{chosen!r} is not a name: use 1 to 64 lowercase letters, digits, hyphens and underscores.")
    for target in (BUNDLED / f"{chosen}.safetensors", _home() / f"{chosen}.safetensors"):
        if target.is_file():
            existing = _ref(target)
            if existing.sha256 == report.file.sha256:
                return existing
            raise Conflict(f"There is already another LoRA named {chosen!r}. Choose another name.")
    _copy(report.file, _home() / f"{chosen}.safetensors")
    return _ref(_home() / f"{chosen}.safetensors")


def make_name(file_name: str) -> str:
    """Return the name that a finetune gets from its file's: the API's, of a to z, digits, hyphens and underscores."""
    name = Path(file_name).name
    return make_api_name(Path(name).stem if has_ending(name) else name)


def find_finetune(finetune_id: str) -> LoraRef:
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
    text = f"finetune:{finetune_id}"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return LoraRef(name=finetune_id, path=Path(text), sha256=digest, finetune_id=finetune_id)


def is_elsewhere(ref: LoraRef) -> bool:
    """Whether only the server of the remote backend has the file of `ref`."""
    return ref.finetune_id is not None and ref.path == Path(f"finetune:{ref.finetune_id}")


def report_of(ref: LoraRef) -> Report:
    """The file's report, kept in memory while the file does not change.

    Raises:
        NotFound: The file has gone, or was never on this machine.
        LoraError: It is damaged or for no klein model.
    """
    if is_elsewhere(ref):
        raise NotFound(f"The finetune {ref.name} has no file on this machine: it can only be rendered remotely.")
    try:
        return _checked(ref.path, _changed_ns(ref.path), ref.adapter)
    except OSError as error:
        raise NotFound(f"The file of the LoRA {ref.name} has gone: {ref.path}. Choose it again.") from error


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


def _find_fetched(source: Source) -> LoraRef | None:
    """The kept LoRA that came from `source` before."""
    for note in sorted(_home().glob(f"*{_NOTE}")):
        path = note.with_name(note.name.removesuffix(_NOTE) + ".safetensors")
        if path.is_file() and _digest(source) in json.loads(note.read_text("utf-8"))["keys"]:
            return _ref(path)
    return None


def _fetch_and_keep(source: Source) -> LoraRef:
    with _writing(f"Could not keep {source}"):
        _home().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_home(), prefix=".fetching-") as folder:
            fetched = fetch(source, Path(folder), max_bytes=settings().lora_max_bytes)
            name = clean_name(fetched.name)
            try:
                ref = keep_lora(fetched.path, name=name)
            except Conflict:  # the digest tells two LoRAs of one name apart
                ref = keep_lora(fetched.path, name=f"{name[:51]}-{check_file(fetched.path).file.sha256[:12]}")
        note = {"source": str(fetched.exact), "keys": [_digest(source), _digest(fetched.exact)]}
        if ref.path.parent == _home().resolve():
            part = _home() / f".{ref.name}.note"
            part.write_text(json.dumps(note), "utf-8")
            part.replace(_home() / f"{ref.name}{_NOTE}")
    return ref


def _digest(source: Source) -> str:
    """A source as the notes name it: an address may hold a token, which must not be written down."""
    return hashlib.sha256(repr(source).encode()).hexdigest()


def _ref(path: Path, adapter: str | None = None) -> LoraRef:
    path = path.resolve()
    kept = path.parent == _home().resolve() and adapter is None
    known = recall(path, name=_name_of(path)) if kept else None
    if known is not None:
        return known
    report = _checked(path, _changed_ns(path), adapter)
    ref = LoraRef(
        name=_name_of(path), path=path, sha256=report.file.sha256, trigger_phrase=report.trigger_phrase,
        fits=report.fits, adapter=adapter,
    )  # fmt: skip
    if kept:
        remember(ref)
    return ref


@lru_cache(maxsize=256)
def _checked(path: Path, _changed_ns: tuple[int, ...], adapter: str | None) -> Report:
    return check_file(path, adapter=adapter)


def _changed_ns(path: Path) -> tuple[int, ...]:
    """When the file and its settings were last written."""
    config = find_config(path)
    return tuple(file.stat().st_mtime_ns for file in (path, config) if file is not None)


def _bundled() -> list[Path]:
    return [path for name in _BUNDLED_ORDER if (path := BUNDLED / f"{name}.safetensors").is_file()]


def _home() -> Path:
    return settings().home / "loras"


def _name_of(path: Path) -> str:
    """From the file's name; from its folder's where PEFT gives every file the same name."""
    in_folder = path.name == ADAPTER_FILE and find_config(path) is not None
    return clean_name(path.resolve().parent.name if in_folder else path.stem)


def _copy(source: LoraFile, target: Path) -> None:
    with _writing(f"Could not keep {source.name} in {target.parent}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.parent / f".{target.stem}.part"
        copy_file(source, part)
        part.replace(target)


@contextmanager
def _writing(what: str) -> Iterator[None]:
    """Turn a full or read-only disk into a sentence."""
    try:
        yield
    except KleinLabError:
        raise
    except OSError as error:
        raise StorageFailed(f"{what}: {error.strerror or error}. Free some space and try again.") from error
