"""Tiny models with random weights in the true layouts of their kinds: what a judge's folder looks like."""

import json
from pathlib import Path

import torch
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    GemmaTokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZE = {"height": 32, "width": 32}


def make_clip(folder: Path, *, seed: int = 0) -> Path:
    """As openai/clip-vit-large-patch14: CLIP's byte pairs, 77 tokens."""
    torch.manual_seed(seed)
    letters = [bytes([code]).decode("latin1") for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + number) for number in range(256 - len(letters))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    text = {**SMALL, "vocab_size": len(words), "max_position_embeddings": 77, **ends}
    config = CLIPConfig(text_config=text, vision_config={**SMALL, "image_size": 32, "patch_size": 8}, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    names = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def make_siglip(folder: Path, *, seed: int = 0) -> Path:
    """As google/siglip2-base-patch16-224: Gemma's tokenizer, 64 tokens, a bias beside the scale."""
    torch.manual_seed(seed)
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *map(chr, range(33, 127))]
    tokenizer = GemmaTokenizer(vocab={word: number for number, word in enumerate(letters)}, merges=[])
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    text = {**SMALL, "vocab_size": len(letters), "max_position_embeddings": 64, "projection_size": 16}
    config = SiglipConfig(text_config=text, vision_config={**SMALL, "image_size": 32, "patch_size": 8})
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessor(size=SIZE).save_pretrained(folder)
    return folder


def make_dinov2(folder: Path, *, seed: int = 0) -> Path:
    """As facebook/dinov2-base: pictures alone."""
    torch.manual_seed(seed)
    Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    ).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder
