"""`hyperflux prune`: train, prune and regrow a network on a data set, and leave a run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .options import PlainPath, merged, settings_options


@click.command()
@click.option("--recipe", metavar="NAME|FILE", help="Start from a recipe's settings; see `hyperflux recipes`.")
@settings_options()
@click.option("--out", type=PlainPath(), help="New folder for the run  [default: under runs/]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one line of JSON and nothing else.")
def prune(recipe: str | None, out: Path | None, as_json: bool, **given: Any) -> None:
    """Train a network, prune it to the wanted sparsity with Hyperflux, and write the result to a folder.

    Options given here override the recipe's settings. A run's config.toml is itself a recipe: giving it to --recipe
    repeats the run.
    """
    from hyperflux import recipes
    from hyperflux.config import RunConfig
    from hyperflux.run import default_folder, execute, total_epochs

    from .display import plain_console, print_summary, progress

    config = RunConfig.from_dict(merged({} if recipe is None else recipes.load(recipe), given))
    folder = out or default_folder(config)
    with progress(total_epochs(config), plain_console(stderr=as_json), quiet=as_json) as observe:
        report = execute(config, folder, observe)
    if as_json:
        click.echo(json.dumps({**report.to_dict(), "folder": str(folder)}))
    else:
        print_summary(report, folder, plain_console())
