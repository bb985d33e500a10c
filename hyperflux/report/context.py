"""What both forms of a report say, ready for their templates: the words, tables and commands, without plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hyperflux.report import tables
from hyperflux.report.narrative import Finding, narrative, short_narrative
from hyperflux.report.run import ReportedRun


def report_context(runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """Names of the templates and their values; `comparison` is there for several runs, `key_figures` for one."""
    common = {"title": tables.title(runs), "runs": [_repetition(run) for run in runs]}
    if len(runs) == 1:
        return common | {
            "subtitle": tables.subtitle(runs[0]),
            "key_figures": tables.key_figures(runs[0]),
            "findings": narrative(runs[0]),
            "layer_tables": tables.layer_tables(runs[0]),
        }
    return common | {
        "comparison": tables.comparison_table(runs),
        "findings": [Finding(run.label, " ".join(finding.text for finding in short_narrative(run))) for run in runs],
        "layer_tables": [(tables.density_heading(runs), tables.density_table(runs))],
    }


def _repetition(run: ReportedRun) -> dict[str, str]:
    """How to repeat a run."""
    return {
        "label": run.label,
        "command": tables.repeat_command(run),
        "start": tables.start_note(run),
        "settings": tables.settings_toml(run),
    }
