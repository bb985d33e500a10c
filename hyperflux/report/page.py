"""The report as one HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from string import Template

from hyperflux.report import course, layers, mask_changes, tables, weight_histories
from hyperflux.report.narrative import Finding, brief, narrative
from hyperflux.report.run import ReportedRun
from hyperflux.report.style import COLOURS, DARK_COLOURS, VARIABLES
from hyperflux.report.svg import Key, Plot
from hyperflux.report.tables import TextTable

SECTIONS = {
    "The course": (course.density, course.pressure, course.accuracy, course.losses),
    "Weights that changed sides": (course.changes, mask_changes.flux, mask_changes.flips, mask_changes.settling),
    "Layers and single weights": (layers.layer_density, weight_histories.weight_histories),
}
"""The plots of one run."""
SHARED = {
    "Side by side": (
        course.density,
        course.pressure,
        course.accuracy,
        course.changes,
        mask_changes.settling,
        layers.final_density,
    ),
}
"""The plots of several."""


def page(runs: Sequence[ReportedRun]) -> str:
    """The whole page of one run, or of several side by side."""
    drawn = {heading: [plot(runs) for plot in plots] for heading, plots in (SHARED if runs[1:] else SECTIONS).items()}
    plots = [
        part
        for heading, found in drawn.items()
        if any(found)
        for part in (f"<h2>{heading}</h2>", '<div class="plots">', *(_figure(plot) for plot in found if plot), "</div>")
    ]
    body = [*(_several(runs) if runs[1:] else _one(runs[0])), *plots, *_missing(runs)]
    if runs[1:]:
        body += ["<h2>Density of every layer</h2>", _table(tables.densities(runs))]
    else:
        body += ["<h2>Every layer</h2>", _table(tables.layers(runs[0]))]
    body += ["<h2>Run it again</h2>", *(line for run in runs for line in _settings(run, bool(runs[1:])))]
    return _filled(tables.title(runs), "\n".join(body))


def _filled(title: str, body: str) -> str:
    """The template with a title and a body in it."""
    template = resources.files("hyperflux.report").joinpath("page.html").read_text(encoding="utf-8")
    colours = [
        " ".join(f"--series-{number}: {colour};" for number, colour in enumerate(palette))
        for palette in (COLOURS, DARK_COLOURS)
    ]
    return Template(template).substitute(title=escape(title), light=colours[0], dark=colours[1], body=body)


def _one(run: ReportedRun) -> list[str]:
    """Title, key figures and account."""
    figures = [
        f"<div><dt>{what}</dt><dd><strong>{_text(figure)}</strong><span>{_text(remark)}</span></dd></div>"
        for what, figure, remark in tables.key_figures(run)
    ]
    return [
        f"<h1>{_text(tables.title([run]))}</h1>",
        f'<p class="quiet">{_text(tables.subtitle(run))}</p>',
        f'<dl class="figures">{"".join(figures)}</dl>',
        "<h2>What happened</h2>",
        _account(narrative(run)),
    ]


def _several(runs: Sequence[ReportedRun]) -> list[str]:
    """Title, comparison and short accounts."""
    told = [Finding(run.label, " ".join(said.text for said in brief(run))) for run in runs]
    return [
        f"<h1>{_text(tables.title(runs))}</h1>",
        _table(tables.comparison(runs)),
        "<h2>What happened</h2>",
        _account(told),
    ]


def _account(statements: Iterable[Finding]) -> str:
    parts = (f"<div><dt>{_text(said.topic)}</dt><dd>{_text(said.text)}</dd></div>" for said in statements)
    return f'<dl class="account">{"".join(parts)}</dl>'


def _figure(plot: Plot) -> str:
    label = escape(f"{plot.title}. {plot.description}")
    drawing = plot.svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    keys = f'<ul class="keys">{"".join(map(_key, plot.keys))}</ul>' if plot.keys else ""
    caption = f"<figcaption>{_text(plot.caption)}</figcaption>"
    return f'<figure id="{plot.name}"><h3>{_text(plot.title)}</h3>{drawing}{keys}{caption}</figure>'


def _key(key: Key) -> str:
    style = f'style="--c: var(--{VARIABLES[key.colour]})"'
    mark = f"<b {style}>{key.kind}</b>" if len(key.kind) == 1 else f'<i class="{key.kind}" {style}></i>'
    return f"<li>{mark}{_text(key.label)}</li>"


def _missing(runs: Sequence[ReportedRun]) -> list[str]:
    """A line for runs without telemetry, whose plots are left out."""
    bare = [run.label for run in runs if run.tables is None]
    if not bare:
        return []
    of_whom = f" of {', '.join(bare)}" if runs[1:] else ""
    text = f"More plots need telemetry, which the configuration{of_whom} turned off: run with --telemetry light."
    return [f'<p class="quiet">{_text(text)}</p>']


def _table(table: TextTable) -> str:
    heading = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in table.heading)
    rows = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    label = escape(f"table: {table.heading[0]}")
    body = f"<table><thead><tr>{heading}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">{body}</div>'


def _settings(run: ReportedRun, folded: bool) -> list[str]:
    """The command, and the whole configuration: folded away where there are several."""
    start = f"<p>{_text(tables.start(run))}</p>" if tables.start(run) else ""
    shown = f"<pre>{escape(tables.settings(run))}</pre>"
    if folded:
        shown = f"<details><summary>Settings of {_text(run.label)}</summary>{shown}</details>"
    return [f"<pre>{escape(tables.command(run))}</pre>", start, shown]


def _text(text: str) -> str:
    """Escaped, with no line break between a number and its percent sign."""
    return re.sub(r"(?<=\d) %", "&nbsp;%", escape(text))
