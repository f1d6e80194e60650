"""One slot for LoRAs on every linear layer, for compiled blocks: which LoRAs fill it is data, and compiles nothing.

Only compiled blocks use it (`kernels.py`). No GPU has timed them yet: it has no number that says it pays.

Layers that come and go would make another version of each compiled block. So every linear layer has one slot from the
start, and its two matrices are exchanged. Their rank is filled up with zeros to a power of two, so there are few shapes
and as few versions. LoRAs that share a batch lie side by side in the slot, each in ranks of its own:

    [B1 B2 0] (strengths * [A1 A2 0]' x)        strengths: (B, rank), one row per image, zero in the ranks of others

A layer that no LoRA of the batch adapts gets zeros. This is the function of the LoRAs as layers, rounding aside.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from lora_runtime.errors import LoraMismatch

SLOT: Final = "slot"
SMALLEST_RANK: Final = 16
"""Smaller products are no faster: tensor cores take 16 numbers at once."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""A (rank, in), and B transposed (rank, out), with the scale in it."""


class Slot:
    """The slot of one transformer, and the LoRAs that can fill it."""

    def __init__(self, transformer: Any, *, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._kept: dict[str, dict[str, Pair]] = {}  # adapter name -> path of a layer -> its matrices
        self._filled: tuple[str, ...] = ()
        self._strengths = torch.zeros(1, SMALLEST_RANK, device=device)
        paths = [path for path, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
        config = LoraConfig(r=SMALLEST_RANK, lora_alpha=SMALLEST_RANK, target_modules=paths)
        inject_adapter_in_model(config, transformer, adapter_name=SLOT, low_cpu_mem_usage=True)
        transformer._hf_peft_config_loaded = True
        layers = {path: module for path, module in transformer.named_modules() if isinstance(module, LoraLayer)}
        self._layers: dict[str, Any] = layers
        for layer in layers.values():
            layer.lora_A[SLOT].register_forward_hook(self._scale_ranks)
        self._fill(())

    def keep(self, name: str, state: Mapping[str, torch.Tensor], *, label: str) -> int:
        """Take a LoRA in: `state` is `<module>.lora_A/B.weight`. Return its bytes.

        Raises:
            LoraMismatch: One of its layers is not in this transformer, or is of another size.
        """
        pairs: dict[str, Pair] = {}
        for path in sorted({key.rpartition(".lora_")[0] for key in state}):
            a, b = state[f"{path}.lora_A.weight"], state[f"{path}.lora_B.weight"]
            base = self._layers[path].get_base_layer() if path in self._layers else None
            if base is None or (a.shape[1], b.shape[0]) != (base.in_features, base.out_features):
                raise LoraMismatch(
                    f"{label}: {path!r} does not fit this model. Choose the base model it was trained on."
                )
            pairs[path] = (a, b.T.contiguous())
        self._kept[name] = pairs
        return sum(matrix.nbytes for pair in pairs.values() for matrix in pair)

    def drop(self, name: str) -> None:
        """Forget a LoRA; a slot that holds it is emptied."""
        del self._kept[name]
        if name in self._filled:
            self._fill(())

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    def fill(self, rows: Mapping[str, Sequence[float]]) -> None:
        """Put the LoRAs of `rows` side by side; row i of a batch gets each at strength `rows[name][i]`."""
        names = tuple(rows)
        if names != self._filled:
            self._fill(names)
        strengths = torch.zeros(len(next(iter(rows.values()))), _round_up(sum(map(self._rank, names))))
        for name, (first, last) in self._places(names).items():
            strengths[:, first:last] = torch.tensor(rows[name], dtype=torch.float32).unsqueeze(1)
        self._strengths = strengths.to(self._device)
        torch._dynamo.mark_static(self._strengths, 1)  # else a rank that equals a picture's tokens would stand for them

    def _fill(self, names: tuple[str, ...]) -> None:
        self._filled = names
        places = self._places(names)
        rank = _round_up(max((last for _, last in places.values()), default=0))
        zeros: dict[int, torch.Tensor] = {}
        for path, layer in self._layers.items():
            base = layer.get_base_layer()
            for half, width in enumerate((base.in_features, base.out_features)):
                pieces = [(places[name][0], self._kept[name][path][half]) for name in names if path in self._kept[name]]
                if pieces or width not in zeros:
                    joined = torch.zeros(rank, width, dtype=self._dtype, device=self._device)
                    for first, piece in pieces:
                        joined[first : first + piece.shape[0]] = piece
                if not pieces:
                    joined = zeros.setdefault(width, joined)
                place, weight = (layer.lora_A, joined) if half == 0 else (layer.lora_B, joined.T)
                place[SLOT].weight = torch.nn.Parameter(weight, requires_grad=False)

    def _places(self, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        """The ranks of each LoRA in the slot: first, and one after the last."""
        places, first = {}, 0
        for name in names:
            places[name] = (first, first + self._rank(name))
            first = places[name][1]
        return places

    def _rank(self, name: str) -> int:
        return max(a.shape[0] for a, _ in self._kept[name].values())

    def _scale_ranks(self, _module: torch.nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        # output: (B, ..., rank). The product is fp32, so 0.35 acts as 0.35 and is rounded once.
        strengths = self._strengths
        shaped = strengths.view(strengths.shape[0], *([1] * (output.ndim - 2)), strengths.shape[1])
        return (output * shaped).to(output.dtype)


def _round_up(rank: int) -> int:
    """The next power of two, from `SMALLEST_RANK` on."""
    return max(SMALLEST_RANK, 1 << max(0, rank - 1).bit_length())
