"""The epochs of a run: each trained by its settings, evaluated, recorded; to be saved after any step and restored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux.backends.base import Backend
from hyperflux.session.warnings import Warnings, out_of_reach, starved, starved_line
from hyperflux.runs.checkpoints.file import Arrays
from hyperflux.config import RunConfig
from hyperflux.errors import WriteError
from hyperflux.session.nonfinite import NotFiniteError
from hyperflux.io.flatten import flatten, subtree
from hyperflux.runs.data_order import batch_ends, epoch_batches
from hyperflux.schedules.base import Gate, PruningSchedule
from hyperflux.schedules.scheduler import PruningScheduler
from hyperflux.runs.folder import RunFolder
from hyperflux.runs.schema import EpochRow, RunStage
from hyperflux.schedules.curves import cosine
from hyperflux.session.processes import SINGLE_PROCESS, ProcessGroup
from hyperflux.telemetry.levels import level
from hyperflux.telemetry.recorder import Recorder

Observer = Callable[[EpochRow], None]


@dataclass(frozen=True)
class Epoch:
    """One epoch of a run, counted from 1 over all stages; `last` of its stage or not."""

    number: int
    stage: RunStage
    learning_rate: float
    label_smoothing: float
    last: bool


def planned(config: RunConfig) -> list[Epoch]:
    """Every epoch of a run; none of the dense stage where a checkpoint gives the weights."""
    epochs: list[Epoch] = []
    stages: tuple[RunStage, ...] = ("pruning", "regrowth") if config.checkpoint else ("dense", "pruning", "regrowth")
    for stage in stages:
        settings = getattr(config, stage)
        for epoch in range(1, settings.epochs + 1):
            rate = cosine(settings.learning_rate, settings.final_learning_rate, epoch, settings.epochs)
            last = epoch == settings.epochs
            epochs.append(Epoch(len(epochs) + 1, stage, rate, settings.label_smoothing, last))
    return epochs


@dataclass(frozen=True)
class Position:
    """Where a run is: the rows of the epochs that have ended, the seconds spent, and what else is no array.

    `opening` is γ and η_t of the first step of an epoch under the gate that has begun and not ended, otherwise empty;
    `schedule` is the schedule's state, None before pruning. `told` are the warnings so far by their topics.
    """

    rows: list[EpochRow]
    seconds: float
    dense_accuracy: float | None
    opening: list[float]
    schedule: dict[str, Any] | None
    told: dict[str, str]


@dataclass
class _Pruning:
    """What steers and what watches."""

    gate: Gate
    scheduler: PruningScheduler[Any]
    recorder: Recorder | None


@dataclass
class Training:
    """One run under way: `dense`, then `start_pruning`, then `prune`.

    `after_step` is called after every optimizer step and what belongs to it, `end_stage` after every stage under the
    gate. In both, `position` and `arrays` are what another Training of the same run needs to go on to the bit.
    `seconds` count from `started`, a time on the monotonic clock. `announce` gets a line for each warning. Of a `processes`
    of processes that train together the first one watches.
    """

    config: RunConfig
    backend: Backend
    record: RunFolder
    observe: Observer
    started: float = field(default_factory=time.monotonic)
    announce: Callable[[str], None] = lambda line: None
    after_step: Callable[[], None] = lambda: None
    end_stage: Callable[[], None] = lambda: None
    processes: ProcessGroup = SINGLE_PROCESS
    rows: list[EpochRow] = field(default_factory=list, init=False)
    dense_accuracy: float | None = field(default=None, init=False)
    warnings: Warnings = field(init=False)
    _pruning: _Pruning | None = field(default=None, init=False)
    _opening: list[float] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.warnings = Warnings(self.announce)

    @property
    def seconds(self) -> float:
        """Time spent on the run, that before it was resumed included."""
        return time.monotonic() - self.started

    @property
    def has_begun_pruning(self) -> bool:
        """Whether `start_pruning` was called, here or before the run was resumed."""
        return self._pruning is not None

    def dense(self) -> None:
        """The dense stage. Raises NotFiniteError."""
        for epoch in self._left("dense"):
            with self._placed(epoch):
                loss = self.backend.train_dense(
                    self._batches(epoch),
                    learning_rate=epoch.learning_rate,
                    label_smoothing=epoch.label_smoothing,
                    after_step=partial(self._after_step, epoch),
                )
                self._end_epoch(epoch, loss)

    def start_pruning(self, schedule: PruningSchedule[Any]) -> None:
        """Put the gate on the network and the schedule at its controls."""
        gate = self.backend.start_pruning(schedule.initial_presence)
        scheduler = PruningScheduler(schedule, gate)
        watched = level(self.config.telemetry) if self.processes.rank == 0 else None
        recorder = None if watched is None else Recorder(schedule, gate, self.backend.probe(), watched)
        scheduler.watcher = recorder
        self._pruning = _Pruning(gate, scheduler, recorder)

    def prune(self) -> None:
        """Both stages under the gate. Raises NotFiniteError."""
        assert self._pruning is not None, "start_pruning() comes first"
        try:
            for epoch in (*self._left("pruning"), *self._left("regrowth")):
                with self._placed(epoch):
                    self._train_under_gate(epoch, self._pruning)
                if epoch.last:
                    self.end_stage()
            self._pruning.scheduler.finish()  # what is missing where a GradScaler skipped steps
            self._pruning.gate.confirm_masks()
        except BaseException:
            with suppress(WriteError):  # what was seen of a run that failed tells why, but the failure itself counts
                self._add_telemetry(self._pruning.recorder)
            raise
        self._add_telemetry(self._pruning.recorder)

    def position(self) -> Position:
        """Where the run is now."""
        schedule = None if self._pruning is None else asdict(self._pruning.scheduler.state)
        told = dict(self.warnings.lines)
        return Position(list(self.rows), self.seconds, self.dense_accuracy, list(self._opening), schedule, told)

    def arrays(self) -> Arrays:
        """The state of the backend and of telemetry. Raises NotFiniteError where something in it is not finite."""
        self.backend.require_finite()
        watched = self._pruning and self._pruning.recorder
        return flatten({"backend": self.backend.state(), "telemetry": watched.state() if watched else {}})

    def restore(self, position: Position, arrays: Mapping[str, NDArray[Any]], schedule: PruningSchedule[Any]) -> None:
        """Go on from a saved position, at whose last epoch metrics.jsonl then ends, and arrays."""
        if position.schedule is not None:
            self.start_pruning(schedule)
        self.backend.restore(subtree(arrays, "backend"))
        if self._pruning is not None:
            self._pruning.scheduler.restore(position.schedule or {})
            if self._pruning.recorder is not None:
                self._pruning.recorder.restore(subtree(arrays, "telemetry"))
        self.rows, self._opening = list(position.rows), list(position.opening)
        self.dense_accuracy = position.dense_accuracy
        self.warnings.lines = dict(position.told)
        self.started -= position.seconds
        self.record.set_epochs(self.rows)

    def _add_telemetry(self, recorder: Recorder | None) -> None:
        if recorder is not None:
            self.record.add_telemetry(recorder.tables())

    def _left(self, stage: RunStage) -> Iterator[Epoch]:
        """Epochs of a stage that have not ended."""
        return (epoch for epoch in planned(self.config) if epoch.stage == stage and epoch.number > len(self.rows))

    def _batches(self, epoch: Epoch) -> Iterator[NDArray[np.intp]]:
        """The epoch's order of the training part, in batches."""
        return epoch_batches(self.config.seed, epoch.number, self.backend.samples, self.config.batch_size)

    @contextmanager
    def _placed(self, epoch: Epoch) -> Iterator[None]:
        """Let a NotFiniteError say in which step of the run it came, and what can be done."""
        try:
            yield
        except NotFiniteError as error:
            raise error.at(
                f"at {self._place(epoch, error.step)}; lower {epoch.stage}.learning_rate ({epoch.learning_rate:g}) and "
                "run again"
            ) from error

    def _place(self, epoch: Epoch, step: int | None) -> str:
        """A step of an epoch, its last where there is no number, in words."""
        steps = len(batch_ends(self.backend.samples, self.config.batch_size))
        number = (epoch.number - 1) * steps + (steps if step is None else step)
        return f"step {number} (epoch {epoch.number}, {epoch.stage})"

    def _after_step(self, epoch: Epoch) -> None:
        if self.backend.guard.first is not None:
            fault, step = self.backend.guard.first
            self.warnings.warn_once("skipped", f"{self._place(epoch, step)} was skipped: {fault}")
        self.after_step()

    def _warn_of_layers(self, epoch: Epoch) -> None:
        """Of layers that have no weight left."""
        for name in starved(self.backend.layers()):
            exclude = "" if self.config.backend == "numpy" else f"--exclude {name}"
            self.warnings.warn_once(f"starved {name}", starved_line(name, f"after epoch {epoch.number}", exclude))

    def _train_under_gate(self, epoch: Epoch, pruning: _Pruning) -> None:
        gate, scheduler, recorder = pruning.gate, pruning.scheduler, pruning.recorder
        self._opening = self._opening or [gate.pressure, gate.presence_lr or 0.0]

        def after_step() -> None:
            scheduler.after_step()
            self._after_step(epoch)

        loss = self.backend.train_pruning(
            self._batches(epoch),
            learning_rate=epoch.learning_rate,
            label_smoothing=epoch.label_smoothing,
            after_step=after_step,
        )
        density, wanted = gate.surviving() / gate.total, scheduler.schedule.target_density(gate.steps)
        pressure, presence_lr = self._opening
        changes: tuple[int, int] | tuple[None, None] = (None, None)
        if recorder is not None:
            pruned, regrown = recorder.events()
            before = [sum(getattr(row, name) for row in self.rows) for name in ("pruned", "regrown")]
            changes = (pruned - before[0], regrown - before[1])
        self._end_epoch(epoch, loss, density, wanted, pressure, presence_lr, changes)
        self._opening = []
        self._warn_of_layers(epoch)
        where = f"after epoch {epoch.number}"
        self.warnings.warn_once("density", out_of_reach(scheduler.schedule, gate, where))

    def _end_epoch(
        self,
        epoch: Epoch,
        loss: float,
        density: float = 1.0,
        wanted: float = 1.0,
        pressure: float = 0.0,
        presence_lr: float = 0.0,
        changes: tuple[int, int] | tuple[None, None] = (0, 0),
    ) -> None:
        self.backend.require_finite()
        evaluation = self.backend.evaluate()
        row = EpochRow(
            epoch=epoch.number,
            stage=epoch.stage,
            density=density,
            wanted=wanted,
            pressure=pressure,
            lr=epoch.learning_rate,
            presence_lr=presence_lr,
            train_loss=loss,
            test_loss=evaluation.loss,
            accuracy=evaluation.accuracy,
            pruned=changes[0],
            regrown=changes[1],
        )
        self.record.add_epoch(row)
        self.rows.append(row)
        self.observe(row)
