"""`hyperflux compare`: methods x sparsities x seeds in one go, as one table and one plot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .options import PlainPath, merged, settings_options
from .signals import ignore_stop_signals

T = TypeVar("T")


def listed(kind: Callable[[str], T]) -> Callable[[click.Context, click.Parameter, str], list[T]]:
    """A callback that parses values separated by commas."""

    def parse(context: click.Context, parameter: click.Parameter, text: str) -> list[T]:
        try:
            return [kind(part.strip()) for part in text.split(",") if part.strip()]
        except ValueError as error:
            raise click.BadParameter(f"{text!r}: give values separated by commas") from error

    return parse


@click.command(short_help="Compare methods at several sparsities.")
@click.option("--recipe", metavar="NAME|FILE", help="Start from a recipe's settings; see `hyperflux recipes`.")
@click.option(
    "--methods",
    default="hyperflux,magnitude",
    show_default=True,
    callback=listed(str),
    help="Methods to compare: hyperflux, published (`prune --controller published`), magnitude.",
)
@click.option(
    "--sparsities", default="0.9,0.95,0.98", show_default=True, callback=listed(float), help="Fractions to prune."
)
@click.option("--seeds", default="0,1,2", show_default=True, callback=listed(int), help="One dense network for each.")
@settings_options(without=("sparsity", "seed", "method", "controller"))
@click.option("--out", type=PlainPath(), help="Folder of all runs  [default: under runs/]")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON and nothing else.")
def compare(
    recipe: str | None,
    methods: list[str],
    sparsities: list[float],
    seeds: list[int],
    out: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Compare methods of pruning at several sparsities over several seeds, from the same dense networks.

    The dense network of each seed is trained once. Runs that are there already are not repeated, so an interrupted
    comparison goes on where it was. The folder gets comparison.md, .csv, .json and .png.
    """  # fmt: skip
    from hyperflux import recipes
    from hyperflux.config import RunConfig
    from hyperflux.report import comparison
    from hyperflux.runs.compare import Plan, execute_plan

    from .display import plain_console, print_line, print_table

    base = RunConfig.from_dict(merged({} if recipe is None else recipes.load(recipe), given))
    folder = out or Path("runs") / f"compare-{base.dataset}-{base.model.replace(':', '-')}"
    comparison.require_own(folder)
    console = plain_console(stderr=as_json)
    rows = execute_plan(Plan(base, methods, sparsities, seeds, folder), lambda text: console.print(text))
    comparison.write(rows, folder, f"{base.model} on {base.dataset}")
    ignore_stop_signals()
    if as_json:
        print(json.dumps([row.to_dict() for row in rows]))
        return
    console.print()
    print_table(console, comparison.HEADINGS, map(comparison.cells, rows), words=("method",))
    console.print()
    print_line(console, f"table, plot and runs in {folder}")
