"""The bundled pocket as tests use it: one image by a backend or plain diffusers, or one pass of its transformer."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import Flux2KleinPipeline

from lora_runtime.backends.local import LocalBackend
from lora_runtime.catalogue import find_weights
from lora_runtime.pipeline.batch import Model
from lora_runtime.pipeline.find import find_checkpoint
from lora_runtime.pipeline.load import load_pipeline
from lora_runtime.pocket import weights_folder
from lora_runtime.values import Failed, LoraRef, Rendered, RenderRequest


def request(lora: LoraRef | None = None, strength: str | Decimal = "0", **changes: object) -> RenderRequest:
    fields: dict[str, object] = {
        "weights": "pocket", "precision": "bf16", "prompt": "a red cat in the meadow", "seed": 7,
        "width": 64, "height": 64, "steps": 4, "guidance": 1.0, "lora": lora, "strength": Decimal(strength),
    } | changes  # fmt: skip
    return RenderRequest(**fields)  # type: ignore[arg-type]


def render(backend: LocalBackend, *requests: RenderRequest) -> list[np.ndarray]:
    images: dict[int, np.ndarray] = {}
    for event in backend.render(requests):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Rendered):
            images[event.index] = np.asarray(event.image)
    return [images[index] for index in range(len(requests))]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean())
    return 99.0 if error == 0 else 10 * np.log10(255**2 / error)


def load_plain() -> Any:
    """diffusers' own pipeline; a LoKr of fused names fuses it for good."""
    return Flux2KleinPipeline.from_pretrained(weights_folder("pocket"), dtype=torch.float32)


def draw_plain(pipeline: Any, lora: Path, strength: float) -> np.ndarray:
    """One image as diffusers alone draws it, every layer of the LoRA loaded."""
    weights = find_weights("pocket")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(lora, adapter_name="exported")
    pipeline.set_adapters(["exported"], [strength])
    loaded = sum(".exported" in name for name, _ in pipeline.transformer.named_parameters())
    assert loaded == sum(not key.endswith("alpha") for key in Flux2KleinPipeline.lora_state_dict(lora))
    image = pipeline(
        prompt="a red cat in the snow", width=64, height=64, num_inference_steps=4, guidance_scale=1.0,
        max_sequence_length=weights.max_sequence_length, text_encoder_out_layers=weights.text_encoder_out_layers,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images[0]  # fmt: skip
    pipeline.unload_lora_weights()
    return np.asarray(image)


def load_model(*, adapter_cache_bytes: int = 0) -> Model:
    """The pocket in fp32; by default it keeps no LoRA that is not in use."""
    weights = find_weights("pocket")
    pipeline = load_pipeline(weights, "fp32", find_checkpoint(weights), torch.device("cpu"))
    return Model(pipeline, weights=weights, precision="fp32", adapter_cache_bytes=adapter_cache_bytes)


def predict(model: Model) -> torch.Tensor:
    transformer = model.pipeline.transformer
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, transformer.config.in_channels, generator=generator)
    with torch.inference_mode():
        output: torch.Tensor = transformer(
            hidden_states=latents,
            timestep=torch.tensor([0.5, 0.5]),
            encoder_hidden_states=model.encode(["a cat", "a fox"]),
            txt_ids=torch.zeros(2, model.weights.max_sequence_length, 4, dtype=torch.long),
            img_ids=torch.zeros(2, 16, 4, dtype=torch.long),
            return_dict=False,
        )[0]
    return output
