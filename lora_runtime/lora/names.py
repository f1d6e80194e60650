"""What a LoRA is called: a name made from its file's, in any script, and two of one name told apart.

Names are what people see and type: lowercase letters and digits of any script, hyphens and underscores. A finetune's
name is also part of BFL's API, whose rule is narrower: `make_api_name`.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from typing import Final

from lora_runtime.errors import InvalidInput
from lora_runtime.values import LoraRef

MAX_TRIGGER: Final = 200
"""Characters of a trigger phrase."""

LONGEST: Final = 64
"""Characters of a name."""

_MOST_BYTES: Final = 180
"""Bytes of a name in UTF-8: with an ending it must fit into a file system's 255."""

_DIGITS: Final = 6
"""How many digits of a file's SHA-256 tell two LoRAs of one name apart."""


def clean_name(text: str) -> str:
    """Return `text` as a name: each run of other characters is a hyphen; "lora" when nothing is left."""
    letters = unicodedata.normalize("NFC", text).lower()
    kept = "".join(each if _is_letter(each) else " " for each in letters)
    name = "-".join(kept.split()).strip("-")
    short = name.encode()[:_MOST_BYTES].decode(errors="ignore")[:LONGEST]
    return short.rstrip("-") or "lora"


def make_api_name(text: str) -> str:
    """Return `text` as the name of a finetune, of a to z, digits, hyphens and underscores; accents come off."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    without = "".join(each for each in plain if not unicodedata.combining(each))
    return re.sub(r"[^a-z0-9_-]+", "-", without).strip("-")[:LONGEST].rstrip("-") or "lora"


def number_name(name: str) -> Iterator[str]:
    """Yield `name`, then `name-2`, `name-3`, and so on: the first that is free names what has no name yet."""
    yield name
    for number in count(2):
        yield f"{name[: LONGEST - 8]}-{number}"


def tell_apart(refs: Iterable[LoraRef]) -> tuple[LoraRef, ...]:
    """Return `refs`; where different files have one name, each has the first digits of its SHA-256 in it."""
    every = tuple(refs)
    files: dict[str, set[str]] = {}
    for ref in every:
        files.setdefault(ref.name, set()).add(ref.sha256)
    return tuple(_with_digits(ref) if len(files[ref.name]) > 1 else ref for ref in every)


def name_by_folder(refs: Iterable[LoraRef]) -> tuple[LoraRef, ...]:
    """Return `refs`; different files of one name that lie in folders of different names have those in front."""
    every = tuple(refs)
    folders: dict[str, dict[str, str]] = {}
    for ref in every:
        folders.setdefault(ref.name, {})[ref.sha256] = ref.path.parent.name if ref.path else ""
    apart = {name for name, own in folders.items() if 1 < len(own) == len({clean_name(each) for each in own.values()})}
    return tuple(
        replace(ref, name=clean_name(f"{folders[ref.name][ref.sha256]}-{ref.name}")) if ref.name in apart else ref
        for ref in every
    )


def keep_first_name(refs: Iterable[LoraRef]) -> tuple[LoraRef, ...]:
    """Return `refs`; a name stays with the first file that has it, so that what is added later renames nothing."""
    owners: dict[str, str] = {}
    return tuple(ref if owners.setdefault(ref.name, ref.sha256) == ref.sha256 else _with_digits(ref) for ref in refs)


def _with_digits(ref: LoraRef) -> LoraRef:
    return replace(ref, name=f"{ref.name}-{ref.sha256[:_DIGITS]}")


def _is_letter(character: str) -> bool:
    """Letters and digits, with the marks that belong to them: vowels of Hindi, tones of Thai."""
    return character.isalnum() or character in "-_" or unicodedata.category(character).startswith("M")


def check_trigger(phrase: str) -> str | None:
    """Return the trigger phrase, None for an empty one."""
    phrase = phrase.strip()
    if len(phrase) > MAX_TRIGGER or not all(character.isprintable() for character in phrase):
        raise InvalidInput(f"Trigger phrase: one line of at most {MAX_TRIGGER} characters, such as TOK, sks or ohwx.")
    return phrase or None
