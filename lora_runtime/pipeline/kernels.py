"""What only some devices gain by: compiled blocks and the attention kernel.

No GPU has timed either yet, so there is no number that says they pay; they go when one says that they do not.

On a CUDA GPU several kernels compute the same attention. Which is fastest depends on the GPU and on the versions
installed, so by default each one that is there is timed on the shape of a picture, and the fastest that agrees with
torch's own is taken. Nothing is downloaded, and none that rounds further (INT8, FP8) is among them.
"""

import importlib.util
import logging
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.utils import logging as diffusers_logging

from lora_runtime.errors import Unavailable
from lora_runtime.pipeline.memory import Offload
from lora_runtime.settings import Attention, settings

logger = logging.getLogger(__name__)

_COMPILED_VERSIONS: Final = 64

KERNELS: Final[Mapping[str, AttentionBackendName]] = MappingProxyType(
    {
        "torch": AttentionBackendName.NATIVE,
        "cudnn": AttentionBackendName._NATIVE_CUDNN,
        "flash": AttentionBackendName.FLASH,
        "flash3": AttentionBackendName._FLASH_3,
    }
)
"""Our names -> diffusers'."""

_PACKAGES: Final = {"flash": "flash_attn", "flash3": "flash_attn_interface"}
"""What a kernel needs to be installed; the others come with torch."""

_TOKENS: Final = 4096 + 512
"""Of a picture of 1024 px and its prompt."""

_ROUNDS: Final = 5
_TOLERANCE: Final = 2**-6
"""Relative difference to torch's own kernel that rounding explains: two units of BF16."""


def compiles(device: torch.device, offload: Offload) -> bool:
    """Whether the transformer's blocks are compiled: on a CUDA GPU that holds them, if `KLEIN_LAB_COMPILE` says so."""
    return settings().compile and device.type == "cuda" and offload == "none"


def compile_blocks(transformer: Any, *, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile each kind of block once, for any batch size, size of picture, strengths and LoRAs.

    Strengths and LoRAs are data (`slot.py`), and one version of a block serves every batch of more than one row. There
    is another for a single row, for the base without a LoRA, and for each rank of the slot; a LoKr, whose layers are
    others, adds its own. So the number of versions may be larger than usual; beyond it a block runs uncompiled, and
    never wrongly.
    """
    torch._dynamo.config.recompile_limit = _COMPILED_VERSIONS
    torch._dynamo.config.force_nn_module_property_static_shapes = False
    transformer.compile_repeated_blocks(dynamic=True, backend=backend)


def set_attention(transformer: Any, device: torch.device) -> str:
    """Give `transformer` the kernel of `KLEIN_LAB_ATTENTION` and return its name, one of `KERNELS`.

    Raises:
        Unavailable: The kernel that was asked for is not there, or does not run on this device.
    """
    wanted = settings().attention
    if device.type != "cuda":
        if wanted not in ("auto", "torch"):
            raise Unavailable(f"KLEIN_LAB_ATTENTION is {wanted}, which runs on CUDA GPUs only. Use auto or torch.")
        return "torch"
    config = transformer.config
    shape = (1, _TOKENS, config.num_attention_heads, config.attention_head_dim)
    # Of the embedder, which is never FP8: that is what the blocks compute in.
    name = _choose(wanted, shape, transformer.x_embedder.weight.dtype, device)
    with _without_warnings():
        transformer.set_attention_backend(KERNELS[name].value)
    return name


def describe_kernels(device: torch.device, offload: Offload) -> str:
    """Say in a few words what a model that is loaded to `device` will run on; empty where there is no choice."""
    if device.type != "cuda":
        return ""
    attention = settings().attention
    chosen = "the fastest attention" if attention == "auto" else f"{attention} attention"
    return f"{chosen}, {'compiled' if compiles(device, offload) else 'eager'} blocks"


@lru_cache(maxsize=16)
def _choose(wanted: Attention, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> str:
    if wanted != "auto":
        package = _PACKAGES.get(wanted)
        if package is not None and importlib.util.find_spec(package) is None:
            raise Unavailable(
                f"KLEIN_LAB_ATTENTION is {wanted}, but the package {package} is not installed. Install it, or use auto."
            )
        try:
            _attend(wanted, *_make_inputs(shape, dtype, device))
        except (RuntimeError, ValueError, TypeError, ImportError) as error:
            raise Unavailable(
                f"KLEIN_LAB_ATTENTION is {wanted}, which does not run on {torch.cuda.get_device_name(device)} in "
                f"{dtype}: {error}. Use auto."
            ) from error
        return wanted
    seconds = _time_kernels(shape, dtype, device)
    fastest = min(seconds, key=lambda name: seconds[name])
    times = ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in seconds.items())
    logger.info("Attention of %d tokens on %s: %s; taking %s.", _TOKENS, device, times, fastest)
    return fastest


def _time_kernels(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Seconds of each kernel that runs here and agrees with torch's own, which is always among them."""
    inputs = _make_inputs(shape, dtype, device)
    expected = _attend("torch", *inputs).float()
    seconds = {"torch": _time("torch", inputs)}
    for name in KERNELS:
        package = _PACKAGES.get(name)
        if name == "torch" or (package is not None and importlib.util.find_spec(package) is None):
            continue
        try:
            found = _attend(name, *inputs).float()
            if (found - expected).abs().max() <= _TOLERANCE * expected.abs().max():
                seconds[name] = _time(name, inputs)
            else:
                logger.warning("The attention kernel %s disagrees with torch's own and is not used.", name)
        except (RuntimeError, ValueError, TypeError, ImportError) as error:
            logger.info("The attention kernel %s does not run on %s: %s", name, device, error)
    return seconds


def _make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Query, key and value: (B, L, heads, head dim)."""
    generator = torch.Generator(device).manual_seed(0)
    return tuple(torch.randn(shape, dtype=dtype, device=device, generator=generator) for _ in range(3))


def _attend(name: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch warns of every reason why a kernel does not run, and then raises
        attended: torch.Tensor = dispatch_attention_fn(query, key, value, backend=KERNELS[name])
    return attended


def _time(name: str, inputs: tuple[torch.Tensor, ...]) -> float:
    taken = []
    for _ in range(_ROUNDS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        _attend(name, *inputs)
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) / 1000)
    return float(statistics.median(taken))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """diffusers warns that choosing a kernel is experimental, every time."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
