"""Models that look at pictures: which there are, where they lie, what names them, and how to get them. No torch.

A *judge* reads prompts and looks at pictures (CLIP, SigLIP); an *eye* only looks (DINOv2), and tells how alike two
pictures are. Each is a folder as transformers keeps it: one of the settings, the pocket's own, or one in the Hub's
cache that `python -m lora_runtime download judge` put there. Its id goes with every score: its name and a digest of
its files.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import huggingface_hub

from lora_runtime.catalogue import find_weights
from lora_runtime.errors import InvalidInput
from lora_runtime.pipeline.find import add_file
from lora_runtime.pocket import JUDGE_DIR
from lora_runtime.settings import settings
from lora_runtime.written import quote

if TYPE_CHECKING:
    from lora_runtime.pipeline.download import HubDownload

Kind: TypeAlias = Literal["clip", "siglip", "dinov2"]

KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "clip": "clip",
        "siglip": "siglip",  # SigLIP 2 at a fixed size calls itself so too
        "dinov2": "dinov2",
        "dinov2_with_registers": "dinov2",
    }
)
"""`model_type` of a config.json -> how it is asked."""

FILES: Final = ("*.json", "*.safetensors", "*.txt", "*.model")
"""What is fetched, and what a digest is over: configuration, weights and tokenizer, never a pickle."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A model from a folder. `digest` is over all its files, so a changed model is another judge."""

    name: str
    kind: Kind
    folder: Path
    digest: str

    @property
    def id(self) -> str:
        """What stands with every score."""
        return f"{self.name}@{self.digest}"

    @property
    def reads(self) -> bool:
        """Whether it can hold a picture against words."""
        return self.kind != "dinov2"

    @property
    def bundled(self) -> bool:
        """Whether it is the pocket's own, which knows no other pictures and no word for a look."""
        return self.folder == JUDGE_DIR


@dataclass(frozen=True, kw_only=True)
class HubJudge:
    """A model that can be had from the Hub."""

    hub_id: str
    label: str
    licence: str
    reads: bool


HUB_JUDGES: Final[Mapping[str, HubJudge]] = MappingProxyType(
    {
        "siglip2": HubJudge(
            hub_id="google/siglip2-base-patch16-224", label="SigLIP 2 base", licence="Apache-2.0", reads=True
        ),
        "clip": HubJudge(
            hub_id="openai/clip-vit-large-patch14", label="OpenAI CLIP ViT-L/14", licence="MIT", reads=True
        ),
        "dinov2": HubJudge(hub_id="facebook/dinov2-base", label="DINOv2 base", licence="Apache-2.0", reads=False),
    }
)
"""By the name that `download judge` takes; of those that are here, the first is used."""

DEFAULTS: Final = ("siglip2", "dinov2")
"""What `download judge` fetches unless it is told otherwise: one that reads, and one that only looks."""


def find_judge(weights: str) -> Judge | None:
    """Return what holds pictures of `weights` against their prompts, or None when there is nothing here that can.

    Raises:
        InvalidInput: KLEIN_LAB_CLIP names a folder that is none.
    """
    chosen = settings().clip
    if chosen is not None:
        return _require_reading(read_judge(chosen), "KLEIN_LAB_CLIP")
    return _find_bundled(weights) or _find_downloaded(reads=True)


def find_eye(weights: str) -> Judge | None:
    """Return what tells how alike two pictures of `weights` are: a DINOv2, else the judge of the prompt.

    Raises:
        InvalidInput: KLEIN_LAB_DINO or KLEIN_LAB_CLIP names a folder that is none.
    """
    chosen = settings().dino
    if chosen is not None:
        return read_judge(chosen)
    return _find_bundled(weights) or _find_downloaded(reads=False) or find_judge(weights)


def name_judge(weights: str) -> str | None:
    """Return the id of what `find_judge` finds now; a folder that is none has no scores.

    Why it is none, `find_judge` says to whoever asks for a score.
    """
    try:
        judge = find_judge(weights)
    except InvalidInput:
        return None
    return judge.id if judge else None


def say_missing(weights: str) -> str | None:
    """Say in one line what cannot be measured of `weights` for want of a judge, and how to get one; None if there is.

    A folder of the settings that is none is what is missing, too.
    """
    try:
        if find_judge(weights) is not None:
            return None
    except InvalidInput as error:
        return str(error)
    return (
        f"Nothing here can tell whether a picture of {find_weights(weights).label} follows its prompt. "
        "`python -m lora_runtime download judge` fetches what can, and says its size and licence first."
    )


