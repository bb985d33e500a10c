"""What compaction knows of one tensor in the graph: which elements are constants, and which slices are live."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

CONSTANT_SPREAD = 1e-14
"""Values of a channel that differ by at most this fraction of the largest are one constant: they differ by rounding."""
RERUN_SPREAD = 1e-12
"""The same for one value computed at several input sizes, where sums may have different lengths."""


@dataclass(eq=False)
class AbstractTensor:
    """A tensor of the graph, as seen in several executions, on inputs of several sizes.

    A dimension whose size differs between any two is *dynamic*: the batch, and height and width where the network takes
    images of any size. Dynamic dimensions are never cut, and a constant has one value all along them.

    The live part is a product of slices, so the smaller tensor is again a tensor: slice i of dimension d is live where
    `live[d][i]`, once some call reads the tensor (`needed`). Nothing is live before.

    Attributes:
        shapes: The shape in each execution.
        dtype: The dtype in the network itself.
        constants: Float64, of the shape in execution 0: elements that are the same for every input, NaN for all others.
        live: One boolean mask (size,) per dimension.
        needed: Whether any call reads the tensor.
        is_input: Whether it holds the network's input, at most rearranged.
        changed: Set whenever something more becomes live; whoever iterates to a fixed point clears it.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    constants: Tensor = field(init=False, repr=False)
    live: list[Tensor] = field(init=False, repr=False)
    needed: bool = field(init=False)
    is_input: bool = field(init=False)
    changed: bool = field(init=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all constants, and make nothing live."""
        self.constants = torch.full(self.shape, torch.nan, dtype=torch.float64)
        self.live = [torch.zeros(size, dtype=torch.bool) for size in self.shape]
        self.needed = self.is_input = self.changed = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in execution 0."""
        return self.shapes[0]

    @property
    def has_fixed_rank(self) -> bool:
        """Whether all executions gave it the same number of dimensions."""
        return len(set(map(len, self.shapes))) == 1

    @property
    def is_sometimes_empty(self) -> bool:
        """Whether it has no elements in some executions, so that not all that it may hold was seen."""
        return len(set(self.shapes)) > 1 and any(0 in shape for shape in self.shapes)

    def is_dynamic(self, dim: int) -> bool:
        """Return whether the size of a dimension depends on the size of the inputs."""
        return not self.has_fixed_rank or len({shape[dim] for shape in self.shapes}) > 1

    @property
    def known(self) -> Tensor:
        """Boolean mask of the constants."""
        return ~self.constants.isnan()

    def with_zeros(self, execution: int = 0) -> Tensor:
        """Return the constants in the shape of an execution, 0 elsewhere; float64, or the own dtype for integers."""
        value = self.constants.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        for dim, size in enumerate(self.shapes[execution]):
            if size != value.shape[dim]:
                one = value.narrow(dim, 0, min(1, value.shape[dim]))
                value = (
                    one.expand([size if d == dim else -1 for d in range(value.ndim)])
                    if one.numel()
                    else (value.new_zeros([size if d == dim else n for d, n in enumerate(value.shape)]))
                )
        return value if self.dtype.is_floating_point else value.to(self.dtype)

    def set_constants(self, value: Tensor, known: Tensor) -> None:
        """Take the elements of `value` under `known` as constants, where they are the same along dynamic dimensions."""
        if not self.has_fixed_rank:
            return
        value = value.double().masked_fill(~known, torch.nan)
        for dim in range(value.ndim):
            if self.is_dynamic(dim) and value.shape[dim]:
                first = value.narrow(dim, 0, 1)
                same = ((value - first).abs() <= CONSTANT_SPREAD * first.abs()) | (value == first)
                value = value.masked_fill(~same.all(dim, keepdim=True), torch.nan)
        self.constants = value.clone()

    def intersect_constants(self, rerun: Tensor) -> None:
        """Keep only the constants that another execution gives too; `rerun` is its result."""
        first, second = self.constants, rerun.double()
        if not first.numel() or not second.numel():
            return
        for dim in range(first.ndim):
            if self.is_dynamic(dim):
                start = second.narrow(dim, 0, 1)
                uniform = ((second - start).abs() <= RERUN_SPREAD * start.abs()) | (second == start)
                second = start.masked_fill(~uniform.all(dim, keepdim=True), torch.nan)
                first = first.narrow(dim, 0, 1)
        same = ((first - second).abs() <= RERUN_SPREAD * first.abs()) | (first == second)
        self.constants = self.constants.masked_fill(~same.expand(self.shape), torch.nan)

    def channel_constants(self, dim: int) -> Tensor:
        """Return the single value of each slice along a dimension: (size,), NaN for slices that vary."""
        rows = self.constants.movedim(dim, 0).flatten(1)
        if not rows.numel():
            return torch.full(rows.shape[:1], torch.nan, dtype=rows.dtype)
        low, high = rows.amin(1), rows.amax(1)
        uniform = (high - low <= CONSTANT_SPREAD * rows.abs().amax(1)) | (high == low)
        return torch.where(uniform, rows[:, 0], torch.nan)

    def keep_constants(self, where: Tensor) -> None:
        """Forget the constants that are not under the mask."""
        self.constants = self.constants.masked_fill(~where, torch.nan)

    def is_uniform_along(self, dims: Collection[int]) -> Tensor:
        """Return the mask of constants that have the same value all along some dimensions; of the tensor's shape."""
        uniform = self.known
        for dim in dims:
            if self.shape[dim]:
                same = self.constants == self.constants.narrow(dim, 0, 1)
                uniform = uniform & same.all(dim, keepdim=True)
        return uniform

    def mark_live(self, masks: Sequence[Tensor]) -> None:
        """Make slices live: one mask (size,) per dimension."""
        self._mark_needed()
        for dim, mask in enumerate(masks):
            self.mark_live_along(dim, mask)

    def mark_all_live(self) -> None:
        """Make the whole tensor live."""
        self.mark_live([torch.ones_like(mask) for mask in self.live])

    def mark_live_along(self, dim: int, mask: Tensor) -> None:
        """Make slices of one dimension live; all of them if it is dynamic."""
        mask = torch.ones_like(mask) if self.is_dynamic(dim) else mask
        if (mask & ~self.live[dim]).any():
            self.live[dim] = self.live[dim] | mask
            self.changed = True

    def mark_present(self) -> None:
        """Keep the tensor because its shape is read: at least one slice of every dimension."""
        self._mark_needed()
        for dim, mask in enumerate(self.live):
            if len(mask) and not mask.any():
                self.mark_live_along(dim, torch.arange(len(mask)) == 0)

    def mark_elements_live(self, mask: Tensor) -> None:
        """Make live the smallest product of slices that holds these elements; `mask` has the tensor's shape."""
        if not mask.any():
            return
        self._mark_needed()
        for dim in range(mask.ndim):
            others = [other for other in range(mask.ndim) if other != dim]
            self.mark_live_along(dim, mask.amax(others) if others else mask)

    def live_elements(self) -> Tensor:
        """Return the boolean mask of live elements, in the shape of execution 0."""
        result = torch.full(self.shape, self.needed)
        for dim, mask in enumerate(self.live):
            result &= mask.view([-1 if other == dim else 1 for other in range(len(self.shape))])
        return result

    def live_indices(self, dim: int, execution: int = 0) -> Tensor:
        """Return the indices of a dimension's live slices."""
        if execution and self.is_dynamic(dim):
            return torch.arange(self.shapes[execution][dim])
        return self.live[dim].nonzero().flatten()

    def live_count(self, dim: int, execution: int = 0) -> int:
        """Return the number of live slices along a dimension."""
        return len(self.live_indices(dim, execution))

    def shrinks(self) -> bool:
        """Return whether any slice is dead while the tensor is needed."""
        return self.needed and not all(bool(mask.all()) for mask in self.live)

    def select_live(self, tensor: Tensor, execution: int = 0) -> Tensor:
        """Return the live part of a tensor of this shape."""
        for dim in range(len(self.shape)):
            tensor = tensor.index_select(dim, self.live_indices(dim, execution))
        return tensor

    def live_shape(self, execution: int = 0) -> list[int]:
        """Return the shape of the live part; the whole shape while nothing reads the tensor."""
        if not self.needed:
            return list(self.shapes[execution])
        return [self.live_count(dim, execution) for dim in range(len(self.shape))]

    def _mark_needed(self) -> None:
        if not self.needed:
            self.needed = self.changed = True
