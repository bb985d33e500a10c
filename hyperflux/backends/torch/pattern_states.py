"""One gate per weight in an N:M pattern: the N largest t of every group are out of capacity's reach (E18)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hyperflux.backends.torch.capacity import meet_capacity
from hyperflux.backends.torch.pattern_layout import PatternLayout, groups_of
from hyperflux.backends.torch.presence_store import read_numbers
from hyperflux.backends.torch.weight_states import WeightStates
from hyperflux.gates.kinds import Pattern
from hyperflux.schedules.base import Ranking

MAX_COMPARED = 16
"""Groups of up to so many weights are ranked by comparing each two, longer ones by sorting. Sorting takes four to ten
times as long for groups of 4 on a CPU, but less than twice for 64, where comparing takes two thousand calls."""


class PatternStates(WeightStates):
    """A `PresenceStore` with one gate per weight, of which capacity leaves at least N in every group of M."""

    def __init__(
        self,
        layout: PatternLayout,
        parameters: Mapping[str, nn.Parameter],
        dtype: torch.dtype,
        seed: int,
        initial: tuple[float, float],
    ) -> None:
        """The states before the first step; t is drawn by seed and name.

        Args:
            layout: The pattern.
            parameters: The prunable parameters by name.
            dtype: dtype of w and t.
            seed: Seed of t.
            initial: Interval of the first t (see E2).
        """
        super().__init__(WeightStates.of(parameters, dtype, seed, initial).states)
        self._layout = layout

    @torch.no_grad()
    def meet_capacity(self, count: int, near: float, ranking: Ranking) -> float:
        """Leave `count` weights present, or what the pattern keeps if that is more. Returns τ (see E18).

        Of equal t at the gate the first stay: parameters in order, and in each of them group after group.
        """
        self._rank_by(ranking)
        pattern, kept = self._layout.pattern, self._layout.kept
        rows = [self._layout.inputs[name].rows(state.presence) for name, state in self.states.items()]
        held = [held_places(own, pattern) for own in rows]
        if count > kept:
            above = _above_all(rows)
            others = [own.masked_fill(out_of_reach, above) for own, out_of_reach in zip(rows, held, strict=True)]
            tau = meet_capacity(others, count, near)
        else:
            others, tau = [own.clamp(max=-torch.finfo(own.dtype).tiny) for own in rows], 0.0
        for own, out_of_reach, other in zip(rows, held, others, strict=True):
            own.sub_(tau).clamp_(min=0)
            torch.where(out_of_reach, own, other, out=own)
        return tau


def held_places(rows: Tensor, pattern: Pattern) -> Tensor:
    """The N largest t of every group: bool, of the shape and memory layout of rows (..., inputs).

    Of equal t the first is held.
    """
    held = torch.empty_like(rows, dtype=torch.bool)
    for own, places in zip(groups_of(rows, pattern.group), groups_of(held, pattern.group), strict=True):
        length = own.shape[-1]
        if length <= pattern.kept:
            places.fill_(True)
        elif length <= MAX_COMPARED:
            _hold_by_comparing(own, pattern.kept, places)
        else:
            ranked = own.sort(dim=-1, descending=True, stable=True).indices
            places.fill_(False).scatter_(-1, ranked[..., : pattern.kept], True)
    return held


def _hold_by_comparing(groups: Tensor, kept: int, places: Tensor) -> None:
    """Write into `places` which elements of groups (..., M) fewer than `kept` others of their group come before."""
    lanes = [lane.clone() for lane in groups.unbind(-1)]
    before = [torch.full_like(lane, number, dtype=torch.uint8) for number, lane in enumerate(lanes)]
    is_larger = torch.empty_like(lanes[0], dtype=torch.bool)
    for later in range(1, len(lanes)):
        for earlier in range(later):
            torch.gt(lanes[later], lanes[earlier], out=is_larger)
            before[earlier] += is_larger.view(torch.uint8)
            before[later] -= is_larger.view(torch.uint8)
    for place, number in zip(places.unbind(-1), before, strict=True):
        torch.lt(number, kept, out=place)


def _above_all(parts: Sequence[Tensor]) -> float:
    """A finite number above every element."""
    extremes = [extreme.abs() for part in parts for extreme in part.aminmax()]
    return min(2 * max(read_numbers(extremes)) + 1, torch.finfo(parts[0].dtype).max)
