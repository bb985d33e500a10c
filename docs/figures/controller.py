"""Draw the figures and print the table of docs/controller.md, on simulated networks.

    python docs/figures/controller.py [SETTINGS]

SETTINGS is the number of random settings, 100 by default.
"""

import math
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "support"))

from simulated_sweep import random_settings, tracking_error, turns  # noqa: E402

from hyperflux.report.style import COLOURS, figure, save  # noqa: E402
from hyperflux.schedules.default import DefaultSchedule  # noqa: E402
from hyperflux.schedules.published import PublishedSchedule  # noqa: E402
from hyperflux.schedules.simulation import Conditions, simulate  # noqa: E402

MAX_STEPS = 100_000


def published(schedule: DefaultSchedule) -> PublishedSchedule:
    """The paper's course for the same network and steps, with its 100 control intervals."""
    density = schedule.final_count / schedule.total
    return PublishedSchedule(
        density, schedule.pruning_steps, 0, min(100, schedule.pruning_steps), 0, schedule.presence_lr
    )


def sweep(count: int) -> None:
    """Print tracking errors and turns of both controllers over random settings; plot the errors against steps."""
    measured: dict[str, list[tuple[int, float, int]]] = {"default": [], "published": []}
    for conditions, default in random_settings(count, most_steps=MAX_STEPS, seed=7):
        for name, schedule in (("default", default), ("published", published(default))):
            rows = simulate(schedule, conditions)
            turned = turns(rows, schedule) if default.final_count >= 100 else -1
            measured[name].append((default.pruning_steps, tracking_error(rows, schedule), turned))
    print("| controller | median error | 95 % of settings | worst | turns of pressure: median | 95 % | worst |")
    print("|---|---|---|---|---|---|---|")
    drawn, axes = figure()
    for colour, (name, rows) in zip(COLOURS, measured.items(), strict=False):
        errors = np.array([error for _, error, _ in rows])
        counts = np.array([turned for *_, turned in rows if turned >= 0])
        of_errors = [np.median(errors), np.quantile(errors, 0.95), errors.max()]
        of_turns = [np.median(counts), np.quantile(counts, 0.95), counts.max()]
        print(f"| {name} | {' | '.join(f'{v:.3f}' for v in of_errors)} | {' | '.join(f'{v:.0f}' for v in of_turns)} |")
        steps = [steps for steps, *_ in rows]
        axes.scatter(steps, np.maximum(errors, 1e-4), s=10, color=colour, label=name, alpha=0.7, linewidths=0)
    axes.set(xscale="log", yscale="log", xlabel="steps of the pruning stage", ylabel="r.m.s. of ln(density / target)")
    axes.set_title(f"{count} simulated networks of 100 to 25 million weights")
    axes.legend(frameon=False)
    save(drawn, HERE / "controller-sweep.png")


def one_network() -> None:
    """Plot density, pressure and shift of both controllers on one simulated network."""
    conditions = Conditions(20_000, flux=1e-6, noise=3.0, stress=0.6)
    drawn, axes = figure(height=6.0, rows=3)
    default = DefaultSchedule(20_000, 400, 10_000, 0)
    for colour, schedule in zip(COLOURS, (default, published(default)), strict=False):
        rows = simulate(schedule, conditions)
        name = "default" if schedule is default else "published"
        steps = [row.step for row in rows]
        axes[0].plot(steps, [row.density for row in rows], color=colour, label=name)
        axes[0].plot(steps, [row.wanted for row in rows], color=colour, linestyle=":", linewidth=1)
        axes[1].plot(steps, [row.pressure or math.nan for row in rows], color=colour)
        if schedule is default:
            shifts = np.array([row.shift for row in rows[1:]])
            smooth = np.convolve(shifts, np.ones(20) / 20, "valid")
            axes[2].plot(steps[20:], smooth, color=colour)
    axes[0].set(yscale="log", ylabel="density (dotted: target)")
    axes[1].set(yscale="log", ylabel="pressure γ")
    axes[2].set(xlabel="optimizer step", ylabel="shift u (mean of 20)")
    axes[2].axhline(0, color="#555555", linewidth=0.8)
    axes[0].legend(frameon=False)
    save(drawn, HERE / "controller-one.png")


if __name__ == "__main__":
    one_network()
    sweep(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
