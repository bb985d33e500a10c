"""Tables of a report, as rows of text: the same in HTML and in Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from hyperflux.gates.latency import LatencyTable
from hyperflux.report.formatting import accuracy, duration, percent, points
from hyperflux.report.run import ReportedRun, common_layers, method_name
from hyperflux.schedules.base import LayerCount

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
    return f"{run.asked.words} by {method_name(run.outcome)}, seed {run.outcome.seed}"


def key_figures(run: ReportedRun) -> TextTable:
    """What matters most of one run: what, figure, remark."""
    outcome = run.outcome
    dense, final = outcome.dense_accuracy, outcome.final_accuracy
    compared = "pruned from scratch" if dense is None else f"dense {accuracy(dense)} ({points(final - dense)})"
    rows: list[Row] = [
        ("test accuracy", accuracy(final), compared),
        *(_channel_figures(run) if run.asked.of_channels else _weight_figures(run)),
        ("time", duration(outcome.seconds), f"{len(run.epochs)} epochs on the {outcome.backend} backend"),
    ]
    return TextTable(("figure", "value", ""), rows)


def _weight_figures(run: ReportedRun) -> list[Row]:
    outcome = run.outcome
    return [
        ("density", percent(run.density), f"target {percent(run.target_count / outcome.total_weights)}"),
        ("weights left", f"{outcome.surviving_weights:,}", f"of {outcome.total_weights:,}"),
    ]


def _channel_figures(run: ReportedRun) -> list[Row]:
    """The share of the budget, the other sizes of the compacted network, and the channels left."""
    outcome, asked = run.outcome, run.asked
    rows: list[Row] = [(f"{asked.counted} left", percent(run.reached), f"budget {percent(asked.density)}")]
    if outcome.flops_ratio is not None and asked.budget != "flops":
        rows.append(("FLOPs left", percent(outcome.flops_ratio), "of the dense network's"))
    if outcome.parameters_ratio is not None and outcome.compact_parameters is not None:
        share = f"{percent(outcome.parameters_ratio)} of the dense network's"
        rows.append(("parameters", f"{outcome.compact_parameters:,}", share))
    return [*rows, ("channels left", f"{run.open_gates:,}", f"of {run.gates:,}")]


def comparison_table(runs: Sequence[ReportedRun]) -> TextTable:
    """A row per run."""
    channels = any(run.asked.of_channels for run in runs)
    sizes = ("asked for", "left", "FLOPs", "parameters") if channels else ("density", "target density")
    heading = ("run", "accuracy", "dense", "difference", *sizes, "weights left", "time")
    return TextTable(heading, [_compared(run, _sizes(run) if channels else _densities(run)) for run in runs])


def _compared(run: ReportedRun, sizes: Row) -> Row:
    outcome = run.outcome
    dense, final = outcome.dense_accuracy, outcome.final_accuracy
    return (
        run.label,
        accuracy(final),
        "none" if dense is None else accuracy(dense),
        "" if dense is None else points(final - dense),
        *sizes,
        f"{outcome.surviving_weights:,}",
        duration(outcome.seconds),
    )


def _densities(run: ReportedRun) -> Row:
    return percent(run.density), percent(run.target_count / run.outcome.total_weights)


def _sizes(run: ReportedRun) -> Row:
    """What was asked for, the share reached, and the shares of the compacted network."""
    compacted = (run.outcome.flops_ratio, run.outcome.parameters_ratio)
    asked = f"{percent(run.asked.density)} of the {run.asked.counted}"
    return asked, percent(run.reached), *("" if size is None else percent(size) for size in compacted)


def layer_tables(run: ReportedRun) -> list[tuple[str, TextTable]]:
    """Headings and tables of layers: gates by layer and, where these are channels, the weights between them.

    Where the budget is the time, also the times that it was counted by.
    """
    if not run.asked.of_channels:
        return [("Layers", layer_table(run))]
    tables = [("Channels by layer", layer_table(run)), ("Weights by layer", weight_table(run))]
    times = run.recorded.times
    return tables if times is None else [*tables, ("Dense network: milliseconds by layer", time_table(times))]


def time_table(times: LatencyTable) -> TextTable:
    """A row per layer: its channels, and milliseconds with all of them, with about half and with fewest."""
    rows = [
        (name, f"{inputs:,}", f"{outputs:,}", *(f"{each:.4g}" for each in milliseconds))
        for name, inputs, outputs, *milliseconds in times.rows()
    ]
    rows.append(
        (
            f"whole network, {times.circumstances}",
            "",
            "",
            f"{times.milliseconds:.4g}",
            "",
            f"{times.least_milliseconds:.4g}",
        )
    )
    return TextTable(("layer", "inputs", "outputs", "all channels", "half", "fewest"), rows)


def weight_table(run: ReportedRun) -> TextTable:
    """A row per prunable parameter: its weights, and those that are left."""
    return TextTable(("layer", "weights", "left", "density"), _counts(run.outcome.layers))


def _counts(layers: Sequence[LayerCount]) -> list[Row]:
    return [
        (layer.name, f"{layer.total:,}", f"{layer.surviving:,}", percent(layer.surviving / layer.total))
        for layer in layers
    ]


def layer_table(run: ReportedRun) -> TextTable:
    """A row per layer: gates, those left and, with telemetry, their changes."""
    heading: Row = ("layer", f"{run.noun}s", "left", "share" if run.asked.of_channels else "density")
    rows = _counts(run.gated)
    if run.telemetry is None:
        return TextTable(heading, rows)
    heading += ("prunings", "regrowths", "came back")
    return TextTable(heading, [(*row, *_mask_changes(run, row[0])) for row in rows])


def _mask_changes(run: ReportedRun, name: str) -> Row:
    """A layer's prunings and regrowths, and the share of its gates that ever came back."""
    rows = run.layer_rows(name)
    if rows is None:
        return ("", "", "")
    back = rows["regrown_ever"][-1] / rows["total"][-1]
    return (f"{rows['pruned'].sum():,}", f"{rows['regrown'].sum():,}", percent(float(back)))


def density_heading(runs: Sequence[ReportedRun]) -> str:
    """The heading of `density_table`."""
    return "Channels left by layer" if all(run.asked.of_channels for run in runs) else "Density by layer"


def density_table(runs: Sequence[ReportedRun]) -> TextTable:
    """A row per layer, a column per run with the share left; empty where a run has no such layer."""
    columns = [{x.name: percent(x.surviving / x.total) for x in layers} for layers in common_layers(runs)]
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
