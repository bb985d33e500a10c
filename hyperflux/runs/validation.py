"""Whether what a run's files say can be true: nothing in a folder that somebody hands in is taken on trust."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from hyperflux._version import __version__
from hyperflux.config import RunConfig
from hyperflux.errors import InputError
from hyperflux.gates.kinds import gate_kind
from hyperflux.io.safe_read import shown
from hyperflux.runs.schema import FORMAT, EpochRow, Outcome
from hyperflux.schedules.base import LayerCount
from hyperflux.telemetry.columns import NAME_LENGTH, Tables, layer_numbers
from hyperflux.telemetry.file import MAX_INTERVALS

MAX_LAYERS = 10_000
MAX_CLASSES = 1 << 16
MAX_FEATURES = 1 << 18
"""Numbers of a sample: more than a colour image of 224 pixels a side has."""
MAX_FLIPS = 10_000_000
"""Changes of mask of one weight, which can't be more than steps."""


def require_format(values: Any) -> int:
    """The version that a report.json names; folders from before there was one are of version 1.

    Raises ValueError for a newer one.
    """
    found = values.get("format", 1) if isinstance(values, Mapping) else 1
    if type(found) is not int or found < 1:
        raise ValueError(f"format: {shown(found, 40)} is no version")
    if found > FORMAT:
        versions = values.get("versions")
        writer = versions.get("hyperflux") if isinstance(versions, Mapping) else None
        by = f"hyperflux {shown(writer, 40)[1:-1]}" if isinstance(writer, str) else "a newer hyperflux"
        raise NewerFormatError(
            f"written by {by} in format {shown(found, 40)}; hyperflux {__version__} reads format {FORMAT}, "
            "so install a newer one"
        )
    return found


class NewerFormatError(ValueError):
    """The folder of a run is whole, but of a version that only a newer hyperflux reads."""


def check_outcome(outcome: Outcome) -> None:
    """Raise ValueError where counts and shares of an outcome contradict each other, or no network can have them."""
    layers = outcome.layers
    _check_counts("layers", "weights", layers)
    counts = (sum(layer.total for layer in layers), sum(layer.surviving for layer in layers))
    if counts != (outcome.total_weights, outcome.surviving_weights):
        raise ValueError("total_weights or surviving_weights: not the sum over the layers")
    _check_fractions(outcome, ("final_sparsity", "final_accuracy"))
    optional = ("target_sparsity", "dense_accuracy")
    _check_fractions(outcome, [name for name in optional if getattr(outcome, name) is not None])
    _check_gates(outcome)
    _require("seconds", outcome.seconds, math.isfinite(outcome.seconds) and outcome.seconds >= 0)
    _require("seed", outcome.seed, outcome.seed >= 0)
    _require("classes", outcome.classes, 1 <= outcome.classes <= MAX_CLASSES)
    sides = outcome.input_shape
    good = 1 <= len(sides) <= 3 and min(sides) >= 1 and math.prod(sides) <= MAX_FEATURES
    _require("input_shape", sides, good)


def _check_counts(name: str, what: str, layers: Sequence[LayerCount]) -> None:
    """Raise ValueError unless there are layers of different names, each with something that may be left."""
    if not layers or min(layer.total for layer in layers) < 1:
        raise ValueError(f"{name}: none, or one without {what}")
    if len(layers) > MAX_LAYERS or len({layer.name for layer in layers}) < len(layers):
        raise ValueError(f"{name}: two of one name, or more than {MAX_LAYERS:,}")
    if not all(0 <= layer.surviving <= layer.total for layer in layers):
        raise ValueError(f"{name}: one has more {what} left than it had")


def _check_gates(outcome: Outcome) -> None:
    """Raise ValueError where gates, channels and sizes of the compacted network contradict each other."""
    try:
        kind = gate_kind(outcome.gates)
    except InputError as error:
        raise ValueError(str(error)) from error
    if kind == "channels":
        _check_counts("channels", "channels", outcome.channels)
    elif outcome.channels or outcome.target_sparsity is None:
        raise ValueError(f"channels or target_sparsity: not those of gates of {kind}")
    sizes = {name: getattr(outcome, name) for name in ("flops_ratio", "parameters_ratio", "compact_parameters")}
    if len({value is None for value in sizes.values()}) > 1:
        raise ValueError(f"{', '.join(sizes)}: some are there, some not")
    for name, value in sizes.items():
        _require(name, value, value is None or (math.isfinite(value) and value >= 0))


def check_same_run(outcome: Outcome, config: RunConfig) -> None:
    """Raise ValueError where the outcome is of other gates or another budget than the settings."""
    budget, share = config.budget
    target = share if budget == "sparsity" else None
    if (outcome.gates, outcome.target_sparsity) != (config.gates, target):
        raise ValueError("its gates or its budget are not those of config.toml")


def check_epochs(rows: Sequence[EpochRow]) -> None:
    """Raise ValueError where epochs do not count on from the one before, or hold what no epoch can; losses may be NaN,
    as those of a run that diverged.
    """
    order = ("dense", "pruning", "regrowth")
    for before, row in zip([None, *rows], rows, strict=False):
        if row.epoch != (1 if before is None else before.epoch + 1):
            raise ValueError(f"epoch: {row.epoch} out of its order")
        if before is not None and order.index(row.stage) < order.index(before.stage):
            raise ValueError(f"stage: {row.stage} after {before.stage}")
        _check_fractions(row, ("density", "wanted", "accuracy"))
        for name in ("pressure", "lr", "presence_lr"):
            value = getattr(row, name)
            _require(name, value, math.isfinite(value) and value >= 0)
        for name in ("pruned", "regrown"):
            value = getattr(row, name)
            _require(name, value, value is None or value >= 0)


def check_telemetry(tables: Tables, layers: Collection[LayerCount]) -> None:
    """Raise ValueError for telemetry that does not belong to a run of these layers of gates, or that no run leaves."""
    names = {layer.name[:NAME_LENGTH] for layer in layers}
    for table, rows in tables.items():
        fields = rows.dtype.names or ()
        if "layer" in fields:
            found, numbers = layer_numbers(rows)
            if not set(found) <= names:
                raise ValueError(f"table {table}: a layer that the run does not have")
            if table == "layers" and np.bincount(numbers, minlength=1).max() > MAX_INTERVALS:
                raise ValueError(f"table layers: more than {MAX_INTERVALS:,} rows of one layer")
        for field in {"step", "total", "surviving", "pruned", "regrown", "flips", "weights", "present"} & {*fields}:
            if len(rows) and rows[field].min() < 0:
                raise ValueError(f"table {table}: {field} below 0")
        if "surviving" in fields and not ((rows["total"] > 0) & (rows["surviving"] <= rows["total"])).all():
            raise ValueError(f"table {table}: more weights left than there were")
    if len(tables["flips"]) and tables["flips"]["flips"].max() > MAX_FLIPS:
        raise ValueError(f"table flips: more than {MAX_FLIPS:,} changes of one weight")
    network = tables["network"]
    if (network["step"][1:] <= network["step"][:-1]).any() or not {*network["stage"].tolist()} <= {
        "pruning",
        "regrowth",
    }:
        raise ValueError("table network: steps that do not rise, or a stage that is none")


def _check_fractions(record: object, names: Sequence[str]) -> None:
    for name in names:
        value = getattr(record, name)
        _require(name, value, 0 <= value <= 1)


def _require(name: str, value: object, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{name}: {shown(value, 40)} is out of range")
