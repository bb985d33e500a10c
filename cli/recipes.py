"""`hyperflux recipes`: list the package's recipes, or show one."""

from __future__ import annotations

import click

from hyperflux import recipes as library


@click.command(short_help="List recipes, or show one.")
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the recipes of `hyperflux prune --recipe`, or show the TOML text of the one called NAME.

    Recipes with the paper's epochs, rates and batches prune by the default course, which meets the sparsity exactly.
    Add `--controller published` for the paper's own controller.

    To make your own, save a recipe's text to a file, change it, and give the file to --recipe.
    """
    if name is not None:
        print(library.text(name), end="")
        return
    width = max(map(len, library.names()))
    for known in library.names():
        print(f"{known:<{width}}  {library.summary(known)}")
