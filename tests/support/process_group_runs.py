"""Runs of the driver as one of several processes, for `processes.run_together`."""

import math
import signal
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from hyperflux import RunConfig, data
from hyperflux.backends.torch import backend
from hyperflux.backends.torch import data as torch_data
from hyperflux.backends.torch.backend import TorchBackend
from hyperflux.backends.torch.distributed import TorchProcessGroup, explained
from hyperflux.errors import InputError, Interrupted, RunError, WriteError
from hyperflux.runs import driver
from hyperflux.runs.checkpoints.folder import CheckpointFolder
from hyperflux.runs.checkpoints.writer import CheckpointInterval


def with_dropout(name, shape, classes, seed):
    """A small network that draws random numbers in training and keeps batch statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()]
        return nn.Sequential(*layers, nn.Dropout(0.3), nn.Linear(36, classes))


def with_batch_norm(name, shape, classes, seed):
    """A small network whose batch statistics need more than one sample."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Flatten(), nn.Linear(math.prod(shape), 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, classes)]
        return nn.Sequential(*layers)


def use_batch_norm():
    """Any model is the small one of `with_batch_norm`."""
    backend.build_model = with_batch_norm


def use_dropout():
    """Any model is the small one of `with_dropout`."""
    backend.build_model = with_dropout


class PartlyUsed(nn.Module):
    """A network one layer of which takes no part."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(16, 4), nn.Linear(3, 3)

    def forward(self, inputs):
        return self.used(inputs)


def leave_a_layer_unused():
    backend.build_model = lambda name, shape, classes, seed: PartlyUsed()


def stream_small_images():
    """Images that other processes decode are cut to 8 by 8."""
    torch_data.STREAMED_SIDE, torch_data.STREAMED_RESIZE = 8, 9


def fill_the_disk():
    """No checkpoint can be written."""

    def write(folder, checkpoint):
        raise WriteError("the disk is full")

    CheckpointFolder.write = write


def spoil(samples):
    """A few samples of the synthetic data are not finite."""
    whole = data._standardised

    def spoiled(*parts):
        found = whole(*parts)
        inputs = found.train_inputs.copy()
        inputs[samples] = math.nan
        return replace(found, train_inputs=inputs)

    data._standardised = spoiled


def go(settings, folder, resumed=False, stop_after=None, stopping=0, change=None):
    """What a run says in each process: its report as a dictionary, or how it ended and whether it tells so itself.

    After `stop_after` steps the process number `stopping` is told to stop. `settings` may be a list: one a process.
    `change`, if there is one, is called first.
    """
    processes, seen = TorchProcessGroup(), []
    if change:
        change()

    def stop():
        seen.append(None)
        return signal.SIGTERM if processes.rank == stopping and len(seen) == stop_after else None

    how = {"processes": processes, "stop": stop, "every": CheckpointInterval.parse("2")}
    try:
        if resumed:
            report = driver.resume(Path(folder), **how)
        else:
            own = settings[processes.rank] if isinstance(settings, list) else settings
            report = driver.execute(RunConfig.from_dict(own), Path(folder), **how)
    except (InputError, RunError, Interrupted) as error:
        return type(error).__name__, str(error), error.reported_elsewhere, len(seen)
    except RuntimeError as error:
        meant = explained(error, processes.rank)
        return type(meant).__name__, str(meant), meant.reported_elsewhere, len(seen)
    return report.to_dict()


def drawn(settings):
    """Random numbers of an epoch's start."""
    trained = TorchBackend(RunConfig.from_dict(settings), TorchProcessGroup())
    with trained._own_randomness():
        return torch.rand(8).tolist()
