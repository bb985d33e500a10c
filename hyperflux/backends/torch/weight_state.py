"""The state that pruning adds to a parameter, and the equations of `hyperflux.spec` in place on its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperflux.backends.torch.presence import Presence
from hyperflux.seeding import generator
from hyperflux.spec import KAPPA, initial_presence


@dataclass
class WeightState(Presence):
    """The state that pruning adds to one parameter. Tensors have its shape, in at least float32.

    Attributes:
        latent: w.
        presence: t.
        first: Adam's first moment of t.
        second: Adam's second moment of t.
        steps: Steps of the moments.
        pressure_mean: Contribution of pressure to `first`, equal for all weights; the rest is flux.
    """

    latent: Tensor
    presence: Tensor
    first: Tensor
    second: Tensor
    steps: int = 0
    pressure_mean: float = 0.0

    @classmethod
    def of(
        cls, parameter: Tensor, dtype: torch.dtype, seed: int, name: str, initial: tuple[float, float]
    ) -> WeightState:
        """The state before the first step: w copies the parameter, t is drawn from `initial` by `seed` and `name`."""
        latent = parameter.detach().to(dtype, copy=True)
        drawn = initial_presence(parameter.numel(), generator(seed, f"{name} presence"), initial)
        presence = torch.empty_like(latent).copy_(torch.from_numpy(drawn.reshape(tuple(parameter.shape))))
        return cls(latent, presence, torch.zeros_like(latent), torch.zeros_like(latent))

    def tensors(self) -> dict[str, Tensor]:
        """The four tensors by name."""
        return {"latent": self.latent, "presence": self.presence, "first": self.first, "second": self.second}

    def numbers(self) -> dict[str, float]:
        """What else is saved, by name."""
        return {"steps": self.steps, "pressure_mean": self.pressure_mean}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        """Take saved values."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        self.steps, self.pressure_mean = int(numbers["steps"]), float(numbers["pressure_mean"])

    def follow(self, parameter: Tensor) -> bool:
        """Move to the parameter's device and memory layout; returns whether either had changed."""
        if self.latent.device == parameter.device and same_layout(self.latent, parameter):
            return False
        for name, tensor in self.tensors().items():
            setattr(self, name, torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor))
        return True

    def write_effective(self, out: Tensor) -> None:
        """Write θ = w·m into `out`, rounded to its dtype; a pruned weight becomes an exact +0 (see E2)."""
        out.copy_(self.latent)
        out.masked_fill_(self.presence < 0, 0)

    def update_presence(self, gradient: Tensor, pressure_gradient: float, learning_rate: float) -> None:
        """Move t by one Adam step on κ g w + γ/N (see E3, E5 and E6).

        Args:
            gradient: g, in the state's shape and dtype.
            pressure_gradient: γ/N.
            learning_rate: η_t.
        """
        self.count_step(pressure_gradient)
        self.move((KAPPA * gradient).mul_(self.latent).add_(pressure_gradient), learning_rate)


def same_layout(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape have the same memory layout; strides of dimensions of length 1 do not matter."""
    if one.stride() == other.stride():
        return True
    return all(
        length == 1 or mine == theirs
        for length, mine, theirs in zip(one.shape, one.stride(), other.stride(), strict=True)
    )
