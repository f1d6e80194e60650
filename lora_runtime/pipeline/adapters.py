"""LoRAs on a transformer: attached once, with one strength per image of a batch.

PEFT holds the layers. A forward hook on each `lora_A` multiplies its output by that LoRA's strengths, one per row:
the cost is rank-sized, the dtype is not promoted, any number of dimensions works, and a change of strengths recompiles
nothing. A row of 0 is the base model. Several LoRAs in one batch are several adapters whose rows do not overlap.

Files are normalised by us (`lora/formats.py`) and passed as tensors with alpha/rank baked in, because diffusers' own
loader silently ignores many real files. Every layer of the file must land on a module; nothing is ever fused. A LoKr
layer takes the place of an empty LoRA layer (`kronecker.py`), so all of this holds for it too. Where blocks are
compiled, LoRAs do not come and go as layers but fill a slot (`slot.py`).
"""

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from lora_runtime.errors import LoraMismatch, LoraUnreadable
from lora_runtime.lora.check import require_fit
from lora_runtime.lora.formats import Kronecker, Layer, LowRank
from lora_runtime.lora.library import path_of, report_of
from lora_runtime.pipeline.kronecker import KroneckerIn, KroneckerOut, split_kronecker
from lora_runtime.pipeline.slot import SLOT, Slot
from lora_runtime.values import LoraRef


