"""Layers whose weight is a sparse CSR matrix: only non-zero values are stored and multiplied."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

Pointwise = nn.Conv1d | nn.Conv2d | nn.Conv3d


class CsrMatrix(nn.Module):
    """A sparse weight (outputs, inputs) and a bias, for inference.

    `to`, `state_dict`, `load_state_dict` and pickling work as for any module. Loading raises RuntimeError for indices
    outside the matrix.

    Attributes:
        crow_indices: Buffer (outputs + 1,), int32: where each row starts in `col_indices` and `values`.
        col_indices: Buffer (nonzero,), int32: the column of each value.
        values: Buffer (nonzero,), in the weight's dtype.
        bias: Buffer (outputs,), in the weight's dtype, or None.
    """

    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape
        dense = weight.detach()
        rows, columns = dense.nonzero(as_tuple=True)
        starts = torch.cat([rows.new_zeros(1), torch.bincount(rows, minlength=self.outputs).cumsum(0)])
        # int32: half the bytes of int64, and a quarter faster on small layers.
        self.register_buffer("crow_indices", starts.int())
        self.register_buffer("col_indices", columns.int())
        self.register_buffer("values", dense[rows, columns])
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_load_state_dict_post_hook(_rebuild_matrix)  # type: ignore[no-untyped-call]
        self._build_matrix()

    def extra_repr(self) -> str:
        """Return the sizes, for `print`."""
        return f"inputs={self.inputs}, outputs={self.outputs}, nonzero={len(self.values)}, bias={self.bias is not None}"

    def _build_matrix(self) -> None:
        """Build the matrix once, on the buffers' memory: doing so in every call would cost as much as a small layer."""
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Sparse CSR tensor support is in beta state", category=UserWarning
            )
            # Checked here once: the kernels do not check bounds, and indices may come from a damaged file.
            self._matrix = torch.sparse_csr_tensor(
                self.crow_indices,
                self.col_indices,
                self.values,
                (self.outputs, self.inputs),
                check_invariants=True,
            )
        self._column = None if self.bias is None else self.bias[:, None]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._build_matrix()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_matrix", "_column")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._build_matrix()


def _rebuild_matrix(module: CsrMatrix, _: object) -> None:
    module._build_matrix()


class SparseLinear(CsrMatrix):
    """A linear layer, (..., inputs) -> (..., outputs)."""

    @classmethod
    def from_dense(cls, layer: nn.Linear) -> SparseLinear:
        """Return the same layer with a sparse weight, sharing no memory."""
        return cls(layer.weight, layer.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return W x + b for every x (inputs,) in (..., inputs), contiguous."""
        if input.dim() != 2:
            return self.forward(input.reshape(-1, self.inputs)).view(*input.shape[:-1], self.outputs)
        matrix, bias, column = self._matrix, self.bias, self._column
        if len(input) == 1:
            vector = input[0]
            return (torch.mv(matrix, vector) if bias is None else torch.addmv(bias, matrix, vector))[None]
        columns = input.t()
        product = torch.mm(matrix, columns) if column is None else torch.addmm(column, matrix, columns)
        return product.t().contiguous()


class SparsePointwise(CsrMatrix):
    """A convolution with kernel size 1, no padding and one group, (batch, inputs, ...) -> (batch, outputs, ...)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...]) -> None:
        super().__init__(weight, bias)
        self.stride = stride

    @classmethod
    def from_dense(cls, layer: Pointwise) -> SparsePointwise:
        """Return the same layer with a sparse weight, sharing no memory."""
        return cls(layer.weight.flatten(1), layer.bias, layer.stride)

    def forward(self, input: Tensor) -> Tensor:
        """Return W x + b for the channels x (inputs,) at every position; the batch dimension may be missing."""
        if input.dim() == len(self.stride) + 1:
            unbatched: Tensor = self.forward(input[None])[0]
            return unbatched
        strided = input[:, :, *(slice(None, None, step) for step in self.stride)]
        columns = strided.flatten(2)
        result = columns.new_empty(len(columns), self.outputs, columns.shape[2])
        # Sample by sample: transposing all samples into one matrix costs more than it gains.
        for sample, out in zip(columns, result, strict=True):
            if self._column is None:
                torch.mm(self._matrix, sample, out=out)
            else:
                torch.addmm(self._column, self._matrix, sample, out=out)
        return result.view(len(columns), self.outputs, *strided.shape[2:])
