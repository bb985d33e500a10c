"""Presence parameters as tensors, whatever their gates hold: the mask, and a step of Adam in place (E1, E6)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyperflux.spec import ADAM_BETAS, ADAM_EPSILON


class Presence:
    """t and its moments, tensors of one shape.

    Attributes:
        presence: t.
        first: Adam's first moment of t.
        second: Adam's second moment of t.
        steps: Steps of the moments.
        pressure_mean: Contribution of pressure to `first`; the rest is flux.
    """

    presence: Tensor
    first: Tensor
    second: Tensor
    steps: int
    pressure_mean: Any

    def mask(self) -> Tensor:
        """The mask m, bool (see E1)."""
        return self.presence >= 0

    def count_step(self, pressure_gradient: Any) -> None:
        """Count a step of the moments under this gradient of the pressure loss, γ/N for single weights."""
        beta1, _ = ADAM_BETAS
        self.steps += 1
        self.pressure_mean = beta1 * self.pressure_mean + (1 - beta1) * pressure_gradient

    def move(self, slope: Tensor, learning_rate: float) -> None:
        """Move t by the Adam step that was just counted, against `slope`, which is overwritten (see E6)."""
        beta1, beta2 = ADAM_BETAS
        self.first.mul_(beta1).add_(slope, alpha=1 - beta1)
        self.second.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
        root = torch.div(self.second, 1 - beta2**self.steps, out=slope).sqrt_().add_(ADAM_EPSILON)
        self.presence.addcdiv_(self.first, root, value=-learning_rate / (1 - beta1**self.steps))

    def root_of_second_moment(self) -> Tensor:
        """√v̂, where v̂ is Adam's bias-corrected second moment of t; 0 before the first step."""
        return (self.second / (1 - ADAM_BETAS[1] ** max(1, self.steps))).sqrt_()

    def restoring_flux(self) -> Tensor:
        """Running mean of −κ g w of each gate: the negative of Adam's mean, without the part of pressure (see E4).

        It is positive if the loss would fall with a closed gate open, or rise with an open one closed.
        """
        beta1, _ = ADAM_BETAS
        weight = 1 - beta1**self.steps if self.steps else 1.0
        flux: Tensor = (self.pressure_mean - self.first) / weight
        return flux
