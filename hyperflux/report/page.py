"""The report as one HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hyperflux.report.context import report_context
from hyperflux.report.course import plot_accuracy, plot_density, plot_losses, plot_mask_changes, plot_pressure
from hyperflux.report.layers import plot_channels, plot_final_density, plot_layer_density
from hyperflux.report.markup import render_html
from hyperflux.report.mask_changes import plot_flips, plot_flux, plot_settling
from hyperflux.report.run import ReportedRun
from hyperflux.report.style import COLOURS, DARK_COLOURS
from hyperflux.report.svg import Plot
from hyperflux.report.weight_histories import plot_weight_histories

SECTIONS = {
    "Course of the run": (plot_density, plot_pressure, plot_accuracy, plot_losses),
    "Mask changes": (plot_mask_changes, plot_flux, plot_flips, plot_settling),
    "Layers and single gates": (plot_channels, plot_layer_density, plot_weight_histories),
}
"""The plots of one run, by heading."""
SHARED = {
    "Comparison": (
        plot_density,
        plot_pressure,
        plot_accuracy,
        plot_mask_changes,
        plot_settling,
        plot_final_density,
    ),
}
"""The plots of several runs."""


def html_page(runs: Sequence[ReportedRun]) -> str:
    """Draw and write the whole page of one run, or of several side by side."""
    return page_around(draw_plots(runs), runs)


@np.errstate(all="ignore")
def draw_plots(runs: Sequence[ReportedRun]) -> dict[str, list[Plot]]:
    """The plots for which the runs have recorded enough, by heading."""
    drawn = {heading: [plot(runs) for plot in plots] for heading, plots in (SHARED if runs[1:] else SECTIONS).items()}
    return {heading: [plot for plot in plots if plot] for heading, plots in drawn.items() if any(plots)}


def page_around(plots: Mapping[str, Sequence[Plot]], runs: Sequence[ReportedRun]) -> str:
    """The page of `runs` with these plots on it, by heading."""
    without_telemetry = [run.label for run in runs if run.telemetry is None]
    context = report_context(runs) | {"plots": plots, "without_telemetry": without_telemetry}
    return render_html("page.html", context | {"light": _series(COLOURS), "dark": _series(DARK_COLOURS)})


def _series(palette: Sequence[str]) -> str:
    """Colours as the CSS variables that plots use."""
    return " ".join(f"--series-{number}: {colour};" for number, colour in enumerate(palette))
