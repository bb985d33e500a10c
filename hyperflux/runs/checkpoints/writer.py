"""Writes a run's checkpoints when they are due, and stops the run when it was told to."""

from __future__ import annotations

import signal
from collections.abc import Callable

from hyperflux.runs.checkpoints.file import Checkpoint
from hyperflux.runs.checkpoints.folder import CheckpointFolder
from hyperflux.runs.checkpoints.interval import CheckpointTimer, CheckpointInterval
from hyperflux.errors import Interrupted
from hyperflux.runs.folder import resume_command
from hyperflux.session.processes import SINGLE_PROCESS, ProcessGroup, raise_on_all_ranks

Stop = Callable[[], int | None]
"""The number of the signal that tells a run to stop; None while there is none."""


class CheckpointWriter:
    """Call `after_step` after every optimizer step, `save` at the end of a stage; `content` is the run's state then.

    The processes of a group do so together, and the first one writes: where one of them is told to stop, all do.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        pace: CheckpointInterval,
        stop: Stop,
        content: Callable[[], Checkpoint],
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self._folder, self._clock, self._stop, self._content = folder, CheckpointTimer(pace), stop, content
        self._processes = processes

    def after_step(self) -> None:
        """Save where a checkpoint is due. Raises Interrupted, once saved, where the run was told to stop."""
        due, number = self._processes.all_reduce_max([self._clock.step(), self._stop() or 0])
        if due or number:
            self.save()
        if number:
            name = signal.Signals(number).name
            stopped = Interrupted(f"stopped by {name}; go on with {resume_command(self._folder.path.parent)}", number)
            stopped.reported_elsewhere = self._processes.rank > 0
            raise stopped

    def save(self) -> None:
        """Write a checkpoint now. Raises WriteError where the disk refuses; the last one is there still."""
        content = self._content()
        with raise_on_all_ranks(self._processes):
            if self._processes.rank == 0:
                self._folder.write(content)
        self._clock.restart()
