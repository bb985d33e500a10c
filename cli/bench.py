"""`hyperflux bench`: what pruning costs, measured side by side in one process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .compare import listed
from .options import PlainPath

if TYPE_CHECKING:
    from hyperflux.backends.torch.bench.update import UpdateCost
    from hyperflux.deploy.gpu_latency import GpuTimes
    from hyperflux.deploy.latency import BatchTimes, Latency
    from hyperflux.timing import Timing

F = TypeVar("F", bound=Callable[..., Any])


@click.group(short_help="Measure what pruning costs and gains.")
def bench() -> None:
    """Measure what pruning costs and gains on this machine."""


def timing_options(command: F) -> F:
    """Decorate a command with the options of every timing."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the table as JSON and nothing else."),
        click.option("--device", default="auto", show_default=True, help="cuda, mps or cpu; auto takes the first."),
        click.option("--rotations", default=30, show_default=True, help="Turns of each variant; medians are shown."),
        click.option("--batch-size", default=128, show_default=True, help="Samples per step."),
        click.option("--model", default="resnet20", show_default=True, help="Any --model of `hyperflux prune`."),
    ):
        command = option(command)
    return command


@bench.command()
@click.option("--amp", default="off", show_default=True, help="Mixed precision: off, bfloat16 or float16.")
@click.option("--channels-last", is_flag=True, help="Keep the channels of images and filters together in memory.")
@timing_options
def step(
    model: str, batch_size: int, rotations: int, device: str, as_json: bool, amp: str, channels_last: bool
) -> None:
    """Measure a training step: dense, pruned, and pruned with all defaults of `Pruner`.

    The variants take turns of ten steps, and each ratio is to the dense step of the same round: with the gate alone,
    with the default course, and with light telemetry too. Memory is what network, optimizer and pruning hold between
    steps, and how far it rises within one.

    The pruning update alone follows: the bytes that it moves, the bytes that any update must move, and how long a copy
    of as many bytes takes. Before anything is timed, the kernel of this device is compared with the plain one; if they
    differ, nothing is reported.
    """
    from hyperflux.backends.torch.bench.steps import measure_steps

    from .display import plain_console, print_table

    found = measure_steps(model, batch_size, rotations, device, amp=amp, channels_last=channels_last)
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    headings = ("step", "ms", "ratio to dense", "lowest", "highest", "held (MB)", "rise (MB)")
    rows = [
        (*_cells(time), f"{memory.held_bytes / 1e6:,.1f}", f"{memory.rise_bytes / 1e6:,.1f}")
        for time, memory in zip(found.times, found.memory, strict=True)
    ]
    console = plain_console()
    print_table(console, headings, rows)
    print()
    update = [_cells(row) for row in found.update.times]
    print_table(console, ("update alone", "ms", "ratio", "lowest", "highest"), update)
    print()
    print(_account(found.update))


@bench.command()
@timing_options
def telemetry(model: str, batch_size: int, rotations: int, device: str, as_json: bool) -> None:
    """Time a training step of the default course with telemetry off, light and full.

    The variants take turns of one interval of light telemetry, in a course of ten epochs of CIFAR-10. The file size is
    that of the timed intervals, scaled to the whole course.
    """
    from hyperflux.backends.torch.bench.steps import time_telemetry

    from .display import plain_console, print_table

    found = time_telemetry(model, batch_size, rotations, device)
    if as_json:
        print(json.dumps([row.to_dict() for row in found]))
        return
    headings = ("telemetry", "milliseconds", "ratio to off", "lowest", "highest", "file (kB)")
    rows = [(*_cells(row.time), f"{row.file_bytes / 1000:,.0f}") for row in found]
    print_table(plain_console(), headings, rows)


@bench.command()
@click.argument("run", type=PlainPath())
@click.option("--batch-sizes", default="1,16,256", show_default=True, callback=listed(int), help="Samples per call.")
@click.option("--rotations", default=30, show_default=True, help="Turns of each variant; medians are shown.")
@click.option("--threads", default=1, show_default=True, help="Of torch and of ONNX Runtime; needs idle cores.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON and nothing else.")
def latency(run: Path, batch_sizes: list[int], rotations: int, threads: int, as_json: bool) -> None:
    """Time inference of a finished RUN on the CPU: dense, pruned, compacted, with CSR, in ONNX Runtime.

    The variants take turns, and each ratio is to the dense network in the same round. Before anything is timed, the
    outputs of all variants are compared with the pruned network's. Parameters, FLOPs per sample and file sizes follow.
    A network that holds 2:4 is also timed on a GPU that has kernels for it.
    """
    from hyperflux.deploy.latency import measure_run

    found = measure_run(run, batch_sizes, rotations, threads)
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        _show_latency(found)


def _show_latency(found: Latency) -> None:
    from .display import plain_console, print_table

    console = plain_console()
    headings = ("batch", "network", "microseconds", "ratio to dense", "lowest", "highest")
    print_table(console, headings, _times(found.batches), words=("network",))
    for batch in found.batches:
        chosen = [
            f"{layer.name} ({layer.csr_seconds / layer.dense_seconds:.2f} of its dense time)"
            for layer in batch.layers
            if layer.sparse and layer.csr_seconds is not None and layer.dense_seconds
        ]
        print(f"in CSR form at batch {batch.batch_size}: {', '.join(chosen) or 'no layer'}")
    if found.gpu:
        print(f"\non {found.gpu[0].device}:")
        print_table(console, headings, _times(found.gpu), words=("network",))
        layers = [layer.name for layer in found.gpu[0].layers if layer.sparse]
        print(f"by kernels for 2:4: {', '.join(layers)}")
    costs = [
        (name, *(f"{value:,}" for value in (c.parameters, c.nonzero_parameters, c.dense_flops, c.sparse_flops)))
        for name, c in found.costs.items()
    ]
    print()
    print_table(console, ("network", "parameters", "not zero", "FLOPs", "without zeros"), costs)
    print()
    print_table(console, ("file", "bytes"), [(name, f"{size:,}") for name, size in found.file_bytes.items()])
    for note in found.notes:
        print(note)


def _times(batches: Sequence[BatchTimes | GpuTimes]) -> list[tuple[str, ...]]:
    return [
        (str(batch.batch_size), timing.variant, f"{1e6 * timing.seconds:,.1f}", *_ratios(timing))
        for batch in batches
        for timing in batch.timings
    ]


def _account(update: UpdateCost) -> str:
    """What the update moves, in words."""
    moved, needed = (size / update.weights for size in (update.moved_bytes, update.needed_bytes))
    return (
        f"kernel {update.kernel}, {update.dtype}, agrees with the plain one; {update.weights:,} weights; it moves "
        f"{moved:.0f} bytes a weight, any must move {needed:.0f}; copies run at "
        f"{update.copy_bytes_a_second / 1e9:.1f} GB/s, {update.copy_share:.0%} of the update's time for as many bytes"
    )


def _cells(row: Timing) -> tuple[str, ...]:
    return row.variant, f"{1000 * row.seconds:.2f}", *_ratios(row)


def _ratios(row: Timing) -> tuple[str, ...]:
    return tuple(f"{value:.3f}" for value in (row.ratio, row.lowest_ratio, row.highest_ratio))
