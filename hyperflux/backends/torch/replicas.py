"""Replicas of a network that are trained together: each reckons its own masks, and all are compared by hash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hyperflux.errors import RunError


def process_group(model: nn.Module) -> Any:
    """The group in which DistributedDataParallel reduces the gradients of `model`; None where it doesn't."""
    while not isinstance(model, DistributedDataParallel):
        inner = model.module if isinstance(model, DataParallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return None
        model = inner
    return model.process_group


def require_same_masks(masks: Mapping[str, Tensor], group: Any, step: int) -> None:
    """Compare masks, name -> bool tensor, over all processes of `group`; waits for the device.

    Raises RunError in each of them, with the parameter's name, where they are not the same.
    """
    digests = [digest(mask) for mask in masks.values()]
    own = torch.stack([each.to(digests[0].device) for each in digests])
    every = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(every, own, group=group)
    differs = (torch.stack(every) != every[0]).cpu()
    if not differs.any():
        return
    name = list(masks)[int(differs.any(0).nonzero()[0])]
    others = differs.any(1).nonzero().flatten().tolist()
    parted = RunError(
        f"{name}: after step {step} its mask in process {others[0]} is not that of process 0; all processes must start "
        "with the same weights and seed, and reduce their gradients before each step (DistributedDataParallel)"
    )
    parted.reported_elsewhere = distributed.get_rank(group) > 0
    raise parted


def digest(mask: Tensor) -> Tensor:
    """A hash of 64 bits of a bool tensor's elements in row-major order, () int64, on its device: the same on any.

    Words of eight elements are mixed with their place, much as SplitMix64 does (Steele, Lea, Flood 2014), and added up.
    """
    flat = mask.flatten().view(torch.uint8)
    words = nn.functional.pad(flat, (0, -len(flat) % 8)).view(torch.int64)
    words = words + torch.arange(len(words), device=words.device) * -7046029254386353131
    for factor in (-4658895280553007687, -7723592293110705685):  # odd numbers of 64 bits, signed
        words = (words ^ (words >> 29)) * factor
    return (words ^ (words >> 32)).sum()
