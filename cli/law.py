"""`hyperflux law`: sweep the pressure, fit the pruning law, and say what pressure gives what sparsity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .compare import listed
from .options import PlainPath, merged, settings_options
from .signals import ignore_stop_signals

if TYPE_CHECKING:
    from rich.console import Console

    from hyperflux.config import RunConfig
    from hyperflux.law.sweep import SweepRow, SweepSettings
    from hyperflux.report.law import Study


@click.command(short_help="Measure density against pressure.")
@click.option("--recipe", metavar="NAME|FILE", help="Start from a recipe's settings; see `hyperflux recipes`.")
@click.option("--lowest", default=-7.0, show_default=True, help="The first pressure, as an exponent of two.")
@click.option("--highest", default=5.0, show_default=True, help="The last pressure, as an exponent of two.")
@click.option("--step", default=1.0, show_default=True, help="Octaves from one pressure to the next.")
@click.option("--epochs", default=200, show_default=True, help="Longest training at one pressure, in epochs.")
@click.option("--independent", is_flag=True, help="Start each pressure from the dense network.")
@click.option(
    "--methods",
    default="hyperflux",
    show_default=True,
    callback=listed(str),
    help="hyperflux, or hyperflux,magnitude: magnitude pruning to the same densities, for its saliencies.",
)
@click.option(
    "--sparsity",
    "sparsities",
    default="0.9,0.95,0.98",
    show_default=True,
    callback=listed(float),
    help="Also give the pressures for these sparsities, fractions.",
)
@click.option("--from", "source", type=PlainPath(), help="Fit this CSV file instead of a sweep.")
@click.option("--x", default="pressure", show_default=True, help="Name of the CSV column of pressures.")
@click.option("--y", default="density", show_default=True, help="Name of the CSV column of densities, fractions.")
@settings_options(without=("sparsity", "method", "controller", "pruning.epochs", "regrowth.epochs", "telemetry"))
@click.option("--out", type=PlainPath(), help="New folder  [default: under runs/; none with --from]")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one line of JSON and nothing else.")
def law(
    recipe: str | None,
    sparsities: list[float],
    source: Path | None,
    x: str,
    y: str,
    out: Path | None,
    as_json: bool,
    lowest: float,
    highest: float,
    step: float,
    epochs: int,
    independent: bool,
    methods: list[str],
    **given: Any,
) -> None:
    """Measure the pruning law: the density at which a network settles under each of several constant pressures.

    The law is fitted twice, linear and quadratic in ln(pressure), with 95 % intervals. The folder gets law.csv,
    law.json and law.png, and the saliencies of the surviving weights as saliencies.csv and saliencies.png.
    """
    from hyperflux import recipes
    from hyperflux.config import RunConfig
    from hyperflux.law.sweep import SweepSettings
    from hyperflux.schedules.feasibility import require_fraction

    from .display import plain_console

    for sparsity in sparsities:
        require_fraction(sparsity)
    console = plain_console(stderr=as_json)
    if source:
        _fit_file(source, (x, y), sparsities, out, console, as_json)
        return
    settings = SweepSettings(lowest, highest, step, epochs, independent, tuple(methods))
    config = RunConfig.from_dict(merged({} if recipe is None else recipes.load(recipe), given))
    folder = out or Path("runs") / f"law-{config.dataset}-{config.model.replace(':', '-')}-{config.seed}"
    _sweep(config, settings, sparsities, folder, console, as_json)


def _sweep(
    config: RunConfig, settings: SweepSettings, sparsities: list[float], folder: Path, console: Console, as_json: bool
) -> None:
    """Measure, write after each pressure, fit, print."""
    from hyperflux import InputError, RunError
    from hyperflux.law.sweep import prepare, sweep
    from hyperflux.report import sweep as shown

    from .display import print_line, print_table

    rows: list[SweepRow] = []
    with console.status("dense network") as status:

        def watch(method: str, at: float, epoch: int, density: float) -> None:
            status.update(f"{method}, {at:.4g}: epoch {epoch}, density {density:.4f}")

        def announce(line: str) -> None:
            click.echo(f"hyperflux: {line}", err=True)

        for row in sweep(config, settings, prepare(config, folder, announce), watch):
            rows.append(row)
            shown.write_rows(rows, folder)
            if not (as_json or console.is_terminal):
                print(
                    f"{row.method}, pressure {row.pressure:.4g}: density {row.density:.4f}, epochs {row.epochs}",
                    flush=True,
                )
    try:
        found, reason = shown.study(rows, sparsities), ""
    except InputError as error:
        found, reason = None, str(error)
    shown.write_study(rows, settings, found, folder, f"{config.model} on {config.dataset}")
    ignore_stop_signals()
    if as_json:
        print(json.dumps({**shown.to_dict(rows, settings, found), "folder": str(folder)}))
    else:
        console.print()
        print_table(console, shown.HEADINGS, map(shown.cells, rows), words=("method", ""), wrap=False)
        for line in shown.left_out(rows):
            print_line(console, line)
    if found is None:
        raise RunError(f"this sweep determines no law ({reason}); what was measured is in {folder}")
    if not as_json:
        _explain(found, console)
        print_line(console, f"tables and plots in {folder}")


def _fit_file(
    source: Path, names: tuple[str, str], sparsities: list[float], out: Path | None, console: Console, as_json: bool
) -> None:
    """Fit two columns of a CSV file; with a folder, leave law.json and law.png there."""
    from hyperflux.io.atomic_write import new_folder, write_together
    from hyperflux.law.csv_columns import read_columns
    from hyperflux.report.law import Study

    from .display import print_line

    found = Study.of(*read_columns(source, *names), sparsities)
    text = json.dumps(found.to_dict())
    if out:
        files = {"law.json": f"{text}\n".encode(), "law.png": found.plot(source.name)}
        new_folder(out, files)
        write_together(out, files)
        ignore_stop_signals()
    if as_json:
        print(text)
        return
    _explain(found, console)
    if out:
        print_line(console, f"law.json and law.png in {out}")


def _explain(found: Study, console: Console) -> None:
    """Both fits as a table, then what they say."""
    from hyperflux.report.law import HEADINGS

    from .display import print_line, print_table

    console.print()
    print_table(console, HEADINGS, found.fits(), wrap=False)
    console.print()
    for line in found.sentences():
        print_line(console, line)
    console.print()
