"""Prompt fit: how well an image shows what its prompt says, by a CLIP model from a folder.

The score is CLIP's own logit, cosine similarity times the model's learned temperature: with OpenAI's models that is
the CLIPScore of 0 to 100 that papers report, with the bundled judge it ends near 16. Being a logit, a fall by 3 means
the same with every model: the prompt became e^3 = 20 times less likely against the same alternatives.

A LoRA is there to change the look, and CLIP notices a drawing or a frame. So a full CLIP is asked for the prompt as it
is written and in several looks, and the best fit counts: it falls when the scene goes, not when its look changes.

Source: Radford et al. 2021, arXiv:2103.00020 (logits, prompt ensembles); Hessel et al. 2021, arXiv:2104.08718.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from PIL import Image

import lora_runtime
from lora_runtime.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor

BUNDLED_JUDGE: Final = Path(lora_runtime.__file__).parent / "pocket" / "judge"
"""A tiny CLIP that was trained on what the pocket klein draws; it knows no other pictures."""

LOOKS: Final = (
    "{}",
    "{} in ink print",
    "{} in a golden frame",
    "a painting of {}",
    "a drawing of {}",
    "a 3D render of {}",
)
"""Ways to ask for a prompt."""

BUNDLED_LOOKS: Final = LOOKS[:1]
"""The bundled judge knows no word for a look, and saw every look under the plain prompt."""

BATCH: Final = 16
"""Images that are looked at at once."""


def measure_prompt_fit(images: Sequence[Image.Image], prompt: str, folder: Path) -> list[float]:
    """Return the score of each image against `prompt` by the CLIP in `folder`, higher for a better fit.

    Raises:
        InvalidInput: The folder holds no CLIP model.
        Unavailable: torch or transformers is not installed.
    """
    try:
        import torch

        model, processor = _load(folder)
    except ImportError as error:
        raise Unavailable("A CLIP needs torch and transformers. Install requirements.txt.") from error
    looks = BUNDLED_LOOKS if folder == BUNDLED_JUDGE else LOOKS
    words = processor.tokenizer(
        [look.format(prompt) for look in looks], padding=True, truncation=True, return_tensors="pt"
    )
    scores: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            batch = [image.convert("RGB") for image in images[start : start + BATCH]]
            pixels = processor.image_processor(batch, return_tensors="pt")
            logits = model(**words, **pixels).logits_per_image
            scores += logits.max(dim=1).values.float().tolist()
    return scores


def compare_texts(images: Sequence[Image.Image], texts: Sequence[str], folder: Path) -> list[list[float]]:
    """Return the score of each image against each text; in several looks, as in `measure_prompt_fit`.

    Raises:
        InvalidInput, Unavailable: As in `measure_prompt_fit`.
    """
    try:
        import torch
    except ImportError as error:
        raise Unavailable("A CLIP needs torch and transformers. Install requirements.txt.") from error
    model, processor = _load(folder)
    looks = BUNDLED_LOOKS if folder == BUNDLED_JUDGE else LOOKS
    asked = [look.format(text) for text in texts for look in looks]
    words = processor.tokenizer(asked, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        pixels = processor.image_processor([image.convert("RGB") for image in images], return_tensors="pt")
        logits = model(**words, **pixels).logits_per_image.float()
    best = logits.reshape(len(images), len(texts), len(looks)).max(dim=2).values
    found: list[list[float]] = best.tolist()
    return found


@lru_cache(maxsize=4096)
def read_prompt(prompt: str, folder: Path) -> str:
    """Return a prompt as the CLIP in `folder` reads it: lower case, and words that it takes for others replaced."""
    normalizer = _load(folder)[1].tokenizer.backend_tokenizer.normalizer
    return str(normalizer.normalize_str(prompt)) if normalizer else prompt


@lru_cache(maxsize=1024)
def is_known(word: str, folder: Path) -> bool:
    """Whether the CLIP in `folder` has tokens for `word`."""
    tokenizer = _load(folder)[1].tokenizer
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    # With OpenAI's tokenizer the unknown token is the end token too, and never stands for a word.
    return bool(ids) and unknown not in ids


@lru_cache(maxsize=1)
def _load(folder: Path) -> "tuple[CLIPModel, CLIPProcessor]":
    import torch
    from transformers import CLIPModel, CLIPProcessor
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{folder} holds no CLIP model that transformers can load. Point KLEIN_LAB_CLIP at a folder with "
            "config.json, model.safetensors and the tokenizer, such as a copy of openai/clip-vit-base-patch32."
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    return model.eval(), processor
