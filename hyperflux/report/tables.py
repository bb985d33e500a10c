"""Tables of a report, as rows of text: the same in HTML and in Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from hyperflux.report.formatting import accuracy, duration, percent, points
from hyperflux.report.run import ReportedRun, method_name

Row = tuple[str, ...]


@dataclass(frozen=True)
class TextTable:
    """A heading, and rows of as many cells; all columns but the first are numbers."""

    heading: Row
    rows: list[Row]


def title(runs: Sequence[ReportedRun]) -> str:
    """What the page is about: "lenet300 on mnist"."""
    kinds = dict.fromkeys(f"{run.outcome.model} on {run.outcome.dataset}" for run in runs)
    text = next(iter(kinds)) if len(kinds) == 1 else f"{len(kinds)} tasks"
    return text if len(runs) == 1 else f"{len(runs)} runs: {text}"


def subtitle(run: ReportedRun) -> str:
    """How a run pruned: "98 % sparsity by Hyperflux, seed 0"."""
    return f"{percent(run.outcome.target_sparsity)} sparsity by {method_name(run.outcome)}, seed {run.outcome.seed}"


def key_figures(run: ReportedRun) -> TextTable:
    """What matters most of one run: what, figure, remark."""
    outcome = run.outcome
    dense, final = outcome.dense_accuracy, outcome.final_accuracy
    compared = "pruned from scratch" if dense is None else f"dense {accuracy(dense)} ({points(final - dense)})"
    rows: list[Row] = [
        ("test accuracy", accuracy(final), compared),
        ("density", percent(run.density), f"target {percent(1 - outcome.target_sparsity)}"),
        ("weights left", f"{outcome.surviving_weights:,}", f"of {outcome.total_weights:,}"),
        ("time", duration(outcome.seconds), f"{len(run.epochs)} epochs on the {outcome.backend} backend"),
    ]
    return TextTable(("figure", "value", ""), rows)


def comparison_table(runs: Sequence[ReportedRun]) -> TextTable:
    """A row per run."""
    heading = ("run", "accuracy", "dense", "difference", "density", "target density", "weights left", "time")
    return TextTable(heading, [_compared(run) for run in runs])


def _compared(run: ReportedRun) -> Row:
    outcome = run.outcome
    dense, final = outcome.dense_accuracy, outcome.final_accuracy
    return (
        run.label,
        accuracy(final),
        "none" if dense is None else accuracy(dense),
        "" if dense is None else points(final - dense),
        percent(run.density),
        percent(1 - outcome.target_sparsity),
        f"{outcome.surviving_weights:,}",
        duration(outcome.seconds),
    )


def layer_table(run: ReportedRun) -> TextTable:
    """A row per layer: size, weights left and, with telemetry, its changes of mask."""
    heading: Row = ("layer", "weights", "left", "density")
    rows: list[Row] = [
        (layer.name, f"{layer.total:,}", f"{layer.surviving:,}", percent(layer.surviving / layer.total))
        for layer in run.outcome.layers
    ]
    if run.telemetry is None:
        return TextTable(heading, rows)
    heading += ("prunings", "regrowths", "came back")
    return TextTable(heading, [(*row, *_mask_changes(run, row[0])) for row in rows])


def _mask_changes(run: ReportedRun, name: str) -> Row:
    """A layer's prunings and regrowths, and the share of its weights that ever came back."""
    rows = run.layer_rows(name)
    if rows is None:
        return ("", "", "")
    back = rows["regrown_ever"][-1] / rows["total"][-1]
    return (f"{rows['pruned'].sum():,}", f"{rows['regrown'].sum():,}", percent(float(back)))


def density_table(runs: Sequence[ReportedRun]) -> TextTable:
    """A row per layer, a column per run with the final density; empty where a run has no such layer."""
    columns = [{layer.name: percent(layer.surviving / layer.total) for layer in run.outcome.layers} for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [(name, *(column.get(name, "") for column in columns)) for name in names]
    return TextTable(("layer", *(run.label for run in runs)), rows)


def settings_toml(run: ReportedRun) -> str:
    """The whole configuration as TOML."""
    return tomli_w.dumps(run.config.to_dict())


def repeat_command(run: ReportedRun) -> str:
    """The command that repeats the run."""
    recipe = run.folder / "config.toml"
    named = run.folder.name not in ("", "..")
    again = run.folder.with_name(f"{run.folder.name}-again") if named else Path("again")
    return f"hyperflux prune --recipe {shlex.quote(str(recipe))} --out {shlex.quote(str(again))}"


def start_note(run: ReportedRun) -> str:
    """What the repetition needs apart from the configuration; empty if nothing."""
    checkpoint = run.config.checkpoint
    return f"It starts from the weights in {checkpoint}, which must still be there." if checkpoint else ""
