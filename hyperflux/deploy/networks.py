"""Load the networks of a finished run: built by name, with the weights of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hyperflux.backends.torch.models import build_model, count_numbers
from hyperflux.backends.torch.weights_file import load_from
from hyperflux.config import RunConfig
from hyperflux.errors import InputError
from hyperflux.io.arguments import as_path
from hyperflux.io.safe_read import inside
from hyperflux.runs.folder import read_run

MIN_BYTES = 4
"""Fewest bytes per weight in a run's files: float32."""


@dataclass(frozen=True)
class RunNetworks:
    """A finished run's network before and after pruning, both on the CPU and in evaluation mode.

    Attributes:
        config: The run's configuration.
        dense: The network before pruning.
        pruned: The network after pruning; pruned weights are exactly 0.
        shape: The shape of one sample, without the batch.
    """

    config: RunConfig
    dense: nn.Module
    pruned: nn.Module
    shape: tuple[int, ...]

    def example(self, batch: int = 1) -> Tensor:
        """Return standard normal inputs (batch, *shape), the same in every call."""
        drawn = torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(0))
        return drawn.to(getattr(torch, self.config.dtype))


def load_networks(folder: Path) -> RunNetworks:
    """Load the networks of a finished run.

    Raises:
        InputError: A file of the run is missing, damaged or does not match the others.
    """
    folder = as_path("folder", folder)
    run = read_run(folder)
    config, shape = run.config, tuple(run.outcome.input_shape)

    def network(name: str) -> nn.Module:
        try:
            file = inside(folder, f"{name}.safetensors")
            _check_size(config.model, shape, run.outcome.classes, file)
        except OSError as error:
            raise InputError(f"{folder / name}.safetensors: {error.strerror}") from error
        model = build_model(config.model, shape, run.outcome.classes, config.seed)
        load_from(model, str(file), config.model)
        return model.to(getattr(torch, config.dtype)).eval()

    return RunNetworks(config, network("dense"), network("model"), shape)


def _check_size(model: str, shape: tuple[int, ...], classes: int, file: Path) -> None:
    """Raise InputError where the file is too small for the network, before memory is taken to build it; OSError."""
    if file.is_file() and (numbers := count_numbers(model, shape, classes)) is not None:
        needed = MIN_BYTES * numbers
        if (size := file.stat().st_size) < needed:
            raise InputError(
                f"{file}: not a readable safetensors file of {model} ({size:,} bytes; its weights need {needed:,})"
            )
