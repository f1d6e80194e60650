"""Train the judge: a tiny real CLIP that scores how well a picture fits a caption.

It has the classes of the real one (`CLIPModel`, `CLIPProcessor`), so CLIP metrics run offline through the same code
as with a full CLIP. Every picture is held against its caption's near misses (another object, colour or place) and
against the caption with its object left out. The last is the zero of the scale: a true object scores above it, a wrong
one below, and where the object is broken or unknown it is the best that can be said.

It learns from drawings, whole and broken, and from what the models draw with the LoRAs (`judge_examples.py`). No
caption names a look, the subject or its trigger: a real CLIP would not know them either.
"""

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lora_runtime.pocket.build.architecture import forget_padding
from lora_runtime.pocket.build.judge_examples import SIDE_PX, Example
from lora_runtime.pocket.build.optimizers import MuonAdamW, warm_cosine
from lora_runtime.pocket.build.scenes import (
    BACKGROUNDS,
    COLOUR_NAMES,
    OBJECTS,
    Scene,
    caption_scene,
    list_words,
)
from lora_runtime.pocket.build.words import UNKNOWN, build_normalizer, read_words

log = logging.getLogger(__name__)

PATCH_PX = 16
"""The grid on which objects move: one drawing falls into the same patches wherever it stands."""

TEXT_TOKENS = 32
BATCH = 64

WRONG_OBJECTS = 5
PARTS: dict[str, tuple[str, ...]] = {"thing": OBJECTS, "colour": COLOUR_NAMES, "background": BACKGROUNDS}
"""What a caption can have wrong, and the answers to it."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One picture's texts: what is true first, then wrong ones, and last the caption without its object."""

    texts: list[str]
    true_words: frozenset[str]
    """Every word that is true of the picture."""
    has_object: bool
    """Whether the first text is true; else the last is the best that can be said."""


def build_judge() -> tuple[CLIPModel, CLIPProcessor]:
    """Build an untrained judge: four layers of width 160 for pictures, two of width 128 for words."""
    tokenizer = build_tokenizer()
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": TEXT_TOKENS,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 160,
            "intermediate_size": 480,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "image_size": SIDE_PX,
            "patch_size": PATCH_PX,
        },
        projection_dim=96,
    )
    size = {"height": SIDE_PX, "width": SIDE_PX}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
    return CLIPModel(config), CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer that reads prompts as the denoiser's does, with CLIP's start and end."""
    words = ["<pad>", "<unk>", "<|startoftext|>", "<|endoftext|>", *list_words()]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = build_normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    start, end = words[2:4]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, ids[start]), (end, ids[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token=start,
        eos_token=end,
        model_max_length=TEXT_TOKENS,
    )


def train_judge(examples: Sequence[Example], folder: Path, *, minutes: float, seed: int = 9) -> None:
    """Train the judge and save it as a transformers folder."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model, processor = build_judge()
    named = list(model.named_parameters())
    optimizer = MuonAdamW(
        [p for name, p in named if _is_matrix(name, p)],
        [p for name, p in named if not _is_matrix(name, p)],
        muon_lr=0.02,
        adam_lr=1.5e-3,
    )
    start, step, running = time.monotonic(), 0, 0.0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1.0:
        batch = rng.sample(range(len(examples)), BATCH)
        chosen = [examples[row] for row in batch]
        questions = [ask(example, rng) for example in chosen]
        # In fp32: at this size the casts of bf16 cost more than they save.
        loss = _question_loss(model, processor, to_pixels(processor, chosen, augment=True), questions)
        loss.backward()
        optimizer.step(warm_cosine(step, progress))
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        step += 1
        if step % 100 == 0:
            log.info("judge step %d, %.0f%%: loss %.3f", step, 100 * progress, running)
        if step % 400 == 0:
            save_judge(model, processor, folder)
    save_judge(model, processor, folder)
    log.info("judge done after %d steps: loss %.3f", step, running)


def _is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    return "layers." in name and parameter.ndim == 2


def save_judge(model: CLIPModel, processor: CLIPProcessor, folder: Path) -> None:
    """Save a copy in bf16 as a transformers folder."""
    copy = CLIPModel(model.config)
    copy.load_state_dict(model.state_dict())
    copy.eval().to(torch.bfloat16).save_pretrained(folder)
    forget_padding(processor.tokenizer)
    processor.save_pretrained(folder)


