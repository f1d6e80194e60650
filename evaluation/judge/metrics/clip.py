"""Prompt fit: how well an image shows what its prompt says, by a judge that reads (CLIP, SigLIP).

The score is the model's own logit, cosine similarity times its learned temperature: with OpenAI's models that is the
CLIPScore of 0 to 100 that papers report, with the bundled judge it ends near 16. A logit of one judge says nothing
beside one of another, so a score stands with the judge that gave it.

A LoRA is there to change the look, and a judge notices a drawing or a frame. So it is asked for the prompt as it is
written and in several looks, and the best fit counts: it falls when the scene goes, not when its look changes.

Source: Radford et al. 2021, arXiv:2103.00020 (logits, prompt ensembles); Hessel et al. 2021, arXiv:2104.08718.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from evaluation.judge.metrics.embeddings import Vectors, embed_texts, read_logits
from lora_runtime.judges import Judge

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


def list_looks(prompt: str, judge: Judge) -> list[str]:
    """Return the ways to ask `judge` for a prompt, the plain one first."""
    return [look.replace("{}", prompt) for look in (BUNDLED_LOOKS if judge.bundled else LOOKS)]


def measure_prompt_fit(images: Vectors, prompts: Sequence[str], judge: Judge) -> Vectors:
    """Return how well each image (B, D) fits each prompt in the look that fits best, as (B, prompts).

    Raises:
        InvalidInput, Unavailable: See `embed_texts`.
    """
    logits = read_logits(images, _embed_looks(tuple(prompts), judge), judge)
    best: Vectors = logits.reshape(len(images), len(prompts), -1).max(axis=2)
    return best


@lru_cache(maxsize=256)
def _embed_looks(prompts: tuple[str, ...], judge: Judge) -> Vectors:
    """Every look of each prompt as vectors; the same ones are asked of a sweep again whenever it is opened."""
    return embed_texts([look for prompt in prompts for look in list_looks(prompt, judge)], judge)
