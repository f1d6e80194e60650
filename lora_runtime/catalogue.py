"""Facts about weights and endpoints: one record each, nothing computed from a name.

Adding a base model is one `Weights` record here; an endpoint is one `Endpoint`.
Sources: the FLUX.2 [klein] model cards and BFL's LoRA inference page (docs.bfl.ai/flux_2/flux2_lora_inference).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lora_runtime.errors import NotFound
from lora_runtime.values import Precision


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The transformer's dimensions. A LoRA fits when its matrix sizes and block indices do.

    `hidden` is the model width, `text` the width of the prompt embedding, `latent` the channels of a packed latent.
    """

    hidden: int
    text: int
    latent: int
    double_blocks: int
    single_blocks: int


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One base checkpoint.

    `steps` and `guidance` are the call defaults of the recipe it was trained for; `sizes` is the pixel range a side may
    have, `default_size` the side to start with. `max_sequence_length` (text tokens) and `text_encoder_out_layers` are
    arguments of `Flux2KleinPipeline.__call__`. `shape` tells which LoRA files fit.
    """

    name: str
    label: str
    hub_id: str | None
    licence: str
    distilled: bool
    kv_cache: bool = False
    steps: int
    guidance: float
    default_size: int
    sizes: tuple[int, int]
    shape: Shape
    max_sequence_length: int = 512
    text_encoder_out_layers: tuple[int, ...] = (9, 18, 27)
    trained_from: str | None = None
    """The undistilled sibling that LoRAs are trained on, when there is one."""

    @property
    def bundled(self) -> bool:
        """Whether the checkpoint is shipped with this project."""
        return self.hub_id is None


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Weights at a precision, under the name BFL gives them."""

    name: str
    weights: str
    precision: Precision

    @property
    def path(self) -> str:
        """The route of the HTTP API."""
        return f"/v1/{self.name}"


KLEIN_4B = Shape(hidden=3072, text=7680, latent=128, double_blocks=5, single_blocks=20)
KLEIN_9B = Shape(hidden=4096, text=12288, latent=128, double_blocks=8, single_blocks=24)
POCKET = Shape(hidden=256, text=192, latent=128, double_blocks=2, single_blocks=4)

WEIGHTS: Mapping[str, Weights] = MappingProxyType(
    {
        record.name: record
        for record in (
            Weights(
                name="pocket",
                label="pocket klein",
                hub_id=None,
                licence="Apache-2.0",
                distilled=True,
                steps=4,
                guidance=1.0,
                default_size=128,
                sizes=(64, 256),
                shape=POCKET,
                max_sequence_length=24,
                text_encoder_out_layers=(2, 4, 6),
                trained_from="pocket-base",
            ),
            Weights(
                name="pocket-base",
                label="pocket klein Base",
                hub_id=None,
                licence="Apache-2.0",
                distilled=False,
                steps=28,
                guidance=5.0,
                default_size=128,
                sizes=(64, 256),
                shape=POCKET,
                max_sequence_length=24,
                text_encoder_out_layers=(2, 4, 6),
            ),
            Weights(
                name="klein-4b",
                label="FLUX.2 [klein] 4B",
                hub_id="black-forest-labs/FLUX.2-klein-4B",
                licence="Apache-2.0",
                distilled=True,
                steps=4,
                guidance=1.0,
                default_size=1024,
                sizes=(64, 2048),
                shape=KLEIN_4B,
                trained_from="klein-base-4b",
            ),
            Weights(
                name="klein-9b",
                label="FLUX.2 [klein] 9B",
                hub_id="black-forest-labs/FLUX.2-klein-9B",
                licence="FLUX Non-Commercial",
                distilled=True,
                steps=4,
                guidance=1.0,
                default_size=1024,
                sizes=(64, 2048),
                shape=KLEIN_9B,
                trained_from="klein-base-9b",
            ),
            Weights(
                name="klein-9b-kv",
                label="FLUX.2 [klein] 9B (KV-cached)",
                hub_id="black-forest-labs/FLUX.2-klein-9b-kv",
                licence="FLUX Non-Commercial",
                distilled=True,
                kv_cache=True,
                steps=4,
                guidance=1.0,
                default_size=1024,
                sizes=(64, 2048),
                shape=KLEIN_9B,
                trained_from="klein-base-9b",
            ),
            Weights(
                name="klein-base-4b",
                label="FLUX.2 [klein] Base 4B",
                hub_id="black-forest-labs/FLUX.2-klein-base-4B",
                licence="Apache-2.0",
                distilled=False,
                steps=50,
                guidance=4.0,
                default_size=1024,
                sizes=(64, 2048),
                shape=KLEIN_4B,
            ),
            Weights(
                name="klein-base-9b",
                label="FLUX.2 [klein] Base 9B",
                hub_id="black-forest-labs/FLUX.2-klein-base-9B",
                licence="FLUX Non-Commercial",
                distilled=False,
                steps=50,
                guidance=4.0,
                default_size=1024,
                sizes=(64, 2048),
                shape=KLEIN_9B,
            ),
        )
    }
)

ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType(
    {
        record.name: record
        for record in (
            Endpoint(name="flux-2-klein-4b-finetuned", weights="klein-4b", precision="fp8"),
            Endpoint(name="flux-2-klein-9b-finetuned", weights="klein-9b", precision="fp8"),
            Endpoint(name="flux-2-klein-9b-kv-finetuned", weights="klein-9b-kv", precision="fp8"),
            Endpoint(name="flux-2-klein-9b-kv-bf16-finetuned", weights="klein-9b-kv", precision="bf16"),
            Endpoint(name="flux-2-klein-base-4b-finetuned", weights="klein-base-4b", precision="fp8"),
            Endpoint(name="flux-2-klein-base-9b-finetuned", weights="klein-base-9b", precision="fp8"),
        )
    }
)


def find_weights(name: str) -> Weights:
    """Return the record of `name`.

    Raises:
        NotFound: No such weights; the message lists those there are.
    """
    if name not in WEIGHTS:
        raise NotFound(f"There are no weights named {name!r}. Choose one of: {', '.join(WEIGHTS)}.")
    return WEIGHTS[name]
