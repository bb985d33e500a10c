"""The figures of an interval, computed from arrays in the same way for every backend and device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux.telemetry.columns import POPULATIONS, QUANTILES, flux_column

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class LayerArrays:
    """One layer at the end of an interval; all arrays have its shape.

    Attributes:
        name: The layer's name.
        presence: t.
        flips: Flips of each weight so far.
        changed_in: Number of the interval of each weight's last flip; 0 if there was none.
        flux: Running mean of restoring flux (see E4); None if t was frozen.
    """

    name: str
    presence: NDArray[np.floating[Any]]
    flips: NDArray[np.integer[Any]]
    changed_in: NDArray[np.integer[Any]]
    flux: NDArray[np.floating[Any]] | None


@dataclass(frozen=True)
class Summary:
    """Everything that the row of one layer, or of several layers as one, is computed from.

    Attributes:
        flip_counts: Number of weights with k flips, at index k.
        last_present: Number of present weights whose last flip was in interval i, at index i.
        last_pruned: The same for pruned weights.
        flux: Sorted fluxes of each of `POPULATIONS`.
    """

    flip_counts: Counts
    last_present: Counts
    last_pruned: Counts
    flux: dict[str, NDArray[np.floating[Any]]]

    @classmethod
    def of(cls, layer: LayerArrays, interval: int) -> Summary:
        """Summarise a layer at the end of an interval."""
        present, changed_in = (layer.presence >= 0).ravel(), layer.changed_in.ravel()
        pruned = ~present
        flux = {name: np.zeros(0, np.float32) for name in POPULATIONS}
        if layer.flux is not None:
            chosen = (pruned, present & (changed_in == interval), present)
            values = layer.flux.ravel()
            flux = {name: np.sort(np.compress(mask, values)) for name, mask in zip(POPULATIONS, chosen, strict=True)}
        return cls(
            np.bincount(layer.flips.ravel()),
            np.bincount(np.compress(present, changed_in), minlength=interval + 1),
            np.bincount(np.compress(pruned, changed_in), minlength=interval + 1),
            flux,
        )

    @classmethod
    def merged(cls, parts: Sequence[Summary]) -> Summary:
        """The summary of several layers as one."""
        flux = {name: _merge_sorted([part.flux[name] for part in parts]) for name in POPULATIONS}
        return cls(
            _sum_histograms(part.flip_counts for part in parts),
            _sum_histograms(part.last_present for part in parts),
            _sum_histograms(part.last_pruned for part in parts),
            flux,
        )

    @property
    def events(self) -> tuple[int, int]:
        """Prunings and regrowths since the start: a weight's flips alternate between the two."""
        flips = np.arange(len(self.flip_counts))
        return int(self.flip_counts @ ((flips + 1) // 2)), int(self.flip_counts @ (flips // 2))

    def figures(self, before: tuple[int, int], ends: Sequence[int]) -> dict[str, float]:
        """The columns `MEASURED`.

        Args:
            before: Prunings and regrowths up to the end of the previous interval.
            ends: The step that ended each interval; `ends[0]` is 0.
        """
        counts, (pruned, regrown) = self.flip_counts, self.events
        return {
            "total": int(counts.sum()),
            "surviving": int(counts[::2].sum()),
            "pruned": pruned - before[0],
            "regrown": regrown - before[1],
            "pruned_ever": int(counts[1:].sum()),
            "regrown_ever": int(counts[2:].sum()),
            "most_flips": int(np.flatnonzero(counts)[-1]),
            "mask_age": ends[-1] - ends[_median(self.last_present)],
            **{
                flux_column(name, quantile): value
                for name in POPULATIONS
                for quantile, value in zip(QUANTILES, _quantiles(self.flux[name]), strict=True)
            },
        }


def _sum_histograms(parts: Iterable[Counts]) -> Counts:
    """The sum of histograms of different lengths."""
    parts = list(parts)
    total = np.zeros(max(map(len, parts)), np.int64)
    for part in parts:
        total[: len(part)] += part
    return total


def _merge_sorted(parts: Sequence[NDArray[np.floating[Any]]]) -> NDArray[np.floating[Any]]:
    """Merge sorted arrays; NumPy's stable sort merges sorted runs."""
    return np.sort(np.concatenate(parts), kind="stable")


def _median(histogram: Counts) -> int:
    """The upper median of the values that a histogram counts; 0 if it is empty."""
    return int(np.searchsorted(np.cumsum(histogram), histogram.sum() // 2, side="right")) if histogram.any() else 0


def _quantiles(ordered: NDArray[np.floating[Any]]) -> list[float]:
    """`QUANTILES` of sorted values by nearest rank; NaN if there are none."""
    last = len(ordered) - 1
    return [float(ordered[round(share * last)]) if last >= 0 else float("nan") for share in QUANTILES]
