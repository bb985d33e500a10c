"""What is kept beside one parameter, and the equations of `hyperflux.spec` on it, plainly, in place on tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperflux.seeding import generator
from hyperflux.spec import ADAM_BETAS, ADAM_EPSILON, KAPPA, initial_presence


@dataclass
class WeightState:
    """What Hyperflux keeps beside one parameter: tensors of its shape, in at least float32.

    `latent` is w, `presence` t, `first` and `second` Adam's moments of t after `steps` steps. `pressure_mean` is the
    share of pressure in `first`, the same for every weight: what is left of it is flux.
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
        """Before the first step: w is a copy of the parameter, t drawn from `initial` by `seed` and `name`."""
        latent = parameter.detach().to(dtype, copy=True)
        drawn = initial_presence(parameter.numel(), generator(seed, f"{name} presence"), initial)
        presence = torch.empty_like(latent).copy_(torch.from_numpy(drawn.reshape(tuple(parameter.shape))))
        return cls(latent, presence, torch.zeros_like(latent), torch.zeros_like(latent))

    def tensors(self) -> dict[str, Tensor]:
        """The four tensors by name."""
        return {"latent": self.latent, "presence": self.presence, "first": self.first, "second": self.second}

    def follow(self, parameter: Tensor) -> bool:
        """Follow the parameter to its device and memory layout, where either has changed; gives whether one had."""
        if self.latent.device == parameter.device and same_layout(self.latent, parameter):
            return False
        for name, tensor in self.tensors().items():
            setattr(self, name, torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor))
        return True

    def mask(self) -> Tensor:
        """m, bool: see E1."""
        return self.presence >= 0

    def write_effective(self, out: Tensor) -> None:
        """θ = w·m into `out`, rounded to its dtype; a pruned weight is an exact +0: see E2."""
        out.copy_(self.latent)
        out.masked_fill_(self.presence < 0, 0)

    def update_presence(self, gradient: Tensor, pressure_gradient: float, learning_rate: float) -> None:
        """Move t by one Adam step on κ g w + γ/N: see E3, E5 and E6. `gradient` is g, in the state's dtype."""
        beta1, beta2 = ADAM_BETAS
        self.count_step(pressure_gradient)
        slope = (KAPPA * gradient).mul_(self.latent).add_(pressure_gradient)
        self.first.mul_(beta1).add_(slope, alpha=1 - beta1)
        self.second.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
        root = torch.div(self.second, 1 - beta2**self.steps, out=slope).sqrt_().add_(ADAM_EPSILON)
        self.presence.addcdiv_(self.first, root, value=-learning_rate / (1 - beta1**self.steps))

    def count_step(self, pressure_gradient: float) -> None:
        """One more step behind the moments, under this pressure."""
        beta1, _ = ADAM_BETAS
        self.steps += 1
        self.pressure_mean = beta1 * self.pressure_mean + (1 - beta1) * pressure_gradient

    def root_of_second_moment(self) -> Tensor:
        """√v̂ of t's gradient, bias corrected; 0 before the first step."""
        return (self.second / (1 - ADAM_BETAS[1] ** max(1, self.steps))).sqrt_()

    def restoring_flux(self) -> Tensor:
        """Running mean of −κ g w, of pruned and present weights alike: Adam's mean, less its share of pressure.

        Positive where the loss would fall if a pruned weight came back (see E4), or rises if a present one went.
        """
        beta1, _ = ADAM_BETAS
        weight = 1 - beta1**self.steps if self.steps else 1.0
        return (self.pressure_mean - self.first) / weight


def same_layout(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape order their elements alike in memory, with gaps, if any, in the same places."""
    if one.stride() == other.stride():
        return True
    return all(
        length == 1 or mine == theirs
        for length, mine, theirs in zip(one.shape, one.stride(), other.stride(), strict=True)
    )
