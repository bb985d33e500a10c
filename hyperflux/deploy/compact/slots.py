"""A tensor of the traced network as compaction sees it: which elements are constants, and which slices stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

UNIFORM = 1e-14
"""Values of a channel whose spread is at most this share of the largest count as one value: they differ by rounding."""
REPEATED = 1e-12
"""The same for one value computed in two runs, whose sums may be of different length."""


@dataclass(eq=False)
class Slot:
    """One tensor, in the run of the graph that everything is decided by, and in a second one on larger inputs.

    `shapes` are those of both runs. A dimension whose size differs is *free*: the batch, and the height and width where
    a network takes images of any size. `value` (float64, of the first shape) holds the elements that are the same for
    every input, NaN for all others; along free dimensions a constant is the same everywhere. What stays is a product:
    slice i of dimension d stays where `kept[d][i]`, so that the smaller tensor is a tensor again. Before a reader has
    asked for it nothing is `needed`. `raw` tells that it is the network's input, at most rearranged.
    """

    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtype: torch.dtype
    value: Tensor = field(init=False, repr=False)
    kept: list[Tensor] = field(init=False, repr=False)
    needed: bool = field(init=False)
    raw: bool = field(init=False)
    grown: bool = field(init=False)
    """Set whenever something more is kept; who looks for a fixed point clears it."""

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Nothing is known, and nothing kept."""
        self.value = torch.full(self.shape, torch.nan, dtype=torch.float64)
        self.kept = [torch.zeros(size, dtype=torch.bool) for size in self.shape]
        self.needed = self.raw = self.grown = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the first run."""
        return self.shapes[0]

    @property
    def regular(self) -> bool:
        """Whether both runs gave it the same number of dimensions."""
        return len(self.shapes[0]) == len(self.shapes[1])

    def is_free(self, dim: int) -> bool:
        """Whether the size of a dimension depends on that of the inputs."""
        return not self.regular or self.shapes[0][dim] != self.shapes[1][dim]

    @property
    def known(self) -> Tensor:
        """Where elements are constants."""
        return ~self.value.isnan()

    def filled(self, run: int = 0) -> Tensor:
        """The constants in the shape of a run, 0 elsewhere; integers keep their type."""
        value = self.value.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        for dim, size in enumerate(self.shapes[run]):
            if run and size != value.shape[dim]:
                value = value.narrow(dim, 0, 1).expand([size if d == dim else -1 for d in range(value.ndim)])
        return value if self.dtype.is_floating_point else value.to(self.dtype)

    def learn(self, value: Tensor, known: Tensor) -> None:
        """Take over constants, those that are the same all along the free dimensions."""
        if not self.regular:
            return
        value = value.double().masked_fill(~known, torch.nan)
        for dim in range(value.ndim):
            if self.is_free(dim):
                first = value.narrow(dim, 0, 1)
                same = ((value - first).abs() <= UNIFORM * first.abs()) | (value == first)
                value = value.masked_fill(~same.all(dim, keepdim=True), torch.nan)
        self.value = value.clone()

    def confirm(self, other: Tensor) -> None:
        """Forget what is not the same in the second run, given its result."""
        first, second = self.value, other.double()
        for dim in range(first.ndim):
            if self.is_free(dim):
                again = second.narrow(dim, 0, 1)
                uniform = ((second - again).abs() <= REPEATED * again.abs()) | (second == again)
                second = again.masked_fill(~uniform.all(dim, keepdim=True), torch.nan)
                first = first.narrow(dim, 0, 1)
        same = ((first - second).abs() <= REPEATED * first.abs()) | (first == second)
        self.value = self.value.masked_fill(~same.expand(self.shape), torch.nan)

    def channel_constants(self, dim: int) -> Tensor:
        """The one value of every slice of a dimension, NaN for slices that vary by input or place."""
        rows = self.value.movedim(dim, 0).flatten(1)
        low, high = rows.amin(1), rows.amax(1)
        uniform = (high - low <= UNIFORM * rows.abs().amax(1)) | (high == low)
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
        """Keep slices of one dimension; of a free one, all."""
        mask = torch.ones_like(mask) if self.is_free(dim) else mask
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

    def places(self, dim: int, run: int = 0) -> Tensor:
        """Indices of the slices that stay."""
        return torch.arange(self.shapes[1][dim]) if run and self.is_free(dim) else self.kept[dim].nonzero().flatten()

    def count(self, dim: int, run: int = 0) -> int:
        """How many slices stay."""
        return len(self.places(dim, run))

    def is_cut(self) -> bool:
        """Whether any slice goes."""
        return self.needed and not all(bool(mask.all()) for mask in self.kept)

    def cut(self, tensor: Tensor, run: int = 0) -> Tensor:
        """What stays of a tensor of this shape."""
        for dim in range(len(self.shape)):
            tensor = tensor.index_select(dim, self.places(dim, run))
        return tensor

    def smaller_shape(self, run: int = 0) -> list[int]:
        """The shape that stays; the whole one before anything is needed."""
        return [self.count(dim, run) for dim in range(len(self.shape))] if self.needed else list(self.shapes[run])

    def _set_needed(self) -> None:
        if not self.needed:
            self.needed = self.grown = True
