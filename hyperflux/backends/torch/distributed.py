"""The process group over `torch.distributed`, as torchrun starts it: gloo on CPUs, nccl on GPUs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hyperflux.errors import InputError, Interrupted, RunError
from hyperflux.io.arguments import kind_of

T = TypeVar("T")

LOST = ("gloo", "Connection closed", "Connection reset", "NCCL", "Broken pipe")
"""Words of torch's plain RuntimeError after another rank has ended."""

UNUSED = "Expected to have finished reduction in the prior iteration"
"""Words of DistributedDataParallel's error if a parameter gets no gradient."""


class TorchProcessGroup:
    """The default process group of `torch.distributed`: a `hyperflux.session.processes.ProcessGroup`."""

    def __init__(self) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))

    def all_gather(self, value: T) -> list[T]:
        """The values of all ranks, in order of rank."""
        values: list[T | None] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def broadcast(self, value: T) -> T:
        """The value of rank 0."""
        values = [value]
        distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def all_reduce_max(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number over all ranks."""
        largest = torch.tensor(numbers)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return largest.tolist()


@contextmanager
def torch_process_group() -> Iterator[TorchProcessGroup]:
    """Within this context, join the process group that the environment describes.

    The environment gives RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Raises:
        InputError: The group cannot be joined, or the model cannot be trained by it.
        RunError: Another rank ended early.
    """
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"process group: cannot be joined ({error}); start all processes with torchrun") from error
    processes = TorchProcessGroup()
    try:
        yield processes
    except Interrupted:  # raised on all ranks
        distributed.destroy_process_group()
        raise
    except RuntimeError as error:
        meant = explained(error, processes.rank)
        if meant is None:
            raise
        raise meant from error
    distributed.destroy_process_group()


def explained(error: RuntimeError, rank: int) -> InputError | RunError | None:
    """The error for the user that stands for torch's error in a process group; None if torch's is to be raised."""
    if isinstance(error, RunError):
        return None
    if UNUSED in str(error):
        refusal = InputError("model: has parameters that do not affect its output; train it in a single process")
        refusal.reported_elsewhere = rank > 0
        return refusal
    if isinstance(error, distributed.DistError) or any(words in str(error) for words in LOST):
        return RunError(
            f"rank {rank}: another rank of this run has ended ({_reason(error)}); if the run had started, continue it "
            "with hyperflux prune --resume --out FOLDER"
        )
    return None


def _reason(error: RuntimeError) -> str:
    """The error's first sentence, without the place in torch's source."""
    return re.sub(r"^\[[^]]*\] *", "", str(error)).partition(". ")[0]


def process_group_of(model: nn.Module) -> Any:
    """The group in which DistributedDataParallel reduces the gradients of `model`; None without it."""
    while not isinstance(model, DistributedDataParallel):
        inner = model.module if isinstance(model, DataParallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return None
        model = inner
    return model.process_group


def from_first_rank(group: Any, make: Callable[[], T]) -> T:
    """Call `make` on the first rank of a group and return its result on all; if it raises InputError, all ranks do."""
    own: T | InputError | None = None
    if distributed.get_rank(group) == 0:
        try:
            own = make()
        except InputError as error:
            own = error
    every: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(every, own, group=group)
    first = every[0]
    if isinstance(first, InputError):
        first.reported_elsewhere = distributed.get_rank(group) > 0
        raise first
    found: T = first
    return found


def require_process_group(group: Any) -> None:
    """Raise InputError for a `process_group` that is neither None nor one of torch's."""
    if group is not None and not (distributed.is_available() and isinstance(group, distributed.ProcessGroup)):
        raise InputError(
            f"process_group: {kind_of(group)} is not a process group of torch.distributed; give one such as "
            "torch.distributed.group.WORLD after init_process_group(), or None for a single process"
        )


def require_same_masks(masks: Mapping[str, Tensor], group: Any, step: int) -> None:
    """Compare masks over all ranks of `group` by their hashes; waits for the device.

    Args:
        masks: Bool tensors by parameter name.
        group: torch's process group.
        step: Optimizer steps taken, for the message.

    Raises:
        RunError: A mask differs between ranks; raised on all of them, with the parameter's name.
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
    failure = RunError(
        f"{name}: after step {step} its mask on rank {others[0]} differs from rank 0; start all ranks with the same "
        "weights and seed, and reduce their gradients before each step (DistributedDataParallel)"
    )
    failure.reported_elsewhere = distributed.get_rank(group) > 0
    raise failure


def digest(mask: Tensor) -> Tensor:
    """A 64-bit hash of a bool tensor's elements in row-major order, equal on all devices: () int64 on its device.

    Words of eight elements are mixed with their position, as in SplitMix64 (Steele, Lea, Flood 2014), and added up.
    """
    flat = mask.flatten().view(torch.uint8)
    words = nn.functional.pad(flat, (0, -len(flat) % 8)).view(torch.int64)
    words = words + torch.arange(len(words), device=words.device) * -7046029254386353131
    for factor in (-4658895280553007687, -7723592293110705685):  # odd numbers of 64 bits, signed
        words = (words ^ (words >> 29)) * factor
    return (words ^ (words >> 32)).sum()
