"""The networks that a run left: built again by name, with the weights of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hyperflux.backends.torch.checkpoint import load_into, read_checkpoint
from hyperflux.backends.torch.models import build_model
from hyperflux.config import RunConfig
from hyperflux.record import read_run


@dataclass(frozen=True)
class RunNetworks:
    """A finished run's network before and after pruning, both on the CPU and in evaluation mode.

    `pruned` holds exact zeros. `shape` is that of a sample, without the batch.
    """

    config: RunConfig
    dense: nn.Module
    pruned: nn.Module
    shape: tuple[int, ...]

    def example(self, batch: int = 1) -> Tensor:
        """Inputs (batch, *shape) of mean 0 and deviation 1, the same in every call."""
        drawn = torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(0))
        return drawn.to(getattr(torch, self.config.dtype))


def load_networks(folder: Path) -> RunNetworks:
    """Read a finished run. Raises InputError where a file is missing, damaged or does not fit the others."""
    run = read_run(folder)
    config, shape = RunConfig.from_dict(run.config), tuple(run.report["input_shape"])

    def network(name: str) -> nn.Module:
        model = build_model(config.model, shape, run.report["classes"], config.seed)
        load_into(model, read_checkpoint(str(folder / f"{name}.safetensors")), config.model)
        return model.to(getattr(torch, config.dtype)).eval()

    return RunNetworks(config, network("dense"), network("model"), shape)
