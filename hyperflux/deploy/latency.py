"""Measure a pruned network: inference times of each way to run it, parameters and FLOPs, and file sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from hyperflux.backends.torch.compact.equivalence import require_matching_outputs
from hyperflux.backends.torch.flops import Cost, count_cost
from hyperflux.backends.torch.threads import torch_threads
from hyperflux.deploy.compact import compact
from hyperflux.deploy.export_options import missing_for_onnx
from hyperflux.deploy.gpu_latency import GpuTimes, gpu_times
from hyperflux.deploy.networks import load_networks
from hyperflux.deploy.onnx_file import UnsupportedError, onnx_content, onnx_function
from hyperflux.deploy.sparse import LayerChoice, sparsify
from hyperflux.deploy.sparse_file import sparse_content
from hyperflux.errors import InputError
from hyperflux.io.arguments import as_path
from hyperflux.io.ranges import count_in
from hyperflux.io.safe_read import shown
from hyperflux.timing import MAX_BATCH, MAX_ROUNDS, Timing, Turn, interleave

ONNX = "ONNX Runtime"
MAX_THREADS = 1024
Forward = Callable[[Tensor], Tensor]
"""From inputs (batch, ...) to outputs."""


@dataclass(frozen=True)
class BatchTimes:
    """Timings of one batch size.

    Attributes:
        batch_size: Samples per call.
        timings: Seconds per call, and ratios to the dense network's calls.
        layers: How each linear layer and 1×1 convolution runs in the variant with CSR layers.
    """

    batch_size: int
    timings: list[Timing]
    layers: list[LayerChoice]


@dataclass(frozen=True)
class Latency:
    """Everything measured of a run.

    Attributes:
        threads: Threads of each variant.
        rotations: Interleaved timings per variant.
        batches: Times by batch size.
        costs: Parameters and FLOPs by network: dense, masked, compacted.
        file_bytes: Bytes by kind of file.
        notes: What could not be measured, and why.
        gpu: Times on a GPU of a network that holds 2:4.
    """

    threads: int
    rotations: int
    batches: list[BatchTimes]
    costs: dict[str, Cost]
    file_bytes: dict[str, int]
    notes: list[str]
    gpu: list[GpuTimes] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def measure_run(folder: Path, batch_sizes: Sequence[int], rotations: int, threads: int) -> Latency:
    """Measure the networks of a finished run on the CPU: dense, pruned, compacted, with CSR layers, in ONNX Runtime.

    A network that holds 2:4 is also measured on a GPU that has kernels for it.

    Args:
        folder: The run's folder.
        batch_sizes: Batch sizes to time.
        rotations: Interleaved timings per variant.
        threads: Threads of torch and ONNX Runtime.

    Returns:
        What was measured.

    Raises:
        InputError: The folder holds no finished run, or a count is out of range.
        RunError: A variant's outputs differ from the pruned network's; nothing is reported then.
    """
    folder = as_path("folder", folder)
    batch_sizes = _checked_sizes(batch_sizes)
    rotations = count_in("rotations", rotations, 1, MAX_ROUNDS)
    threads = count_in("threads", threads, 1, MAX_THREADS)
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
    on_gpu, obstacle = gpu_times(networks, batch_sizes, rotations)
    if obstacle:
        notes.append(obstacle)
    return Latency(threads, rotations, batches, costs, files, notes, on_gpu)


def time_batch(
    dense: nn.Module,
    masked: nn.Module,
    compacted: nn.Module,
    others: Mapping[str, Forward],
    inputs: Tensor,
    rotations: int,
) -> BatchTimes:
    """Time networks in evaluation mode, interleaved.

    Args:
        dense: The network before pruning; ratios are to its time.
        masked: The pruned network.
        compacted: The pruned network compacted; it is also timed with CSR layers.
        others: Further ways to run `compacted`, by name.
        inputs: Inputs (batch, ...).
        rotations: Interleaved timings per variant.

    Raises:
        RunError: The outputs of a variant other than `dense` differ from those of `masked`; nothing is timed then.
    """
    sparse, layers = sparsify(compacted, inputs)
    equivalent: dict[str, Forward] = {"masked": masked, "compacted": compacted, "compacted + CSR": sparse, **others}
    with torch.inference_mode():
        reference = masked(inputs)
        for name, forward in equivalent.items():
            require_matching_outputs(name, forward(inputs), reference)
        variants: dict[str, Forward] = {"dense": dense, **equivalent}
        turns = {name: Turn.of(functools.partial(forward, inputs)) for name, forward in variants.items()}
        return BatchTimes(len(inputs), interleave(turns, rotations), layers)


def file_sizes(folder: Path, masked: nn.Module, compacted: nn.Module) -> dict[str, int]:
    """Return the bytes of the run's dense.safetensors, and of the pruned network's weights in smaller forms."""
    # The format holds neither views of larger tensors nor memory that two names share.
    copies = {name: t.clone(memory_format=torch.contiguous_format) for name, t in compacted.state_dict().items()}
    return {
        "dense safetensors": (folder / "dense.safetensors").stat().st_size,
        "sparse safetensors": len(sparse_content(masked.state_dict())),
        "compacted safetensors": len(save(copies)),
    }


def _checked_sizes(batch_sizes: Sequence[int]) -> list[int]:
    """Batch sizes as plain numbers. Raises InputError if there are none, or one is out of range."""
    try:
        sizes = [] if isinstance(batch_sizes, str | bytes) else list(batch_sizes)
    except TypeError as error:
        raise InputError(f"batch_sizes: {shown(batch_sizes)} is not a list; give one such as [1, 64]") from error
    if not sizes:
        raise InputError("batch_sizes: the list is empty; give one or more")
    return [count_in("batch size", size, 1, MAX_BATCH) for size in sizes]
