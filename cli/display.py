"""What a person sees of a run: progress while it trains, a table at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hyperflux.runs.folder import EpochRow, Report


def plain_console(stderr: bool = False) -> Console:
    """A console that shows text as it is: brackets and colons in names are no markup and no emoji."""
    return Console(stderr=stderr, markup=False, emoji=False)


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


def print_summary(report: Report, folder: Path, console: Console) -> None:
    """The outcome in a few lines, then the layers."""
    outcome = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    density = 1 - report.final_sparsity
    dense = "none: pruned from scratch" if report.dense_accuracy is None else f"{report.dense_accuracy:.4f}"
    outcome.add_row("dense accuracy", dense)
    outcome.add_row("pruned accuracy", f"{report.final_accuracy:.4f}")
    outcome.add_row("sparsity", f"{report.final_sparsity:.4f} (asked for {report.target_sparsity:g})")
    outcome.add_row("weights left", f"{report.surviving_weights:,} of {report.total_weights:,} (density {density:.4f})")
    outcome.add_row("seconds", f"{report.seconds:.1f}")
    layers = Table(box=None, padding=(0, 2, 0, 0))
    layers.add_column("layer")
    for heading in ("weights", "left", "density"):
        layers.add_column(heading, justify="right")
    for layer in report.layers:
        layers.add_row(layer.name, f"{layer.total:,}", f"{layer.surviving:,}", f"{layer.surviving / layer.total:.4f}")
    console.print()
    console.print(outcome)
    console.print()
    console.print(layers)
    console.print()
    console.print(f"files in {folder}", soft_wrap=True, highlight=False)


def _figures(row: EpochRow) -> str:
    if row.stage == "dense":
        return f"accuracy {row.accuracy:.4f}"
    return (
        f"density {row.density:.4f} (wanted {row.wanted:.4f})  pressure {row.pressure:.3g}  accuracy {row.accuracy:.4f}"
    )


def _print_line(row: EpochRow, epochs: int) -> None:
    width = len(str(epochs))
    print(f"epoch {row.epoch:>{width}}/{epochs}  {row.stage:<8}  {_figures(row)}", flush=True)
