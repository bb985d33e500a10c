"""The state that pruning adds to a parameter, and the equations of `hyperflux.spec` in place on its tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperflux.seeding import generator
from hyperflux.spec import ADAM_BETAS, ADAM_EPSILON, KAPPA, initial_presence


@dataclass
class WeightState:
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

    def follow(self, parameter: Tensor) -> bool:
        """Move to the parameter's device and memory layout; returns whether either had changed."""
        if self.latent.device == parameter.device and same_layout(self.latent, parameter):
            return False
        for name, tensor in self.tensors().items():
            setattr(self, name, torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor))
        return True

    def mask(self) -> Tensor:
        """The mask m, bool (see E1)."""
        return self.presence >= 0

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
        beta1, beta2 = ADAM_BETAS
        self.count_step(pressure_gradient)
        slope = (KAPPA * gradient).mul_(self.latent).add_(pressure_gradient)
        self.first.mul_(beta1).add_(slope, alpha=1 - beta1)
        self.second.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
        root = torch.div(self.second, 1 - beta2**self.steps, out=slope).sqrt_().add_(ADAM_EPSILON)
        self.presence.addcdiv_(self.first, root, value=-learning_rate / (1 - beta1**self.steps))

    def count_step(self, pressure_gradient: float) -> None:
        """Count a step of the moments under this γ/N."""
        beta1, _ = ADAM_BETAS
        self.steps += 1
        self.pressure_mean = beta1 * self.pressure_mean + (1 - beta1) * pressure_gradient

    def root_of_second_moment(self) -> Tensor:
        """√v̂, where v̂ is Adam's bias-corrected second moment of t; 0 before the first step."""
        return (self.second / (1 - ADAM_BETAS[1] ** max(1, self.steps))).sqrt_()

    def restoring_flux(self) -> Tensor:
        """Running mean of −κ g w for every weight: the negative of Adam's mean, without the part of pressure (see E4).

        It is positive if the loss would fall with a pruned weight back, or rise with a present one removed.
        """
        beta1, _ = ADAM_BETAS
        weight = 1 - beta1**self.steps if self.steps else 1.0
        return (self.pressure_mean - self.first) / weight


def same_layout(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape have the same memory layout; strides of dimensions of length 1 do not matter."""
    if one.stride() == other.stride():
        return True
    return all(
        length == 1 or mine == theirs
        for length, mine, theirs in zip(one.shape, one.stride(), other.stride(), strict=True)
    )
