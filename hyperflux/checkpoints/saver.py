"""Writes a run's checkpoints when they are due, and stops the run when it was told to."""

from __future__ import annotations

import signal
from collections.abc import Callable

from hyperflux.checkpoints.file import Checkpoint
from hyperflux.checkpoints.folder import CheckpointFolder
from hyperflux.checkpoints.pace import Clock, Pace
from hyperflux.errors import Interrupted
from hyperflux.record import resume_command

Stop = Callable[[], int | None]
"""The number of the signal that tells a run to stop; None while there is none."""


class Saver:
    """Call `after_step` after every optimizer step, `save` at the end of a stage; `content` is the run's state then."""

    def __init__(self, folder: CheckpointFolder, pace: Pace, stop: Stop, content: Callable[[], Checkpoint]) -> None:
        self._folder, self._clock, self._stop, self._content = folder, Clock(pace), stop, content

    def after_step(self) -> None:
        """Save where a checkpoint is due. Raises Interrupted, once saved, where the run was told to stop."""
        due, number = self._clock.step(), self._stop()
        if due or number is not None:
            self.save()
        if number is not None:
            name = signal.Signals(number).name
            raise Interrupted(f"stopped by {name}; go on with {resume_command(self._folder.path.parent)}", number)

    def save(self) -> None:
        """Write a checkpoint now. Raises WriteError where the disk refuses; the last one is there still."""
        self._folder.write(self._content())
        self._clock.restart()
