"""Fetch a LoRA from the Hugging Face Hub or by its URL, within a size limit.

A source is `owner/repo`, `owner/repo/file.safetensors`, `owner/repo@revision`, a huggingface.co address, or any other
https address of a file. The answer is a file in a folder of the caller's; `library.py` checks it and keeps it.
A repository with several LoRAs is a question, not a guess: the error lists them.
"""

import re
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

from lora_runtime.errors import InvalidInput, KleinLabError, LoraNotFetched, NotFound, StorageFailed
from lora_runtime.lora.file import ADAPTER_CONFIG, ADAPTER_FILE, has_ending
from lora_runtime.written import list_some

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^/@]+))?(?:/(?P<path>[^@]+))?", re.ASCII)
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_GENERIC_NAMES = ("pytorch_lora_weights", "adapter_model", "lora", "model", "diffusion_pytorch_model")
_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A repository on the Hub, and a file or folder in it. `path` is empty for the whole repository."""

    repo: str
    revision: str | None = None
    path: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}{'/' * bool(self.path)}{self.path}"


@dataclass(frozen=True, kw_only=True)
class UrlSource:
    """A file anywhere else. Shown without its query, which may hold a token."""

    url: str

    def __str__(self) -> str:
        parts = urllib.parse.urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}{parts.path}"


Source: TypeAlias = HubSource | UrlSource


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file that was fetched, not yet checked. `name` is what to call it; `exact` is the one file it came from."""

    path: Path
    name: str
    exact: Source


def parse_source(text: str) -> Source | None:
    """Return what `text` names on the network; None when it does not look like that.

    Raises:
        InvalidInput: It is an address that cannot hold a LoRA.
    """
    if "://" in text:
        return _parse_url(text.strip())
    match = _HUB_ID.fullmatch(text.strip())
    if match is None or (match["path"] is None and has_ending(text.strip())):
        return None
    return HubSource(repo=match["repo"], revision=match["revision"], path=(match["path"] or "").strip("/"))


def fetch(source: Source, into: Path, *, max_bytes: int) -> Fetched:
    """Download the LoRA of `source` into the folder `into`.

    Raises:
        NotFound: There is no such repository, revision or file, or it holds no LoRA; or several, which are listed.
        LoraNotFetched: It is gated or private, larger than `max_bytes`, or nobody answers.
        StorageFailed: It could not be written.
    """
    if isinstance(source, HubSource):
        return _fetch_from_hub(source, into, max_bytes)
    return _fetch_url(source, into, max_bytes)


def _parse_url(url: str) -> Source:
    from huggingface_hub import constants

    try:
        parts = urllib.parse.urlsplit(url)
        well_formed = parts.port != 0 and re.fullmatch(r"[!-~]+", url) is not None
    except ValueError:
        well_formed = False
    if not well_formed:
        raise InvalidInput(f"{url[:200]!r} is not a web address. Copy it from the browser's address line.")
    hosts = (*_HUB_HOSTS, urllib.parse.urlsplit(constants.ENDPOINT).hostname)
    if parts.scheme == "hf" or (parts.hostname in hosts and not parts.path.startswith("/api/")):
        path = url.removeprefix("hf://") if parts.scheme == "hf" else parts.path.strip("/")
        return _parse_hub_path(urllib.parse.unquote(path), url)
    _require_safe(url)
    return UrlSource(url=url)


def _parse_hub_path(path: str, url: str) -> HubSource:
    """`owner/repo[/(blob|resolve|tree|raw)/revision/path]`."""
    owner, _, rest = path.partition("/")
    name, _, rest = rest.partition("/")
    match = _HUB_ID.fullmatch(f"{owner}/{name}")
    if match is None or owner in ("datasets", "spaces", "collections"):
        raise InvalidInput(f"{url} is not the address of a model on the Hub. Give owner/repo or a file's address.")
    kind, _, tail = rest.partition("/")
    if kind not in ("blob", "resolve", "tree", "raw"):
        return HubSource(repo=match["repo"], revision=match["revision"], path=rest)
    # A revision may hold a slash only as refs/pr/N.
    revision = re.match(r"refs/\w+/\w+|[^/]+", tail)
    if revision is None:
        raise InvalidInput(f"{url} breaks off after {kind!r}. Give owner/repo or a file's address.")
    stated = revision[0] if revision[0] != "main" else None
    return HubSource(repo=match["repo"], revision=stated, path=tail[revision.end() :].strip("/"))


def _require_safe(url: str) -> None:
    """https anywhere; plain http only to this machine, where nobody else is on the wire."""
    parts = urllib.parse.urlsplit(url)
    loopback = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and loopback)):
        raise InvalidInput(f"{UrlSource(url=url)} is not an https address. Give one, or a file of this machine.")


def _fetch_from_hub(source: HubSource, into: Path, max_bytes: int) -> Fetched:
    from huggingface_hub import HfApi, hf_hub_download

    with _sentences(source):
        info = HfApi().model_info(source.repo, revision=source.revision, files_metadata=True, timeout=_TIMEOUT_S)
        siblings = info.siblings or []
        chosen = _choose(siblings, source)
        _require_size(chosen.size, source, max_bytes)
        for filename in (chosen.rfilename, *_find_settings(siblings, chosen.rfilename)):
            hf_hub_download(source.repo, filename, revision=info.sha, local_dir=into, etag_timeout=_TIMEOUT_S)
    stem = PurePosixPath(chosen.rfilename).stem
    return Fetched(
        path=into / chosen.rfilename,
        name=source.repo.partition("/")[2] if stem in _GENERIC_NAMES else stem,
        exact=HubSource(repo=source.repo, revision=source.revision, path=chosen.rfilename),
    )


