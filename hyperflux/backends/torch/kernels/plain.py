"""What a training step does to the state beside the parameters: the plain way, which every other way is held to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from hyperflux.backends.torch.weight_state import WeightState


class Share(NamedTuple):
    """One parameter's share of a step: its state, and its gradient, in the dtype and memory layout of the state.

    `gradient` is g, `scale` times as large where a GradScaler has scaled it; the step makes g·m of it, in place.
    """

    state: WeightState
    gradient: Tensor
    scale: Tensor | None = None


class Kernel(Protocol):
    """A way to compute a step. `name` is what `hyperflux bench` calls it, `buffers` what it holds between steps."""

    @property
    def name(self) -> str:
        """One word."""

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """Room for temporaries."""

    def take_step(self, shares: Sequence[Share], pressure_gradient: float, learning_rate: float | None) -> None:
        """Mask the gradients by the present t, then move t, see E3, E5 and E6; with a rate of None t stays."""

    def write_effective(self, state: WeightState, out: Tensor) -> None:
        """θ = w·m into `out`, rounded to its dtype; a pruned weight is an exact +0: see E2."""


class Plain:
    """One tensor operation after the other, each over a whole parameter: for any device and dtype."""

    name = "plain"
    buffers: tuple[Tensor, ...] = ()

    def take_step(self, shares: Sequence[Share], pressure_gradient: float, learning_rate: float | None) -> None:
        """See `Kernel`."""
        for share in shares:
            pruned = ~share.state.mask()
            if learning_rate is not None:
                gradient = share.gradient if share.scale is None else share.gradient / share.scale.to(share.gradient)
                share.state.update_presence(gradient, pressure_gradient, learning_rate)
            share.gradient.masked_fill_(pruned, 0)

    def write_effective(self, state: WeightState, out: Tensor) -> None:
        """See `Kernel`."""
        state.write_effective(out)
