"""RenderRequests -> one batch -> images.

The denoising itself is diffusers' own `Flux2KleinPipeline.__call__`; what we add is the noise, the cached prompt
embeddings, one strength per row, and decoding image by image so that the first is there before the last.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from lora_runtime.catalogue import Weights
from lora_runtime.errors import KleinLabError, RenderFailed
from lora_runtime.pipeline.adapters import Adapters
from lora_runtime.pipeline.kernels import compile_blocks
from lora_runtime.pipeline.memory import Placement
from lora_runtime.pipeline.prompts import DiskCache, Prompts
from lora_runtime.references import load_reference
from lora_runtime.values import Precision, RenderRequest


class Model:
    """A loaded klein with its adapters and prompt embeddings. One thread owns it.

    `device` is where it computes and `placement` where its parts rest; without them everything is where the
    transformer is. `attention` is the kernel that its transformer has, `compiler` torch.compile's backend, if its
    blocks are to be compiled. `disk` keeps prompt embeddings for the next start.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        weights: Weights,
        precision: Precision,
        adapter_cache_bytes: int,
        device: torch.device | None = None,
        placement: Placement | None = None,
        attention: str = "torch",
        compiler: str | Callable[..., Any] | None = None,
        disk: DiskCache | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.weights = weights
        self.precision = precision
        self.device: torch.device = device or pipeline.device
        self.placement = placement
        self.attention = attention
        self.compiled = compiler is not None
        self.adapters = Adapters(
            pipeline.transformer,
            weights=weights.name,
            cache_bytes=adapter_cache_bytes,
            device=self.device,
            slot=self.compiled,
        )
        if compiler is not None:
            compile_blocks(pipeline.transformer, backend=compiler)
        self._prompts = Prompts(self._encode, disk=disk)

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompt embeddings: (B, L, D), on the device. A prompt that was seen is not encoded again."""
        return self._prompts.embed(prompts).to(self.device)

    def _encode(self, prompt: str) -> torch.Tensor:
        embedding: torch.Tensor = self.pipeline.encode_prompt(
            prompt=prompt,
            max_sequence_length=self.weights.max_sequence_length,
            text_encoder_out_layers=self.weights.text_encoder_out_layers,
        )[0]
        return embedding


def render_batch(
    model: Model, requests: Sequence[RenderRequest], *, on_step: Callable[[int, int], None]
) -> Iterator[Image.Image | KleinLabError]:
    """Render compatible requests in one batch; yield one image or error each, in order.

    They must share weights, precision, size, steps, guidance and references; prompts, seeds, LoRAs and strengths are
    free. References are encoded once for the whole batch.
    `on_step(done, steps)` is called after every denoising step and may raise to stop.
    """
    latents = _denoise(model, requests, on_step)
    for request, row in zip(requests, latents, strict=True):
        if not row.isfinite().all():
            yield RenderFailed(
                f"The model left the range of {request.precision} at strength {request.strength} (NaN). "
                "Try a strength nearer to 1."
            )
            continue
        yield _decode(model.pipeline, row.unsqueeze(0))


def make_noise(pipeline: Any, request: RenderRequest) -> torch.Tensor:
    """The noise of a seed: (1, C, h, w) float32 from a CPU generator, whatever the device and batch size."""
    factor = pipeline.vae_scale_factor * 2
    shape = (1, pipeline.transformer.config.in_channels, request.height // factor, request.width // factor)
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(request.seed), dtype=torch.float32)


@torch.inference_mode()
def _denoise(model: Model, requests: Sequence[RenderRequest], on_step: Callable[[int, int], None]) -> torch.Tensor:
    """Latents ready for the VAE: (B, C, H, W)."""
    first = requests[0]
    noise = {request.seed: make_noise(model.pipeline, request) for request in requests}
    guided = first.guidance > 1 and not model.weights.distilled
    rows: dict[str, list[float]] = {}
    for index, request in enumerate(requests):
        if request.lora is not None:  # at strength 0 too: that it then equals the base is worth seeing
            name = model.adapters.attach(request.lora)
            rows.setdefault(name, [0.0] * len(requests))[index] = float(request.strength)

    def after_step(_pipeline: Any, step: int, _timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        on_step(step + 1, first.steps)
        return state

    arguments: dict[str, Any] = {
        "image": [load_reference(reference, model.weights) for reference in first.references] or None,
        "prompt_embeds": model.encode([request.prompt for request in requests]),
        "latents": torch.cat([noise[request.seed] for request in requests]),
        "width": first.width,
        "height": first.height,
        "num_inference_steps": first.steps,
    }
    if not model.weights.kv_cache:  # the KV pipeline is for distilled weights alone and takes no guidance
        arguments["guidance_scale"] = first.guidance if guided else 1.0
        arguments["negative_prompt_embeds"] = model.encode([""] * len(requests)) if guided else None
    with model.adapters.strengths(rows):
        latents: torch.Tensor = model.pipeline(
            **arguments, callback_on_step_end=after_step, output_type="latent", return_dict=False
        )[0]
    return latents


@torch.inference_mode()
def _decode(pipeline: Any, latents: torch.Tensor) -> Image.Image:
    decoded = pipeline.vae.decode(latents, return_dict=False)[0]
    image: Image.Image = pipeline.image_processor.postprocess(decoded, output_type="pil")[0]
    return image
