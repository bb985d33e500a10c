"""The plain kernel of a training step, which every other kernel must agree with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from hyperflux.backends.torch.weight_state import WeightState
from hyperflux.spec import KAPPA


class ParameterUpdate(NamedTuple):
    """What a step updates for one parameter.

    Attributes:
        state: What its store keeps of the parameter: for one gate per weight a `WeightState`, w, t and its moments.
        gradient: g, in the dtype and memory layout of the state; the step turns it into g·m in place.
        scale: Factor by which a GradScaler has scaled g; None if g is unscaled.
        ascends: Whether g is the gradient of something to be maximised, so that the loss has the gradient −g.
    """

    state: Any
    gradient: Tensor
    scale: Tensor | None = None
    ascends: bool = False

    @property
    def kappa(self) -> float:
        """κ with the sign that makes κ g w a slope of the loss (see E3)."""
        return -KAPPA if self.ascends else KAPPA


class Kernel(Protocol):
    """Computes a training step's changes to t, gradients and parameters."""

    @property
    def name(self) -> str:
        """Name in `hyperflux bench`."""

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """Tensors held between steps."""

    def take_step(
        self, updates: Sequence[ParameterUpdate], pressure_gradient: float, learning_rate: float | None
    ) -> None:
        """Turn every g into g·m, and move t by one step on κ g w + γ/N (see E3, E5 and E6).

        Args:
            updates: The parameters; those of one call have one device and dtype.
            pressure_gradient: γ/N.
            learning_rate: η_t; None freezes t and its moments.
        """

    def write_effective(self, states: Sequence[WeightState], out: Sequence[Tensor]) -> None:
        """Write each θ = w·m into its `out`, rounded to its dtype; a pruned weight becomes an exact +0 (see E2)."""

    def differs(self, states: Sequence[WeightState], values: Sequence[Tensor]) -> Tensor:
        """Whether `values` differ from θ = w·m anywhere but at a NaN of w: bool, (states,), on their device."""


class Plain:
    """Applies one tensor operation after the other to whole parameters, on any device and dtype."""

    name = "plain"
    buffers: tuple[Tensor, ...] = ()

    def take_step(
        self, updates: Sequence[ParameterUpdate], pressure_gradient: float, learning_rate: float | None
    ) -> None:
        """See `Kernel`."""
        for update in updates:
            pruned = ~update.state.mask()
            if learning_rate is not None:
                gradient = (
                    update.gradient if update.scale is None else update.gradient / update.scale.to(update.gradient)
                )
                update.state.update_presence(
                    -gradient if update.ascends else gradient, pressure_gradient, learning_rate
                )
            update.gradient.masked_fill_(pruned, 0)

    def write_effective(self, states: Sequence[WeightState], out: Sequence[Tensor]) -> None:
        """See `Kernel`."""
        for state, effective in zip(states, out, strict=True):
            state.write_effective(effective)

    def differs(self, states: Sequence[WeightState], values: Sequence[Tensor]) -> Tensor:
        """See `Kernel`."""
        return torch.stack([_differs(state, own) for state, own in zip(states, values, strict=True)])


def _differs(state: WeightState, values: Tensor) -> Tensor:
    effective = torch.empty_like(values)
    state.write_effective(effective)
    return any_differs(effective, values)


def any_differs(effective: Tensor, values: Tensor) -> Tensor:
    """Whether two tensors differ anywhere but at a NaN of the first: bool, (), on their device."""
    return ((effective != values) & (effective == effective)).any()
