"""klein at its true size with random weights: what speed and memory are measured on where no checkpoint is at hand.

Shapes, dtypes and code are the real ones, so seconds and bytes are too; only the pictures are noise. The tokenizer is
the pocket's: every prompt is padded to the same length anyway.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from safetensors.torch import save_file
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from lora_runtime.catalogue import Shape, Weights
from lora_runtime.pipeline.find import BUNDLED
from lora_runtime.pipeline.precision import BLOCKS, round_to_fp8
from lora_runtime.values import Precision

HEAD = 128
_SPREAD = 0.02  # of the random numbers: large enough for BF16, small enough to stay finite


def make_transformer(shape: Shape, device: torch.device) -> Any:
    """A transformer of `shape` in BF16 on `device`, never held twice."""
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(
            in_channels=shape.latent,
            num_layers=shape.double_blocks,
            num_single_layers=shape.single_blocks,
            attention_head_dim=HEAD,
            num_attention_heads=shape.hidden // HEAD,
            joint_attention_dim=shape.text,
            guidance_embeds=False,
        )
    return _fill(transformer, device)


def make_pipeline(weights: Weights, device: torch.device, *, precision: Precision = "bf16", text: bool = True) -> Any:
    """A whole pipeline at its true size; without `text`, only the transformer and the scheduler."""
    transformer = make_transformer(weights.shape, device)
    if precision == "fp8":
        round_to_fp8(transformer)
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(BUNDLED / "pocket", subfolder="scheduler")
    kind = Flux2KleinKVPipeline if weights.kv_cache else Flux2KleinPipeline
    parts: dict[str, Any] = {"vae": None, "text_encoder": None, "tokenizer": None}
    if text:
        with torch.device("meta"):
            vae = AutoencoderKLFlux2()
        parts["vae"] = _fill(vae, device).to(memory_format=torch.channels_last)
        parts["text_encoder"] = _make_text_encoder(weights, device)
        parts["tokenizer"] = AutoTokenizer.from_pretrained(BUNDLED / "pocket", subfolder="tokenizer")
    pipeline = kind(scheduler=scheduler, transformer=transformer, is_distilled=weights.distilled, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_lora(path: Path, shape: Shape, rank: int) -> Path:
    """A LoRA of `rank` on every linear layer of the blocks, in diffusers' names, BF16."""
    with torch.device("meta"):
        layers = _list_layers(shape)
    generator = torch.Generator().manual_seed(rank)
    state = {}
    for name, (rows, columns) in layers.items():
        for half, size in (("A", (rank, columns)), ("B", (rows, rank))):
            values = torch.randn(size, generator=generator, dtype=torch.float32) * _SPREAD
            state[f"transformer.{name}.lora_{half}.weight"] = values.to(torch.bfloat16)
    save_file(state, path)
    return path


def _list_layers(shape: Shape) -> Mapping[str, tuple[int, int]]:
    transformer = Flux2Transformer2DModel(
        in_channels=shape.latent,
        num_layers=shape.double_blocks,
        num_single_layers=shape.single_blocks,
        attention_head_dim=HEAD,
        num_attention_heads=shape.hidden // HEAD,
        joint_attention_dim=shape.text,
        guidance_embeds=False,
    )
    return {
        name: (module.out_features, module.in_features)
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(BLOCKS)
    }


def _make_text_encoder(weights: Weights, device: torch.device) -> Any:
    """The Qwen3 up to the last layer that klein reads, as `load_text_encoder` leaves it."""
    encoder = weights.text_encoder
    with torch.device("meta"):
        qwen = Qwen3ForCausalLM(
            Qwen3Config(
                hidden_size=encoder.hidden,
                intermediate_size=encoder.intermediate,
                num_hidden_layers=weights.text_encoder_out_layers[-1],
                num_attention_heads=encoder.query // HEAD,
                num_key_value_heads=encoder.key_value // HEAD,
                head_dim=HEAD,
                vocab_size=encoder.vocabulary,
                tie_word_embeddings=encoder.tied,
            )
        )
    qwen.model.norm = torch.nn.Identity()
    qwen.lm_head = torch.nn.Identity()
    filled = _fill(qwen, device)
    # What is computed and not stored came from the meta device without values.
    filled.model.rotary_emb = type(qwen.model.rotary_emb)(qwen.config).to(device)
    return filled


@torch.no_grad()
def _fill(model: torch.nn.Module, device: torch.device) -> Any:
    """Give a model on the meta device random BF16 weights on `device`; norms start at one."""
    model = model.to(torch.bfloat16).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, _SPREAD, generator=generator)
        else:
            parameter.fill_(1)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.fill_(1 if name.endswith("running_var") else 0)
    return model.requires_grad_(False).eval()
