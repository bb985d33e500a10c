"""`hyperflux prune`: train and prune a network, and write a run's folder."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyperflux.errors import one_line
from hyperflux.runs.checkpoints import DEFAULT_INTERVAL

from .options import PlainPath, merged, require_same_settings, settings_options
from .signals import ignore_stop_signals

if TYPE_CHECKING:
    from hyperflux.config import RunConfig
    from hyperflux.deploy.compacted import CompactNetwork
    from hyperflux.runs.epochs import Observer


@click.command(short_help="Train a network and prune it.")
@click.option("--recipe", metavar="NAME|FILE", help="Take settings from a recipe; see `hyperflux recipes`.")
@settings_options()
@click.option("--out", type=PlainPath(), help="New folder for the run  [default: a new one in runs/]")
@click.option("--resume", "resumed", is_flag=True, help="Continue the unfinished run in the folder --out.")
@click.option(
    "--checkpoint-every",
    metavar="STEPS|TIME",
    default=DEFAULT_INTERVAL,
    show_default=True,
    help="How often to save a checkpoint: 500 (steps), 30s, 10min or 2h. One more is saved at the end of each stage.",
)
@click.option("--json", "as_json", is_flag=True, help="Print only the outcome, as one line of JSON.")
def prune(
    recipe: str | None, out: Path | None, resumed: bool, checkpoint_every: str, as_json: bool, **given: Any
) -> None:
    """Train a network, prune it to a sparsity or another budget, and write the result to a folder.

    Options override the settings of the recipe. A run's config.toml is a recipe too: `--recipe config.toml` repeats
    the run.

    Ctrl-C stops a run after the current step and saves it. `--resume --out FOLDER` continues a run that was
    interrupted in any way; the result is the same as without the interruption. Give it --data-dir or --checkpoint if
    these have moved.

    With --gates channels the folder also gets the compacted network, as compact.safetensors and compact.pt2, and the
    command tells how much smaller and faster it is than the dense one. If that fails, the run is finished all the same.

    `torchrun --nproc-per-node 4 $(which hyperflux) prune ...` trains in four processes, each on its part of every
    batch.
    """
    from hyperflux.backends import launched_process_group
    from hyperflux.report.asked import Asked
    from hyperflux.runs.checkpoints.writer import CheckpointInterval, catch_stop_signals
    from hyperflux.runs.driver import execute, resume, total_epochs
    from hyperflux.runs.folder import recorded_times
    from hyperflux.session.processes import from_rank_zero

    from .display import plain_console, print_compact, print_summary, print_times, progress

    def announce(line: str) -> None:
        print(f"hyperflux: {one_line(line)}", file=sys.stderr)

    with launched_process_group() as processes:
        every = from_rank_zero(processes, lambda: CheckpointInterval.parse(checkpoint_every))
        config, folder, changes = from_rank_zero(processes, lambda: _settled(recipe, out, resumed, given))
        shown: AbstractContextManager[Observer] = nullcontext(lambda row: None)
        if processes.rank == 0:
            shown = progress(total_epochs(config), plain_console(stderr=as_json), as_json)
        with shown as observe, catch_stop_signals() as stop:
            if resumed:
                go = partial(
                    resume,
                    folder,
                    on_nonfinite=changes.get("on_nonfinite"),
                    data_dir=changes.get("data_dir"),
                    checkpoint=changes.get("checkpoint"),
                )
            else:
                go = partial(execute, config, folder)
            report = go(observe, every=every, stop=stop, announce=announce, processes=processes)
            ignore_stop_signals()
    if processes.rank > 0:
        return
    if not as_json:
        print_summary(report, Asked.of(config), folder, plain_console())
        if (times := recorded_times(folder, config)) is not None:
            print_times(times, plain_console())
    small = _compacted(folder, announce) if config.gate_kind == "channels" else None
    if as_json:
        added = {"compact": None if small is None else small.to_dict()} if config.gate_kind == "channels" else {}
        print(json.dumps({**report.to_dict(), "folder": str(folder), **added}))
    elif small is not None:
        print_compact(small, plain_console())


def _compacted(folder: Path, announce: Callable[[str], None]) -> CompactNetwork | None:
    """Write and measure the compacted network of a finished run; where that fails, say so: the run is finished."""
    from hyperflux.deploy.compacted import write_compacted
    from hyperflux.errors import InputError, RunError

    try:
        return write_compacted(folder)
    except (InputError, RunError) as error:
        again = f"hyperflux export {shlex.quote(str(folder))} --format torch-export"
        announce(f"the run is finished, but its compacted network could not be written ({error}); try {again}")
        return None


def _settled(
    recipe: str | None, out: Path | None, resumed: bool, given: Mapping[str, Any]
) -> tuple[RunConfig, Path, dict[str, Any]]:
    """Settings and folder of the run, and what a resumed run has other than before.

    Raises InputError if the options contradict each other or a stored run.
    """
    from hyperflux import InputError, recipes
    from hyperflux.config import RunConfig
    from hyperflux.runs.driver import default_folder
    from hyperflux.runs.folder import recorded_config

    stated = merged({} if recipe is None else recipes.load(recipe), given)
    if not resumed:
        config = RunConfig.from_dict(stated)
        return config, out or default_folder(config), {}
    if out is None:
        raise InputError("--resume: also needs --out, the folder of the run to continue")
    config = recorded_config(out)
    changeable = ("on_nonfinite", "data_dir", *(["checkpoint"] if config.checkpoint else []))
    changes = {name: stated.pop(name) for name in changeable if stated.get(name)}
    config = replace(config, **changes)
    require_same_settings(stated, config, out)
    return config, out, changes
