"""Whether everything in a training step on torch is finite: one fused pass a step, looked at later on a GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed, nn

from hyperflux.session.nonfinite import Fault, NonFiniteGuard, NotFiniteError

MAX_PENDING = 20
"""Steps whose figures stay on a GPU before they are looked at together; on the CPU every step is looked at."""


class FiniteCheck:
    """Sees every step of `model`: its parameters, the buffers after the forward pass, the loss and the gradients.

    Buffers that are not finite from the start, such as a mask of -inf, are meant so and left out. Of all but the loss
    it takes the 2-norm, so that squares that overflow count as not finite, as they would for Adam. The first step in
    which one is not finite is found exactly, whenever it is looked at. Where `guard` skips steps,
    each is looked at before it is taken. With `scaled` gradients a GradScaler skips steps by itself. Where `several`
    processes train together, each sees the sums of what all have, and so all come to the same judgement.
    """

    def __init__(
        self, model: nn.Module, guard: NonFiniteGuard, *, scaled: bool, max_pending: int, multi_process: bool = False
    ) -> None:
        self._guard, self._scaled, self._max_pending, self._multi_process = guard, scaled, max_pending, multi_process
        self._buffers = list(model.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers] if guard.may_skip else []
        parameters = {name: p for name, p in model.named_parameters() if p.numel()}
        buffers = {name: b for name, b in model.named_buffers() if b.is_floating_point() and b.numel()}
        statistics = {name: b for name, b in buffers.items() if bool(torch.isfinite(b).all())}
        self._parameters = list(parameters.values())
        self._fixed = [*self._parameters, *statistics.values()]
        self._zero = torch.zeros((), dtype=self._fixed[0].dtype, device=self._fixed[0].device)
        # In the order of blame. A gradient that is not finite spoils those of the layers before it: last ones first.
        self._names = [f"the parameter {name}" for name in parameters] + [f"the buffer {name}" for name in statistics]
        self._names += ["the loss", *(f"the gradient of {name}" for name in reversed(parameters))]
        self._pending: list[tuple[int, Tensor]] = []

    @torch.no_grad()
    def before_forward(self) -> None:
        """Keep what the forward pass changes, where the step may be skipped."""
        if self._kept:
            torch._foreach_copy_(self._kept, self._buffers)

    @torch.no_grad()
    def allows(self, loss: Tensor, step: int) -> bool:
        """After the backward pass of a step of the epoch: whether to take it. Raises NotFiniteError."""
        gradients = [self._zero if p.grad is None else p.grad for p in reversed(self._parameters)]
        norms = list(torch._foreach_norm([*self._fixed, *gradients]))
        norms.insert(len(self._fixed), loss.detach().abs().to(self._zero.dtype))
        stacked = torch.stack(norms)
        if self._multi_process:
            distributed.all_reduce(stacked)
        self._pending.append((step, stacked))
        if not self._guard.may_skip:
            if len(self._pending) >= self._max_pending:
                self.check()
            return True
        allowed = self.check()
        if not allowed and self._kept:
            torch._foreach_copy_(self._buffers, self._kept)
        return allowed

    def check(self) -> bool:
        """Judge the steps that were not looked at; waits for the device. Gives whether the last of them is to be taken.

        Raises NotFiniteError for the first that stops the run.
        """
        seen, self._pending = self._pending, []
        if not seen:
            return True
        if math.isfinite(float(torch.stack([norms for _, norms in seen]).sum())):
            self._guard.accept()
            return True
        return [self._judge(step, norms.tolist()) for step, norms in seen][-1]

    def require_finite(self, optimizer: torch.optim.Optimizer, others: Mapping[str, Tensor], step: int | None) -> None:
        """Check the steps not yet checked, the optimizer's state and `others`, by name. Raises NotFiniteError."""
        self.check()
        tensors = dict(zip(self._names, self._fixed, strict=False))
        for name, parameter in zip(self._names, self._parameters, strict=False):
            kept = optimizer.state.get(parameter, {}).items()
            of = name.removeprefix("the parameter ")
            tensors |= {f"the optimizer's {key} of {of}": value for key, value in kept if isinstance(value, Tensor)}
        if fault := first_fault({**tensors, **others}):
            raise NotFiniteError(fault, step)

    def _judge(self, step: int, norms: Sequence[float]) -> bool:
        index = next((index for index, norm in enumerate(norms) if not math.isfinite(norm)), None)
        if index is None:
            self._guard.accept()
            return True
        fault = Fault.of_norm(self._names[index], norms[index], skippable=index >= len(self._parameters))
        if self._scaled and index > len(self._fixed):
            self._guard.count_scaler_skip(fault, step)
            return True
        self._guard.skip(fault, step)
        return False


@torch.no_grad()
def first_fault(tensors: Mapping[str, Tensor]) -> Fault | None:
    """The first tensor with a value that is not finite; waits for the device once where there is none.

    A sum is the cheapest look at all values: it is not finite where one of them isn't.
    """
    floating = {what: t for what, t in tensors.items() if t.is_floating_point() and t.numel()}
    sums = [tensor.sum() for tensor in floating.values()]
    stacked = torch.stack([found.to(sums[0].device, torch.float32) for found in sums]).tolist()
    for (what, tensor), found in zip(floating.items(), stacked, strict=True):
        if not math.isfinite(found):
            spoiled = tensor[~torch.isfinite(tensor)]
            if len(spoiled):
                return Fault(what, abs(float(spoiled[0])), skippable=False)
    return None
