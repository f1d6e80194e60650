"""Facts about weights and endpoints: one record each, nothing computed from a name.

Adding a base model is one `Weights` record here; an endpoint is one `Endpoint`.
Sources: the FLUX.2 [klein] model cards and BFL's LoRA inference page (docs.bfl.ai/flux_2/flux2_lora_inference).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lora_runtime.errors import NotFound
from lora_runtime.values import Precision
from lora_runtime.written import quote


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
class TextEncoder:
    """A Qwen3's dimensions: widths of the model, of its queries, of keys and values, and of its MLP."""

    hidden: int
    query: int
    key_value: int
    intermediate: int
    layers: int
    vocabulary: int
    tied: bool
    """Whether the output layer is the embedding itself."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One base checkpoint.

    `steps` and `guidance` are the call defaults of the recipe it was trained for; `sizes` is the pixel range a side may
    have, `default_size` the side to start with. `max_sequence_length` (text tokens) and `text_encoder_out_layers` are
    arguments of `Flux2KleinPipeline.__call__`. `shape` tells which LoRA files fit; with `text_encoder` and
    `vae_parameters` it says how much memory and disk the checkpoint takes.
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
    text_encoder: TextEncoder
    vae_parameters: int = 84_046_115
    max_sequence_length: int = 512
    text_encoder_out_layers: tuple[int, ...] = (9, 18, 27)
    trained_from: str | None = None
    """The undistilled sibling that LoRAs are trained on, when there is one."""
    single_file: str = ""
    """BFL's name of the transformer as one file, without its ending; the FP8 one is called the same with `-fp8`."""
    fp8_hub_id: str | None = None
    """Where BFL publishes the FP8 transformer."""

    @property
    def bundled(self) -> bool:
        """Whether the checkpoint is shipped with this project."""
        return self.hub_id is None

    @property
    def gated(self) -> bool:
        """Whether the Hub asks to accept the licence first."""
        return self.licence != "Apache-2.0"


@dataclass(frozen=True, kw_only=True)
class Price:
    """Thousandths of a credit (a credit is 0.01 US dollars) for the first megapixel and for each further one."""

    first_mp: int
    further_mp: int


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Weights at a precision, under the name BFL gives them; a precision of None is the backend's own default."""

    name: str
    weights: str
    precision: Precision | None
    price: Price
    finetuned: bool = True

    @property
    def path(self) -> str:
        """The route of the HTTP API."""
        return f"/v1/{self.name}"


KLEIN_4B = Shape(hidden=3072, text=7680, latent=128, double_blocks=5, single_blocks=20)
KLEIN_9B = Shape(hidden=4096, text=12288, latent=128, double_blocks=8, single_blocks=24)
POCKET = Shape(hidden=256, text=192, latent=128, double_blocks=2, single_blocks=4)

POCKET_VAE = 3_376_003

# Source: config.json of Qwen/Qwen3-4B and Qwen/Qwen3-8B.
QWEN3_4B = TextEncoder(
    hidden=2560, query=4096, key_value=1024, intermediate=9728, layers=36, vocabulary=151_936, tied=True
)
QWEN3_8B = TextEncoder(
    hidden=4096, query=4096, key_value=1024, intermediate=12_288, layers=36, vocabulary=151_936, tied=False
)
POCKET_ENCODER = TextEncoder(hidden=64, query=64, key_value=32, intermediate=192, layers=6, vocabulary=64, tied=True)

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
                text_encoder=POCKET_ENCODER,
                vae_parameters=POCKET_VAE,
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
                text_encoder=POCKET_ENCODER,
                vae_parameters=POCKET_VAE,
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
                text_encoder=QWEN3_4B,
                single_file="flux-2-klein-4b",
                fp8_hub_id="black-forest-labs/FLUX.2-klein-4b-fp8",
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
                text_encoder=QWEN3_8B,
                single_file="flux-2-klein-9b",
                fp8_hub_id="black-forest-labs/FLUX.2-klein-9b-fp8",
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
                text_encoder=QWEN3_8B,
                single_file="flux-2-klein-9b-kv",
                fp8_hub_id="black-forest-labs/FLUX.2-klein-9b-kv-fp8",
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
                text_encoder=QWEN3_4B,
                single_file="flux-2-klein-base-4b",
                fp8_hub_id="black-forest-labs/FLUX.2-klein-base-4b-fp8",
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
                text_encoder=QWEN3_8B,
                single_file="flux-2-klein-base-9b",
                fp8_hub_id="black-forest-labs/FLUX.2-klein-base-9b-fp8",
            ),
        )
    }
)

