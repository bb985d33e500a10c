"""Runs as a report shows them: each with a label of its own, and with tables of a size that can be drawn."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux.config import RunConfig
from hyperflux.errors import InputError, one_line
from hyperflux.gates.kinds import Pattern
from hyperflux.report.asked import Asked, gate_noun
from hyperflux.runs.folder import read_run
from hyperflux.runs.schema import EpochRow, Outcome, RecordedRun
from hyperflux.schedules.base import LayerCount
from hyperflux.telemetry.columns import NAME_LENGTH, Table, Tables, layer_numbers

MAX_POINTS = 250
"""Of a line: what a plot of a hand's width can show."""


@dataclass(frozen=True)
class ReportedRun:
    """One finished run on a report.

    Attributes:
        folder: Where it was read from, as the user named it.
        recorded: What its files hold.
        label: What tells it apart from the other runs on the page.
    """

    folder: Path
    recorded: RecordedRun
    label: str

    @property
    def config(self) -> RunConfig:
        """Every setting of the run."""
        return self.recorded.config

    @property
    def outcome(self) -> Outcome:
        """What came of the run: report.json."""
        return self.recorded.outcome

    @property
    def epochs(self) -> list[EpochRow]:
        """The epochs of all stages."""
        return self.recorded.epochs

    @property
    def drawn_epochs(self) -> list[EpochRow]:
        """The epochs that a plot shows: at most `MAX_POINTS`."""
        return [self.epochs[place] for place in few_of(np.arange(len(self.epochs)), MAX_POINTS)]

    @property
    def pruning_epochs(self) -> list[EpochRow]:
        """The epochs of pruning and regrowth, without those of dense training."""
        return [row for row in self.epochs if row.stage != "dense"]

    @cached_property
    def asked(self) -> Asked:
        """What the run was asked for."""
        return Asked.of(self.config)

    @property
    def reached(self) -> float:
        """Share that is left of what the budget counts."""
        return self.recorded.reached

    @property
    def density(self) -> float:
        """Share of the weights that are left."""
        return self.outcome.surviving_weights / self.outcome.total_weights

    @property
    def gated(self) -> list[LayerCount]:
        """All and open gates by layer: channels, or weights."""
        return self.outcome.gated

    @property
    def gates(self) -> int:
        """Number of gates."""
        return sum(layer.total for layer in self.gated)

    @property
    def open_gates(self) -> int:
        """Number of open gates: weights or channels that are left."""
        return sum(layer.surviving for layer in self.gated)

    @property
    def noun(self) -> str:
        """What a gate of the run holds: "weight" or "channel"."""
        return gate_noun([self.asked])

    @property
    def left(self) -> str:
        """What a gate that is open makes of what it holds: a weight is present, a channel left."""
        return "left" if self.asked.of_channels else "present"

    @property
    def gone(self) -> str:
        """What a gate that is closed makes of what it holds: a weight is pruned, a channel removed."""
        return "removed" if self.asked.of_channels else "pruned"

    @property
    def target_count(self) -> int:
        """Number of weights that the run was to leave."""
        density = self.asked.density
        if isinstance(self.asked.gates, Pattern) and self.epochs:
            density = self.epochs[-1].wanted  # groups cut short at the end of a row may leave more than N of M
        return round(self.outcome.total_weights * density)

    @property
    def telemetry(self) -> Tables | None:
        """The tables of telemetry; None if there are none, or if one has no rows."""
        tables = self.recorded.telemetry
        return tables if tables is not None and all(map(len, tables.values())) else None

    @property
    def has_flux(self) -> bool:
        """Whether the run had presence parameters that moved, by telemetry."""
        return self.telemetry is not None and bool(np.isfinite(self.telemetry["network"]["presence_lr"]).any())

    @cached_property
    def network(self) -> Table | None:
        """The network's rows of telemetry, thinned to at most `MAX_POINTS`."""
        return None if self.telemetry is None else thinned(self.telemetry["network"], MAX_POINTS)

    def layer(self, name: str) -> Table | None:
        """A layer's rows, thinned in the same way; None if telemetry has none."""
        rows = self.layer_rows(name)
        return None if rows is None else thinned(rows, MAX_POINTS)

    def layer_rows(self, name: str) -> Table | None:
        """All rows of a layer; None if telemetry has none."""
        if self.telemetry is None or name[:NAME_LENGTH] not in self._places:
            return None
        return self.telemetry["layers"][self._places[name[:NAME_LENGTH]]]

    @cached_property
    def _places(self) -> dict[str, NDArray[np.intp]]:
        """The places of every layer's rows in the table of layers, in their order."""
        assert self.telemetry is not None
        names, numbers = layer_numbers(self.telemetry["layers"])
        order = np.argsort(numbers, kind="stable")
        ends = np.cumsum(np.bincount(numbers, minlength=len(names)))
        return dict(zip(names, np.split(order, ends[:-1]), strict=True))

    @property
    def last_pruning_step(self) -> int:
        """The last step of the pruning stage; 0 without telemetry."""
        rows = None if self.telemetry is None else self.telemetry["network"]
        return 0 if rows is None else int(rows["step"][rows["stage"] == "pruning"].max(initial=0))

    @property
    def last_step(self) -> int:
        """The last step of the run; 0 without telemetry."""
        return 0 if self.telemetry is None else int(self.telemetry["network"]["step"][-1])

    @property
    def stage_steps(self) -> list[tuple[str, float, float]]:
        """(stage, first step, last step) of pruning and regrowth, by telemetry."""
        return [("pruning", 0, self.last_pruning_step), ("regrowth", self.last_pruning_step, self.last_step)]


