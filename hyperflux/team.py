"""The processes that train one network together, as the driver sees them: they agree, and one of them writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from hyperflux.errors import InputError, RunError

T = TypeVar("T")


class Team(Protocol):
    """Every process of a team calls the same methods in the same order; each call waits for all."""

    @property
    def rank(self) -> int:
        """This process's number, from 0. Number 0 is the one that reads, writes and speaks."""

    @property
    def local_rank(self) -> int:
        """Its number on this host."""

    @property
    def size(self) -> int:
        """How many processes there are."""

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order."""

    def share(self, value: T) -> T:
        """The value of process 0."""

    def most(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number; fast enough for every step."""


class Alone:
    """A team of one."""

    rank, local_rank, size = 0, 0, 1

    def gather(self, value: T) -> list[T]:
        """Its own."""
        return [value]

    def share(self, value: T) -> T:
        """Its own."""
        return value

    def most(self, numbers: Sequence[int]) -> list[int]:
        """Its own."""
        return list(numbers)


ALONE = Alone()


def launched() -> bool:
    """Whether a launcher such as torchrun started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and {"RANK", "MASTER_ADDR"} <= os.environ.keys()


@contextmanager
def together(team: Team) -> Iterator[None]:
    """What fails in here in one process fails in all: with the error of the first of them, which alone tells it.

    Processes of a team leave it together, so that none goes on and waits for one that has gone.
    """
    own: InputError | RunError | None = None
    try:
        yield
    except (InputError, RunError) as error:
        own = error
    failures = team.gather(own)
    first = next((rank for rank, failure in enumerate(failures) if failure is not None), None)
    if first is None:
        return
    failure = own if first == team.rank else failures[first]
    assert failure is not None
    failure.told_elsewhere = first != team.rank
    raise failure


def from_first(team: Team, make: Callable[[], T]) -> T:
    """What process 0 makes, in all of them. Raises in all what it raises there."""
    made: list[T] = []
    with together(team):
        if team.rank == 0:
            made.append(make())
    return team.share(made)[0]