class Adapters:
    """The LoRAs attached to one transformer.

    With a `slot`, for compiled blocks, LoRAs fill it instead of becoming layers; a LoKr is layers all the same.
    Not thread-safe: the engine's one thread owns it.
    """

    def __init__(
        self,
        transformer: Any,
        *,
        weights: str,
        cache_bytes: int,
        device: torch.device | None = None,
        slot: bool = False,
    ) -> None:
        self._transformer = transformer
        self._device = device or transformer.device
        """Where the transformer computes; with offloading it rests elsewhere."""
        self._dtype: torch.dtype = transformer.x_embedder.weight.dtype
        """What it computes in: the embedder is the same at FP8."""
        self._weights = weights
        self._cache_bytes = cache_bytes
        self._attached: OrderedDict[str, int] = OrderedDict()  # adapter name -> bytes, least recently used first
        self._strengths: dict[str, torch.Tensor] = {}  # adapter name -> (rows,) fp32, only inside `strengths`
        self._in_use: frozenset[str] = frozenset()
        self._active: tuple[str, ...] | None = None  # the names PEFT has on; None when it was changed since
        self._slot = Slot(transformer, device=self._device, dtype=self._dtype) if slot else None

    @property
    def attached(self) -> tuple[str, ...]:
        """The adapters that are here, least recently used first."""
        return tuple(self._attached)

    def attach(self, lora: LoraRef) -> str:
        """Attach `lora` unless it is there already, and return its adapter name.

        Raises:
            LoraError: The file is damaged, changed since it was hashed, or was made for other weights.
        """
        name = f"lora_{lora.sha256}"  # long: diffusers looks adapter names up as substrings of keys
        if name not in self._attached:
            adapter = _read_adapter(lora, self._weights, self._device, self._dtype)
            if self._slot is not None and not adapter.kroneckers:
                self._attached[name] = self._slot.keep(name, adapter.state, label=lora.name)
            else:
                self._attached[name] = self._add_layers(name, adapter, lora)
        self._attached.move_to_end(name)
        return name

    def detach(self, name: str) -> None:
        """Take an adapter off; the base computes as before it came."""
        if self._slot is not None and name in self._slot:
            self._slot.drop(name)
        else:
            self._transformer.delete_adapters(name)
            self._active = None
        del self._attached[name]

    def shrink(self, *, keep: Sequence[str] = ()) -> None:
        """Detach the least recently used adapters until the rest fits `cache_bytes`.

        Never one of `keep`, nor one that has strengths at this moment.
        """
        for name in [name for name in self._attached if name not in keep and name not in self._in_use]:
            if sum(self._attached.values()) <= self._cache_bytes:
                return
            self.detach(name)

    @contextmanager
    def strengths(self, rows: Mapping[str, Sequence[float]]) -> Iterator[None]:
        """Within this block, row i of every batch gets adapter `name` at strength `rows[name][i]`.

        Adapters that are not named are off. Without any, the transformer runs exactly as if nothing were attached.
        """
        in_slot = {name: values for name, values in rows.items() if self._slot is not None and name in self._slot}
        as_layers = {name: values for name, values in rows.items() if name not in in_slot}
        if self._attached or self._slot is not None:
            self._activate(((SLOT,) if in_slot else ()) + tuple(as_layers))
        if self._slot is not None and in_slot:
            self._slot.fill(in_slot)
        self._in_use = frozenset(rows)
        self._strengths = {
            name: torch.tensor(values, dtype=torch.float32, device=self._device) for name, values in as_layers.items()
        }
        try:
            yield
        finally:
            self._in_use = frozenset()
            self._strengths = {}

    def _activate(self, names: tuple[str, ...]) -> None:
        """Let PEFT compute the adapters `names` and no others; without any, the base layers alone."""
        if names == self._active:
            return
        for _, layer in self._lora_layers():
            layer.enable_adapters(bool(names))
            if names:
                layer.set_adapter(list(names), inference_mode=True)
        self._active = names

    def _add_layers(self, name: str, adapter: "_Adapter", lora: LoraRef) -> int:
        """Let PEFT make layers of an adapter; return its bytes."""
        self._active = None
        with warnings.catch_warnings():
            # Several adapters on one model are what we want; PEFT warns of every one after the first.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            # `low_cpu_mem_usage`: our tensors become the layers' own, and no random numbers are drawn before.
            self._transformer.load_lora_adapter(
                dict(adapter.state), prefix=None, adapter_name=name, low_cpu_mem_usage=True
            )
        try:
            self._require_whole(name, adapter.state, lora)
            return self._finish(name, adapter.kroneckers)
        except Exception:
            self._transformer.delete_adapters(name)
            raise

    def _finish(self, name: str, kroneckers: Mapping[str, "_Halves"]) -> int:
        """Put the LoKr halves in their places and hang the strengths on every layer; return the adapter's bytes.

        Adapters stay where the transformer computes even while it rests elsewhere: they are small, and what moves the
        base layers in and out does not know of layers that came later.
        """

        def scale_rows(_module: torch.nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
            # output: (B, ..., rank). The product is fp32, so 0.35 acts as 0.35 and is rounded once.
            column = self._strengths[name].view(-1, *([1] * (output.ndim - 1)))
            return (output * column).to(output.dtype)

        size_bytes = 0
        for path, layer in self._layers(name):
            halves = kroneckers.get(path, (layer.lora_A[name], layer.lora_B[name]))
            layer.lora_A[name], layer.lora_B[name] = (half.to(self._device, self._dtype) for half in halves)
            layer.lora_A[name].register_forward_hook(scale_rows)
            size_bytes += sum(tensor.nbytes for half in halves for tensor in half.parameters())
        return size_bytes

    def _layers(self, name: str) -> Iterator[tuple[str, Any]]:
        """The modules that adapter `name` is on, with their paths."""
        for path, layer in self._lora_layers():
            if name in layer.lora_A:
                yield path, layer

    def _lora_layers(self) -> Iterator[tuple[str, Any]]:
        for path, layer in self._transformer.named_modules():
            if isinstance(layer, LoraLayer):
                yield path, layer

    def _require_whole(self, name: str, state: Mapping[str, torch.Tensor], lora: LoraRef) -> None:
        """Every matrix of the file must have become a parameter, value for value; else the load was partial."""
        loaded: dict[str, torch.Tensor] = {}
        for path, layer in self._layers(name):
            loaded[f"{path}.lora_A.weight"] = layer.lora_A[name].weight
            loaded[f"{path}.lora_B.weight"] = layer.lora_B[name].weight
        wrong = sorted(
            key
            for key in state.keys() | loaded.keys()
            if key not in state or key not in loaded or not _is_same(state[key], loaded[key])
        )
        if wrong:
            raise LoraMismatch(
                f"{lora.name}: {len(wrong)} of {len(state)} matrices did not reach this model, for example "
                f"{wrong[0]!r}. Choose the base model it was trained on."
            )


def _is_same(given: torch.Tensor, loaded: torch.Tensor) -> bool:
    """Whether a matrix arrived value for value; PEFT takes over the tensor itself where it can."""
    if loaded.is_meta or given.shape != loaded.shape:
        return False
    return given.data_ptr() == loaded.data_ptr() or torch.equal(given.to(loaded), loaded)


_Halves = tuple[KroneckerIn, KroneckerOut]


@dataclass(frozen=True, kw_only=True)
class _Adapter:
    """A file as PEFT takes it.

    `state` is `<diffusers module>.lora_A/B.weight`: A (rank, in), B (out, rank) with the scale baked in; a layer of
    `kroneckers` has zeros of rank 1 there, which its halves replace.
    """

    state: Mapping[str, torch.Tensor]
    kroneckers: Mapping[str, _Halves]


def _read_adapter(lora: LoraRef, weights: str, device: torch.device, dtype: torch.dtype) -> _Adapter:
    report = report_of(lora)
    if report.file.sha256 != lora.sha256:
        raise LoraUnreadable(f"{lora.path} changed after it was chosen. Choose it again.")
    require_fit(report, weights)
    tensors = load_file(path_of(lora))
    state: dict[str, torch.Tensor] = {}
    kroneckers: dict[str, _Halves] = {}
    for layer in report.layers:
        match layer.factors:
            case LowRank(a=key_a, b=key_b):
                # Copied: the file is mapped, and what it becomes later must not reach the adapter.
                a = tensors[key_a].flatten(1).to(device, dtype, copy=True).contiguous()
                b = _rows_of(tensors[key_b].flatten(1), layer)
                b = (b if layer.scale == 1 else b.float() * layer.scale).to(device, dtype, copy=True).contiguous()
            case Kronecker() as factors:
                a = torch.zeros(1, layer.in_features, device=device, dtype=dtype)
                b = torch.zeros(layer.out_features, 1, device=device, dtype=dtype)
                kroneckers[layer.module] = _read_halves(tensors, factors, layer)
        state[f"{layer.module}.lora_A.weight"] = a
        state[f"{layer.module}.lora_B.weight"] = b
    return _Adapter(state=state, kroneckers=kroneckers)


def _read_halves(tensors: Mapping[str, torch.Tensor], factors: Kronecker, layer: Layer) -> _Halves:
    left, *right = (tensors[key].flatten(1).float() for key in factors.w1)
    w1 = (left @ right[0] if right else left) * layer.scale
    w2 = tuple(tensors[key].flatten(1).contiguous() for key in factors.w2)
    return split_kronecker(w1, w2, part=layer.part, parts=layer.parts, swap_halves=layer.swap_halves)


def _rows_of(b: torch.Tensor, layer: Layer) -> torch.Tensor:
    """This layer's rows of B: (out, rank)."""
    rows = b.chunk(layer.parts, dim=0)[layer.part]
    if layer.swap_halves:
        first, second = rows.chunk(2, dim=0)
        rows = torch.cat([second, first], dim=0)
    return rows
