"""Writes a run's checkpoints when they are due, and stops the run when it was told to."""

from __future__ import annotations

import signal
from collections.abc import Callable

from hyperflux.checkpoints.file import Checkpoint
from hyperflux.checkpoints.folder import CheckpointFolder
from hyperflux.checkpoints.pace import Clock, Pace
from hyperflux.errors import Interrupted
from hyperflux.record import resume_command
from hyperflux.team import ALONE, Team, together

Stop = Callable[[], int | None]
"""The number of the signal that tells a run to stop; None while there is none."""


class Saver:
    """Call `after_step` after every optimizer step, `save` at the end of a stage; `content` is the run's state then.

    The processes of a team do so together, and the first one writes: where one of them is told to stop, all do.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        pace: Pace,
        stop: Stop,
        content: Callable[[], Checkpoint],
        team: Team = ALONE,
    ) -> None:
        self._folder, self._clock, self._stop, self._content = folder, Clock(pace), stop, content
        self._team = team

    def after_step(self) -> None:
        """Save where a checkpoint is due. Raises Interrupted, once saved, where the run was told to stop."""
        due, number = self._team.most([self._clock.step(), self._stop() or 0])
        if due or number:
            self.save()
        if number:
            name = signal.Signals(number).name
            stopped = Interrupted(f"stopped by {name}; go on with {resume_command(self._folder.path.parent)}", number)
            stopped.told_elsewhere = self._team.rank > 0
            raise stopped

    def save(self) -> None:
        """Write a checkpoint now. Raises WriteError where the disk refuses; the last one is there still."""
        content = self._content()
        with together(self._team):
            if self._team.rank == 0:
                self._folder.write(content)
        self._clock.restart()
