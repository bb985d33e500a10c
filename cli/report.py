"""`hyperflux report`: what pruning did, as one HTML page and a Markdown summary."""

from __future__ import annotations

from pathlib import Path

import click

from .options import PlainPath
from .signals import ignore_stop_signals


@click.command(short_help="Write a page about finished runs.")
@click.argument("runs", metavar="RUN [RUN ...]", nargs=-1, required=True, type=PlainPath())
@click.option("--out", type=PlainPath(), help="Folder of report.html and report.md  [default: the run's]")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write report.html and report.md about a finished run: its course, layers, single weights, how to repeat it.

    The page needs no network. Several runs are compared on one page, written to the folder that holds them all.
    """
    from hyperflux.report.narrative import narrative, size_and_accuracy
    from hyperflux.report.run import reported_runs
    from hyperflux.report.write import default_folder, write_report

    from .display import plain_console, print_line

    found = reported_runs(runs)
    path = write_report(found, out or default_folder(runs))
    ignore_stop_signals()
    console = plain_console()
    if len(found) == 1:
        for finding in narrative(found[0]):
            print_line(console, f"{finding.topic}: {finding.text}")
    else:
        for run in found:
            print_line(console, f"{run.label}: {' '.join(finding.text for finding in size_and_accuracy(run))}")
    print_line(console, f"page in {path}")