def read_judge(folder: Path, name: str | None = None) -> Judge:
    """Read what kind of model a folder holds, and name it by all its files.

    Raises:
        InvalidInput: It holds no model of a known kind, or lacks its weights, its tokenizer or how to prepare pictures.
    """
    try:
        kind = str(json.loads((folder / "config.json").read_text()).get("model_type", "none"))
    except (OSError, ValueError, AttributeError) as error:
        raise refuse(folder, "has no config.json that can be read") from error
    if kind not in KINDS:
        raise refuse(folder, f"is of kind {quote(kind)}")
    needed = [("model*.safetensors",), ("preprocessor_config.json", "processor_config.json")]
    if KINDS[kind] != "dinov2":
        needed.append(("tokenizer.json", "vocab.json", "*.model"))
    for names in needed:
        if not any(any(folder.glob(each)) for each in names):
            raise refuse(folder, f"lacks {' or '.join(names)}")
    stamps = tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in _list_files(folder))
    return Judge(name=name or folder.resolve().name, kind=KINDS[kind], folder=folder, digest=_read_digest(stamps))


def refuse(folder: Path, what: str) -> InvalidInput:
    """Return the error of a folder that cannot judge: which, what is wrong with it, and what to do."""
    return InvalidInput(
        f"{folder} cannot judge pictures: it {what}. Use a whole folder of a CLIP, SigLIP, SigLIP 2 or DINOv2 model as "
        "transformers saves it, weights as .safetensors; `python -m lora_runtime download judge` fetches one."
    )


def plan_judges(names: Sequence[str] = ()) -> "tuple[HubDownload, ...]":
    """Ask the Hub how large the models of these names are; those of `DEFAULTS` when none is named.

    Raises:
        InvalidInput: There is no such model.
        Unavailable: The Hub cannot be reached, or refuses.
        StorageFailed: The disk has too little room for all of them.
    """
    from lora_runtime.pipeline.download import HubDownload, fetch, require_disk  # takes torch, to count weights

    unknown = [name for name in names if name not in HUB_JUDGES]
    if unknown:
        raise InvalidInput(f"Judge: {quote(unknown[0])} is none of {', '.join(HUB_JUDGES)}.")
    plans = []
    for judge in (HUB_JUDGES[name] for name in dict.fromkeys(names or DEFAULTS)):
        info = fetch(judge, partial(huggingface_hub.HfApi().model_info, judge.hub_id, files_metadata=True))
        wanted = [file for file in info.siblings or () if any(fnmatch(file.rfilename, each) for each in FILES)]
        size = sum(file.size or 0 for file in wanted)
        plans.append(
            HubDownload(label=judge.label, hub_id=judge.hub_id, licence=judge.licence, size_bytes=size, files=FILES)
        )
    require_disk("The judge" if len(plans) == 1 else "The judges", sum(plan.size_bytes for plan in plans))
    return tuple(plans)


def _find_bundled(weights: str) -> Judge | None:
    return read_judge(JUDGE_DIR, "pocket-judge") if find_weights(weights).bundled else None


def _find_downloaded(*, reads: bool) -> Judge | None:
    """The first model of the Hub's cache that is whole; one whose download was cut off is not there yet."""
    for judge in HUB_JUDGES.values():
        config = huggingface_hub.try_to_load_from_cache(judge.hub_id, "config.json") if judge.reads == reads else None
        if isinstance(config, str):
            try:
                return read_judge(Path(config).parent, judge.hub_id)
            except InvalidInput:
                continue
    return None


def _require_reading(judge: Judge, variable: str) -> Judge:
    if not judge.reads:
        raise InvalidInput(
            f"{variable}: {judge.folder} holds a DINOv2, which reads no prompts. Point KLEIN_LAB_DINO at it, and "
            f"{variable} at a CLIP or SigLIP."
        )
    return judge


def _list_files(folder: Path) -> list[Path]:
    return sorted(path for pattern in FILES for path in folder.glob(pattern))


@lru_cache(maxsize=16)
def _read_digest(stamps: tuple[tuple[Path, int, int], ...]) -> str:
    """16 hex digits over the files, large ones sampled as in `find.py`; their sizes and times keep it fresh."""
    digest = hashlib.sha256()
    for path, _, _ in stamps:
        add_file(digest, path, path.name)
    return digest.hexdigest()[:16]