def reported_runs(folders: Sequence[Path]) -> list[ReportedRun]:
    """Read runs and label them by what differs.

    Raises:
        InputError: A folder holds no finished run, or is given twice.
    """
    twice = [folder for folder, times in Counter(os.path.realpath(folder) for folder in folders).items() if times > 1]
    if twice:
        raise InputError(f"{Path(twice[0]).name}: given twice; name each run once")
    runs = [read_run(folder) for folder in folders]
    names = [one_line(Path(os.path.realpath(folder)).name) for folder in folders]
    labels = _labels(names, runs)
    return [ReportedRun(*parts) for parts in zip(folders, runs, labels, strict=True)]


def method_name(outcome: Outcome) -> str:
    """How a run pruned, in words."""
    if outcome.method != "hyperflux":
        return f"{'Taylor' if outcome.method == 'taylor' else outcome.method} pruning"
    return "Hyperflux" if outcome.controller == "default" else f"Hyperflux, {outcome.controller} controller"


def common_noun(runs: Sequence[ReportedRun]) -> str:
    """What gates of all the runs hold, in a word."""
    return gate_noun([run.asked for run in runs])


def common_layers(runs: Sequence[ReportedRun]) -> list[list[LayerCount]]:
    """The layers of each run, counted alike: in channels if all runs have gates of channels, else in weights."""
    if all(run.asked.of_channels for run in runs):
        return [run.outcome.channels for run in runs]
    return [run.outcome.layers for run in runs]


def thinned(rows: Table, max_rows: int) -> Table:
    """At most `max_rows` rows: the last of each group, with the group's sums of prunings and regrowths."""
    if len(rows) <= max_rows:
        return rows
    starts = np.linspace(0, len(rows), max_rows + 1).astype(int)
    kept: Table = rows[starts[1:] - 1].copy()
    for name in ("pruned", "regrown"):
        kept[name] = np.add.reduceat(rows[name], starts[:-1])
    return kept


def few_of(values: NDArray[Any], most: int) -> NDArray[Any]:
    """At most `most` of the values, evenly spaced from the first to the last."""
    places = np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int)
    return np.take(values, np.unique(places))


def _labels(names: Sequence[str], runs: Sequence[RecordedRun]) -> list[str]:
    """What differs between runs, with their folders' names where that is not enough."""
    facts = [
        (
            run.outcome.model,
            run.outcome.dataset,
            method_name(run.outcome),
            Asked.of(run.config).words,
            run.outcome.backend,
            f"seed {run.outcome.seed}",
        )
        for run in runs
    ]
    differing = [number for number, values in enumerate(zip(*facts, strict=True)) if len(set(values)) > 1]
    labels = [", ".join(fact[number] for number in differing) for fact in facts]
    if len(set(labels)) == len(labels) and differing:
        return labels
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return [f"{label} ({name})" if label else name for label, name in zip(labels, names, strict=True)]