# Source: BFL's prices, klein 4B 1.4 + 0.1 credits a megapixel, 9B 1.5 + 0.2; LoRA routes cost what their base costs.
# What the KV and Base weights cost is not published: they take the price of their size. The pocket's price is ours.
_4B = Price(first_mp=1400, further_mp=100)
_9B = Price(first_mp=1500, further_mp=200)
_POCKET = Price(first_mp=100, further_mp=100)

ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType(
    {
        record.name: record
        for record in (
            Endpoint(name="flux-2-klein-4b-finetuned", weights="klein-4b", precision="fp8", price=_4B),
            Endpoint(name="flux-2-klein-9b-finetuned", weights="klein-9b", precision="fp8", price=_9B),
            Endpoint(name="flux-2-klein-9b-kv-finetuned", weights="klein-9b-kv", precision="fp8", price=_9B),
            Endpoint(name="flux-2-klein-9b-kv-bf16-finetuned", weights="klein-9b-kv", precision="bf16", price=_9B),
            Endpoint(name="flux-2-klein-base-4b-finetuned", weights="klein-base-4b", precision="fp8", price=_4B),
            Endpoint(name="flux-2-klein-base-9b-finetuned", weights="klein-base-9b", precision="fp8", price=_9B),
            Endpoint(name="flux-2-klein-4b", weights="klein-4b", precision=None, price=_4B, finetuned=False),
            Endpoint(name="flux-2-klein-9b", weights="klein-9b", precision=None, price=_9B, finetuned=False),
            Endpoint(name="flux-2-klein-9b-preview", weights="klein-9b-kv", precision=None, price=_9B, finetuned=False),
            # BFL has none of the endpoints below.
            Endpoint(name="flux-2-klein-9b-kv", weights="klein-9b-kv", precision=None, price=_9B, finetuned=False),
            Endpoint(name="flux-2-klein-base-4b", weights="klein-base-4b", precision=None, price=_4B, finetuned=False),
            Endpoint(name="flux-2-klein-base-9b", weights="klein-base-9b", precision=None, price=_9B, finetuned=False),
            Endpoint(name="flux-2-klein-pocket-finetuned", weights="pocket", precision=None, price=_POCKET),
            Endpoint(name="flux-2-klein-pocket-base-finetuned", weights="pocket-base", precision=None, price=_POCKET),
            Endpoint(name="flux-2-klein-pocket", weights="pocket", precision=None, price=_POCKET, finetuned=False),
            Endpoint(
                name="flux-2-klein-pocket-base", weights="pocket-base", precision=None, price=_POCKET, finetuned=False
            ),
        )
    }
)


def find_weights(name: str) -> Weights:
    """Return the record of `name`.

    Raises:
        NotFound: No such weights; the message lists those there are.
    """
    if name not in WEIGHTS:
        raise NotFound(f"There are no weights named {quote(name)}. Choose one of: {', '.join(WEIGHTS)}.")
    return WEIGHTS[name]


def choose_endpoint(weights: str, precision: Precision, *, finetuned: bool) -> Endpoint | None:
    """Return the endpoint that renders `weights` at `precision`, with a finetune or without, if the API has one."""
    for endpoint in ENDPOINTS.values():
        if (endpoint.weights, endpoint.finetuned) == (weights, finetuned) and endpoint.precision in (precision, None):
            return endpoint
    return None
