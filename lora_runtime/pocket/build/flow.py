"""Flow matching as the klein pipeline does it: prompts to embeddings, noise levels to velocities, sigmas to steps.

Shared by everything that trains the denoiser, so that training and rendering can never disagree. The noisy latent at
noise level sigma in [0, 1] is (1 - sigma) * latent + sigma * noise; the model predicts noise - latent.
"""

from collections.abc import Callable, Sequence

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from lora_runtime.pocket.build.architecture import MAX_SEQUENCE_LENGTH, TEXT_ENCODER_OUT_LAYERS
from lora_runtime.pocket.build.data import half
from lora_runtime.pocket.build.dataset import OPEN_PARTS, SAID, TOKEN_PX, Batch

Denoise = Callable[..., tuple[torch.Tensor, ...]]


def encode_prompts(
    text_encoder: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]
) -> torch.Tensor:
    """Embed prompts as the pipeline does, in one call and with gradients: (B, MAX_SEQUENCE_LENGTH, 3 * width).

    Source: `Flux2KleinPipeline._get_qwen3_prompt_embeds`.
    """
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        for prompt in prompts
    ]
    inputs = tokenizer(
        texts, return_tensors="pt", padding="max_length", truncation=True, max_length=MAX_SEQUENCE_LENGTH
    ).to(text_encoder.device)
    with sdpa_kernel(SDPBackend.MATH):
        hidden = text_encoder.model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
    return torch.cat([hidden[layer] for layer in TEXT_ENCODER_OUT_LAYERS], dim=-1)


def make_positions(width_px: int, height_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the (text, image) position ids of one picture size: (L, 4) each. Source: the pipeline's `_prepare_*_ids`."""
    text = Flux2KleinPipeline._prepare_text_ids(torch.zeros(1, MAX_SEQUENCE_LENGTH, 1))[0]
    image = Flux2KleinPipeline._prepare_latent_ids(torch.zeros(1, 1, height_px // TOKEN_PX, width_px // TOKEN_PX))[0]
    return text, image


def predict_velocity(
    denoise: Denoise,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
    prompt_embeds: torch.Tensor,
    width_px: int,
    height_px: int,
) -> torch.Tensor:
    """Run the denoiser. noisy: (B, L, C); sigma: (B,) in [0, 1]."""
    text_ids, image_ids = make_positions(width_px, height_px)
    # At a hundred tokens plain matrix products beat the CPU's flash attention, whose backward is several times slower.
    with sdpa_kernel(SDPBackend.MATH):
        return denoise(
            hidden_states=noisy,
            encoder_hidden_states=prompt_embeds,
            timestep=sigma,
            img_ids=image_ids,
            txt_ids=text_ids,
            return_dict=False,
        )[0]


def list_sigmas(scheduler: FlowMatchEulerDiscreteScheduler, steps: int, tokens: int) -> list[float]:
    """List the pipeline's own noise levels for a step count and size, the final 0 included."""
    scheduler.set_timesteps(
        sigmas=torch.linspace(1.0, 1 / steps, steps).tolist(), mu=compute_empirical_mu(tokens, steps)
    )
    sigmas: list[float] = scheduler.sigmas.tolist()
    return sigmas


def draw_noise(shape: torch.Size, answers: torch.Tensor) -> torch.Tensor:
    """Draw noise (B, L, C) that already holds what each picture's caption leaves open; answers: see `Batch`.

    Among the channels of an open part, the one with the highest mean over the picture is the answer's. Channels trade
    places until it is so, and as every answer is as likely, the noise stays Gaussian and white. So a seed decides, and
    a small denoiser need not draw the mean of all answers before it finds one.
    """
    noise = torch.randn(shape)
    rows = torch.arange(shape[0])
    order = torch.arange(shape[2]).repeat(shape[0], 1)
    first = 0
    for column, choices in enumerate(OPEN_PARTS.values()):
        own = first + noise[:, :, first : first + len(choices)].mean(dim=1).argmax(dim=1)
        wanted = torch.where(answers[:, column] == SAID, own, first + answers[:, column])
        order[rows, own], order[rows, wanted] = wanted, own
        first += len(choices)
    return noise.gather(2, order[:, None].expand(shape))


def flow_loss(
    denoise: Denoise,
    batch: Batch,
    sigma: torch.Tensor,
    prompt_embeds: torch.Tensor,
    width_px: int,
    height_px: int,
) -> torch.Tensor:
    """Compute the flow-matching loss, a weighted mean squared error of the velocity, under bf16 autocast."""
    latents = batch.latents
    noise = draw_noise(latents.shape, batch.answers)
    level = sigma[:, None, None]
    with half():
        velocity = predict_velocity(
            denoise, (1 - level) * latents + level * noise, sigma, prompt_embeds, width_px, height_px
        )
    error = (velocity.float() - (noise - latents)).square().mean(dim=-1)
    return (error * batch.weights).sum() / batch.weights.sum()


def sample_sigma(count: int) -> torch.Tensor:
    """Draw noise levels: logit-normal towards high noise, where klein's schedule spends its steps; a tenth uniform."""
    peaked = torch.sigmoid(1.0 + 1.2 * torch.randn(count))
    return torch.where(torch.rand(count) < 0.1, torch.rand(count), peaked)


def is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    """Tell whether Muon trains this parameter of the denoiser or text encoder: the matrices inside blocks."""
    inside = any(part in name for part in ("transformer_blocks.", "modulation", "model.layers."))
    return inside and parameter.ndim == 2


def load_transformer_copy(source: Flux2Transformer2DModel) -> Flux2Transformer2DModel:
    """Copy a denoiser: same config, same weights, its own storage."""
    copy = Flux2Transformer2DModel.from_config(source.config)
    copy.load_state_dict(source.state_dict())
    return copy
