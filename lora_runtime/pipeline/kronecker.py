"""A LoKr as the two halves of a LoRA layer: `kron(w1, w2) = B @ A`, with A and B that are never formed.

    kron(w1, w2) = (I ⊗ w2) (w1 ⊗ I) = (I ⊗ w2_a) (w1 ⊗ w2_b)          where w2 = w2_a @ w2_b

The right factor is A, the left one B: PEFT calls them one after the other as it does for any LoRA, and whatever scales
the output of A scales the layer. So LoKr has per-image strengths, mixed batches, fp8 bases and detaching for nothing.
A fused q, k, v stays exact: each takes its own rows of the product, and no base weight is fused.

x: (..., q * n) seen as (..., q, n) · w1: (p, q) · w2: (m, n) · w2_a: (m, r) · w2_b: (r, n)
"""

import torch
from torch import nn
from torch.nn import functional


class KroneckerIn(nn.Module):
    """A = w1 ⊗ w2_b, or w1 ⊗ I where w2 is whole: (..., q * n) -> (..., p * r)."""

    def __init__(self, w1: torch.Tensor, w2_b: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(w1, requires_grad=False)
        self.inner = None if w2_b is None else nn.Parameter(w2_b, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix the blocks of x."""
        blocks = x.unflatten(-1, (self.weight.shape[1], -1))
        if self.inner is not None:
            blocks = functional.linear(blocks, self.inner)
        return functional.linear(blocks.mT, self.weight).mT.flatten(-2)


class KroneckerOut(nn.Module):
    """B = I ⊗ w2_a (or w2), and of its rows only `rows` from `first` on: (..., p * r) -> (..., rows).

    `swap_halves` exchanges the halves of these rows.
    """

    def __init__(self, w2_a: torch.Tensor, *, first: int, rows: int, swap_halves: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(w2_a, requires_grad=False)
        self._first = first
        self._rows = rows
        self._swap_halves = swap_halves

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Widen each block, then choose the rows."""
        rank = self.weight.shape[1]
        product = functional.linear(x.unflatten(-1, (-1, rank)), self.weight).flatten(-2)
        rows = product.narrow(-1, self._first, self._rows)
        return rows.roll(self._rows // 2, -1) if self._swap_halves else rows


def split_kronecker(
    w1: torch.Tensor,
    w2: tuple[torch.Tensor, ...],
    *,
    part: int,
    parts: int,
    swap_halves: bool,
) -> tuple[KroneckerIn, KroneckerOut]:
    """Rows `part` of `parts` equal groups of kron(w1, w2) as A and B.

    w1: (p, q), with the scale in it. w2: (w2,) whole, or (w2_a, w2_b). Rows of w1 that the part does not need are left.
    """
    left, *inner = w2
    m = left.shape[0]
    rows = w1.shape[0] * m // parts
    start = part * rows
    begin, end = start // m, -(-(start + rows) // m)
    return (
        KroneckerIn(w1[begin:end].contiguous(), inner[0] if inner else None),
        KroneckerOut(left, first=start - begin * m, rows=rows, swap_halves=swap_halves),
    )
