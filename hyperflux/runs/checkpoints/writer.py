"""Writes a run's checkpoints when they are due, and stops the run on a signal."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from hyperflux.errors import InputError, Interrupted
from hyperflux.runs.checkpoints.file import Checkpoint
from hyperflux.runs.checkpoints.folder import CheckpointFolder
from hyperflux.runs.folder import resume_command
from hyperflux.session.processes import SINGLE_PROCESS, ProcessGroup, raise_on_all_ranks

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
"""Seconds of each unit of time."""
ONE_REQUEST = 0.5
"""Seconds within which a signal that comes again is one request: `timeout` tells its command, then its whole group."""

Stop = Callable[[], int | None]
"""Returns the number of the signal that asks a run to stop; None if there was none."""


@dataclass(frozen=True)
class CheckpointInterval:
    """Interval between checkpoints.

    Attributes:
        steps: Optimizer steps, or None.
        seconds: Seconds, or None; one of the two is set.
    """

    steps: int | None
    seconds: float | None

    @classmethod
    def parse(cls, text: str) -> CheckpointInterval:
        """Read "500", "500steps", "30s", "10min" or "2h". Raises InputError for anything else, and for zero."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) *(s|min|h|steps|)", text.strip())
        if found and (number := float(found[1])) > 0:
            if found[2] in UNITS:
                return cls(None, number * UNITS[found[2]])
            if number.is_integer():
                return cls(int(number), None)
        raise InputError(
            f"checkpoint-every: {text!r}; give a number of steps such as 500, or a time such as 10min or 2h"
        )


class CheckpointTimer:
    """Determines when the next checkpoint is due."""

    def __init__(self, interval: CheckpointInterval) -> None:
        self._interval = interval
        self.restart()

    def restart(self) -> None:
        """Restart the interval, after a checkpoint was written."""
        self._steps, self._since = 0, time.monotonic()

    def step(self) -> bool:
        """Count a step and return whether a checkpoint is due after it."""
        self._steps += 1
        if self._interval.steps is not None:
            return self._steps >= self._interval.steps
        return self._interval.seconds is not None and time.monotonic() - self._since >= self._interval.seconds


class CheckpointWriter:
    """Call `after_step` after every optimizer step, and `save` at the end of a stage.

    All ranks of a process group call both together; rank 0 writes. If one rank is asked to stop, all stop.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        interval: CheckpointInterval,
        stop: Stop,
        content: Callable[[], Checkpoint],
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        """`content` returns the run's state now."""
        self._folder, self._timer, self._stop, self._content = folder, CheckpointTimer(interval), stop, content
        self._processes = processes

    def after_step(self) -> None:
        """Save if a checkpoint is due. If the run was asked to stop, save and raise Interrupted."""
        due, number = self._processes.all_reduce_max([self._timer.step(), self._stop() or 0])
        if due or number:
            self.save()
        self._raise_for(number)

    def stop_if_asked(self) -> None:
        """Raise Interrupted if this process was asked to stop, after a checkpoint that the caller has saved."""
        self._raise_for(self._stop() or 0)

    def _raise_for(self, number: int) -> None:
        """Raise Interrupted by the signal of this number, unless it is 0."""
        if number:
            name = signal.Signals(number).name
            folder = self._folder.path.parent
            stopped = Interrupted(f"stopped by {name}; continue with {resume_command(folder)}", number)
            stopped.reported_elsewhere = self._processes.rank > 0
            raise stopped

    def save(self) -> None:
        """Write a checkpoint now. Raises WriteError if the disk refuses; the previous one stays."""
        content = self._content()
        with raise_on_all_ranks(self._processes):
            if self._processes.rank == 0:
                self._folder.write(content)
        self._timer.restart()


@contextmanager
def catch_stop_signals() -> Iterator[Stop]:
    """Within this context, note the first Ctrl-C, SIGTERM or SIGHUP; the yielded function returns its number.

    The same signal within `ONE_REQUEST` is the same request. Any other after the first acts as usual. Where SIGHUP is
    ignored, as under nohup, it stays so. Use it in the main thread only. Forked child processes ignore these signals.
    """
    noted: list[tuple[int, float]] = []
    owner, before = os.getpid(), {number: signal.getsignal(number) for number in _stop_signals()}

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            return  # to every process of the run, but its step needs its workers, which set their own handlers
        if not noted:
            noted.append((number, time.monotonic()))
        elif number != noted[0][0] or time.monotonic() - noted[0][1] > ONE_REQUEST:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            if signal.getsignal(number) is note:  # a command that is about to end ignores all
                signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: noted[0][0] if noted else None
    finally:
        restore()


def _stop_signals() -> list[signal.Signals]:
    found = [signal.SIGINT, signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)  # a terminal that is closed sends it; Windows lacks it
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        found.append(hang_up)
    return found
