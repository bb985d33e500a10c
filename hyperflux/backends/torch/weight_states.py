"""The states of all parameters under a gate: masks, counts and statistics, whatever trains the parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from hyperflux.backends.torch.finite import first_fault
from hyperflux.backends.torch.weight_state import WeightState
from hyperflux.schedules.base import LayerCount, Ranking
from hyperflux.session.nonfinite import Fault

KINDS = {"presence": "presence parameter", "latent": "latent weight", "first": "moment", "second": "squared moment"}
"""Tensors that a gate keeps per parameter, with words for messages."""


class WeightStates:
    """The states of some parameters.

    Attributes:
        states: The state of every parameter by name; the tensors are those in use, not copies.
        total: N, the number of weights of all parameters.
    """

    def __init__(self, states: Mapping[str, WeightState]) -> None:
        self.states = dict(states)
        self.total = sum(state.latent.numel() for state in states.values())

    def masks(self) -> dict[str, Tensor]:
        """The mask m of every parameter by name, bool."""
        return {name: state.mask() for name, state in self.states.items()}

    def layers(self) -> list[LayerCount]:
        """Prunable and surviving weights of every parameter, in the model's order; waits for the device."""
        present = _read([torch.count_nonzero(mask) for mask in self.masks().values()])
        return [
            LayerCount(name, state.latent.numel(), int(count))
            for (name, state), count in zip(self.states.items(), present, strict=True)
        ]

    def surviving(self) -> int:
        """Number of present weights; waits for the device."""
        return sum(layer.surviving for layer in self.layers())

    def fault(self, latent: bool) -> Fault | None:
        """The first t that is not finite, with `latent` also the first w, or None. Waits for the device."""
        return first_fault(self.named_tensors(("presence", "latent") if latent else ("presence",)))

    def named_tensors(self, kinds: Iterable[str] = KINDS) -> dict[str, Tensor]:
        """The tensors of some `kinds` for all parameters, by their names in messages."""
        kept = {name: state.tensors() for name, state in self.states.items()}
        return {f"a {KINDS[kind]} of {name}": tensors[kind] for kind in kinds for name, tensors in kept.items()}

    def above(self, level: float) -> int:
        """Number of weights whose t is at `level` or above; waits for the device."""
        return int(sum(_read([torch.count_nonzero(state.presence >= level) for state in self.states.values()])))

    @torch.no_grad()
    def rank_by(self, ranking: Ranking) -> None:
        """Set t of the present weights to |w|, of the pruned ones to −1."""
        for state in self.states.values():
            state.presence.copy_(state.latent.abs().masked_fill_(~state.mask(), -1))

    @torch.no_grad()
    def typical_flux(self) -> float:
        """Mean over weights of √v̂, where v̂ is Adam's bias-corrected second moment of t; waits for the device."""
        return sum(_read([state.root_of_second_moment().sum() for state in self.states.values()])) / self.total


def _read(numbers: Sequence[Tensor]) -> list[float]:
    """The values of tensors of shape (), read at once; waits for the device."""
    return torch.stack([number.to(numbers[0].device) for number in numbers]).tolist()
