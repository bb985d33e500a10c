"""A run's pruned network as one file that can be deployed, and the proof that the file computes the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hyperflux
from hyperflux.deploy.agreement import agrees
from hyperflux.deploy.compact import compact
from hyperflux.deploy.formats import FORMATS, Function
from hyperflux.deploy.networks import RunNetworks, load_networks
from hyperflux.deploy.targets import require_onnx, target_file
from hyperflux.errors import InputError, RunError
from hyperflux.io.atomic_write import write_atomic

CHECKED_BATCHES = (1, 3, 64)
"""Samples at once in which a file's outputs are compared."""

Shapes = dict[str, tuple[list[int] | None, list[int] | None]]


@dataclass(frozen=True)
class Export:
    """What was written and how it compares with the run.

    `bytes` are those of the file, `dense_bytes` those of the run's dense.safetensors. `weights_before` and
    `weights_after` count the elements of all parameters, `nonzero` those of the file's network that are not 0.
    `changed` gives the shapes before and after of tensors whose shape compaction changed, None where there was or is
    no tensor of the name. `largest_difference` is the greatest absolute one between outputs of the loaded file and of
    the run's network over batches of `checked_batches`; `largest_output` gives the scale.
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

    @property
    def ratio(self) -> float:
        """Bytes of the file as a share of the dense file's."""
        return self.bytes / self.dense_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "ratio": self.ratio}


def export(folder: Path, name: str, compacted: bool = True, out: Path | None = None) -> Export:
    """Write the pruned network of a finished run in the format `name` of `targets.EXTENSIONS`.

    The bytes are loaded again and compared with the run's network before a file appears, whole or not at all. Raises
    InputError for a folder, format or file that won't do, RunError where the network does not go into the format or
    does not come out of it the same.
    """
    file = target_file(folder, name, compacted, out)
    if name == "onnx":
        require_onnx()
    networks = load_networks(folder)
    expected = [(inputs, _outputs(networks.pruned, inputs)) for inputs in _fresh_inputs(networks)]
    model = _compacted(networks) if compacted else networks.pruned
    changed = _changed(networks.pruned, model)
    content = _content(name, model, networks, changed)
    difference, largest = _difference(name, FORMATS[name].function(content, model), expected)
    try:
        write_atomic(file, content)
    except RunError as error:
        raise InputError(f"{error}; name another file with --out") from error
    return Export(
        file=str(file),
        format=name,
        compacted=compacted,
        bytes=len(content),
        dense_bytes=(folder / "dense.safetensors").stat().st_size,
        weights_before=sum(parameter.numel() for parameter in networks.pruned.parameters()),
        weights_after=sum(parameter.numel() for parameter in model.parameters()),
        nonzero=sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
        changed=changed,
        largest_difference=difference,
        largest_output=largest,
        checked_batches=CHECKED_BATCHES,
    )


def _compacted(networks: RunNetworks) -> nn.Module:
    """The pruned network without what no longer counts."""
    try:
        return compact(networks.pruned, networks.example(2))
    except InputError as error:
        raise InputError(f"{error}; --no-compact exports the network whole") from error


def _changed(before: nn.Module, after: nn.Module) -> Shapes:
    """Shapes before and after of the tensors by name that have not kept theirs."""
    old, new = ({name: list(tensor.shape) for name, tensor in m.state_dict().items()} for m in (before, after))
    names = sorted(old.keys() | new.keys())
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _content(name: str, model: nn.Module, networks: RunNetworks, changed: Shapes) -> bytes:
    """The bytes of the file, with notes on where it comes from."""
    notes = {
        "producer": f"hyperflux {hyperflux.__version__}",
        "model": networks.config.model,
        "input_shape": json.dumps(networks.shape),
        "changed": json.dumps(changed),
    }
    try:
        with torch.no_grad():
            return FORMATS[name].content(model, networks.example(2), notes)
    except InputError:
        raise
    except Exception as error:  # exporters raise whatever they met on the way
        raise RunError(f"{networks.config.model} does not go into {name}: {_reason(error)}") from error


def _fresh_inputs(networks: RunNetworks) -> Iterator[Tensor]:
    """Inputs that no exporter saw, (batch, ...) for each of the batches."""
    generator = torch.Generator().manual_seed(1)
    for batch in CHECKED_BATCHES:
        yield torch.randn(batch, *networks.shape, generator=generator).to(getattr(torch, networks.config.dtype))


def _outputs(function: Function, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return function(inputs)


def _difference(name: str, function: Function, expected: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """The largest difference from the expected outputs, and the largest of these.

    Raises RunError where it is more than rounding.
    """
    wanted = torch.cat([outputs for _, outputs in expected])
    try:
        got = torch.cat([_outputs(function, inputs) for inputs, _ in expected])
        difference = float((got - wanted).abs().max())
    except Exception as error:  # runtimes too raise whatever they met
        raise RunError(f"the {name} file does not run on every batch size: {_reason(error)}") from error
    largest = float(wanted.abs().max())
    if not agrees(got, wanted):
        raise RunError(f"the {name} file computes something else: {difference:.3g} off in outputs up to {largest:.3g}")
    return difference, largest


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' if lines else ''}{lines[0][:200] if lines else ''}"
