"""Tables of a report, as rows of text: the same in HTML and in Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from hyperflux.report.formatting import accuracy, duration, percent, points
from hyperflux.report.run import ReportedRun, method

Row = tuple[str, ...]


@dataclass(frozen=True)
class TextTable:
    """A heading, and rows of as many cells; all columns but the first are numbers."""

    heading: Row
    rows: list[Row]


def title(runs: Sequence[ReportedRun]) -> str:
    """What the page is about: "lenet300 on mnist"."""
    kinds = dict.fromkeys(f"{run.report['model']} on {run.report['dataset']}" for run in runs)
    text = next(iter(kinds)) if len(kinds) == 1 else f"{len(kinds)} tasks"
    return text if len(runs) == 1 else f"{len(runs)} runs: {text}"


def subtitle(run: ReportedRun) -> str:
    """How a run pruned: "98 % sparsity by Hyperflux, seed 0"."""
    return f"{percent(run.report['target_sparsity'])} sparsity by {method(run.report)}, seed {run.report['seed']}"


def key_figures(run: ReportedRun) -> list[Row]:
    """(what, figure, remark) of one run."""
    report = run.report
    dense, final = report["dense_accuracy"], report["final_accuracy"]
    compared = "pruned from scratch" if dense is None else f"dense {accuracy(dense)}: {points(final - dense)}"
    return [
        ("test accuracy", accuracy(final), compared),
        ("density", percent(run.density), f"{percent(1 - report['target_sparsity'])} asked for"),
        ("weights left", f"{report['surviving_weights']:,}", f"of {report['total_weights']:,}"),
        ("time", duration(report["seconds"]), f"{len(run.run.epochs)} epochs on the {report['backend']} backend"),
    ]


def comparison(runs: Sequence[ReportedRun]) -> TextTable:
    """Runs beside each other."""
    heading = ("run", "accuracy", "dense", "difference", "density", "asked for", "weights left", "time")
    return TextTable(heading, [_compared(run) for run in runs])


def _compared(run: ReportedRun) -> Row:
    report = run.report
    dense, final = report["dense_accuracy"], report["final_accuracy"]
    return (
        run.label,
        accuracy(final),
        "none" if dense is None else accuracy(dense),
        "" if dense is None else points(final - dense),
        percent(run.density),
        percent(1 - report["target_sparsity"]),
        f"{report['surviving_weights']:,}",
        duration(report["seconds"]),
    )


def layers(run: ReportedRun) -> TextTable:
    """Every layer: size, weights left and, with telemetry, its changes of mask."""
    heading: Row = ("layer", "weights", "left", "density")
    rows: list[Row] = [
        (x["name"], f"{x['total']:,}", f"{x['surviving']:,}", percent(x["surviving"] / x["total"]))
        for x in run.report["layers"]
    ]
    if run.tables is None:
        return TextTable(heading, rows)
    heading += ("times pruned", "times regrown", "ever came back")
    return TextTable(heading, [(*row, *_changes(run, row[0])) for row in rows])


def _changes(run: ReportedRun, name: str) -> Row:
    """A layer's prunings and regrowths, and the share of its weights that ever came back."""
    assert run.tables is not None
    rows = run.tables["layers"][run.tables["layers"]["layer"] == name]
    if not len(rows):
        return ("", "", "")
    back = rows["regrown_ever"][-1] / rows["total"][-1]
    return (f"{rows['pruned'].sum():,}", f"{rows['regrown'].sum():,}", percent(float(back)))


def densities(runs: Sequence[ReportedRun]) -> TextTable:
    """Density of every layer at the end, a column a run; empty where a run has no such layer."""
    found: list[dict[str, dict[str, Any]]] = [{x["name"]: x for x in run.report["layers"]} for run in runs]
    names = list(dict.fromkeys(name for layers in found for name in layers))
    rows = [
        (name, *(percent(x[name]["surviving"] / x[name]["total"]) if name in x else "" for x in found))
        for name in names
    ]
    return TextTable(("layer", *(run.label for run in runs)), rows)


def settings(run: ReportedRun) -> str:
    """The whole configuration as TOML."""
    return tomli_w.dumps(run.run.config)


def command(run: ReportedRun) -> str:
    """The command that repeats the run."""
    recipe = run.folder / "config.toml"
    named = run.folder.name not in ("", "..")
    again = run.folder.with_name(f"{run.folder.name}-again") if named else Path("again")
    return f"hyperflux prune --recipe {shlex.quote(str(recipe))} --out {shlex.quote(str(again))}"


def start(run: ReportedRun) -> str:
    """What the repetition needs beside the configuration; empty where nothing."""
    checkpoint = run.run.config.get("checkpoint")
    return f"It starts from the weights in {checkpoint}, so that file has to be there." if checkpoint else ""
