"""Time a network that holds 2:4 on a GPU: dense, masked, and by the kernels that skip the zeros."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hyperflux.backends.torch.compact.equivalence import require_matching_outputs
from hyperflux.deploy.networks import RunNetworks
from hyperflux.deploy.semi_structured import (
    CAPABILITY,
    DTYPES,
    SemiStructuredLayer,
    pattern_layers,
    semi_structured,
)
from hyperflux.timing import Timing, Turn, interleave

MAX_NAMED = 3
"""Layers of which a note says why they stay dense."""


@dataclass(frozen=True)
class GpuTimes:
    """Timings of one batch size on a GPU.

    Attributes:
        device: The GPU and the number format.
        batch_size: Samples per call.
        timings: Seconds per call of the dense, the masked and the 2:4 network, and ratios to the dense one's calls.
        layers: Which layers run by the kernels for 2:4.
    """

    device: str
    batch_size: int
    timings: list[Timing]
    layers: list[SemiStructuredLayer]


@torch.no_grad()
def gpu_times(networks: RunNetworks, batch_sizes: Sequence[int], rotations: int) -> tuple[list[GpuTimes], str]:
    """Time a run's networks in float16 on the current GPU.

    Args:
        networks: The run's networks.
        batch_sizes: Batch sizes to time.
        rotations: Interleaved timings per variant.

    Returns:
        The times; and if there are none, why.

    Raises:
        RunError: The outputs of the 2:4 network differ from those of the masked one; nothing is timed then.
    """
    if not pattern_layers(networks.pruned):
        return [], "2:4: no layer holds two of every four weights; hyperflux prune --gates 2:4 makes such layers"
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < CAPABILITY:
        return [], "2:4: its kernels need a CUDA GPU of compute capability 8.0 or more, which this machine lacks"
    dtype = DTYPES[0]
    dense, masked = (copy.deepcopy(own).to("cuda", dtype) for own in (networks.dense, networks.pruned))
    sparse, layers = semi_structured(masked)
    if not any(layer.sparse for layer in layers):
        reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in layers[:MAX_NAMED])
        more = f"; and {len(layers) - MAX_NAMED} more" if len(layers) > MAX_NAMED else ""
        return [], f"2:4: no layer can run by its kernels ({reasons}{more})"
    device = f"{torch.cuda.get_device_name()}, {str(dtype).removeprefix('torch.')}"
    found = []
    for size in batch_sizes:
        inputs = networks.example(size).to("cuda", dtype)
        require_matching_outputs("2:4", sparse(inputs), masked(inputs))
        variants = {"dense": dense, "masked": masked, "2:4": sparse}
        turns = {name: Turn.of(functools.partial(own, inputs)) for name, own in variants.items()}
        found.append(GpuTimes(device, size, interleave(turns, rotations, torch.cuda.synchronize), layers))
    return found, ""
