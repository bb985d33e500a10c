"""The NumPy backend's gate of N:M patterns: of every M weights in a row along the input dimension N are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hyperflux import spec
from hyperflux.backends.numpy.gate import NumpyGate
from hyperflux.gates.budget import CapacityPlan, pattern_plan
from hyperflux.gates.kinds import Pattern
from hyperflux.schedules.base import Ranking
from hyperflux.spec import Array, State

NOWHERE = -1
"""Fills up the last group of a row."""


class PatternGate(NumpyGate):
    """One t a weight, of which capacity leaves at least N in every group (E18).

    Attributes:
        kept: Weights left at the end: N of every group, of a shorter one min(N, its length).
    """

    def __init__(
        self, state: State, sizes: Mapping[str, int], shapes: Sequence[tuple[int, int]], pattern: Pattern
    ) -> None:
        """Group the weights of matrices of these (outputs, inputs)."""
        super().__init__(state, sizes)
        self._pattern, self._groups = pattern, _groups(shapes, pattern.group)
        lengths = np.count_nonzero(self._groups != NOWHERE, axis=1)
        self.kept = int(np.minimum(lengths, pattern.kept).sum())

    @property
    def plan(self) -> CapacityPlan:
        """From all weights to `kept`. Raises InputError if that removes none."""
        return pattern_plan(self._pattern, self.total, self.kept)

    def _lowered(self, presence: Array, count: int, ranking: Ranking) -> tuple[Array, float]:
        """The t that leave `count` weights, or `kept` if that is more, and at least N of every group."""
        filling = len(self._groups) * self._pattern.kept - self.kept  # held in place of weights that are not there
        padded = np.append(presence, presence.dtype.type(-np.inf))[self._groups]
        shifted, shift = spec.meet_pattern(padded, self._pattern.kept, max(count, self.kept) + filling)
        lowered, there = np.empty_like(presence), self._groups != NOWHERE
        lowered[self._groups[there]] = shifted[there]
        return lowered, shift


def _groups(shapes: Sequence[tuple[int, int]], group: int) -> NDArray[np.intp]:
    """Places of flat weights, (groups, M), in the order of the network."""
    parts, start = [], 0
    for outputs, inputs in shapes:
        rows = np.arange(start, start + outputs * inputs, dtype=np.intp).reshape(outputs, inputs)
        padded = np.pad(rows, ((0, 0), (0, -inputs % group)), constant_values=NOWHERE)
        parts.append(padded.reshape(-1, group))
        start += outputs * inputs
    return np.concatenate(parts)
