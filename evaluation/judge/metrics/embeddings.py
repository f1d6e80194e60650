"""Pictures and prompts as vectors, by a judge's model: what prompt fit and likeness are measured with.

Vectors have length 1, so a product of two is their cosine. A judge that reads (CLIP, SigLIP) has one space for both; a
DINOv2 has one for pictures alone. A prompt that is longer than the judge can read is split where its clauses end, and
the parts' vectors are averaged, so that nothing of it is lost.

Source: Radford et al. 2021, arXiv:2103.00020; Zhai et al. 2023, arXiv:2303.15343 (SigLIP); Oquab et al. 2023,
arXiv:2304.07193 (DINOv2).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from lora_runtime.errors import InvalidInput, Unavailable
from lora_runtime.judges import Judge, refuse

if TYPE_CHECKING:
    import torch

Vectors: TypeAlias = npt.NDArray[np.float32]
"""(N, D), each row of length 1."""

BATCH: Final = 16
"""Images, or texts, that are looked at at once."""

BREAKS: Final = (". ", "; ", ", ", " ")
"""Where a long prompt may be split, best first; where it has none of them, anywhere."""


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """A model with what prepares its input; `tokenizer` is None for one that does not read."""

    model: Any
    images: Any
    tokenizer: Any
    context: int


def embed_images(images: Sequence[Image.Image], judge: Judge) -> Vectors:
    """Return one vector for each image.

    Raises:
        InvalidInput: The judge's folder is not whole.
        Unavailable: torch or transformers is not installed.
    """
    loaded = _open(judge)

    def embed(batch: Sequence[Image.Image]) -> "torch.Tensor":
        pixels = loaded.images([image.convert("RGB") for image in batch], return_tensors="pt")
        if not judge.reads:
            return loaded.model(**pixels).pooler_output  # type: ignore[no-any-return]
        return loaded.model.get_image_features(**pixels).pooler_output  # type: ignore[no-any-return]

    return _embed(images, embed)


def embed_texts(texts: Sequence[str], judge: Judge) -> Vectors:
    """Return one vector for each text, however long it is.

    Raises:
        InvalidInput: The judge does not read, or its folder is not whole.
        Unavailable: torch or transformers is not installed.
    """
    if not judge.reads:
        raise InvalidInput(f"{judge.name} only looks: it cannot read prompts. Use a CLIP or SigLIP.")
    loaded = _open(judge)

    def fits(text: str) -> bool:
        return len(loaded.tokenizer(text, verbose=False)["input_ids"]) <= loaded.context

    def embed(batch: Sequence[str]) -> "torch.Tensor":
        # SigLIP was trained on texts filled up to its context, and sees the filling.
        padding = "max_length" if judge.kind == "siglip" else True
        words = loaded.tokenizer(
            list(batch), padding=padding, max_length=loaded.context, truncation=True, return_tensors="pt"
        )
        known = {name: words[name] for name in ("input_ids", "attention_mask") if name in words}
        return loaded.model.get_text_features(**known).pooler_output  # type: ignore[no-any-return]

    parts = [split_text(text, fits) for text in texts]
    vectors = _embed([part for own in parts for part in own], embed)
    ends = np.cumsum([len(own) for own in parts])
    pooled = [rows.mean(axis=0) for rows in np.split(vectors, ends[:-1])] if texts else []
    return _unit(np.array(pooled, dtype=np.float32).reshape(len(texts), -1))


def read_logits(images: Vectors, texts: Vectors, judge: Judge) -> Vectors:
    """Return how well each image (B, D) fits each text (T, D), as (B, T): the judge's own logits.

    Being logits, their differences mean the same with every model: 3 more is e^3 = 20 times as likely.
    """
    model = _open(judge).model
    bias = model.logit_bias.item() if judge.kind == "siglip" else 0.0
    logits: Vectors = images @ texts.T * np.float32(model.logit_scale.exp().item()) + np.float32(bias)
    return logits


@lru_cache(maxsize=4096)
def read_prompt(prompt: str, judge: Judge) -> str:
    """Return a prompt as a judge reads it: lower case, and words that it takes for others replaced."""
    normalizer = _open(judge).tokenizer.backend_tokenizer.normalizer
    return str(normalizer.normalize_str(prompt)) if normalizer else prompt


@lru_cache(maxsize=1024)
def is_known(word: str, judge: Judge) -> bool:
    """Whether a judge has tokens for `word`."""
    tokenizer = _open(judge).tokenizer
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    # With OpenAI's tokenizer the unknown token is the end token too, and never stands for a word.
    return bool(ids) and tokenizer.unk_token_id not in ids


def split_text(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Split a text into parts that fit, halving it at the best break near its middle; a letter is never split."""
    if len(text) < 2 or fits(text):
        return [text]
    middle = len(text) // 2
    for mark in BREAKS:
        places = [place for place in range(1, len(text)) if text.startswith(mark, place - len(mark))]
        if inner := [place for place in places if len(text) // 4 <= place <= len(text) - len(text) // 4]:
            middle = min(inner, key=lambda place: abs(place - middle))
            break
    parts = (part.strip() for part in (text[:middle], text[middle:]))
    return [piece for part in parts if part for piece in split_text(part, fits)] or [""]


def _embed(items: Sequence[Any], embed: "Callable[[Sequence[Any]], torch.Tensor]") -> Vectors:
    import torch

    with torch.inference_mode():
        rows = [embed(items[start : start + BATCH]).float().numpy() for start in range(0, len(items), BATCH)]
    return _unit(np.concatenate(rows)) if rows else np.zeros((0, 1), dtype=np.float32)


def _unit(rows: Vectors) -> Vectors:
    unit: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return unit


def _open(judge: Judge) -> _Loaded:
    try:
        return _load(judge)
    except ImportError as error:
        raise Unavailable("A judge needs torch and transformers. Install requirements.txt.") from error


@lru_cache(maxsize=2)
def _load(judge: Judge) -> _Loaded:
    """Load a model whole: what a file lacks, transformers would fill at random, and every score would be chance."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    with _quietly():
        try:
            model, loading = AutoModel.from_pretrained(
                judge.folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            images = AutoImageProcessor.from_pretrained(judge.folder, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(judge.folder, local_files_only=True) if judge.reads else None
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise refuse(judge.folder, f"cannot be loaded ({type(error).__name__})") from error
    lacking = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    if lacking:
        raise refuse(judge.folder, f"lacks {len(lacking)} of its weights, such as {lacking[0]}")
    context = model.config.text_config.max_position_embeddings if judge.reads else 0
    return _Loaded(model=model.eval(), images=images, tokenizer=tokenizer, context=context)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' progress bar and its report of what is missing, which is said as an error."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
