"""Export a run's pruned network as one file, and check that the file computes the same outputs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperflux._version import __version__
from hyperflux.backends.torch.compact.driver import count_weights
from hyperflux.backends.torch.compact.equivalence import outputs_match
from hyperflux.deploy.compact import compact
from hyperflux.deploy.export_options import output_path, require_onnx
from hyperflux.deploy.formats import FORMATS, Function
from hyperflux.deploy.networks import RunNetworks, load_networks
from hyperflux.deploy.semi_structured import pattern_layers
from hyperflux.errors import InputError, RunError
from hyperflux.gates.kinds import Pattern
from hyperflux.io.arguments import as_path
from hyperflux.io.atomic_write import write_atomic
from hyperflux.io.ranges import true_or_false

CHECKED_BATCHES = (1, 3, 64)
"""Batch sizes at which a file's outputs are compared."""

Shapes = dict[str, tuple[list[int] | None, list[int] | None]]
"""By name, a tensor's shape before and after; None where it does not exist."""


@dataclass(frozen=True)
class Export:
    """What was written, and how it compares with the run.

    Attributes:
        file: The file.
        format: Its format.
        compacted: Whether the network was compacted.
        bytes: The file's size.
        dense_bytes: The size of the run's dense.safetensors.
        weights_before: Elements of all parameters of the run's network.
        weights_after: Elements of all parameters of the file's network.
        nonzero: Those of them that are not 0.
        changed: Tensors whose shape compaction changed.
        largest_difference: Largest absolute difference between outputs of the loaded file and of the run's network.
        largest_output: Largest absolute output, for scale.
        checked_batches: Batch sizes at which outputs were compared.
        pattern_lost: Layers of a run with gates of a pattern that hold it in the run's network but not in the file,
            because compaction has removed some of their inputs.
    """

    file: str
    format: str
    compacted: bool
    bytes: int
    dense_bytes: int
    weights_before: int
    weights_after: int
    nonzero: int
    changed: Shapes
    largest_difference: float
    largest_output: float
    checked_batches: tuple[int, ...]
    pattern_lost: list[str]

    @property
    def ratio(self) -> float:
        """Bytes of the file as a fraction of the dense file's."""
        return self.bytes / self.dense_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**asdict(self), "ratio": self.ratio}


def export(folder: Path, name: str, compacted: bool = True, out: Path | None = None) -> Export:
    """Write the pruned network of a finished run to a file.

    The bytes are loaded back and compared with the run's network before the file appears, whole or not at all.

    Args:
        folder: The run's folder.
        name: The format, one of `export_options.EXTENSIONS`.
        compacted: Whether to compact the network first.
        out: A new file; by default one in the run's folder, which may be replaced.

    Returns:
        What was written.

    Raises:
        InputError: The folder holds no finished run, the format is unknown or lacks packages, the network can't be
            compacted, or the file can't be written.
        RunError: The network can't be written in the format, or the file computes different outputs.
    """
    folder = as_path("folder", folder)
    out = None if out is None else as_path("out", out)
    compacted = true_or_false("compacted", compacted)
    file = output_path(folder, name, compacted, out)
    if name == "onnx":
        require_onnx()
    networks = load_networks(folder)
    try:
        dense_bytes = os.stat(folder / "dense.safetensors").st_size
    except OSError as error:
        raise InputError(f"{folder / 'dense.safetensors'}: {error.strerror}") from error
    expected = [(inputs, _outputs(networks.pruned, inputs)) for inputs in _fresh_inputs(networks)]
    model = _compact(networks) if compacted else networks.pruned
    changed = _changed_shapes(networks.pruned, model)
    content = _serialize(name, model, networks, changed)
    difference, largest = _compare(name, FORMATS[name].function(content, model), expected)
    try:
        write_atomic(file, content)
    except RunError as error:
        raise InputError(f"{error}; give --out another name") from error
    return Export(
        file=str(file),
        format=name,
        compacted=compacted,
        bytes=len(content),
        dense_bytes=dense_bytes,
        weights_before=count_weights(networks.pruned),
        weights_after=count_weights(model),
        nonzero=sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
        changed=changed,
        largest_difference=difference,
        largest_output=largest,
        checked_batches=CHECKED_BATCHES,
        pattern_lost=_pattern_lost(networks, model),
    )


def _compact(networks: RunNetworks) -> nn.Module:
    try:
        return compact(networks.pruned, networks.example(2))
    except InputError as error:
        raise InputError(f"{error}; --no-compact exports the whole network") from error


def _pattern_lost(networks: RunNetworks, model: nn.Module) -> list[str]:
    """Return the layers that hold the run's pattern in its network, but not in another form of it."""
    if not isinstance(pattern := networks.config.gate_kind, Pattern):
        return []
    left, held = dict(model.named_modules()), pattern_layers(model, pattern)
    return [name for name in pattern_layers(networks.pruned, pattern) if name in left and name not in held]


def _changed_shapes(before: nn.Module, after: nn.Module) -> Shapes:
    """Return the shapes before and after of the tensors whose shapes differ."""
    old, new = ({name: list(tensor.shape) for name, tensor in m.state_dict().items()} for m in (before, after))
    names = sorted(old.keys() | new.keys())
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _serialize(name: str, model: nn.Module, networks: RunNetworks, changed: Shapes) -> bytes:
    """Return the bytes of the file, with its provenance in the metadata."""
    notes = {
        "producer": f"hyperflux {__version__}",
        "model": networks.config.model,
        "input_shape": json.dumps(networks.shape),
        "changed": json.dumps(changed),
    }
    try:
        with torch.no_grad():
            return FORMATS[name].content(model, networks.example(2), notes)
    except InputError:
        raise
    except Exception as error:  # exporters raise exceptions of any type
        raise RunError(f"{networks.config.model} can't be exported to {name}: {_reason(error)}") from error


def _fresh_inputs(networks: RunNetworks) -> Iterator[Tensor]:
    """Yield inputs (batch, ...) of each checked batch size, other than those that exporters traced."""
    generator = torch.Generator().manual_seed(1)
    for batch in CHECKED_BATCHES:
        yield torch.randn(batch, *networks.shape, generator=generator).to(getattr(torch, networks.config.dtype))


def _outputs(function: Function, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return function(inputs)


def _compare(name: str, function: Function, expected: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Return the largest difference from the expected outputs, and the largest of these.

    Raises RunError where the difference exceeds rounding. `expected` holds pairs of inputs and outputs.
    """
    reference = torch.cat([outputs for _, outputs in expected])
    try:
        found = torch.cat([_outputs(function, inputs) for inputs, _ in expected])
        difference = float((found - reference).abs().max())
    except Exception as error:  # runtimes raise exceptions of any type, too
        raise RunError(f"the {name} file does not run on every batch size: {_reason(error)}") from error
    largest = float(reference.abs().max())
    if not outputs_match(found, reference):
        raise RunError(
            f"the {name} file computes different outputs: off by {difference:.3g} (largest output {largest:.3g})"
        )
    return difference, largest


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' if lines else ''}{lines[0][:200] if lines else ''}"
