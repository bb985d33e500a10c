"""`hyperflux prune`: train, prune and regrow a network on a data set, and leave a run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from hyperflux.checkpoints.pace import DEFAULT

from .options import PlainPath, merged, require_agreement, settings_options


@click.command()
@click.option("--recipe", metavar="NAME|FILE", help="Start from a recipe's settings; see `hyperflux recipes`.")
@settings_options()
@click.option("--out", type=PlainPath(), help="New folder for the run  [default: under runs/]")
@click.option("--resume", "resumed", is_flag=True, help="Go on with the unfinished run in the folder --out.")
@click.option(
    "--checkpoint-every",
    metavar="STEPS|TIME",
    default=DEFAULT,
    show_default=True,
    help="How often to save where the run is: 500 (steps), 30s, 10min, 2h; also at the end of each stage.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one line of JSON and nothing else.")
def prune(
    recipe: str | None, out: Path | None, resumed: bool, checkpoint_every: str, as_json: bool, **given: Any
) -> None:
    """Train a network, prune it to the wanted sparsity with Hyperflux, and write the result to a folder.

    Options given here override the recipe's settings. A run's config.toml is itself a recipe: giving it to --recipe
    repeats the run. Ctrl-C stops a run after the step under way; `--resume --out FOLDER` goes on with one that was
    stopped or broken off, to the same end.
    """
    from hyperflux import InputError, recipes
    from hyperflux.checkpoints.pace import Pace
    from hyperflux.checkpoints.stop import wish_to_stop
    from hyperflux.config import RunConfig
    from hyperflux.record import recorded_config
    from hyperflux.run import default_folder, execute, resume, total_epochs

    from .display import plain_console, print_summary, progress

    stated = merged({} if recipe is None else recipes.load(recipe), given)
    every = Pace.parse(checkpoint_every)
    if resumed:
        if out is None:
            raise InputError("--resume: needs --out, the folder of the run that is to go on")
        config, folder = recorded_config(out), out
        changed = stated.pop("on_nonfinite", None)
        require_agreement(stated, config, folder)
    else:
        config = RunConfig.from_dict(stated)
        folder = out or default_folder(config)
    with (
        progress(total_epochs(config), plain_console(stderr=as_json), quiet=as_json) as observe,
        wish_to_stop() as stop,
    ):

        def announce(line: str) -> None:
            click.echo(f"hyperflux: {line}", err=True)

        if resumed:
            report = resume(folder, observe, every=every, stop=stop, announce=announce, on_nonfinite=changed)
        else:
            report = execute(config, folder, observe, every=every, stop=stop, announce=announce)
    if as_json:
        click.echo(json.dumps({**report.to_dict(), "folder": str(folder)}))
    else:
        print_summary(report, folder, plain_console())
