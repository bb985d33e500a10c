"""The tables of telemetry as NumPy structured arrays: one row an interval, `network` and by layer, and three more.

    network   a row an interval: the course and `MEASURED`, of the whole network
    layers    a row an interval and layer: `MEASURED`
    sample    a row an interval and followed weight, from before the first step
    flips     at the end: how many weights of a layer changed their mask so many times
    ages      at the end: how many weights of a layer changed it last in the interval that ended at `step`

A step is an optimizer step, counted from the start of pruning, and stands for the state after it. A change of mask is a
difference between the masks of two consecutive training steps: what a control step puts right at once is none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.void]
Tables = dict[str, Table]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Of flux, by nearest rank: each is the flux of some weight."""
POPULATIONS = ("pruned", "restored", "surviving")
"""Whose flux: weights that are pruned; present ones that came back in this interval; all present ones."""


def flux_column(population: str, quantile: float) -> str:
    """The name of a quantile of restoring flux: "pruned_flux_p05"."""
    return f"{population}_flux_p{100 * quantile:02.0f}"


_STEP = [("step", "i8")]
_LAYER = [("layer", "U96")]
MEASURED = [
    ("total", "i8"),  # prunable weights
    ("surviving", "i8"),  # present weights
    ("pruned", "i8"),  # times in this interval that a weight was pruned
    ("regrown", "i8"),  # times in this interval that a weight came back
    ("pruned_ever", "i8"),  # weights that have been pruned at least once
    ("regrown_ever", "i8"),  # weights that have come back at least once
    ("most_flips", "i8"),  # changes of mask of the weight with the most
    ("mask_age", "i8"),  # median over present weights of the steps since the interval in which they last came back
    *((flux_column(population, quantile), "f4") for population in POPULATIONS for quantile in QUANTILES),
]
"""What is measured at the end of an interval; flux is NaN where t was at rest or the population is empty."""

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
"""`wanted` is a density; `pressure` γ and `presence_lr` are those of the interval's last step, the latter NaN at rest;
`index` counts row by row in a layer; `flux` is restoring flux, a running mean over about ten steps."""
