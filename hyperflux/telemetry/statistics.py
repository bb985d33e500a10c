"""The figures of an interval from arrays: the same code for every backend and device."""

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
    """One layer at the end of an interval; arrays of its shape.

    `presence` is t, `flips` how often each weight's mask has changed, `changed_in` the number of the interval of its
    last change (0: never). `flux` is the running mean of restoring flux, None where t was at rest.
    """

    name: str
    presence: NDArray[np.floating[Any]]
    flips: NDArray[np.integer[Any]]
    changed_in: NDArray[np.integer[Any]]
    flux: NDArray[np.floating[Any]] | None


@dataclass(frozen=True)
class Summary:
    """What is known of a layer, or of several as one: everything that its row needs.

    `flip_counts[k]` weights have changed their mask k times; `last_present[i]` present and `last_pruned[i]` pruned
    weights changed it last in interval i. `flux` holds the sorted fluxes of each of `POPULATIONS`.
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
        """Several layers as one."""
        flux = {name: _merge_sorted([part.flux[name] for part in parts]) for name in POPULATIONS}
        return cls(
            _sum_histograms(part.flip_counts for part in parts),
            _sum_histograms(part.last_present for part in parts),
            _sum_histograms(part.last_pruned for part in parts),
            flux,
        )

    @property
    def events(self) -> tuple[int, int]:
        """How often weights were pruned, and how often they came back, since the start: every second change each."""
        flips = np.arange(len(self.flip_counts))
        return int(self.flip_counts @ ((flips + 1) // 2)), int(self.flip_counts @ (flips // 2))

    def figures(self, before: tuple[int, int], ends: Sequence[int]) -> dict[str, float]:
        """The columns `MEASURED`. `before` are the events up to the last interval, `ends[i]` the step that ended
        interval i, with `ends[0]` 0.
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
    """The sum of histograms of any lengths."""
    parts = list(parts)
    total = np.zeros(max(map(len, parts)), np.int64)
    for part in parts:
        total[: len(part)] += part
    return total


def _merge_sorted(parts: Sequence[NDArray[np.floating[Any]]]) -> NDArray[np.floating[Any]]:
    """Sorted arrays as one: NumPy's stable sort merges what is in order already."""
    return np.sort(np.concatenate(parts), kind="stable")


def _median(histogram: Counts) -> int:
    """The upper median of the numbers that a histogram counts; 0 where there are none."""
    return int(np.searchsorted(np.cumsum(histogram), histogram.sum() // 2, side="right")) if histogram.any() else 0


def _quantiles(ordered: NDArray[np.floating[Any]]) -> list[float]:
    """`QUANTILES` of sorted values by nearest rank; NaN where there are none."""
    last = len(ordered) - 1
    return [float(ordered[round(share * last)]) if last >= 0 else float("nan") for share in QUANTILES]
