"""klein at its true size with random weights: what speed and memory are measured on where no checkpoint is at hand.

Shapes, dtypes and code are the real ones, so seconds and bytes are too; only the pictures are noise. The tokenizer is
the pocket's: every prompt is padded to the same length anyway.
"""

from collections.abc import Mapping, Sequence
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
from lora_runtime.pipeline.precision import BLOCKS, round_layer, widen_on_cpu
from lora_runtime.values import Precision

HEAD = 128
PARTS = ("transformer", "text_encoder", "vae")
_SPREAD = 0.02  # of the random numbers: large enough for BF16, small enough to stay finite
_NUMBERS = 4_194_301  # how many of them are drawn; no width of klein's divides it, so no two rows are the same


def make_transformer(shape: Shape, device: torch.device, *, precision: Precision = "bf16") -> Any:
    """A transformer of `shape` on `device`, never held twice: at FP8 each layer is rounded as soon as it is filled."""
    with torch.device("meta"):
        transformer = _describe_transformer(shape)
    filled = _fill(transformer, device, fp8=precision == "fp8")
    if precision == "fp8" and device.type == "cpu":
        widen_on_cpu(filled)
    return filled


def make_pipeline(
    weights: Weights, device: torch.device, *, precision: Precision = "bf16", parts: Sequence[str] = PARTS
) -> Any:
    """A pipeline at its true size, with those of its parts that are asked for."""
    made: dict[str, Any] = dict.fromkeys((*PARTS, "tokenizer"))
    if "transformer" in parts:
        made["transformer"] = make_transformer(weights.shape, device, precision=precision)
    if "vae" in parts:
        with torch.device("meta"):
            vae = AutoencoderKLFlux2()
        made["vae"] = _fill(vae, device).to(memory_format=torch.channels_last)
    if "text_encoder" in parts:
        made["text_encoder"] = _make_text_encoder(weights, device)
        made["tokenizer"] = AutoTokenizer.from_pretrained(BUNDLED / "pocket", subfolder="tokenizer")
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(BUNDLED / "pocket", subfolder="scheduler")
    kind = Flux2KleinKVPipeline if weights.kv_cache else Flux2KleinPipeline
    pipeline = kind(scheduler=scheduler, is_distilled=weights.distilled, **made)
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


def _describe_transformer(shape: Shape) -> Any:
    return Flux2Transformer2DModel(
        in_channels=shape.latent,
        num_layers=shape.double_blocks,
        num_single_layers=shape.single_blocks,
        attention_head_dim=HEAD,
        num_attention_heads=shape.hidden // HEAD,
        joint_attention_dim=shape.text,
        guidance_embeds=False,
    )


def _list_layers(shape: Shape) -> Mapping[str, tuple[int, int]]:
    return {
        name: (module.out_features, module.in_features)
        for name, module in _describe_transformer(shape).named_modules()
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
def _fill(model: torch.nn.Module, device: torch.device, *, fp8: bool = False) -> Any:
    """Give a model on the meta device random BF16 weights on `device`; norms start at one."""
    generator = torch.Generator(device).manual_seed(0)
    numbers = (torch.randn(_NUMBERS, device=device, generator=generator) * _SPREAD).bfloat16()
    # By name: a list of the modules would keep each layer's BF16 beside its FP8.
    for path in [path for path, _ in model.named_modules()]:
        module = model.get_submodule(path)
        for own in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if own.is_floating_point():
                own.data = own.data.bfloat16()
        module.to_empty(device=device, recurse=False)
        for parameter in module.parameters(recurse=False):
            if parameter.ndim == 1:
                parameter.fill_(1)
                continue
            flat = parameter.view(-1)
            for start in range(0, flat.numel(), _NUMBERS):
                piece = flat[start : start + _NUMBERS]
                piece.copy_(numbers[: piece.numel()])
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                buffer.fill_(1 if name == "running_var" else 0)
        if fp8 and isinstance(module, torch.nn.Linear) and path.startswith(BLOCKS):
            model.set_submodule(path, round_layer(module))
    return model.requires_grad_(False).eval()
