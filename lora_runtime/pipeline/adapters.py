"""LoRAs on a transformer: attached once, with one strength per image of a batch.

PEFT holds the layers. A forward hook on each `lora_A` multiplies its output by that LoRA's strengths, one per row:
the cost is rank-sized, the dtype is not promoted, any number of dimensions works, and a change of strengths recompiles
nothing. A row of 0 is the base model. Several LoRAs in one batch are several adapters whose rows do not overlap.

Files are normalised by us (`lora/formats.py`) and passed as tensors with alpha/rank baked into B, because diffusers'
own loader silently ignores many real files. Every layer of the file must land on a module; nothing is ever fused.
"""

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from lora_runtime.errors import LoraMismatch, LoraUnreadable
from lora_runtime.lora.check import require_fit
from lora_runtime.lora.formats import Layer
from lora_runtime.lora.library import report_of
from lora_runtime.values import LoraRef


class Adapters:
    """The LoRAs attached to one transformer.

    Not thread-safe: the engine's one thread owns it.
    """

    def __init__(self, transformer: Any, *, weights: str, cache_bytes: int) -> None:
        self._transformer = transformer
        self._weights = weights
        self._cache_bytes = cache_bytes
        self._attached: OrderedDict[str, int] = OrderedDict()  # adapter name -> bytes, least recently used first
        self._strengths: dict[str, torch.Tensor] = {}  # adapter name -> (rows,) fp32, only inside `strengths`

    def attach(self, lora: LoraRef) -> str:
        """Attach `lora` unless it is there already, and return its adapter name.

        Raises:
            LoraError: The file is damaged, changed since it was hashed, or was made for other weights.
        """
        name = f"lora_{lora.sha256}"  # long: diffusers looks adapter names up as substrings of keys
        if name not in self._attached:
            state = _read_state(lora, self._weights)
            with warnings.catch_warnings():
                # Several adapters on one model are what we want; PEFT warns of every one after the first.
                warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
                self._transformer.load_lora_adapter(state, prefix=None, adapter_name=name, low_cpu_mem_usage=False)
            try:
                self._require_whole(name, state, lora)
            except LoraMismatch:
                self._transformer.delete_adapters(name)
                raise
            self._hook(name)
            self._attached[name] = sum(tensor.nbytes for tensor in state.values())
        self._attached.move_to_end(name)
        return name

    def detach(self, name: str) -> None:
        """Take an adapter off; the base computes as before it came."""
        self._transformer.delete_adapters(name)
        del self._attached[name]

    def shrink(self, *, keep: Sequence[str] = ()) -> None:
        """Detach the least recently used adapters until the rest fits `cache_bytes`; never one of `keep`."""
        for name in [name for name in self._attached if name not in keep]:
            if sum(self._attached.values()) <= self._cache_bytes:
                return
            self.detach(name)

    @contextmanager
    def strengths(self, rows: Mapping[str, Sequence[float]]) -> Iterator[None]:
        """Within this block, row i of every batch gets adapter `name` at strength `rows[name][i]`.

        Adapters that are not named are off. Without any, the transformer runs exactly as if nothing were attached.
        """
        device = self._transformer.device
        if not rows:
            if self._attached:
                self._transformer.disable_lora()
            yield
            return
        self._transformer.enable_lora()
        self._transformer.set_adapters(list(rows), [1.0] * len(rows))
        self._strengths = {
            name: torch.tensor(values, dtype=torch.float32, device=device) for name, values in rows.items()
        }
        try:
            yield
        finally:
            self._strengths = {}

    def _hook(self, name: str) -> None:
        def scale_rows(_module: torch.nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
            # output: (B, ..., rank). The product is fp32, so 0.35 acts as 0.35 and is rounded once.
            column = self._strengths[name].view(-1, *([1] * (output.ndim - 1)))
            return (output * column).to(output.dtype)

        for layer in self._transformer.modules():
            if isinstance(layer, LoraLayer) and name in layer.lora_A:
                layer.lora_A[name].register_forward_hook(scale_rows)

    def _require_whole(self, name: str, state: Mapping[str, torch.Tensor], lora: LoraRef) -> None:
        """Every matrix of the file must have become a parameter, value for value; else the load was partial."""
        loaded: dict[str, torch.Tensor] = {}
        for path, layer in self._transformer.named_modules():
            if isinstance(layer, LoraLayer) and name in layer.lora_A:
                loaded[f"{path}.lora_A.weight"] = layer.lora_A[name].weight
                loaded[f"{path}.lora_B.weight"] = layer.lora_B[name].weight
        wrong = sorted(
            key
            for key in state.keys() | loaded.keys()
            if key not in state or key not in loaded or not torch.equal(state[key].to(loaded[key]), loaded[key])
        )
        if wrong:
            raise LoraMismatch(
                f"{lora.name}: {len(wrong)} of {len(state)} matrices did not reach this model, for example "
                f"{wrong[0]!r}. Choose the base model it was trained on."
            )


def _read_state(lora: LoraRef, weights: str) -> dict[str, torch.Tensor]:
    """The file as `<diffusers module>.lora_A/B.weight`: A (rank, in), B (out, rank) with the scale baked in."""
    report = report_of(lora)
    if report.file.sha256 != lora.sha256:
        raise LoraUnreadable(f"{lora.path} changed after it was chosen. Choose it again.")
    require_fit(report, weights)
    tensors = load_file(lora.path)
    state: dict[str, torch.Tensor] = {}
    for layer in report.layers:
        a, b = tensors[layer.key_a], _rows_of(tensors[layer.key_b], layer)
        state[f"{layer.module}.lora_A.weight"] = a.contiguous()
        state[f"{layer.module}.lora_B.weight"] = (b.float() * layer.scale).contiguous()
    return state


def _rows_of(b: torch.Tensor, layer: Layer) -> torch.Tensor:
    """This layer's rows of B: (out, rank)."""
    rows = b.chunk(layer.parts, dim=0)[layer.part]
    if layer.swap_halves:
        first, second = rows.chunk(2, dim=0)
        rows = torch.cat([second, first], dim=0)
    return rows
