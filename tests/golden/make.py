"""Make a folder of golden files: what this version leaves on disk, for later versions to read.

    python tests/golden/make.py tests/golden/0.1

finished/            a run's folder
unfinished-torch/    a run's folder with two checkpoints, the last one within an epoch of the pruning stage
unfinished-numpy/    the same of the NumPy backend, without telemetry
pruner.pt            model, optimizer and `Pruner.state_dict()` of a training loop under way
expected.json        the numbers that test_golden.py finds in them, taken from memory while the files were made

Golden files are never changed. Where a format changes, make a folder of a new name next to the old one.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import hyperflux
from hyperflux import RunConfig
from hyperflux.errors import Interrupted
from hyperflux.runs.checkpoints.folder import CheckpointFolder
from hyperflux.runs.driver import execute

# 2 steps an epoch: 2 dense, 8 of pruning, 4 of regrowth.
SETTINGS = {
    "dataset": "synthetic",
    "train_samples": 64,
    "batch_size": 32,
    "model": "mlp:16-8-4",
    "sparsity": 0.75,
    "device": "cpu",
    "dense": {"epochs": 1},
    "pruning": {"epochs": 4, "presence_learning_rate": 0.1},
    "regrowth": {"epochs": 2},
}
STOPPED_AFTER = 5
"""Steps of the unfinished runs."""
PRUNER_STEPS = 4


def bits(mask):
    """A mask, of any shape, as hexadecimal digits: its first weight is the highest bit."""
    return np.packbits(np.asarray(mask).ravel()).tobytes().hex()


def finished(folder):
    """A finished run; gives its outcome."""
    report = execute(RunConfig.from_dict(SETTINGS), folder)
    return {
        "surviving_weights": report.surviving_weights,
        "layers": {layer.name: layer.surviving for layer in report.layers},
        "dense_accuracy": report.dense_accuracy,
        "final_accuracy": report.final_accuracy,
    }


def unfinished(folder, **settings):
    """A run that stopped after a step; gives the masks of its last checkpoint."""
    steps, written, write = iter(range(1, 100)), [], CheckpointFolder.write

    def listening(checkpoints, checkpoint):
        written.append(checkpoint)
        write(checkpoints, checkpoint)

    CheckpointFolder.write = listening
    try:
        execute(
            RunConfig.from_dict(SETTINGS | settings),
            folder,
            stop=lambda: signal.SIGINT if next(steps) == STOPPED_AFTER else None,
        )
    except Interrupted:
        return {"masks": checkpoint_masks(written[-1].arrays)}
    finally:
        CheckpointFolder.write = write
    raise AssertionError("the run was not stopped")


def checkpoint_masks(arrays):
    """The masks in a checkpoint's arrays: by parameter, or that of the whole gate where a backend keeps one vector."""
    keys = [key.split("/") for key in arrays]
    found = {key[-2]: bits(arrays["/".join(key)] >= 0) for key in keys if key[-1] == "presence"}
    assert sorted(found) in (["fc1.weight", "fc2.weight"], ["gate"])
    return found


def training_loop():
    """(model, optimizer, pruner) before the first step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = hyperflux.Pruner(
        model, optimizer, target_sparsity=0.75, pruning_steps=8, regrowth_steps=4, presence_lr=0.1
    )
    return model, optimizer, pruner


def train(model, optimizer, steps):
    """So many steps of the user's own loop, on fixed data."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(32, 16, generator=generator), torch.arange(32) % 4
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def pruner_file(path):
    """A file as docs/torch.md recommends it; gives the masks and counts at that step."""
    model, optimizer, pruner = training_loop()
    train(model, optimizer, PRUNER_STEPS)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "pruner": pruner.state_dict()}
    torch.save(state, path)
    masks = {name: bits(mask) for name, mask in pruner.masks().items()}
    return {"step_count": pruner.step_count, "surviving": pruner.surviving, "masks": masks}


def main(folder):
    """Make everything; an existing folder is left alone."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    expected = {
        "finished": finished(folder / "finished"),
        "unfinished-torch": unfinished(folder / "unfinished-torch"),
        "unfinished-numpy": unfinished(folder / "unfinished-numpy", backend="numpy", dtype="float64", telemetry="off"),
        "pruner": pruner_file(folder / "pruner.pt"),
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
