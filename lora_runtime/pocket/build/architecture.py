"""Build the pocket klein's five parts, untrained, in the layout of the real klein.

Everything is the real class at toy size: `AutoencoderKLFlux2` (normalised by its batch-norm statistics), a
`Flux2Transformer2DModel` with shared modulation and no guidance embedding, a `Qwen3ForCausalLM` whose hidden states are
stacked, a word-level tokenizer with a chat template, and klein's dynamically shifted flow-matching schedule. The call
arguments that a toy needs (a short prompt, other hidden states) are here too.
"""

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lora_runtime.pocket.build.scenes import TRIGGER, list_words
from lora_runtime.pocket.build.words import build_normalizer

MAX_SEQUENCE_LENGTH = 24
"""Tokens of a prompt, template included: the longest caption has 8."""

TEXT_ENCODER_OUT_LAYERS = (2, 4, 6)
"""Hidden states stacked into the prompt embedding; klein takes (9, 18, 27)."""

LATENT_CHANNELS = 32
LEVELS = (32, 64, 96, 128)
"""VAE widths; each level but the last halves the picture, packing halves it once more: 16 px a token, as in klein."""

_PAD, _UNKNOWN, _USER, _ASSISTANT = "<pad>", "<unk>", "<|user|>", "<|assistant|>"
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|user|>' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer; `TRIGGER` is a token from the start, so a LoRA finds an embedding to use."""
    words = [_PAD, _UNKNOWN, _USER, _ASSISTANT, TRIGGER, *list_words()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=_UNKNOWN))
    tokenizer.normalizer = build_normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        additional_special_tokens=[_USER, _ASSISTANT],
        model_max_length=512,
        padding_side="right",
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def forget_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    """Drop the padding and truncation of the last call, which a fast tokenizer would otherwise save."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()


def build_text_encoder(vocabulary: int) -> Qwen3ForCausalLM:
    """Build a six-layer Qwen3 of width 64."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def build_vae() -> AutoencoderKLFlux2:
    """Build the autoencoder. One normalisation group keeps colour: a group a channel would divide it away."""
    return AutoencoderKLFlux2(
        block_out_channels=LEVELS,
        down_block_types=("DownEncoderBlock2D",) * len(LEVELS),
        up_block_types=("UpDecoderBlock2D",) * len(LEVELS),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=128,
    )


def build_transformer() -> Flux2Transformer2DModel:
    """Build the denoiser: two double and four single blocks of width 256."""
    return Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=64 * len(TEXT_ENCODER_OUT_LAYERS),
        timestep_guidance_channels=256,
        mlp_ratio=3.0,
        axes_dims_rope=(16, 16, 16, 16),
        rope_theta=2000,
        guidance_embeds=False,
    )


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Build klein's schedule. Source: the scheduler_config of FLUX.2 klein (shift 3, dynamic, exponential)."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
        time_shift_type="exponential",
    )


def build_pipeline(seed: int = 0, *, is_distilled: bool = False) -> Flux2KleinPipeline:
    """Put untrained parts together."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    return Flux2KleinPipeline(
        scheduler=build_scheduler(),
        vae=build_vae(),
        text_encoder=build_text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=build_transformer(),
        is_distilled=is_distilled,
    )
