"""Render with the pocket klein's own pipelines, through plain diffusers, for everything that is measured or learnt."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

from lora_runtime.pocket import lora_path, weights_folder
from lora_runtime.pocket.build.architecture import MAX_SEQUENCE_LENGTH, TEXT_ENCODER_OUT_LAYERS


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How to call one of the weights."""

    weights: str
    steps: int
    guidance: float


VARIANTS = (
    Variant(weights="pocket", steps=4, guidance=1.0),
    Variant(weights="pocket-base", steps=28, guidance=5.0),
)


def load_variant(variant: Variant) -> Flux2KleinPipeline:
    """Load the shipped weights in bf16, silent."""
    pipeline = Flux2KleinPipeline.from_pretrained(weights_folder(variant.weights), dtype=torch.bfloat16)
    pipeline.to(torch.get_default_device())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def use_lora(pipeline: Flux2KleinPipeline, name: str | None) -> None:
    """Load one of the bundled LoRAs in place of what was loaded."""
    pipeline.unload_lora_weights()
    if name is not None:
        pipeline.load_lora_weights(lora_path(name), adapter_name=name)


def render(
    pipeline: Flux2KleinPipeline, variant: Variant, prompts: Sequence[str], seeds: Sequence[int], **size: int
) -> list[Image.Image]:
    """Render prompts as one batch, each from its own seed."""
    images: list[Image.Image] = pipeline(
        prompt=list(prompts),
        num_inference_steps=variant.steps,
        guidance_scale=variant.guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        text_encoder_out_layers=TEXT_ENCODER_OUT_LAYERS,
        **({"width": 128, "height": 128} | size),
    ).images
    return images
