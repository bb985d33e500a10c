"""A group of processes over `torch.distributed`: as torchrun starts them, gloo on CPUs and nccl on GPUs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hyperflux.errors import InputError, Interrupted, RunError

T = TypeVar("T")

LOST = ("gloo", "Connection closed", "Connection reset", "NCCL", "Broken pipe")
"""What torch says where another process is gone, in a RuntimeError of no class of its own."""

UNUSED = "Expected to have finished reduction in the prior iteration"
"""What DistributedDataParallel says where a parameter got no gradient."""


class TorchProcessGroup:
    """The default process group of `torch.distributed`: a `hyperflux.session.processes.ProcessGroup`."""

    def __init__(self) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))

    def all_gather(self, value: T) -> list[T]:
        """The values of all processes."""
        values: list[T | None] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def broadcast(self, value: T) -> T:
        """The value of process 0."""
        values = [value]
        distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def all_reduce_max(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number."""
        largest = torch.tensor(numbers)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return largest.tolist()


@contextmanager
def torch_process_group() -> Iterator[TorchProcessGroup]:
    """Join the group that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), and leave it.

    Raises InputError where it can't be joined and for models that it can't train, RunError where another process ended
    before this one was done with it.
    """
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"processes: can't be brought together ({error}); start them with torchrun") from error
    processes = TorchProcessGroup()
    try:
        yield processes
    except Interrupted:  # of all processes together
        distributed.destroy_process_group()
        raise
    except RuntimeError as error:
        meant = explained(error, processes.rank)
        if meant is None:
            raise
        raise meant from error
    distributed.destroy_process_group()


def explained(error: RuntimeError, rank: int) -> InputError | RunError | None:
    """What torch's own error means where processes train together; None where it means nothing special."""
    if isinstance(error, RunError):
        return None
    if UNUSED in str(error):
        refusal = InputError("model: has parameters without a part in its output; train it in one process alone")
        refusal.reported_elsewhere = rank > 0
        return refusal
    if isinstance(error, distributed.DistError) or any(words in str(error) for words in LOST):
        return RunError(
            f"process {rank}: another process of this run has ended ({_reason(error)}); a run that had begun goes on "
            "with hyperflux prune --resume --out FOLDER"
        )
    return None


def _reason(error: RuntimeError) -> str:
    """Its first sentence, without the place in torch's own source."""
    return re.sub(r"^\[[^]]*\] *", "", str(error)).partition(". ")[0]


def process_group_of(model: nn.Module) -> Any:
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
