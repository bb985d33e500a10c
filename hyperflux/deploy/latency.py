"""What a pruned network gains in use: time of inference, size on paper and on disk, each way of running it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from hyperflux.backends.torch.threads import torch_threads
from hyperflux.deploy.agreement import require_same_outputs
from hyperflux.deploy.compact import compact
from hyperflux.deploy.flops import Cost, count_cost
from hyperflux.deploy.networks import load_networks
from hyperflux.deploy.onnx_file import UnsupportedError, onnx_content, onnx_function
from hyperflux.deploy.sparse import LayerChoice, sparsify
from hyperflux.deploy.sparse_file import sparse_content
from hyperflux.deploy.targets import missing_for_onnx
from hyperflux.errors import InputError
from hyperflux.io.ranges import count_in
from hyperflux.timing import MAX_BATCH, MAX_ROUNDS, Timing, Turn, interleave

ONNX = "ONNX Runtime"
MAX_THREADS = 1024
Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BatchTimes:
    """Timings of one batch size: a call takes the whole batch, and ratios are to the dense network's call.

    `layers` says how each linear layer and 1×1 convolution of the variant with CSR runs.
    """

    batch_size: int
    timings: list[Timing]
    layers: list[LayerChoice]


@dataclass(frozen=True)
class Latency:
    """All that was measured of a run: times, costs by network, bytes by kind of file, and what could not be had."""

    threads: int
    rotations: int
    batches: list[BatchTimes]
    costs: dict[str, Cost]
    file_bytes: dict[str, int]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def measure_run(folder: Path, batch_sizes: Sequence[int], rotations: int, threads: int) -> Latency:
    """Measure the networks of a finished run on the CPU; the pruned one is compacted here.

    Raises InputError for a folder, size or count that can't be had, RunError where a variant's outputs are not those of
    the pruned network; then nothing is reported.
    """
    _check_counts(batch_sizes, rotations, threads)
    networks = load_networks(folder)
    example = networks.example(2)
    compacted = compact(networks.pruned, example)
    files = file_sizes(folder, networks.pruned, compacted)
    others, notes = {}, []
    if missing := missing_for_onnx():
        notes.append(f"{ONNX}: without {', '.join(missing)} it can't be timed; pip install 'hyperflux[onnx]'")
    else:
        try:
            content = onnx_content(compacted, example)
            others[ONNX], files["compacted ONNX"] = onnx_function(content, threads), len(content)
        except UnsupportedError as error:
            notes.append(f"{ONNX}: can't run this network ({error})")
    with torch_threads(threads):
        batches = [
            time_batch(networks.dense, networks.pruned, compacted, others, networks.example(size), rotations)
            for size in batch_sizes
        ]
    named = {"dense": networks.dense, "masked": networks.pruned, "compacted": compacted}
    costs = {name: count_cost(network, example) for name, network in named.items()}
    return Latency(threads, rotations, batches, costs, files, notes)


def time_batch(
    dense: nn.Module,
    masked: nn.Module,
    compacted: nn.Module,
    others: Mapping[str, Forward],
    inputs: Tensor,
    rotations: int,
) -> BatchTimes:
    """Time networks in evaluation mode on `inputs` (batch, ...) in rotation, `compacted` also with CSR layers.

    `others` are more ways to run `compacted`. Raises RunError, and times nothing, unless the outputs of all but `dense`
    are those of `masked`.
    """
    sparse, layers = sparsify(compacted, inputs)
    same: dict[str, Forward] = {"masked": masked, "compacted": compacted, "compacted + CSR": sparse, **others}
    with torch.inference_mode():
        reference = masked(inputs)
        for name, forward in same.items():
            require_same_outputs(name, forward(inputs), reference)
        variants: dict[str, Forward] = {"dense": dense, **same}
        turns = {name: Turn.of(functools.partial(forward, inputs)) for name, forward in variants.items()}
        return BatchTimes(len(inputs), interleave(turns, rotations), layers)


def file_sizes(folder: Path, masked: nn.Module, compacted: nn.Module) -> dict[str, int]:
    """Bytes of the run's dense.safetensors, and of the pruned network's weights in other forms."""
    # Slices of larger tensors, and memory that two names share, are not for this format.
    whole = {name: t.clone(memory_format=torch.contiguous_format) for name, t in compacted.state_dict().items()}
    return {
        "dense safetensors": (folder / "dense.safetensors").stat().st_size,
        "sparse safetensors": len(sparse_content(masked.state_dict())),
        "compacted safetensors": len(save(whole)),
    }


def _check_counts(batch_sizes: Sequence[int], rotations: int, threads: int) -> None:
    if not batch_sizes:
        raise InputError("batch sizes: none; give one or more")
    count_in("rotations", rotations, 1, MAX_ROUNDS)
    count_in("threads", threads, 1, MAX_THREADS)
    for size in batch_sizes:
        count_in("batch size", size, 1, MAX_BATCH)
