"""What a person sees: the progress of a run, its outcome, and the tables of every command."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hyperflux.runs.schema import EpochRow, Outcome


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


def print_summary(outcome: Outcome, folder: Path, console: Console) -> None:
    """The outcome in a few lines, then the layers."""
    density = 1 - outcome.final_sparsity
    left = f"{outcome.surviving_weights:,} of {outcome.total_weights:,} (density {density:.4f})"
    dense = "none: pruned from scratch" if outcome.dense_accuracy is None else f"{outcome.dense_accuracy:.4f}"
    figures = [
        ("dense accuracy", dense),
        ("pruned accuracy", f"{outcome.final_accuracy:.4f}"),
        ("sparsity", f"{outcome.final_sparsity:.4f}{_asked(outcome.target_sparsity)}"),
        ("weights left", left),
        ("seconds", f"{outcome.seconds:.1f}"),
    ]
    layers = [
        (layer.name, f"{layer.total:,}", f"{layer.surviving:,}", f"{layer.surviving / layer.total:.4f}")
        for layer in outcome.layers
    ]
    console.print()
    print_table(console, (), figures)
    console.print()
    print_table(console, ("layer", "weights", "left", "density"), layers)
    console.print()
    print_line(console, f"files in {folder}")


def _asked(sparsity: float | None) -> str:
    return "" if sparsity is None else f" (asked for {sparsity:g})"


def _figures(row: EpochRow) -> str:
    if row.stage == "dense":
        return f"accuracy {row.accuracy:.4f}"
    return (
        f"density {row.density:.4f} (target {row.wanted:.4f})  pressure {row.pressure:.3g}  accuracy {row.accuracy:.4f}"
    )


def _print_line(row: EpochRow, epochs: int) -> None:
    width = len(str(epochs))
    print(f"epoch {row.epoch:>{width}}/{epochs}  {row.stage:<8}  {_figures(row)}", flush=True)
