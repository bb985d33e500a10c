"""Models, optimizers and tensors as arguments: one error line, with the way out, for objects of another kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hyperflux.errors import InputError
from hyperflux.io.arguments import kind_of

ORDER = "the model comes first, then the optimizer"


def require_module(name: str, value: Any) -> None:
    """Raise InputError unless the value is a module."""
    if isinstance(value, nn.Module):
        return
    way = "give a torch.nn.Module"
    if isinstance(value, torch.optim.Optimizer):
        way = ORDER
    elif isinstance(value, type) and issubclass(value, nn.Module):
        way = "give an object of it"
    raise InputError(f"{name}: {kind_of(value)} is not a module; {way}")


def require_optimizer(name: str, value: Any) -> None:
    """Raise InputError unless the value is an optimizer."""
    if not isinstance(value, torch.optim.Optimizer):
        raise InputError(f"{name}: {kind_of(value)} is not a torch.optim.Optimizer; {_way_to_an_optimizer(value)}")


def require_tensor(name: str, value: Any) -> None:
    """Raise InputError unless the value is a tensor with rows of one size."""
    if not isinstance(value, Tensor):
        raise InputError(f"{name}: {kind_of(value)} is not a tensor; give inputs (batch, ...)")
    if value.is_nested:
        raise InputError(f"{name}: is {other_than_dense(value)}; give a dense one (batch, ...)")


def other_than_dense(tensor: Tensor) -> str:
    """What a tensor is if it is not one that holds all its values in one piece of memory; empty if it is."""
    if tensor.is_meta:
        return "on the meta device and holds no values"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout != torch.strided:
        return f"sparse ({str(tensor.layout).removeprefix('torch.')})"
    return "quantised" if tensor.is_quantized else ""


@contextmanager
def example_taken() -> Iterator[None]:
    """Within this context, an error of a network's call on `example_input` becomes an InputError."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"example_input: the network can't take it ({reason}); give a batch of the network's own inputs"
        ) from error


def _way_to_an_optimizer(value: Any) -> str:
    if isinstance(getattr(value, "optimizer", None), torch.optim.Optimizer):
        return "pass its .optimizer"
    if isinstance(value, nn.Module):
        return ORDER
    if isinstance(value, type) and issubclass(value, torch.optim.Optimizer):
        return f"build one, as in {value.__name__}(model.parameters(), ...)"
    held = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    if any(isinstance(one, torch.optim.Optimizer) for one in held):
        return "a Pruner takes one optimizer; give that of the weights to prune, or build a Pruner per submodule"
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return "build one, as in torch.optim.SGD(model.parameters(), ...)"
    return "pass the one that trains the model"
