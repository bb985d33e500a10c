"""The compacted network of a run with gates of channels: two files in its folder, and how much smaller and faster."""

from __future__ import annotations

import copy
import functools
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperflux.backends.torch.channels.latency import wait_for
from hyperflux.backends.torch.flops import Cost, count_cost
from hyperflux.deploy.compact import compact
from hyperflux.deploy.export import export
from hyperflux.deploy.networks import load_networks
from hyperflux.io.arguments import as_path
from hyperflux.runs.folder import recorded_config, recorded_times
from hyperflux.timing import Turn, interleave

FILES = {"safetensors": "compact.safetensors", "torch-export": "compact.pt2"}
"""What `write_compacted` leaves in a run's folder, by format."""
BATCHES = (1, 64)
"""Samples per timed call."""
SECONDS = 0.5
"""About how long each batch size is timed."""
FEWEST, MOST = 3, 250
"""Rounds of a timing."""


@dataclass(frozen=True)
class BatchTime:
    """Median seconds per call at one batch size on a device; `ratio` is the median of the rounds' ratios."""

    device: str
    batch_size: int
    dense_seconds: float
    compacted_seconds: float
    ratio: float


@dataclass(frozen=True)
class CompactNetwork:
    """A run's compacted network.

    Attributes:
        weights: The file of its weights.
        program: The file of its weights and computation, for torch.export.load.
        dense: Parameters and FLOPs of the dense network.
        compacted: Those of the compacted one.
        times: Of both networks, by batch size; where the budget is the time also as layers were timed.
    """

    weights: str
    program: str
    dense: Cost
    compacted: Cost
    times: list[BatchTime]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def write_compacted(folder: Path) -> CompactNetwork:
    """Write what is missing of `FILES` into the folder of a finished run, and measure the compacted network.

    Raises:
        InputError: The folder holds no finished run, the network can't be compacted, or a file can't be written.
        RunError: A file computes other outputs than the run's network.
    """
    folder = as_path("folder", folder)
    for name, file in FILES.items():
        if not os.path.lexists(folder / file):
            export(folder, name, out=folder / file)
    networks = load_networks(folder)
    example = networks.example(2)
    smaller = compact(networks.pruned, example)
    return CompactNetwork(
        str(folder / FILES["safetensors"]),
        str(folder / FILES["torch-export"]),
        count_cost(networks.dense, example),
        count_cost(smaller, example),
        [
            _time(networks.dense, smaller, networks.example(size), device)
            for device, size in dict.fromkeys([*(("cpu", size) for size in BATCHES), *_budget_times(folder)])
        ],
    )


def _budget_times(folder: Path) -> list[tuple[str, int]]:
    """The device and the batch size of the budget, if that is the time and the device is here."""
    times = recorded_times(folder, recorded_config(folder))
    if times is None:
        return []
    here = {"cpu": "cpu"}
    if torch.cuda.is_available():
        here[torch.cuda.get_device_name()] = "cuda"
    if torch.backends.mps.is_available():
        here["mps"] = "mps"
    return [(here[times.device], times.batch_size)] if times.device in here else []


@torch.inference_mode()
def _time(dense: nn.Module, compacted: nn.Module, inputs: Tensor, device: str) -> BatchTime:
    """Time both networks in turns."""
    wait, inputs = functools.partial(wait_for, torch.device(device)), inputs.to(device)
    networks = {
        name: own if device == "cpu" else copy.deepcopy(own).to(device)
        for name, own in (("dense", dense), ("small", compacted))
    }
    turns = {name: Turn.of(functools.partial(own, inputs), wait) for name, own in networks.items()}
    started = time.perf_counter()
    for turn in turns.values():
        turn.run()
    wait()
    rounds = int(SECONDS / max(time.perf_counter() - started, 1e-9))
    first, second = interleave(turns, min(max(rounds, FEWEST), MOST), wait)
    return BatchTime(device, len(inputs), first.seconds, second.seconds, second.ratio)
