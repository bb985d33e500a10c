"""`hyperflux bench`: what pruning costs, measured side by side in one process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from hyperflux.rotation import Timing

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def bench() -> None:
    """Measure what pruning costs and gains on this machine."""


def timing_options(command: F) -> F:
    """Decorate a command with the options of every timing."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the table as JSON and nothing else."),
        click.option("--device", default="auto", show_default=True, help="cuda, mps or cpu; auto takes the first."),
        click.option("--rotations", default=30, show_default=True, help="Turns of each variant; medians are shown."),
        click.option("--batch-size", default=128, show_default=True, help="Samples a step."),
        click.option("--model", default="resnet20", show_default=True, help="Any model of `hyperflux prune`."),
    ):
        command = option(command)
    return command


@bench.command()
@timing_options
def step(model: str, batch_size: int, rotations: int, device: str, as_json: bool) -> None:
    """Time a training step: dense, with the gate, and with the gate and the default course.

    The variants take turns of ten steps; each ratio is to the dense step of the same rotation.
    """
    from hyperflux.backends.torch.bench import time_steps

    rows = time_steps(model, batch_size, rotations, device)
    _show(rows, ("step", "milliseconds", "ratio to dense", "lowest", "highest"), [_cells(row) for row in rows], as_json)


@bench.command()
@timing_options
def telemetry(model: str, batch_size: int, rotations: int, device: str, as_json: bool) -> None:
    """Time a training step of the default course with telemetry off, light and full.

    Each variant takes one interval of light telemetry of a course of ten epochs, then it is the next one's turn. The
    size of telemetry.npz is that of the timed intervals, scaled to the whole course.
    """
    from hyperflux.backends.torch.bench import time_telemetry

    rows = time_telemetry(model, batch_size, rotations, device)
    cells = [(*_cells(row.time), f"{row.file_bytes / 1000:,.0f}") for row in rows]
    _show(rows, ("telemetry", "milliseconds", "ratio to off", "lowest", "highest", "file (kB)"), cells, as_json)


def _cells(row: Timing) -> tuple[str, ...]:
    ratios = (f"{value:.3f}" for value in (row.ratio, row.lowest_ratio, row.highest_ratio))
    return row.variant, f"{1000 * row.seconds:.2f}", *ratios


def _show(rows: Sequence[Any], headings: Sequence[str], cells: Sequence[Sequence[str]], as_json: bool) -> None:
    """A table of `cells`, or `rows` as JSON."""
    from rich.console import Console
    from rich.table import Table

    if as_json:
        click.echo(json.dumps([row.to_dict() for row in rows]))
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="left" if heading == headings[0] else "right")
    for row in cells:
        table.add_row(*row)
    Console().print(table)
