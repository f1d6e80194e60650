"""What this machine can run, and loading it: files, precision and memory are looked at before anything is loaded."""

import atexit
import gc
import logging
from collections.abc import Sequence

import torch

from lora_runtime.catalogue import WEIGHTS, Weights, find_weights
from lora_runtime.errors import Unavailable
from lora_runtime.pipeline.batch import Model
from lora_runtime.pipeline.engine import Engine
from lora_runtime.pipeline.find import find_parts, read_digest
from lora_runtime.pipeline.kernels import compiles, describe_kernels, set_attention
from lora_runtime.pipeline.load import choose_device, load_pipeline
from lora_runtime.pipeline.memory import choose_placement
from lora_runtime.pipeline.precision import DTYPES, describe_precision, precisions
from lora_runtime.pipeline.prompts import DiskCache
from lora_runtime.settings import settings
from lora_runtime.values import ModelStatus, Precision, RenderRequest

logger = logging.getLogger(__name__)

# A process that ends would search all of torch for garbage first, for two seconds.
atexit.register(gc.freeze)


def list_models() -> Sequence[ModelStatus]:
    """One status per weights and precision, the default precision of each weights first."""
    device = choose_device()
    return [
        _status(weights, precision, device) for weights in WEIGHTS.values() for precision in precisions(weights, device)
    ]


def list_precisions(weights: str) -> tuple[Precision, ...]:
    """The precisions at which `weights` could run here, the default first."""
    return precisions(find_weights(weights), choose_device())


def read_status(weights: str, precision: Precision) -> ModelStatus:
    """Whether `weights` can run here at one of their precisions."""
    return _status(find_weights(weights), precision, choose_device())


def start_engine(loaded: Sequence[Model] = ()) -> Engine:
    """Return an engine that loads what it is asked for, unless it is among those that are `loaded` already."""
    known = {(model.weights.name, model.precision): model for model in loaded}

    def load(request: RenderRequest) -> Model:
        model = known.get((request.weights, request.precision))
        return model or load_model(find_weights(request.weights), request.precision)

    return Engine(load, fits=_fits)


def name_device() -> str:
    """What renders here, as people know it."""
    device = choose_device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def load_default(weights: Weights) -> Model:
    """Load `weights` at the precision that is their default here.

    Raises:
        Unavailable: As `load_model`.
    """
    return load_model(weights, precisions(weights, choose_device())[0])


def _status(weights: Weights, precision: Precision, device: torch.device) -> ModelStatus:
    """Whether the files are here and this machine could hold them, were it idle."""
    try:
        parts = find_parts(weights, precision)
        placement = choose_placement(weights, precision, device, idle=True)
    except Unavailable as error:
        return ModelStatus(weights=weights.name, precision=precision, available=False, reason=str(error))
    notes = (
        describe_precision(precision, device),
        describe_kernels(device, placement.offload),
        placement.reason,
    )
    return ModelStatus(
        weights=weights.name,
        precision=precision,
        available=True,
        digest=read_digest(parts.folder, parts.transformer),
        note="; ".join(filter(None, notes)),
    )


def _fits(request: RenderRequest) -> bool:
    """Whether there is room for what `request` needs, whole, beside what is loaded now."""
    try:
        return choose_placement(find_weights(request.weights), request.precision, choose_device()).offload == "none"
    except Unavailable:
        return False


def load_model(weights: Weights, precision: Precision) -> Model:
    """Load `weights` at `precision`, wherever they fit.

    Raises:
        Unavailable: The files are missing, or the memory; before anything is loaded.
    """
    device = choose_device()
    parts = find_parts(weights, precision)
    placement = choose_placement(weights, precision, device)
    pipeline = load_pipeline(
        weights, precision, parts.folder, device, transformer=parts.transformer, offload=placement.offload
    )
    attention = set_attention(pipeline.transformer, device)
    compiled = compiles(device, placement.offload)
    logger.info(
        "%s on %s: %s; %s attention; %s blocks; channels-last VAE; %s.",
        weights.name, device, describe_precision(precision, device), attention,
        "compiled" if compiled else "eager", placement.reason,
    )  # fmt: skip
    digest = read_digest(parts.folder, parts.transformer)
    layers = ",".join(map(str, weights.text_encoder_out_layers))
    key = (digest, str(DTYPES[precision]), str(weights.max_sequence_length), layers)
    return Model(
        pipeline,
        weights=weights,
        precision=precision,
        adapter_cache_bytes=settings().adapter_cache_bytes,
        device=device,
        placement=placement,
        attention=attention,
        compiler="inductor" if compiled else None,
        disk=DiskCache(folder=settings().home / "prompts", key=key),
    )
