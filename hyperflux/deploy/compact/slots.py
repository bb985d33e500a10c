"""A tensor of the traced network as compaction sees it: which elements are constants, and which slices stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

UNIFORM = 1e-14
"""Values of a channel whose spread is at most this share of the largest count as one value: they differ by rounding."""


@dataclass(eq=False)
class Slot:
    """One tensor for one sample.

    `value` (float64, of its shape) holds the elements that are the same for every input, NaN for all others. What stays
    is a product: slice i of dimension d stays where `kept[d][i]`, so that the smaller tensor is a tensor again. Before
    a reader has asked for it nothing is `needed`. `raw` tells that it is the network's input, at most rearranged.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    value: Tensor
    kept: list[Tensor]
    needed: bool = False
    raw: bool = False
    grown: bool = field(default=False, repr=False)
    """Set whenever something more is kept; who looks for a fixed point clears it."""

    @classmethod
    def like(cls, tensor: Tensor) -> Slot:
        """A slot for a tensor of which nothing is known."""
        shape = tuple(tensor.shape)
        unknown = torch.full(shape, torch.nan, dtype=torch.float64)
        return cls(shape, tensor.dtype, unknown, [torch.zeros(size, dtype=torch.bool) for size in shape])

    def forget(self) -> None:
        """Nothing is known, and nothing kept."""
        self.value = torch.full(self.shape, torch.nan, dtype=torch.float64)
        self.kept = [torch.zeros(size, dtype=torch.bool) for size in self.shape]
        self.needed = self.raw = self.grown = False

    @property
    def known(self) -> Tensor:
        """Where elements are constants."""
        return ~self.value.isnan()

    def filled(self) -> Tensor:
        """The constants, 0 elsewhere."""
        return self.value.nan_to_num(nan=0.0)

    def learn(self, value: Tensor, known: Tensor) -> None:
        """Take over constants."""
        self.value = value.double().masked_fill(~known, torch.nan).clone()

    def channel_constants(self, dim: int) -> Tensor:
        """The one value of every slice of a dimension, NaN for slices that vary by input or place."""
        rows = self.value.movedim(dim, 0).flatten(1)
        low, high = rows.amin(1), rows.amax(1)
        uniform = high - low <= UNIFORM * rows.abs().amax(1)
        return torch.where(uniform, rows[:, 0], torch.nan)

    def require(self, masks: Sequence[Tensor]) -> None:
        """Keep a product of slices, a mask a dimension."""
        self._set_needed()
        for dim, mask in enumerate(masks):
            self.require_along(dim, mask)

    def require_all(self) -> None:
        """Keep everything."""
        self.require([torch.ones_like(mask) for mask in self.kept])

    def require_along(self, dim: int, mask: Tensor) -> None:
        """Keep slices of one dimension."""
        if (mask & ~self.kept[dim]).any():
            self.kept[dim] = self.kept[dim] | mask
            self.grown = True

    def require_elements(self, mask: Tensor) -> None:
        """Keep at least these elements: the smallest product that holds them."""
        if not mask.any():
            return
        self._set_needed()
        for dim in range(mask.ndim):
            others = [other for other in range(mask.ndim) if other != dim]
            self.require_along(dim, mask.amax(others) if others else mask)

    def elements(self) -> Tensor:
        """Mask of the elements that stay."""
        result = torch.full(self.shape, self.needed)
        for dim, mask in enumerate(self.kept):
            result &= mask.view([-1 if other == dim else 1 for other in range(len(self.shape))])
        return result

    def places(self, dim: int) -> Tensor:
        """Indices of the slices that stay."""
        return self.kept[dim].nonzero().flatten()

    def count(self, dim: int) -> int:
        """How many slices stay."""
        return int(self.kept[dim].sum())

    def is_cut(self) -> bool:
        """Whether any slice goes."""
        return self.needed and not all(bool(mask.all()) for mask in self.kept)

    def cut(self, tensor: Tensor) -> Tensor:
        """What stays of a tensor of this shape."""
        for dim in range(len(self.shape)):
            tensor = tensor.index_select(dim, self.places(dim))
        return tensor

    def _set_needed(self) -> None:
        if not self.needed:
            self.needed = self.grown = True
