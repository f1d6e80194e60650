"""What a file is that calls itself a LoRA and is no safetensors file, and what to do about it.

Downloads end in such files every day: a login page, a server's error, a pointer of Git LFS, an archive around the file.
Their first bytes tell them apart. Source: each format's own magic number.
"""

import json
import re
from dataclasses import dataclass

from lora_runtime.written import quote

HEAD_BYTES = 1024
"""How much of a file `tell_other_file` wants to see."""

_UNPACK = "Unpack it and give the .safetensors file inside."
_RUNS_CODE = (
    "Such files can run code when opened, so they are refused. Convert it with the tool that made it, or download the "
    ".safetensors version."
)
_AGAIN = "Download it again."
_LOGIN = "Download it again, logged in where the site asks for it, by its download link."


@dataclass(frozen=True, kw_only=True)
class OtherFile:
    """A kind of file: how its bytes begin, what it is, and what to do."""

    mark: re.Pattern[bytes]
    what: str
    remedy: str


def _kind(mark: bytes, what: str, remedy: str) -> OtherFile:
    return OtherFile(mark=re.compile(mark, re.DOTALL | re.IGNORECASE), what=what, remedy=remedy)


_KINDS = (  # the first that fits wins
    _kind(rb"PK\x03\x04.{26,200}data\.pkl", "a Python pickle (a checkpoint of PyTorch)", _RUNS_CODE),
    _kind(rb"PK(\x03\x04|\x05\x06)", "a zip archive", _UNPACK),
    _kind(rb"\x80[\x02-\x05]", "a Python pickle", _RUNS_CODE),
    _kind(rb".{257}ustar", "a tar archive", _UNPACK),
    _kind(rb"\x1f\x8b|BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "a packed archive", _UNPACK),
    _kind(
        rb"version https://git-lfs|version \S+git-lfs",
        "a pointer of Git LFS, not the file itself",
        "Run `git lfs pull` in its folder, or download the file with a browser.",
    ),
    _kind(rb"\s*(<!doctype html|<html|<head|<!--)", "a web page, not the file", _LOGIN),
    _kind(rb"\s*<", "an answer in XML, not the file", _LOGIN),
    _kind(
        rb"GGUF", "a GGUF file, which only holds whole models here", "Give the LoRA as the .safetensors of its trainer."
    ),
    _kind(rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP", "an image", "Give the LoRA's .safetensors file."),
    _kind(rb"%PDF", "a PDF", "Give the LoRA's .safetensors file."),
    _kind(rb"\x7fELF|MZ", "a program", "Give the LoRA's .safetensors file."),
    _kind(rb"\x00{64}", "empty inside: it begins with zeros, as a download that never ended does", _AGAIN),
)


def tell_other_file(head: bytes, size: int) -> str | None:
    """Return a sentence without its subject on a file of `size` bytes that begins with `head`; None when nothing fits.

    The sentence ends with the remedy: "is a tar archive, not a safetensors file. Unpack it ...".
    """
    if size == 0:
        return f"is empty: it has 0 bytes. {_AGAIN}"
    answer = _read_answer(head)
    if answer is not None:
        return f"is not the file but a server's answer{answer}. {_LOGIN}"
    for kind in _KINDS:
        if kind.mark.match(head):
            ending = "" if "not the file" in kind.what else ", not a safetensors file"
            return f"is {kind.what}{ending}. {kind.remedy}"
    if len(head) > 8 and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        line = head.decode("ascii").partition("\n")[0]
        return f"is a text, not a safetensors file: it begins with {quote(line)}. {_AGAIN}"
    return None


def _read_answer(head: bytes) -> str | None:
    """What a server said in JSON instead of sending the file: a colon and its words, or nothing more."""
    if not re.match(rb"\s*[{\[]\s*[\"}\]{]", head):
        return None
    try:
        answer = json.loads(head)
    except (ValueError, RecursionError):  # longer than what was read, or cut off
        said = re.search(rb'"(?:message|error|detail|title)"\s*:\s*"([^"\\]{1,200})', head)
        return f": {quote(said[1].decode('utf-8', 'replace'))}" if said else " in JSON"
    fields = answer if isinstance(answer, dict) else {}
    words = [fields[key] for key in ("message", "detail", "error", "title") if isinstance(fields.get(key), str)]
    return f": {quote(words[0])}" if words else " in JSON"
