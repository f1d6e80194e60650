"""Muon for weight matrices, AdamW for everything else, one learning-rate schedule for both.

Muon orthogonalises each update, which brings a small network to the same loss in about half the steps.
`torch.optim.Muon` takes 2-D parameters only, so a convolution's kernel is given to it as a flattened view of the same
storage.

Source: Keller Jordan, "Muon: an optimizer for hidden layers in neural networks"; `torch.optim.Muon`.
"""

import math
from collections.abc import Iterable

import torch
from torch import nn


class MuonAdamW:
    """Step Muon on `matrices` (2-D, or 4-D in channels-last memory) and AdamW on `rest`."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        rest: Iterable[nn.Parameter],
        *,
        muon_lr: float,
        adam_lr: float,
    ) -> None:
        self._matrices, self._rest = list(matrices), list(rest)
        self._views = [nn.Parameter(_flatten(p.data)) for p in self._matrices]
        self._muon = torch.optim.Muon(self._views, lr=muon_lr, momentum=0.95, weight_decay=0.0, adjust_lr_fn="original")
        self._adam = torch.optim.AdamW(self._rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.01)
        self._peaks = (muon_lr, adam_lr)

    def step(self, rate: float, clip: float = 1.0) -> None:
        """Update with both learning rates at `rate` times their peak, then drop the gradients."""
        nn.utils.clip_grad_norm_([*self._matrices, *self._rest], clip)
        for optimizer, peak in zip((self._muon, self._adam), self._peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        for parameter, view in zip(self._matrices, self._views, strict=True):
            view.grad = None if parameter.grad is None else _flatten(parameter.grad)
            parameter.grad = None
        self._muon.step()
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, object]:
        """Return both optimizers' states."""
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, object]]) -> None:
        """Take both optimizers' states back."""
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])


def warm_cosine(step: int, progress: float, *, warmup_steps: int = 50, floor: float = 0.0) -> float:
    """Rise linearly over the first steps, then fall along a cosine as `progress` goes from 0 to 1."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, progress))
    return min(1.0, (step + 1) / warmup_steps) * (floor + (1 - floor) * cosine)


def _flatten(weight: torch.Tensor) -> torch.Tensor:
    return weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1).flatten(1)
