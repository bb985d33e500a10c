"""The report's words and tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from hyperflux.report import tables
from hyperflux.report.narrative import Finding, brief, narrative
from hyperflux.report.run import ReportedRun
from hyperflux.report.tables import TextTable


def summary(runs: Sequence[ReportedRun]) -> str:
    """One run, or several side by side."""
    parts = [f"# {_text(tables.title(runs))}"]
    if runs[1:]:
        parts += [_table(tables.comparison(runs)), "## What happened"]
        told = [Finding(run.label, " ".join(said.text for said in brief(run))) for run in runs]
        parts.append(_account(told))
        parts += ["## Density of every layer", _table(tables.densities(runs))]
    else:
        (run,) = runs
        figures = TextTable(("figure", "value", ""), list(tables.key_figures(run)))
        parts += [_text(tables.subtitle(run)) + ".", _table(figures)]
        parts += ["## What happened", _account(narrative(run))]
        parts += ["## Every layer", _table(tables.layers(run))]
    parts.append("## Run it again")
    for run in runs:
        parts += [_fenced(tables.command(run), "sh"), *([_text(tables.start(run))] if tables.start(run) else [])]
        parts.append(_fenced(tables.settings(run).strip(), "toml"))
    return "\n\n".join(parts) + "\n"


def _account(statements: Sequence[Finding]) -> str:
    return "\n".join(f"- **{_text(said.topic)}.** {_text(said.text)}" for said in statements)


def _table(table: TextTable) -> str:
    rule = ("---", *["---:"] * (len(table.heading) - 1))
    lines = [table.heading, rule, *table.rows]
    return "\n".join(f"| {' | '.join(map(_text, line)) if line is not rule else ' | '.join(rule)} |" for line in lines)


def _text(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", escape(" ".join(text.split()), quote=False))


def _fenced(text: str, language: str) -> str:
    """A block of code, its fence longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
