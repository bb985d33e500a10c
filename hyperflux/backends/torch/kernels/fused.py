"""A training step in few passes over memory, in blocks that stay in the cache, without a branch per weight.

It uses two operations of torch. `_fused_adam_` is Adam in one pass, for many tensors per call, as in
`torch.optim.Adam`. `threshold_backward`, the gradient of ReLU, is the gate: it copies values where another tensor
exceeds a threshold and writes +0 elsewhere. `masked_fill_` does the same, but on a CPU it branches per weight and
mispredicts if present and pruned weights alternate.

Masks, θ = w·m and g·m equal those of the plain kernel bit for bit. Adam rounds differently.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hyperflux.backends.torch.kernels.blocks import Blocks, block_size, parts
from hyperflux.backends.torch.kernels.plain import ParameterUpdate, Plain, any_differs
from hyperflux.backends.torch.weight_state import WeightState, same_layout
from hyperflux.spec import ADAM_BETAS, ADAM_EPSILON

_BELOW_ZERO = {
    (dtype, subnormal): -torch.finfo(dtype).tiny * (torch.finfo(dtype).eps if subnormal else 1.0)
    for dtype in (torch.float32, torch.float64)
    for subnormal in (True, False)
}
"""The largest number below 0 by dtype, or the largest normal one if the processor flushes subnormal numbers to 0."""


class Fused:
    """Computes every step in blocks, for one device and dtype. Its only temporary is one block of slopes.

    Attributes:
        buffers: That block.
    """

    name = "fused"

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._slopes = torch.empty(block_size(device), device=device, dtype=dtype)
        self._blocks = Blocks(self._slopes)
        self.buffers: tuple[Tensor, ...] = (self._slopes,)

    def take_step(
        self, updates: Sequence[ParameterUpdate], pressure_gradient: float, learning_rate: float | None
    ) -> None:
        """See `hyperflux.backends.torch.kernels.plain.Kernel`."""
        if learning_rate is None:
            for update in updates:
                gate(update.gradient, update.state.presence, out=update.gradient)
            return
        device, dtype = self._slopes.device, self._slopes.dtype
        pressure = torch.scalar_tensor(pressure_gradient, device=device, dtype=dtype)
        for update in updates:
            update.state.count_step(pressure_gradient)
        for block in self._blocks.of([update.state for update in updates]):
            for piece in block:
                update = updates[piece.number]
                gradient = unscaled = piece.of(update.gradient)
                slope = piece.scratch
                if update.scale is not None:  # a fused optimizer unscales gradients inside its step
                    unscaled = torch.div(gradient, update.scale.to(gradient), out=slope)
                torch.addcmul(pressure, unscaled, piece.state.latent, value=update.kappa, out=slope)
                gate(gradient, piece.state.presence, out=gradient)
            steps = [updates[piece.number].state.steps for piece in block]
            adam([piece.state for piece in block], steps, [piece.scratch for piece in block], learning_rate)

    def write_effective(self, states: Sequence[WeightState], out: Sequence[Tensor]) -> None:
        """See `hyperflux.backends.torch.kernels.plain.Kernel`."""
        for state, effective in zip(states, out, strict=True):
            if not same_layout(effective, state.latent):
                state.write_effective(effective)
            elif effective.dtype == state.latent.dtype:
                gate(state.latent, state.presence, out=effective)
            else:
                for found, part in self._effective_parts(state, effective):
                    part.copy_(found)

    def differs(self, states: Sequence[WeightState], values: Sequence[Tensor]) -> Tensor:
        """See `hyperflux.backends.torch.kernels.plain.Kernel`."""
        found = [self._differences(state, own) for state, own in zip(states, values, strict=True)]
        if not any(found):
            return torch.zeros(len(found), device=self._slopes.device, dtype=torch.bool)
        none = torch.zeros((), device=self._slopes.device, dtype=torch.bool)
        return torch.stack([torch.stack(parts).any() if parts else none for parts in found])

    def _differences(self, state: WeightState, values: Tensor) -> list[Tensor]:
        """Whether the parts of a parameter differ, without those that are known to be equal."""
        if not same_layout(values, state.latent):
            return list(Plain().differs([state], [values]))
        found = []
        for effective, part in self._effective_parts(state, values):
            rounded = effective.to(part.dtype)
            if not (part.is_cpu and torch.equal(rounded, part)):
                found.append(any_differs(rounded, part))
        return found

    def _effective_parts(self, state: WeightState, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """θ in the block's buffer, and the same part of a tensor with the state's layout, block by block."""
        cut = (parts(tensor, len(self._slopes)) for tensor in (state.latent, state.presence, like))
        for latent, presence, part in zip(*cut, strict=True):
            effective = self._slopes[: latent.numel()]
            gate(latent, presence, out=effective)
            yield effective, part


def gate(values: Tensor, presence: Tensor, out: Tensor) -> None:
    """Write `values` where t >= 0 and +0 elsewhere (see E1).

    All three have one shape, dtype and layout; `out` may be `values`.
    """
    below_zero = _BELOW_ZERO[values.dtype, -math.ulp(0.0) < 0]
    torch.ops.aten.threshold_backward.grad_input(values, presence, below_zero, grad_input=out)


def adam(states: Sequence[WeightState], steps: Sequence[int], slopes: Sequence[Tensor], learning_rate: float) -> None:
    """One step of Adam on t; `steps` counts the steps of each state, this one included."""
    beta1, beta2 = ADAM_BETAS
    device = states[0].presence.device
    # _fused_adam_ takes counts in float32 for every dtype
    counts = {count: torch.scalar_tensor(count, dtype=torch.float32, device=device) for count in set(steps)}
    torch._fused_adam_(
        [state.presence for state in states],
        list(slopes),
        [state.first for state in states],
        [state.second for state in states],
        [],
        [counts[count] for count in steps],
        lr=learning_rate,
        beta1=beta1,
        beta2=beta2,
        weight_decay=0.0,
        eps=ADAM_EPSILON,
        amsgrad=False,
        maximize=False,
    )
