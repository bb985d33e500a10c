"""Counts flips of weights on the host: masks as bits, several steps compared at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD = 64
"""Weights per comparison: the bits of one integer."""
WAITING_BYTES = 1 << 18
"""Packed masks wait until together they have this size; larger masks are compared at every step."""


class HostCounters:
    """Counts flips of `total` weights, all present at first, and the interval of each weight's last flip (0: none).

    Every step's mask is packed into bits. The masks of several steps are compared in one call, which costs less per
    step and counts the same. Memory per weight: 6 bytes of counters, 1 byte of mask, and the waiting bits.
    """

    def __init__(self, total: int) -> None:
        self._mask = np.ones(-(-total // WORD) * WORD, bool)  # the padding stays present
        self._last = np.packbits(self._mask)
        self._flips, self._changed_in = np.zeros(total, np.int32), np.zeros(total, np.int16)
        self._interval = 0
        self._waiting: list[NDArray[np.uint8]] = []
        self._max_waiting = max(1, WAITING_BYTES // max(1, len(self._last)))

    def count(self, presence: Sequence[NDArray[np.floating[Any]]], interval: int) -> None:
        """Record the mask t >= 0 of every weight after a step.

        Args:
            presence: t of each layer in order, any shape and memory layout; elements count in row-major order.
            interval: Number of the interval that the step belongs to.
        """
        if interval != self._interval:
            self._compare()
            self._interval = interval
        start = 0
        for t in presence:
            np.greater_equal(t, 0, out=self._mask[start : start + t.size].reshape(t.shape))
            start += t.size
        self._waiting.append(np.packbits(self._mask))
        if len(self._waiting) >= self._max_waiting:
            self._compare()

    @property
    def flips(self) -> NDArray[np.int32]:
        """Flips of each weight, (total,); not a copy."""
        self._compare()
        return self._flips

    @property
    def changed_in(self) -> NDArray[np.int16]:
        """Interval of each weight's last flip, (total,); not a copy."""
        self._compare()
        return self._changed_in

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Whether each weight was present after the last step, (total,); not a copy."""
        return self._mask[: len(self._flips)]

    def held(self) -> list[NDArray[Any]]:
        """All arrays held between steps, except waiting masks."""
        return [self._mask, self._last, self._flips, self._changed_in]

    def restore(
        self, flips: NDArray[np.integer[Any]], changed_in: NDArray[np.integer[Any]], mask: NDArray[np.bool_]
    ) -> None:
        """Continue from saved counters, (total,) each; they are copied."""
        self._waiting = []
        self._flips[:], self._changed_in[:], self.mask[:] = flips, changed_in, mask
        self._last = np.packbits(self._mask)

    def _compare(self) -> None:
        """Count the flips of the waiting masks; all belong to one interval."""
        if not self._waiting:
            return
        masks = np.stack([self._last, *self._waiting])
        self._last, self._waiting = self._waiting[-1], []
        flipped = (masks[1:] ^ masks[:-1]).view(np.uint64)  # (steps, words): few words differ, and few bytes of these
        words = np.flatnonzero(flipped)
        octets = flipped.ravel()[words].view(np.uint8)
        places = np.flatnonzero(octets != 0)
        bits = np.flatnonzero(np.unpackbits(octets[places]))
        firsts = words[places // 8] % flipped.shape[1] * WORD + places % 8 * 8  # the first weight of each octet
        weights = firsts[bits // 8] + bits % 8
        np.add.at(self._flips, weights, np.int32(1))  # a Python 1 takes twenty times as long
        self._changed_in[weights] = self._interval
