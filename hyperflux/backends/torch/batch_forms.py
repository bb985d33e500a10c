"""Forms of batches: what a loader may yield to `hyperflux.prune`, and its tensors, however they are nested."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperflux.backends.torch.arguments import other_than_dense
from hyperflux.errors import InputError

TARGET_NAMES = ("label", "labels", "target", "targets", "y")
"""Names of the targets in a batch that is a mapping of two entries."""


def batches_on(device: torch.device, dtype: torch.dtype, loader: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the inputs and targets of each batch on the device.

    Args:
        device: Where tensors go, also those in nested tuples, lists and mappings.
        dtype: Of the model; floating-point arrays of NumPy are converted to it, tensors are not.
        loader: Yields pairs, as tuples, lists or named tuples of two parts; or mappings of two entries, one of which
            is called by one of `TARGET_NAMES`.

    Raises:
        InputError: A batch has another form, holds no sample, or holds an array that is no tensor.
    """
    for number, batch in enumerate(loader, 1):
        try:
            pair = _pair(batch)
            inputs, targets = (map_leaves(part, lambda leaf: _leaf_on(device, dtype, leaf)) for part in pair)
        except (TypeError, ValueError) as error:
            raise InputError(f"train_loader: batch {number} {error}") from error
        if samples_in((inputs, targets)) == 0:
            raise InputError(f"train_loader: batch {number} holds no sample")
        yield inputs, targets


def samples_in(value: Any) -> int:
    """Rows of the first tensor with rows in a nested value; 1 if there is none."""
    return next((leaf.size(0) for leaf in leaves(value) if isinstance(leaf, Tensor) and leaf.ndim), 1)


def leaves(value: Any) -> Iterator[Any]:
    """What tuples, lists and mappings hold, in order, however deep."""
    if isinstance(value, Mapping | tuple | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from leaves(part)
    else:
        yield value


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same nested tuples, lists and mappings with changed leaves; mappings become dicts."""
    if isinstance(value, Mapping):
        return {name: map_leaves(part, change) for name, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [map_leaves(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return change(value)


def described(value: Any) -> str:
    """A value in words: the shape and dtype of a tensor, the parts of what holds others."""
    if isinstance(value, Tensor) and value.is_nested:
        return other_than_dense(value)
    if isinstance(value, Tensor | np.ndarray):
        kind = "a tensor" if isinstance(value, Tensor) else "an array"
        return f"{kind} of shape {tuple(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {', '.join(map(str, value)) or '(none)'}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} part{'s'[: len(value) != 1]}"
    return f"of type {type(value).__name__}"


def _pair(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch. Raises ValueError for another form."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping) and len(batch) == 2:
        named = [name for name in batch if name in TARGET_NAMES]
        if len(named) == 1:
            (inputs,) = (name for name in batch if name != named[0])
            return batch[inputs], batch[named[0]]
    raise ValueError(
        f"is {described(batch)}, and has to be a pair (inputs, targets); give a loader of pairs, for example by its "
        "collate_fn, or use Pruner in a loop of your own"
    )


def _leaf_on(device: torch.device, dtype: torch.dtype, leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return _tensor(leaf, dtype).to(device, non_blocking=True)
    if isinstance(leaf, Tensor):
        if leaf.is_meta and device.type != "meta":
            raise ValueError(f"holds a tensor that is {other_than_dense(leaf)}")
        return leaf.to(device, non_blocking=True)
    return leaf.to(device) if hasattr(leaf, "to") else leaf


def _tensor(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
    """An array as a tensor. Raises ValueError for an array of no numbers."""
    if array.dtype.kind not in "biufc":
        raise ValueError(f"holds {described(array)}, which no tensor can hold; convert it to numbers")
    tensor = torch.tensor(array.astype(array.dtype.newbyteorder("=")))
    return tensor.to(dtype) if array.dtype.kind == "f" else tensor
