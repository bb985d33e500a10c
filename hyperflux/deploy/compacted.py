"""The compacted network of a run with gates of channels: two files in its folder, and how much smaller and faster."""

from __future__ import annotations

import functools
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperflux.backends.torch.flops import Cost, count_cost
from hyperflux.deploy.compact import compact
from hyperflux.deploy.export import export
from hyperflux.deploy.networks import load_networks
from hyperflux.io.arguments import as_path
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
    """Median seconds per call at one batch size on the CPU; `ratio` is the median of the rounds' ratios."""

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
        times: Of both networks, by batch size.
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
        [_time(networks.dense, smaller, networks.example(size)) for size in BATCHES],
    )


@torch.inference_mode()
def _time(dense: nn.Module, compacted: nn.Module, inputs: Tensor) -> BatchTime:
    """Time both networks in turns."""
    turns = {
        name: Turn.of(functools.partial(network, inputs)) for name, network in (("dense", dense), ("small", compacted))
    }
    started = time.perf_counter()
    for turn in turns.values():
        turn.run()
    rounds = int(SECONDS / max(time.perf_counter() - started, 1e-9))
    first, second = interleave(turns, min(max(rounds, FEWEST), MOST))
    return BatchTime(len(inputs), first.seconds, second.seconds, second.ratio)
