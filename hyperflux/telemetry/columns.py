"""The tables of telemetry, as NumPy structured arrays.

    network   one row per interval: the course and `MEASURED`, for the whole network
    layers    one row per interval and layer: `MEASURED`
    sample    one row per interval and sampled weight, from before the first step
    flips     at the end: number of weights per layer and number of flips
    ages      at the end: number of weights per layer and interval of the last flip; `step` ended that interval

Steps are optimizer steps from the start of pruning; a row describes the state after its step. A flip is a change of a
weight's mask between two consecutive training steps. A change that the control step after it undoes is not counted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.void]
Tables = dict[str, Table]

_ROWS_AT_ONCE = 10_000

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Quantiles of flux, by nearest rank: each is the flux of one weight."""
POPULATIONS = ("pruned", "restored", "surviving")
"""Populations of flux: pruned weights; present weights that came back in this interval; all present weights."""


def flux_column(population: str, quantile: float) -> str:
    """The name of a quantile of restoring flux: "pruned_flux_p05"."""
    return f"{population}_flux_p{100 * quantile:02.0f}"


NAME_LENGTH = 96
"""Characters of a layer's name that a table keeps."""

_STEP = [("step", "i8")]
_LAYER = [("layer", f"U{NAME_LENGTH}")]
MEASURED = [
    ("total", "i8"),  # prunable weights
    ("surviving", "i8"),  # present weights
    ("pruned", "i8"),  # prunings in this interval
    ("regrown", "i8"),  # regrowths in this interval
    ("pruned_ever", "i8"),  # weights that have been pruned at least once
    ("regrown_ever", "i8"),  # weights that have come back at least once
    ("most_flips", "i8"),  # flips of the weight with the most
    ("mask_age", "i8"),  # median over present weights of the steps since the interval of their last flip
    *((flux_column(population, quantile), "f4") for population in POPULATIONS for quantile in QUANTILES),
]
"""Measured at the end of an interval; flux is NaN if t was frozen or the population is empty."""

SCHEMA = {
    "network": np.dtype(
        [*_STEP, ("stage", "U8"), ("wanted", "f8"), ("pressure", "f8"), ("presence_lr", "f8"), *MEASURED]
    ),
    "layers": np.dtype([*_STEP, *_LAYER, *MEASURED]),
    "sample": np.dtype(
        [*_STEP, *_LAYER, ("index", "i8"), ("t", "f4"), ("flux", "f4"), ("present", "?"), ("flips", "i4")]
    ),
    "flips": np.dtype([*_LAYER, ("flips", "i8"), ("weights", "i8")]),
    "ages": np.dtype([*_LAYER, ("step", "i8"), ("present", "i8"), ("pruned", "i8")]),
}
"""Columns of each table.

`wanted` is the target density. `pressure` (γ) and `presence_lr` (η_t) are those of the interval's last step; η_t is NaN
if t was frozen. `index` is the weight's row-major position in its layer. `flux` is restoring flux, a running mean over
about ten steps (see E4)."""


def layer_numbers(table: Table) -> tuple[list[str], NDArray[np.int64]]:
    """The names in a table's column of layers, in the order of their first rows, and each row's number among them.

    NumPy would copy and sort the column, which is nine tenths of some tables.
    """
    numbers: dict[str, int] = {}
    found = np.empty(len(table), np.int64)
    for start in range(0, len(table), _ROWS_AT_ONCE):
        part = table["layer"][start : start + _ROWS_AT_ONCE].tolist()
        found[start : start + len(part)] = [numbers.setdefault(name, len(numbers)) for name in part]
    return list(numbers), found
