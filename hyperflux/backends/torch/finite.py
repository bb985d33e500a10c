"""Checks that every training step is finite: one fused pass per step, whose result a GPU delivers later."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed, nn

from hyperflux.session.nonfinite import Fault, NonFiniteGuard, NotFiniteError, require_in_range

MAX_PENDING = 20
"""Steps whose norms stay on a GPU until they are checked together; on a CPU every step is checked at once."""


class FiniteCheck:
    """Checks parameters, loss and gradients of every step, and the buffers after its forward pass.

    It checks 2-norms, so squares that overflow count as not finite, as they would in Adam. Buffers that are not finite
    from the start, such as a mask of -inf, are not checked. The first non-finite step is identified exactly, even if it
    is checked later. If `guard` skips steps, each step is checked before it is taken.
    """

    def __init__(
        self, model: nn.Module, guard: NonFiniteGuard, *, scaled: bool, max_pending: int, multi_process: bool = False
    ) -> None:
        """Prepare to check a model.

        Args:
            model: The model, before its first step.
            guard: Decides about non-finite steps.
            scaled: Whether a GradScaler scales gradients, and skips steps whose gradients overflow.
            max_pending: Steps checked together if `guard` stops the run instead of skipping steps.
            multi_process: Whether several ranks train together; they add up their norms, so that all decide alike.
        """
        self._guard, self._scaled, self._max_pending, self._multi_process = guard, scaled, max_pending, multi_process
        self._buffers = list(model.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers] if guard.may_skip else []
        parameters = {name: p for name, p in model.named_parameters() if p.numel()}
        buffers = {name: b for name, b in model.named_buffers() if b.is_floating_point() and b.numel()}
        statistics = {name: b for name, b in buffers.items() if bool(torch.isfinite(b).all())}
        self._parameters = list(parameters.values())
        self._fixed = [*self._parameters, *statistics.values()]
        self._zero = torch.zeros((), dtype=self._fixed[0].dtype, device=self._fixed[0].device)
        # Causes first. A non-finite gradient spoils those of the layers before it, so the last layer comes first.
        self._names = [f"the parameter {name}" for name in parameters] + [f"the buffer {name}" for name in statistics]
        self._names += ["the loss", *(f"the gradient of {name}" for name in reversed(parameters))]
        self._pending: list[tuple[int, Tensor]] = []

    @torch.no_grad()
    def before_forward(self) -> None:
        """If the step may be skipped, save the buffers, which the forward pass changes."""
        if self._kept:
            torch._foreach_copy_(self._kept, self._buffers)

    @torch.no_grad()
    def allows(self, loss: Tensor, step: int) -> bool:
        """Check a step after its backward pass; returns whether to take it.

        Args:
            loss: Loss of the batch.
            step: The step of the epoch, from 1.

        Raises:
            NotFiniteError: `guard` stops the run.
        """
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
        """Check the pending steps; waits for the device. Returns whether to take the last one.

        Raises:
            NotFiniteError: `guard` stops the run.
        """
        seen, self._pending = self._pending, []
        if not seen:
            return True
        if math.isfinite(float(torch.stack([norms for _, norms in seen]).sum())):
            self._guard.accept()
            return True
        return [self._judge(step, norms.tolist()) for step, norms in seen][-1]

    def require_finite(self, optimizer: torch.optim.Optimizer, others: Mapping[str, Tensor], step: int | None) -> None:
        """Check the pending steps, the model, the optimizer's state and `others`, by name. Raises NotFiniteError."""
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
    """The first tensor with a non-finite value; None if there is none. Waits for the device once if all are finite.

    A sum is the cheapest test: it is not finite if one of the values is not.
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


@torch.no_grad()
def require_weights_in_range(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise InputError for a parameter with a weight that is not finite, or too large to be pruned."""
    for name, parameter in parameters.items():
        if parameter.numel():
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            require_in_range(name, float(parameter.abs().max()), torch.finfo(dtype).max)
