"""`hyperflux compare`: methods x budgets x seeds in one go, as one table and one plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hyperflux.gates.kinds import BUDGETS, Budget

from .options import PlainPath, merged, settings_options
from .signals import ignore_stop_signals

if TYPE_CHECKING:
    from hyperflux.config import RunConfig

DEFAULT_SPARSITIES = [0.9, 0.95, 0.98]
T = TypeVar("T")


def listed(kind: Callable[[str], T]) -> Callable[[click.Context, click.Parameter, str | None], list[T] | None]:
    """A callback that parses values separated by commas."""

    def parse(context: click.Context, parameter: click.Parameter, text: str | None) -> list[T] | None:
        if text is None:
            return None
        try:
            return [kind(part.strip()) for part in text.split(",") if part.strip()]
        except ValueError as error:
            raise click.BadParameter(f"{text!r}: give values separated by commas") from error

    return parse


@click.command(short_help="Compare methods at several budgets.")
@click.option("--recipe", metavar="NAME|FILE", help="Start from a recipe's settings; see `hyperflux recipes`.")
@click.option(
    "--methods",
    default="hyperflux,magnitude",
    show_default=True,
    callback=listed(str),
    help="Methods to compare: hyperflux, published (`prune --controller published`), magnitude, taylor.",
)
@click.option(
    "--sparsities",
    "sparsity",
    callback=listed(float),
    help="Fractions to prune.  [default: 0.9,0.95,0.98, without another budget]",
)
@click.option("--flops", callback=listed(float), help="With gates of channels, in their place: FLOPs to keep.")
@click.option("--parameters", callback=listed(float), help="Likewise: parameters to keep.")
@click.option("--latency", callback=listed(float), help="Likewise: time per batch to keep.")
@click.option("--seeds", default="0,1,2", show_default=True, callback=listed(int), help="One dense network for each.")
@settings_options(without=(*BUDGETS, "seed", "method", "controller"))
@click.option("--out", type=PlainPath(), help="Folder of all runs  [default: under runs/]")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON and nothing else.")
def compare(
    recipe: str | None,
    methods: list[str],
    sparsity: list[float] | None,
    flops: list[float] | None,
    parameters: list[float] | None,
    latency: list[float] | None,
    seeds: list[int],
    out: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Compare methods of pruning at several budgets over several seeds, from the same dense networks.

    The dense network of each seed is trained once. Runs that are there already are not repeated, so an interrupted
    comparison goes on where it was. The folder gets comparison.md, .csv, .json and .png.
    """  # fmt: skip
    from hyperflux import recipes
    from hyperflux.config import RunConfig
    from hyperflux.report import comparison
    from hyperflux.runs.compare import Plan, execute_plan

    from .display import plain_console, print_line, print_table

    base = RunConfig.from_dict(merged({} if recipe is None else recipes.load(recipe), given))
    lists = {"sparsity": sparsity, "flops": flops, "parameters": parameters, "latency": latency}
    budget, shares = _asked(base, {name: values for name, values in lists.items() if values is not None})
    folder = out or Path("runs") / f"compare-{base.dataset}-{base.model.replace(':', '-')}{_gates_name(base)}"
    comparison.require_own(folder)
    console = plain_console(stderr=as_json)
    rows = execute_plan(Plan(base, methods, shares, seeds, folder, budget), lambda text: console.print(text))
    comparison.write(rows, folder, f"{base.model} on {base.dataset}")
    ignore_stop_signals()
    if as_json:
        print(json.dumps([row.to_dict() for row in rows]))
        return
    console.print()
    others = ("FLOPs", "parameters") if budget == "sparsity" else ("density", "seeds")  # for 80 characters
    print_table(console, *comparison.table(rows, without=others), words=("method",))
    console.print()
    print_line(console, f"table, plot and runs in {folder}")


def _asked(base: RunConfig, given: Mapping[str, list[float]]) -> tuple[Budget, list[float]]:
    """The budget and its shares. Raises InputError for several budgets, or one that does not go with the gates."""
    from hyperflux.errors import InputError
    from hyperflux.gates.kinds import Pattern

    flags = ["--sparsities" if name == "sparsity" else f"--{name}" for name in given]
    kind = base.gate_kind
    if isinstance(kind, Pattern):
        if flags:
            raise InputError(f"{flags[0]}: gates {kind} leave {kind} of the weights; leave it out")
        return "sparsity", [base.budget[1]]
    if len(flags) > 1:
        raise InputError(f"{flags[0]} and {flags[1]}: only one of them can bound the networks; leave one out")
    for name in BUDGETS:
        if name in given:
            return name, given[name]
    return "sparsity", DEFAULT_SPARSITIES


def _gates_name(base: RunConfig) -> str:
    """What a comparison of other gates than weights has at the end of its folder's name."""
    return "" if base.gates == "weights" else f"-{base.gates.replace(':', 'of')}"
