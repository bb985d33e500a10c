"""Time the update against the number of weights: figure and table of docs/performance.md.

    python docs/figures/scaling.py [LARGEST]

LARGEST is the largest number of weights, 10^8 by default.
"""

import functools
import sys
from pathlib import Path

import matplotlib
import torch

from hyperflux.backends.torch.bench.update import time_update
from hyperflux.report.style import COLOURS, figure

HERE = Path(__file__).parent
LAYERS = 10
ROTATIONS = 7


def measured(weights: int) -> tuple[float, float, float]:
    """Seconds of one update of this many weights in ten layers: fused, plain, and a copy of as many bytes."""
    parameters = [torch.zeros(weights // LAYERS) for _ in range(LAYERS)]
    cost = time_update(parameters, ROTATIONS, functools.partial(int))
    return cost.times[0].seconds, cost.times[1].seconds, cost.copy_seconds


def main(most: int) -> None:
    """Measure, print the table and draw."""
    sizes = [size for power in range(4, 9) for size in (10**power, 3 * 10**power) if size <= most]
    rows = [measured(size) for size in sizes]
    print("| weights | fused (ms) | plain (ms) | copy of as many bytes (ms) | fused, ns per weight |")
    print("|---|---|---|---|---|")
    for size, seconds in zip(sizes, rows, strict=True):
        cells = " | ".join(f"{1e3 * value:.3g}" for value in seconds)
        print(f"| {size:,} | {cells} | {1e9 * seconds[0] / size:.2f} |", flush=True)
    drawn, axes = figure()
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "hyperflux scaling"})
    for number, name in enumerate(("fused", "plain", "copy of as many bytes")):
        axes.plot(sizes, [1e3 * row[number] for row in rows], marker="o", color=COLOURS[number], label=name)
    axes.plot(
        sizes, [1e3 * rows[-1][0] * size / sizes[-1] for size in sizes], ":", color="#555555", label="linear in N"
    )
    axes.set(xscale="log", yscale="log", xlabel="prunable weights N", ylabel="milliseconds of one update")
    axes.set_title(f"{torch.get_num_threads()} thread(s), float32, density 5 %")
    axes.legend(frameon=False)
    drawn.savefig(HERE / "scaling.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(int(float(sys.argv[1])) if len(sys.argv) > 1 else 10**8)
