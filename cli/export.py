"""`hyperflux export`: a run's pruned network as one file to deploy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hyperflux.deploy.targets import EXTENSIONS

from .options import PlainPath

if TYPE_CHECKING:
    from hyperflux.deploy.export import Export


@click.command()
@click.argument("run", type=PlainPath())
@click.option(
    "--format",
    "name",
    type=click.Choice(list(EXTENSIONS)),
    default="safetensors",
    show_default=True,
    help="What kind of file.",
)
@click.option("--compact/--no-compact", default=True, show_default=True, help="Leave out what no longer counts.")
@click.option(
    "--out",
    type=PlainPath(),
    help="New file  [default: the run's model-compact or model-whole, with the format's ending]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as one line of JSON and nothing else.")
def export(run: Path, name: str, compact: bool, out: Path | None, as_json: bool) -> None:
    """Write the pruned network of a finished RUN as a file, and compare what the file computes with the run.

    \b
    safetensors         weights, zeros included; any library reads it
    sparse-safetensors  weights, only those that are not zero; hyperflux reads it
    torch-export        weights and computation, for torch.export.load and any batch size
    torchscript         weights and computation, for torch.jit.load
    onnx                weights and computation, for ONNX Runtime and others; needs 'hyperflux[onnx]'

    Files of weights need the network's class. Compaction makes layers smaller, so its weights fit only the network that
    hyperflux.compact makes of the class: take torch-export or onnx to run it without any class, or
    --no-compact to load the weights into the class. Nothing but an earlier export to the default file is replaced.
    """
    from hyperflux.deploy.export import export as export_run

    done = export_run(run, name, compact, out)
    if as_json:
        click.echo(json.dumps(done.to_dict()))
    else:
        _show(done)


def _show(done: Export) -> None:
    """The figures, then what to know about the file."""
    batches = ", ".join(map(str, done.checked_batches))
    lines = [
        f"dense file          {done.dense_bytes:,} bytes",
        f"this file           {done.bytes:,} bytes, {done.ratio:.4f} of it",
        f"weights             {done.weights_before:,} before, {done.weights_after:,} after, {done.nonzero:,} not zero",
        f"largest difference  {done.largest_difference:.3g} in outputs up to {done.largest_output:.3g}",
        f"compared            with the run's network, in fresh inputs, {batches} at once",
        "",
        *(line for name, shapes in done.changed.items() if (line := _change(name, *shapes))),
    ]
    if done.changed and done.format.endswith("safetensors"):
        lines.append("these weights fit the compacted network only; --format torch-export runs without its class")
    click.echo("\n".join([*lines, f"{done.format} in {done.file}"]))


def _change(name: str, before: list[int] | None, after: list[int] | None) -> str | None:
    """What became of a tensor's shape; nothing about vectors, which follow their layer's weights."""
    if after is None:
        return f"{name}: is gone"
    now = "×".join(map(str, after))
    if before is None:
        return f"{name}: is new, {now}"
    return f"{name}: {'×'.join(map(str, before))} is now {now}" if len(after) > 1 else None
