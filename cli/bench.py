"""`hyperflux bench`: what pruning costs, measured side by side in one process."""

from __future__ import annotations

import json

import click


@click.group()
def bench() -> None:
    """Measure what pruning costs and gains on this machine."""


@bench.command()
@click.option("--model", default="resnet20", show_default=True, help="Any model of `hyperflux prune`.")
@click.option("--batch-size", default=128, show_default=True, help="Samples a step.")
@click.option("--rotations", default=30, show_default=True, help="Turns of each variant; medians are shown.")
@click.option("--device", default="auto", show_default=True, help="cuda, mps or cpu; auto takes the first there is.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON and nothing else.")
def step(model: str, batch_size: int, rotations: int, device: str, as_json: bool) -> None:
    """Time a training step: dense, with the gate, and with the gate and the default course.

    The variants take turns of ten steps; each ratio is to the dense step of the same rotation.
    """
    from rich.console import Console
    from rich.table import Table

    from hyperflux.backends.torch.bench import time_steps

    rows = time_steps(model, batch_size, rotations, device)
    if as_json:
        click.echo(json.dumps([row.to_dict() for row in rows]))
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("step", "milliseconds", "ratio to dense", "lowest", "highest"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for row in rows:
        ratios = (f"{value:.3f}" for value in (row.ratio, row.lowest_ratio, row.highest_ratio))
        table.add_row(row.variant, f"{1000 * row.seconds:.2f}", *ratios)
    Console().print(table)
