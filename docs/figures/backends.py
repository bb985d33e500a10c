"""Time a training step of LeNet-300-100 on MNIST under the default course: torch against NumPy.

    python docs/figures/backends.py DATA_DIR

Uses interleaved timing in one process and prints the medians and the ratio to torch. Both backends use as many threads
as OMP_NUM_THREADS and OPENBLAS_NUM_THREADS allow. The figures are in docs/performance.md.
"""

from __future__ import annotations

import sys

from hyperflux.backends import build_backend
from hyperflux.config import RunConfig
from hyperflux.runs.data_order import epoch_batches
from hyperflux.runs.driver import feasible_schedule
from hyperflux.schedules.scheduler import PruningScheduler
from hyperflux.timing import Turn, interleave

STEPS = 20
ROTATIONS = 30


def turn(backend: str, data_dir: str) -> Turn:
    """A turn of `STEPS` training steps on one backend."""
    settings = {"backend": backend, "dataset": "mnist", "data_dir": data_dir, "model": "lenet300", "batch_size": 128}
    config = RunConfig.from_dict({**settings, "device": "cpu", "telemetry": "off"})
    trained = build_backend(config)
    schedule = feasible_schedule(config, trained)
    scheduler = PruningScheduler(schedule, trained.start_gate(schedule.initial_presence))
    batches = list(epoch_batches(0, 1, trained.samples, config.batch_size))[:STEPS]

    def take() -> None:
        trained.train_pruning(batches, learning_rate=1e-3, label_smoothing=0.1, after_step=scheduler.after_step)

    return Turn(take, STEPS)


def main(data_dir: str) -> None:
    """Measure and print."""
    turns = {name: turn(name, data_dir) for name in ("torch", "numpy")}
    for row in interleave(turns, ROTATIONS):
        extremes = f"{row.lowest_ratio:.2f}-{row.highest_ratio:.2f}"
        print(f"{row.variant}: {1e3 * row.seconds:.2f} ms, {row.ratio:.2f} [{extremes}]")


if __name__ == "__main__":
    main(sys.argv[1])
