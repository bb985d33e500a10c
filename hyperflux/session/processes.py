"""The process group that trains one network, as the driver sees it: all ranks agree, and rank 0 writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from hyperflux.errors import InputError, RunError

T = TypeVar("T")


class ProcessGroup(Protocol):
    """The ranks that train one network. All call the same methods in the same order; each call waits for all ranks."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0. Rank 0 reads, writes and announces."""

    @property
    def local_rank(self) -> int:
        """Number of this process on its host."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def all_gather(self, value: T) -> list[T]:
        """The values of all ranks, in order of rank."""

    def broadcast(self, value: T) -> T:
        """The value of rank 0."""

    def all_reduce_max(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number over all ranks; cheap enough for every step."""


class SingleProcess:
    """The process group of one process."""

    rank, local_rank, size = 0, 0, 1

    def all_gather(self, value: T) -> list[T]:
        """The value of this process, in a list."""
        return [value]

    def broadcast(self, value: T) -> T:
        """The value of this process."""
        return value

    def all_reduce_max(self, numbers: Sequence[int]) -> list[int]:
        """The numbers of this process."""
        return list(numbers)


SINGLE_PROCESS = SingleProcess()


def launched() -> bool:
    """Whether a launcher such as torchrun started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and {"RANK", "MASTER_ADDR"} <= os.environ.keys()


@contextmanager
def raise_on_all_ranks(processes: ProcessGroup) -> Iterator[None]:
    """If a rank raises within this context, all ranks raise the error of the first rank that failed.

    Only that rank reports the error; on the others `reported_elsewhere` says so. All ranks leave the context together,
    so that none waits for a rank that has ended.

    Raises:
        InputError: A rank raised it within the context.
        RunError: A rank raised it within the context.
    """
    own: InputError | RunError | None = None
    try:
        yield
    except (InputError, RunError) as error:
        own = error
    failures = processes.all_gather(own)
    first = next((rank for rank, failure in enumerate(failures) if failure is not None), None)
    if first is None:
        return
    failure = own if first == processes.rank else failures[first]
    assert failure is not None
    failure.reported_elsewhere = first != processes.rank
    raise failure


def from_rank_zero(processes: ProcessGroup, make: Callable[[], T]) -> T:
    """Call `make` on rank 0 and return its result on all ranks; if it raises, all ranks raise."""
    made: list[T] = []
    with raise_on_all_ranks(processes):
        if processes.rank == 0:
            made.append(make())
    return processes.broadcast(made)[0]
