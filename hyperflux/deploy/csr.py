"""Layers whose weight is a sparse matrix in CSR form: only its non-zero values are stored, and multiplied."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

Pointwise = nn.Conv1d | nn.Conv2d | nn.Conv3d


class CsrMatrix(nn.Module):
    """A weight W (outputs, inputs) and a bias (outputs,) or None, for inference.

    Buffers: `crow_indices` (outputs + 1,) and `col_indices` (nonzero,), int32, `values` (nonzero,) and `bias` in the
    weight's dtype. `to`, `state_dict`, `load_state_dict` and pickling work as for any module.
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
        # Half the bytes of int64, and a quarter faster on small layers.
        self.register_buffer("crow_indices", starts.int())
        self.register_buffer("col_indices", columns.int())
        self.register_buffer("values", dense[rows, columns])
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_load_state_dict_post_hook(_share_again)  # type: ignore[no-untyped-call]
        self._share()

    def extra_repr(self) -> str:
        """Sizes, for `print`."""
        return f"inputs={self.inputs}, outputs={self.outputs}, nonzero={len(self.values)}, bias={self.bias is not None}"

    def _share(self) -> None:
        """Make the matrix that shares the buffers' memory. Building it in every call costs as much as a small layer."""
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Sparse CSR tensor support is in beta state", category=UserWarning
            )
            # Checked here and not in every call: a damaged index from a file would be read without bounds.
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
        self._share()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_matrix", "_column")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._share()


def _share_again(module: CsrMatrix, _: object) -> None:
    module._share()


class SparseLinear(CsrMatrix):
    """A linear layer: (..., inputs) -> (..., outputs)."""

    @classmethod
    def of(cls, layer: nn.Linear) -> SparseLinear:
        """The same layer with a sparse weight; its memory is its own."""
        return cls(layer.weight, layer.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """W x + b for every x (inputs,) in (..., inputs), contiguous."""
        if inputs.dim() != 2:
            return self.forward(inputs.reshape(-1, self.inputs)).view(*inputs.shape[:-1], self.outputs)
        matrix, bias, column = self._matrix, self.bias, self._column
        if len(inputs) == 1:
            vector = inputs[0]
            return (torch.mv(matrix, vector) if bias is None else torch.addmv(bias, matrix, vector))[None]
        columns = inputs.t()
        product = torch.mm(matrix, columns) if column is None else torch.addmm(column, matrix, columns)
        return product.t().contiguous()


class SparsePointwise(CsrMatrix):
    """A convolution with kernel 1, no padding and one group: (batch, inputs, ...) -> (batch, outputs, ...)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...]) -> None:
        super().__init__(weight, bias)
        self.stride = stride

    @classmethod
    def of(cls, layer: Pointwise) -> SparsePointwise:
        """The same layer with a sparse weight; its memory is its own."""
        return cls(layer.weight.flatten(1), layer.bias, layer.stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """W x + b for the channels x (inputs,) at every position; a sample without a batch comes back as one."""
        if inputs.dim() == len(self.stride) + 1:
            unbatched: Tensor = self.forward(inputs[None])[0]
            return unbatched
        seen = inputs[:, :, *(slice(None, None, step) for step in self.stride)]
        columns = seen.flatten(2)
        result = columns.new_empty(len(columns), self.outputs, columns.shape[2])
        # Sample by sample: moving the channels of all samples into one matrix costs more than it gains.
        for sample, place in zip(columns, result, strict=True):
            if self._column is None:
                torch.mm(self._matrix, sample, out=place)
            else:
                torch.addmm(self._column, self._matrix, sample, out=place)
        return result.view(len(columns), self.outputs, *seen.shape[2:])
