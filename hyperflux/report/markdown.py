"""The report as Markdown: the page's words and tables, without plots."""

from __future__ import annotations

from collections.abc import Sequence

from hyperflux.report.context import report_context
from hyperflux.report.markup import render_markdown
from hyperflux.report.run import ReportedRun


def markdown_report(runs: Sequence[ReportedRun]) -> str:
    """The report of one run, or of several side by side."""
    return render_markdown("report.md", report_context(runs))
