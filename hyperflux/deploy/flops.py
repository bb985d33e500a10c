"""What a network costs on paper: its parameters and the floating-point operations of one sample."""

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

from hyperflux.errors import InputError

aten = torch.ops.aten
FACTORS = {
    aten.mm: slice(0, 2),
    aten.bmm: slice(0, 2),
    aten.addmm: slice(1, 3),
    aten.baddbmm: slice(1, 3),
    aten.convolution: slice(1, 2),
}
"""Where the arguments stand that can be weights; each weight is used equally often."""
NO_FACTORS = slice(0, 0)


@dataclass(frozen=True)
class Cost:
    """Numbers of a network: parameters, biases and all, and FLOPs a sample, two for every multiply-add.

    `dense_flops` is what dense kernels do: every weight, and the products of attention. `sparse_flops` leaves out the
    multiply-adds with weights that are exactly zero.
    """

    parameters: int
    nonzero_parameters: int
    dense_flops: int
    sparse_flops: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def count_cost(model: nn.Module, example_input: Tensor) -> Cost:
    """Count the cost of `model` in evaluation mode on a sample, from an example (batch, ...).

    Counted are matrix products and convolutions, as torch's FlopCounterMode does: padding counts as if it were there;
    biases, norms and activations do not count. A parameter that several layers share counts once. The mode of `model`
    is put back. Raises InputError for an example without samples.
    """
    if not len(example_input):
        raise InputError("example_input: a batch without samples; give one or more")
    parameters = list(model.parameters())
    zeros = _ZeroCounter(parameters)
    counter = FlopCounterMode(display=False)
    with _evaluating(model), counter, zeros:
        model(example_input)
    dense, samples = counter.get_total_flops(), len(example_input)
    return Cost(
        parameters=sum(p.numel() for p in parameters),
        nonzero_parameters=sum(int(p.count_nonzero()) for p in parameters),
        dense_flops=dense // samples,
        sparse_flops=(dense - zeros.flops) // samples,
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and attention step by step: its fused kernels are opaque to counters."""
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
    """Counts the FLOPs of products with a weight of exactly zero.

    Watching operations, not modules, it sees packed projections of attention, and weights that a function uses: what
    shares memory with a parameter is a weight.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self._owned = {parameter.untyped_storage().data_ptr() for parameter in parameters}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call `func` and count."""
        result = func(*args, **(kwargs or {}))
        for factor in args[FACTORS.get(func.overloadpacket, NO_FACTORS)]:
            if factor.untyped_storage().data_ptr() in self._owned and factor.numel():
                flops = flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
                self.flops += flops * int((factor == 0).sum()) // factor.numel()
        return result