def _choose(siblings: "Sequence[RepoSibling]", source: HubSource) -> "RepoSibling":
    """The one LoRA that `source` can mean."""
    files = [sibling for sibling in siblings if has_ending(sibling.rfilename)]
    inside = [file for file in files if not source.path or file.rfilename.startswith(f"{source.path}/")]
    chosen = [file for file in files if file.rfilename == source.path] or inside
    if len(chosen) == 1:
        return chosen[0]
    repo = HubSource(repo=source.repo, revision=source.revision)
    if not files:
        raise NotFound(f"{repo} on the Hub has no .safetensors file. Choose another repository.")
    listed = list_some(f"{repo}/{file.rfilename}" for file in chosen or files)
    if not chosen:
        raise NotFound(f"{repo} on the Hub has no {source.path}. It has: {listed}.")
    raise NotFound(f"{source} on the Hub has {len(chosen)} .safetensors files. Name one of them: {listed}.")


def _find_settings(siblings: "Sequence[RepoSibling]", chosen: str) -> list[str]:
    """The adapter_config.json that belongs to `chosen`, by the rule of `file.find_config`."""
    folder = PurePosixPath(chosen).parent
    beside = [sibling.rfilename for sibling in siblings if PurePosixPath(sibling.rfilename).parent == folder]
    alone = [name for name in beside if has_ending(name)] == [chosen]
    config = str(folder / ADAPTER_CONFIG)
    return [config] if config in beside and (alone or PurePosixPath(chosen).name == ADAPTER_FILE) else []


def _fetch_url(source: UrlSource, into: Path, max_bytes: int) -> Fetched:
    from huggingface_hub import get_session

    with _sentences(source), get_session().stream("GET", source.url, timeout=_TIMEOUT_S) as response:
        _require_safe(str(response.url))  # it may have been redirected
        if response.status_code in (404, 410):
            raise NotFound(f"There is nothing at {source} (HTTP {response.status_code}). Check the address.")
        if response.status_code != 200:
            raise LoraNotFetched(
                f"{source} answered HTTP {response.status_code}. It may need a login: download the file with a "
                "browser and give its path."
            )
        if response.headers.get("content-type", "").startswith("text/html"):
            raise LoraNotFetched(f"{source} is a web page, not a file. Give the address of its download link.")
        length = response.headers.get("content-length", "")
        _require_size(int(length) if length.isdecimal() else None, source, max_bytes)
        path = into / "fetched.safetensors"
        written = 0
        with path.open("wb") as file:
            for chunk in response.iter_bytes(_CHUNK_BYTES):
                written += len(chunk)
                _require_size(written, source, max_bytes)
                file.write(chunk)
        disposition = re.search(r'filename="?([^";]+)', response.headers.get("content-disposition", ""))
    name = disposition[1] if disposition else urllib.parse.unquote(urllib.parse.urlsplit(source.url).path)
    return Fetched(path=path, name=PurePosixPath(name).stem, exact=source)


def _require_size(size: int | None, source: Source, max_bytes: int) -> None:
    if size is not None and size > max_bytes:
        raise LoraNotFetched(
            f"{source} is larger than the {max_bytes / 1e6:.0f} MB that a LoRA may have here. It may be a whole model; "
            "if it is a LoRA, set KLEIN_LAB_LORA_MAX_BYTES higher."
        )


@contextmanager
def _sentences(source: Source) -> Iterator[None]:
    """Translate the exceptions of huggingface_hub and of its HTTP client."""
    from huggingface_hub import errors

    http_error: type[Exception] = errors.HfHubHTTPError.__mro__[1]  # the HTTP client's root: httpx's or httpx2's
    by_hand = "Check the network, or download the file by hand and give its path."
    try:
        yield
    except KleinLabError:
        raise
    except errors.GatedRepoError as error:
        raise LoraNotFetched(
            f"{source} is gated. Accept its terms on huggingface.co, then log in with `hf auth login` or set HF_TOKEN."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise NotFound(
            f"There is no {source} on the Hub, or it is private. Check the spelling; for a private one log in with "
            "`hf auth login` or set HF_TOKEN. It is not a file of this machine either."
        ) from error
    except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        raise NotFound(
            f"There is no {source} on the Hub: the repository is there, the revision or file is not."
        ) from error
    except errors.HFValidationError as error:
        raise InvalidInput(f"{source} is not a repository on the Hub: {error}") from error
    except errors.OfflineModeIsEnabled as error:
        raise LoraNotFetched(
            f"{source} is not in the library, and HF_HUB_OFFLINE forbids asking the Hub. Unset it, or give a path."
        ) from error
    except errors.HfHubHTTPError as error:
        raise LoraNotFetched(f"The Hub answered HTTP {error.response.status_code} for {source}. {by_hand}") from error
    except (http_error, errors.LocalEntryNotFoundError, errors.FileMetadataError) as error:
        raise LoraNotFetched(f"{source} could not be reached ({type(error).__name__}). {by_hand}") from error
    except OSError as error:
        raise StorageFailed(f"{source} could not be written: {error.strerror or error}. Free some space.") from error
