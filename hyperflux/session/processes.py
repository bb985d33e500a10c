"""The processes that train one network together, as the driver sees them: they agree, and one of them writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from hyperflux.errors import InputError, RunError

T = TypeVar("T")


class ProcessGroup(Protocol):
    """Every process of a process group calls the same methods in the same order; each call waits for all."""

    @property
    def rank(self) -> int:
        """This process's number, from 0. Number 0 is the one that reads, writes and speaks."""

    @property
    def local_rank(self) -> int:
        """Its number on this host."""

    @property
    def size(self) -> int:
        """How many processes there are."""

    def all_gather(self, value: T) -> list[T]:
        """The values of all processes, in their order."""

    def broadcast(self, value: T) -> T:
        """The value of process 0."""

    def all_reduce_max(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number; fast enough for every step."""


class SingleProcess:
    """A single process."""

    rank, local_rank, size = 0, 0, 1

    def all_gather(self, value: T) -> list[T]:
        """Its own."""
        return [value]

    def broadcast(self, value: T) -> T:
        """Its own."""
        return value

    def all_reduce_max(self, numbers: Sequence[int]) -> list[int]:
        """Its own."""
        return list(numbers)


SINGLE_PROCESS = SingleProcess()


def launched() -> bool:
    """Whether a launcher such as torchrun started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and {"RANK", "MASTER_ADDR"} <= os.environ.keys()


@contextmanager
def raise_on_all_ranks(processes: ProcessGroup) -> Iterator[None]:
    """What fails in here in one process fails in all: with the error of the first of them, which alone tells it.

    Processes of a process group leave it together, so that none goes on and waits for one that has gone.
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
    """What process 0 makes, in all of them. Raises in all what it raises there."""
    made: list[T] = []
    with raise_on_all_ranks(processes):
        if processes.rank == 0:
            made.append(make())
    return processes.broadcast(made)[0]
