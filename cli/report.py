"""`hyperflux report`: what pruning did, as one HTML page and a Markdown summary."""

from __future__ import annotations

from pathlib import Path

import click

from .options import PlainPath


@click.command()
@click.argument("runs", metavar="RUN [RUN ...]", nargs=-1, required=True, type=PlainPath())
@click.option("--out", type=PlainPath(), help="Folder of report.html and report.md  [default: the run's]")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write report.html and report.md about a finished run: its course, layers, single weights, how to repeat it.

    The page needs no network. Several runs stand side by side; their report goes to the folder that holds them all.
    """
    from rich.console import Console

    from hyperflux.report.narrative import narrative, summary
    from hyperflux.report.run import reported_runs
    from hyperflux.report.write import default_folder, write

    subjects_ = reported_runs(runs)
    path = write(subjects_, out or default_folder(runs))
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    for run in subjects_:
        if subjects_[1:]:
            console.print(f"{run.label}: {' '.join(text for _, text in summary(run))}")
        else:
            for said in narrative(run):
                console.print(f"{said.topic}: {said.text}")
    console.print(f"page in {path}")
