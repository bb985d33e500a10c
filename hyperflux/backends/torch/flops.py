"""Count a network's parameters and its floating-point operations per sample, with and without zeros."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from hyperflux.backends.torch.arguments import example_taken, require_module, require_tensor
from hyperflux.errors import InputError

aten = torch.ops.aten
FACTORS = {
    aten.mm: slice(0, 2),
    aten.bmm: slice(0, 2),
    aten.addmm: slice(1, 3),
    aten.baddbmm: slice(1, 3),
    aten.convolution: slice(1, 2),
}
"""Arguments that can be weights, by operation; within one argument each weight is used equally often."""
NO_FACTORS = slice(0, 0)


@dataclass(frozen=True)
class Cost:
    """Parameters of a network, and FLOPs per sample at two per multiply-add.

    Attributes:
        parameters: Elements of all parameters, biases included.
        nonzero_parameters: Those that are not exactly zero.
        dense_flops: FLOPs of dense kernels: every weight, and the products of attention.
        sparse_flops: FLOPs without the multiply-adds of weights that are exactly zero.
    """

    parameters: int
    nonzero_parameters: int
    dense_flops: int
    sparse_flops: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def count_cost(model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> Cost:
    """Count the cost of a network in evaluation mode.

    FLOPs are those of matrix products and convolutions, as torch's FlopCounterMode counts them: padding counts like
    data; biases, norms and activations do not count. A parameter that several layers share counts once.

    Args:
        model: The network; its training mode is restored.
        example_input: Inputs (batch, ...), of any batch size, or a tuple of all inputs.

    Returns:
        The cost per sample.

    Raises:
        InputError: The example has no samples, or the network can't take it.
    """
    require_module("model", model)
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    for one in inputs or (example_input,):
        require_tensor("example_input", one)
    if not inputs[0].ndim or not len(inputs[0]):
        raise InputError("example_input: the batch is empty; give one or more samples")
    parameters = list(model.parameters())
    zeros = _ZeroCounter(parameters)
    counter = FlopCounterMode(display=False)
    with _evaluating(model), counter, zeros, example_taken():
        model(*inputs)
    dense, samples = counter.get_total_flops(), len(inputs[0])
    return Cost(
        parameters=sum(p.numel() for p in parameters),
        nonzero_parameters=sum(int(p.count_nonzero()) for p in parameters),
        dense_flops=dense // samples,
        sparse_flops=(dense - zeros.flops) // samples,
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients or fused attention, whose kernels hide their products from counters."""
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes:
            module.training = training


class _ZeroCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the FLOPs of products with a weight that is exactly zero.

    It watches operations, not modules, so it sees packed attention projections and weights that a function uses. An
    argument that shares memory with a parameter is a weight.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self._owned = {parameter.untyped_storage().data_ptr() for parameter in parameters}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call an operation and count its FLOPs with zero weights."""
        result = func(*args, **(kwargs or {}))
        for factor in args[FACTORS.get(func.overloadpacket, NO_FACTORS)]:
            if factor.untyped_storage().data_ptr() in self._owned and factor.numel():
                flops = flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
                self.flops += flops * int((factor == 0).sum()) // factor.numel()
        return result
