"""Runs that are broken off and go on, and what they leave, to be compared to the bit."""

import json
import signal

import numpy as np

from hyperflux import InputError, RunConfig, RunError
from hyperflux.errors import Interrupted
from hyperflux.runs.checkpoints.folder import CheckpointFolder
from hyperflux.runs.checkpoints.writer import CheckpointInterval
from hyperflux.runs.driver import execute, resume

# 8 steps an epoch: 8 dense, 40 of pruning, 16 of regrowth.
QUICK = {
    "backend": "numpy",
    "dataset": "synthetic",
    "train_samples": 250,
    "model": "mlp:16-12-4",
    "sparsity": 0.8,
    "device": "cpu",
    "dense": {"epochs": 1},
    "pruning": {"epochs": 5, "presence_learning_rate": 3e-2},
    "regrowth": {"epochs": 2},
}
STEPS = 64


def quick(**settings):
    return RunConfig.from_dict({**QUICK, **settings})


class PowerCut(Exception):
    """Stands for whatever ends a process without a word."""


class Breaker:
    """A `stop` that breaks the run off after so many steps: by a signal, or without a word."""

    def __init__(self, steps, clean):
        self.left, self.clean = steps, clean

    def __call__(self):
        self.left -= 1
        if self.left == 0:
            if self.clean:
                return signal.SIGINT
            raise PowerCut
        return None


def broken_off(config, folder, after, every="7", clean=False):
    """Run, broken off once after each of these numbers of steps, each counted from the last start; then to its end."""
    report, go = None, lambda **how: execute(config, folder, **how)
    for steps in [*after, 10**9]:
        try:
            report = go(every=CheckpointInterval.parse(every), stop=Breaker(steps, clean))
        except (PowerCut, Interrupted):
            assert steps < 10**9
        go = lambda **how: resume(folder, **how)  # noqa: E731
    return report


def failure(act):
    """The error of an act, as the command line would tell it; None if it succeeds."""
    try:
        act()
    except (InputError, RunError) as error:
        return error
    return None


def left(folder):
    """Everything that a finished run leaves, but the time it took."""
    tables = {}
    if (folder / "telemetry.npz").exists():
        with np.load(folder / "telemetry.npz") as file:
            tables = {name: file[name].tobytes() for name in file.files}
    report = json.loads((folder / "report.json").read_text())
    del report["seconds"]
    names = ("config.toml", "metrics.jsonl", "dense.safetensors", "model.safetensors")
    return {
        "files": sorted(path.name for path in folder.iterdir()),
        "report": report,
        "telemetry": tables,
        **{name: (folder / name).read_bytes() for name in names},
    }


class LastCheckpoint:
    """Listens to what is written as checkpoints, and keeps the last: moments, momentum, counters and all."""

    def __init__(self, monkeypatch):
        self.last, write = None, CheckpointFolder.write

        def listening(folder, checkpoint):
            self.last = checkpoint
            write(folder, checkpoint)

        monkeypatch.setattr(CheckpointFolder, "write", listening)

    def content(self):
        """Facts without the time, and arrays as bytes."""
        facts = json.loads(json.dumps(self.last.facts))
        del facts["progress"]["seconds"]
        return facts, {name: (a.dtype, a.shape, a.tobytes()) for name, a in self.last.arrays.items()}
