"""The weights' optimizer of a run on torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hyperflux.config import OptimizerSettings


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """A new optimizer of all parameters; without `decay_all`, weight decay applies from two dimensions on."""
    decaying = [p for p in model.parameters() if settings.decay_all or p.ndim > 1]
    others = [p for p in model.parameters() if not settings.decay_all and p.ndim <= 1]
    groups: Any = [{"params": decaying}, {"params": others, "weight_decay": 0.0}] if others else decaying
    if settings.name == "adam":
        return torch.optim.Adam(groups, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        groups, lr=0.0, momentum=settings.momentum, nesterov=settings.nesterov, weight_decay=settings.weight_decay
    )
