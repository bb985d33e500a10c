"""`hyperflux export`: write a run's pruned network as one file to deploy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hyperflux.deploy.export_options import EXTENSIONS

from .options import PlainPath
from .signals import ignore_stop_signals

if TYPE_CHECKING:
    from hyperflux.deploy.export import Export


@click.command(short_help="Write a finished run as one file to deploy.")
@click.argument("run", type=PlainPath())
@click.option(
    "--format",
    "name",
    type=click.Choice(list(EXTENSIONS)),
    default="safetensors",
    show_default=True,
    help="File format.",
)
@click.option("--compact/--no-compact", default=True, show_default=True, help="Remove dead units and channels.")
@click.option(
    "--out",
    type=PlainPath(),
    help="New file.  [default: model-compact or model-whole in RUN, with the format's extension]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON and nothing else.")
def export(run: Path, name: str, compact: bool, out: Path | None, as_json: bool) -> None:
    """Write the pruned network of a finished RUN to one file, and check that the file computes the same outputs.

    \b
    safetensors         weights, zeros included; any safetensors library reads it
    sparse-safetensors  non-zero weights only; hyperflux reads it
    torch-export        weights and computation, for torch.export.load and any batch size
    torchscript         weights and computation, for torch.jit.load
    onnx                weights and computation, for ONNX Runtime and others; needs 'hyperflux[onnx]'

    A file of weights needs the network's class. Compacted weights fit only the network that hyperflux.compact makes of
    it: use torch-export or onnx to run without the class, or --no-compact to load the weights into the class. An
    earlier export to the default file is replaced; no other file is.
    """
    from hyperflux.deploy.export import export as export_run

    done = export_run(run, name, compact, out)
    ignore_stop_signals()
    if as_json:
        print(json.dumps(done.to_dict()))
    else:
        _show(done)


def _show(done: Export) -> None:
    """Print sizes and differences, then the layers that changed."""
    batches = ", ".join(map(str, done.checked_batches))
    lines = [
        f"dense file          {done.dense_bytes:,} bytes",
        f"this file           {done.bytes:,} bytes, {done.ratio:.4f} of the dense file",
        f"weights             {done.weights_before:,} before, {done.weights_after:,} after, {done.nonzero:,} non-zero",
        f"largest difference  {done.largest_difference:.3g} (largest output {done.largest_output:.3g})",
        f"compared            with the run's network, on random inputs of batch size {batches}",
        "",
        *(line for name, shapes in done.changed.items() if (line := _describe_change(name, *shapes))),
    ]
    if done.changed and done.format.endswith("safetensors"):
        lines.append("these weights fit only the compacted network; --format torch-export runs without its class")
    if done.pattern_lost:
        lines.append(
            f"compaction removed inputs, so these layers no longer hold the pattern of their gates: "
            f"{', '.join(done.pattern_lost)}; --no-compact keeps it"
        )
    print("\n".join([*lines, f"wrote {done.format} to {done.file}"]))


def _describe_change(name: str, before: list[int] | None, after: list[int] | None) -> str | None:
    """Describe a tensor's change of shape; None for vectors, which follow their layer's weights."""
    if after is None:
        return f"{name}: removed"
    shape = "×".join(map(str, after))
    if before is None:
        return f"{name}: added, {shape}"
    return f"{name}: {'×'.join(map(str, before))} to {shape}" if len(after) > 1 else None
