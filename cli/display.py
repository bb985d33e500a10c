"""What a person sees: the progress of a run, its outcome, and the tables of every command."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hyperflux.report.asked import Asked
from hyperflux.report.tables import time_table
from hyperflux.runs.schema import EpochRow, Outcome
from hyperflux.schedules.base import LayerCount

if TYPE_CHECKING:
    from hyperflux.deploy.compacted import CompactNetwork
    from hyperflux.gates.latency import LatencyTable


WIDTH = 200
"""Characters of a line that is not on a terminal."""


def plain_console(stderr: bool = False) -> Console:
    """A console that shows text as it is: brackets and colons in names are no markup and no emoji.

    A file or a pipe has no width that would cut a table.
    """
    console = Console(stderr=stderr, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH
    return console


@contextmanager
def progress(epochs: int, console: Console, quiet: bool) -> Iterator[Callable[[EpochRow], None]]:
    """An observer of epochs: live lines on a terminal; elsewhere a plain line an epoch, or nothing if `quiet`."""
    if not console.is_terminal:
        yield (lambda row: None) if quiet else (lambda row: _print_line(row, epochs))
        return
    bar = Progress(
        TextColumn("{task.description:<8}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn()
    )
    task = bar.add_task("starting", total=epochs)
    with Live(bar, console=console, transient=True) as live:

        def observe(row: EpochRow) -> None:
            bar.update(task, completed=row.epoch, description=row.stage)
            live.update(Group(bar, _figures(row)))

        yield observe


def print_table(
    console: Console,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    words: Collection[str] | None = None,
    wrap: bool = True,
) -> None:
    """Print a table: words to the left, numbers to the right.

    Args:
        console: Where to.
        headings: One per column; none at all for a table of words without a heading.
        rows: Cells, in the order of the headings.
        words: Headings of the columns that hold words; the first alone if not given.
        wrap: Whether a row that is wider than the console takes several lines. If not, its cells are cut short.
    """
    table = Table(box=None, show_header=bool(headings), padding=(0, 2, 0, 0))
    for heading in headings:
        is_words = heading in (headings[:1] if words is None else words)
        table.add_column(heading, justify="left" if is_words else "right", no_wrap=not wrap)
    for row in rows:
        table.add_row(*row)
    console.print(table, soft_wrap=not wrap)


def print_line(console: Console, text: str) -> None:
    """Print a line as it is: neither wrapped nor coloured."""
    console.print(text, soft_wrap=True, highlight=False)


def print_summary(outcome: Outcome, asked: Asked, folder: Path, console: Console) -> None:
    """The outcome in a few lines, then the layers."""
    dense = "none: pruned from scratch" if outcome.dense_accuracy is None else f"{outcome.dense_accuracy:.4f}"
    figures = [
        ("dense accuracy", dense),
        ("pruned accuracy", f"{outcome.final_accuracy:.4f}"),
        *_sizes(outcome, asked),
        ("seconds", f"{outcome.seconds:.1f}"),
    ]
    console.print()
    print_table(console, (), figures)
    console.print()
    if outcome.channels:
        print_table(console, ("layer", "channels", "left", "share"), _counts(outcome.channels))
    else:
        print_table(console, ("layer", "weights", "left", "density"), _counts(outcome.layers))
    console.print()
    print_line(console, f"files in {folder}")


def _sizes(outcome: Outcome, asked: Asked) -> list[tuple[str, str]]:
    """How much is left, next to what was asked for."""
    weights = f"{outcome.surviving_weights:,} of {outcome.total_weights:,} (density {1 - outcome.final_sparsity:.4f})"
    target = "" if outcome.target_sparsity is None else f" (asked for {outcome.target_sparsity:g})"
    rows = [("sparsity", f"{outcome.final_sparsity:.4f}{target}"), ("weights left", weights)]
    if not asked.of_channels:
        return rows
    most = {asked.counted: f" (at most {asked.density:g})"}
    sizes = {"FLOPs": outcome.flops_ratio, "parameters": outcome.parameters_ratio}
    ratios = [
        (name, f"{ratio:.4f} of the dense network's{most.get(name, '')}")
        for name, ratio in sizes.items()
        if ratio is not None
    ]
    if asked.budget == "latency":
        ratios.append(("time per batch", f"planned {asked.density:g} of the dense network's; measured below"))
    left, total = (sum(getattr(x, part) for x in outcome.channels) for part in ("surviving", "total"))
    return [*(rows if asked.budget == "sparsity" else rows[1:]), *ratios, ("channels left", f"{left:,} of {total:,}")]


def print_times(times: LatencyTable, console: Console) -> None:
    """The layer times that the budget is counted by."""
    table = time_table(times)
    console.print()
    print_table(console, (f"milliseconds by {table.heading[0]}", *table.heading[1:]), table.rows)


def _counts(layers: Iterable[LayerCount]) -> list[tuple[str, ...]]:
    return [
        (layer.name, f"{layer.total:,}", f"{layer.surviving:,}", f"{layer.surviving / layer.total:.4f}")
        for layer in layers
    ]


def print_compact(compacted: CompactNetwork, console: Console) -> None:
    """How much smaller and faster the compacted network is, and where it was written."""
    dense, small = compacted.dense, compacted.compacted
    costs = [
        (name, f"{before:,}", f"{after:,}", f"{after / before:.4f}")
        for name, before, after in (
            ("parameters", dense.parameters, small.parameters),
            ("FLOPs per sample", dense.dense_flops, small.dense_flops),
        )
    ]
    times = [
        (
            f"microseconds, batch {time.batch_size}{'' if time.device == 'cpu' else f' on {time.device}'}",
            *(f"{1e6 * value:,.1f}" for value in seconds),
            f"{time.ratio:.4f}",
        )
        for time in compacted.times
        for seconds in [(time.dense_seconds, time.compacted_seconds)]
    ]
    console.print()
    print_table(console, ("compacted network", "dense", "compacted", "ratio"), [*costs, *times])
    console.print()
    print_line(console, f"weights in {compacted.weights}, weights and computation in {compacted.program}")


def _figures(row: EpochRow) -> str:
    if row.stage == "dense":
        return f"accuracy {row.accuracy:.4f}"
    return (
        f"density {row.density:.4f} (target {row.wanted:.4f})  pressure {row.pressure:.3g}  accuracy {row.accuracy:.4f}"
    )


def _print_line(row: EpochRow, epochs: int) -> None:
    width = len(str(epochs))
    print(f"epoch {row.epoch:>{width}}/{epochs}  {row.stage:<8}  {_figures(row)}", flush=True)
