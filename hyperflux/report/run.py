"""Runs as a report sees them: named so that they can be told apart, and with tables of a size that can be drawn."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hyperflux.errors import InputError, one_line
from hyperflux.report.formatting import percent
from hyperflux.runs.folder import EpochRow, RecordedRun, read_run
from hyperflux.telemetry.columns import Table, Tables

MAX_POINTS = 250
"""Of a line: what a plot of a hand's width can show."""


@dataclass(frozen=True)
class ReportedRun:
    """One run; `label` tells it apart from the others on the page."""

    folder: Path
    run: RecordedRun
    label: str

    @property
    def report(self) -> dict[str, Any]:
        """report.json."""
        return self.run.report

    @property
    def density(self) -> float:
        """The share of the weights that is left."""
        return float(self.report["surviving_weights"] / self.report["total_weights"])

    @property
    def asked(self) -> int:
        """Weights that the wanted sparsity leaves."""
        total: int = self.report["total_weights"]
        return round(total * (1.0 - float(self.report["target_sparsity"])))

    @property
    def tables(self) -> Tables | None:
        """The tables of telemetry, None where there are none."""
        tables = self.run.telemetry
        return tables if tables is not None and all(map(len, tables.values())) else None

    @cached_property
    def network(self) -> Table | None:
        """The network's rows, in at most `MAX_POINTS` intervals."""
        return None if self.tables is None else thinned(self.tables["network"], MAX_POINTS)

    def layer(self, name: str) -> Table | None:
        """A layer's rows in those intervals; None where telemetry does not know it."""
        if self.tables is None:
            return None
        rows = self.tables["layers"]
        rows = rows[rows["layer"] == name]
        return thinned(rows, MAX_POINTS) if len(rows) else None

    @property
    def pruning_rows(self) -> list[EpochRow]:
        """The epochs of both stages, without those of dense training."""
        return [row for row in self.run.epochs if row.stage != "dense"]

    @property
    def has_flux(self) -> bool:
        """Whether telemetry saw presence parameters that move."""
        return self.tables is not None and bool(np.isfinite(self.tables["network"]["presence_lr"]).any())

    @property
    def boundary(self) -> int:
        """The last step of the pruning stage; 0 without telemetry."""
        rows = None if self.tables is None else self.tables["network"]
        return 0 if rows is None else int(rows["step"][rows["stage"] == "pruning"].max(initial=0))

    @property
    def last_step(self) -> int:
        """The last step of the run; 0 without telemetry."""
        return 0 if self.tables is None else int(self.tables["network"]["step"][-1])


def reported_runs(folders: Sequence[Path]) -> list[ReportedRun]:
    """Read runs. Raises InputError for a folder that holds no finished run, or that is given twice."""
    twice = [folder for folder, times in Counter(os.path.realpath(folder) for folder in folders).items() if times > 1]
    if twice:
        raise InputError(f"{Path(twice[0]).name}: given twice; name each run once")
    runs = [read_run(folder) for folder in folders]
    labels = _labels(
        [one_line(Path(os.path.realpath(folder)).name) for folder in folders], [run.report for run in runs]
    )
    return [ReportedRun(*parts) for parts in zip(folders, runs, labels, strict=True)]


def method(report: dict[str, Any]) -> str:
    """How a run pruned, in words."""
    if report["method"] == "magnitude":
        return "magnitude pruning"
    return "Hyperflux" if report["controller"] == "default" else f"Hyperflux, {report['controller']} controller"


def thinned(rows: Table, most: int) -> Table:
    """At most `most` rows: each the last of its group, with the group's sum of prunings and regrowths."""
    if len(rows) <= most:
        return rows
    starts = np.linspace(0, len(rows), most + 1).astype(int)
    kept: Table = rows[starts[1:] - 1].copy()
    for name in ("pruned", "regrown"):
        kept[name] = np.add.reduceat(rows[name], starts[:-1])
    return kept


def _labels(names: Sequence[str], reports: Sequence[dict[str, Any]]) -> list[str]:
    """What differs between runs; their folders' names where that is not enough."""
    facts = [
        (
            report["model"],
            report["dataset"],
            method(report),
            f"{percent(report['target_sparsity'])} sparsity",
            report["backend"],
            f"seed {report['seed']}",
        )
        for report in reports
    ]
    differing = [number for number, values in enumerate(zip(*facts, strict=True)) if len(set(values)) > 1]
    labels = [", ".join(fact[number] for number in differing) for fact in facts]
    if len(set(labels)) == len(labels) and differing:
        return labels
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return [f"{label} ({name})" if label else name for label, name in zip(labels, names, strict=True)]