def ask(example: Example, rng: random.Random) -> Question:
    """Write the texts that one picture is held against: always as many, all in one wording."""
    said = frozenset(part for part in example.said if rng.random() < 0.7)
    wording = rng.randrange(2**31)
    noise = f" {UNKNOWN}" * (rng.random() < 0.15)

    def say(scene: Scene, parts: frozenset[str] = said, name: str | None = None) -> str:
        return caption_scene(scene, random.Random(wording), parts, name=name) + noise

    scene = example.scene
    if scene.thing not in OBJECTS:
        scene = replace(scene, thing=rng.choice(OBJECTS))
    others = rng.sample(list_others(scene, "thing"), WRONG_OBJECTS)
    texts = [say(scene), *(say(replace(scene, thing=other)) for other in others)]
    for part in ("colour", "background"):
        if part in example.said:
            texts.append(say(replace_part(scene, part, rng.choice(list_others(scene, part))), said | {part}))
        else:  # the model chose it, so nothing is known to be wrong: ask for another object
            texts.append(say(replace(scene, thing=others[0])))
    return Question(
        texts=[*texts, say(scene, name="")],
        true_words=frozenset({scene.thing, *(getattr(scene, part) for part in example.said)}),
        has_object=example.has_object,
    )


def list_others(scene: Scene, part: str) -> list[str]:
    """List the wrong answers to one part of a scene."""
    return [answer for answer in PARTS[part] if answer != getattr(scene, part)]


def replace_part(scene: Scene, part: str, answer: str) -> Scene:
    """Give a scene another answer to one part."""
    change: dict[str, Any] = {part: answer}
    return replace(scene, **change)


def to_pixels(processor: CLIPProcessor, examples: Sequence[Example], *, augment: bool = False) -> torch.Tensor:
    """Stack pictures as the processor prepares them, (B, 3, SIDE_PX, SIDE_PX); `augment` varies tone and blur."""
    pictures = torch.stack([torch.as_tensor(example.picture) for example in examples])
    pixels = pictures.to(torch.get_default_device()).permute(0, 3, 1, 2).float() / 255
    if augment:
        count = len(pixels)
        soft = functional.avg_pool2d(functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
        pixels = pixels + torch.rand(count, 1, 1, 1) * (soft - pixels)
        pixels = pixels * (1 + 0.05 * torch.randn(count, 3, 1, 1)) + 0.03 * torch.randn(count, 1, 1, 1)
        pixels = (pixels + 0.03 * torch.rand(count, 1, 1, 1) * torch.randn_like(pixels)).clamp(0, 1)
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1)
        for values in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    return (pixels - mean) / std


def score_texts(
    model: CLIPModel, processor: CLIPProcessor, pixels: torch.Tensor, texts: Sequence[Sequence[str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score each picture against its own texts (B, K), and against the first text of all (B, B)."""
    flat = [text for own in texts for text in own]
    tokens = processor.tokenizer(flat, padding=True, truncation=True, return_tensors="pt").to(pixels.device)
    output = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
    words = output.text_embeds.view(len(texts), -1, output.text_embeds.shape[-1])
    scale = model.logit_scale.exp()
    own = scale * torch.einsum("bkd,bd->bk", words, output.image_embeds)
    return own.float(), (scale * output.image_embeds @ words[:, 0].T).float()


def _question_loss(
    model: CLIPModel, processor: CLIPProcessor, pixels: torch.Tensor, questions: Sequence[Question]
) -> torch.Tensor:
    """Choose the true text of each picture, keep wrong objects below the caption without one, tell pictures apart."""
    own, across = score_texts(model, processor, pixels, [question.texts for question in questions])
    has_object = torch.tensor([question.has_object for question in questions])
    last = own.shape[1] - 1
    truth = torch.where(has_object, 0, last)
    # Where there is no object its colour is often gone too, so such pictures only choose among objects and none.
    choices = own.masked_fill(~has_object[:, None] & _is_other_part(last + 1), -1e4)
    choose = functional.cross_entropy(choices, truth)
    wrong = own[:, 1 : 1 + WRONG_OBJECTS] - own[:, last:]
    below = (
        functional.softplus(wrong + 1.0).mean()
        + functional.softplus(torch.where(has_object, -1.0, 1.0) * (own[:, 0] - own[:, last]) + 1.0).mean()
    )
    whole = has_object.nonzero().flatten()
    apart = _tell_apart(across[whole][:, whole], [questions[row] for row in whole.tolist()])
    return choose + 0.5 * below + 0.5 * apart


def _is_other_part(count: int) -> torch.Tensor:
    """Mark the texts whose colour or place is wrong, (1, count)."""
    marked = torch.zeros(1, count, dtype=torch.bool)
    marked[:, 1 + WRONG_OBJECTS : count - 1] = True
    return marked


def _tell_apart(logits: torch.Tensor, questions: Sequence[Question]) -> torch.Tensor:
    """Compute CLIP's loss over a batch; a caption that is true of another picture as well is no contrast to it."""
    said = [frozenset(word for word in read_words(question.texts[0]) if word != UNKNOWN) for question in questions]
    fits = torch.tensor([[words <= question.true_words for words in said] for question in questions])
    fits.fill_diagonal_(False)
    logits = logits.masked_fill(fits, -1e4)
    truth = torch.arange(len(questions))
    return (functional.cross_entropy(logits, truth) + functional.cross_entropy(logits.T, truth)) / 2
