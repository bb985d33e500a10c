"""The epochs of a run: each is trained, evaluated and recorded; a run can be saved after any step and restored."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux.backends.base import Backend
from hyperflux.config import RunConfig
from hyperflux.errors import WriteError
from hyperflux.io.flatten import flatten, subtree
from hyperflux.runs.checkpoints.file import Arrays
from hyperflux.runs.data_order import batch_ends, epoch_batches
from hyperflux.runs.folder import RunFolder
from hyperflux.runs.schema import EpochRow, RunStage
from hyperflux.runs.validation import check_epochs, check_telemetry
from hyperflux.schedules.base import PruningSchedule
from hyperflux.schedules.curves import cosine
from hyperflux.session.nonfinite import NotFiniteError
from hyperflux.session.processes import SINGLE_PROCESS, ProcessGroup
from hyperflux.session.pruning import PruningSession
from hyperflux.session.warnings import Warnings

Observer = Callable[[EpochRow], None]


@dataclass(frozen=True)
class Epoch:
    """One epoch of a run.

    Attributes:
        number: Counted from 1 over all stages.
        stage: The stage.
        learning_rate: Learning rate of w.
        label_smoothing: Label smoothing of the loss.
        last: Whether it is the last epoch of its stage.
    """

    number: int
    stage: RunStage
    learning_rate: float
    label_smoothing: float
    last: bool


def planned_epochs(config: RunConfig) -> list[Epoch]:
    """Every epoch of a run in order; no dense stage if training starts from a weights file."""
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
class RunProgress:
    """Progress of a run: what a checkpoint holds in addition to arrays.

    Attributes:
        rows: The rows of finished epochs.
        seconds: Time spent.
        dense_accuracy: Accuracy of the dense network, if known.
        epoch_settings: γ and η_t of the first step of the current pruning epoch; empty between epochs.
        schedule: The schedule's state; None before pruning.
        warnings: The warnings so far, by topic.
    """

    rows: list[EpochRow]
    seconds: float
    dense_accuracy: float | None
    epoch_settings: list[float]
    schedule: dict[str, Any] | None
    warnings: dict[str, str]


def check_progress(progress: RunProgress, epochs: Sequence[Epoch]) -> None:
    """Raise ValueError unless a run of these epochs can have made this progress."""
    rows = progress.rows
    check_epochs(rows)
    if [(row.epoch, row.stage) for row in rows] != [(epoch.number, epoch.stage) for epoch in epochs[: len(rows)]]:
        raise ValueError("rows: epochs that the run does not have")
    dense = sum(epoch.stage == "dense" for epoch in epochs)
    if len(rows) < dense if progress.schedule is not None else len(rows) > dense:
        raise ValueError("schedule: is there before the pruning stage, or missing in it")
    if not (math.isfinite(progress.seconds) and progress.seconds >= 0):
        raise ValueError(f"seconds: {progress.seconds} is out of range")
    if progress.dense_accuracy is not None and not 0 <= progress.dense_accuracy <= 1:
        raise ValueError(f"dense_accuracy: {progress.dense_accuracy} is out of range")
    settings = progress.epoch_settings
    if len(settings) not in (0, 2) or not all(math.isfinite(number) and number >= 0 for number in settings):
        raise ValueError("epoch_settings: not two numbers of at least 0, nor none")


@dataclass
class Training:
    """Trains a run: call `dense`, then `start_pruning`, then `prune`.

    `progress` and `arrays` hold what another Training of the same run needs to continue bit for bit.

    Attributes:
        config: The settings.
        backend: Trains the network.
        record: The run's folder.
        observe: Receives the row of each epoch.
        started: When the run started, on the monotonic clock.
        announce: Receives each warning.
        after_step: Called after every optimizer step.
        end_stage: Called at the end of the pruning and the regrowth stage.
        processes: The process group; only rank 0 records telemetry.
        rows: The rows of finished epochs.
        dense_accuracy: Accuracy of the dense network, a fraction, if known.
        warnings: The warnings given so far.
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
    _session: PruningSession[Any] | None = field(default=None, init=False)
    _epoch_settings: list[float] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.warnings = Warnings(self.announce)

    @property
    def seconds(self) -> float:
        """Time spent on the run, including the time before it was resumed."""
        return time.monotonic() - self.started

    @property
    def has_begun_pruning(self) -> bool:
        """Whether `start_pruning` was called, in this process or before the run was resumed."""
        return self._session is not None

    def dense(self) -> None:
        """Train the dense stage. Raises NotFiniteError."""
        for epoch in self._remaining("dense"):
            with self._located(epoch):
                loss = self.backend.train_dense(
                    self._batches(epoch),
                    learning_rate=epoch.learning_rate,
                    label_smoothing=epoch.label_smoothing,
                    after_step=partial(self._after_step, epoch),
                )
                self._end_epoch(epoch, loss)

    def start_pruning(self, schedule: PruningSchedule[Any]) -> None:
        """Start the pruning session."""
        telemetry = self.config.telemetry if self.processes.rank == 0 else "off"
        self._session = self.backend.start_pruning(schedule, self.warnings, telemetry)

    def prune(self) -> None:
        """Train the pruning and the regrowth stage. Raises NotFiniteError."""
        assert self._session is not None, "start_pruning() comes first"
        try:
            for epoch in (*self._remaining("pruning"), *self._remaining("regrowth")):
                with self._located(epoch):
                    self._train_pruning_epoch(epoch, self._session)
                if epoch.last:
                    self.end_stage()
            self._session.finish()  # reaches the final count even if a GradScaler skipped steps
            self._session.gate.confirm_masks()
        except BaseException:
            with suppress(WriteError):  # the failure itself matters more than its telemetry
                self._add_telemetry()
            raise
        self._add_telemetry()

    def progress(self) -> RunProgress:
        """The progress now."""
        return RunProgress(
            rows=list(self.rows),
            seconds=self.seconds,
            dense_accuracy=self.dense_accuracy,
            epoch_settings=list(self._epoch_settings),
            schedule=None if self._session is None else self._session.state(),
            warnings=dict(self.warnings.lines),
        )

    def arrays(self) -> Arrays:
        """The state of the backend and of telemetry. Raises NotFiniteError if a value in it is not finite."""
        self.backend.require_finite()
        recorder = self._session and self._session.recorder
        return flatten({"backend": self.backend.state(), "telemetry": recorder.state() if recorder else {}})

    def restore(
        self, progress: RunProgress, arrays: Mapping[str, NDArray[Any]], schedule: PruningSchedule[Any]
    ) -> None:
        """Continue from saved progress and arrays; metrics.jsonl is cut back to the rows of `progress`.

        Raises:
            ValueError: They can't be those of this run; no file has changed.
        """
        check_progress(progress, planned_epochs(self.config))
        if progress.schedule is not None:
            self.start_pruning(schedule)
        saved, telemetry = subtree(arrays, "backend"), subtree(arrays, "telemetry")
        steps = len(batch_ends(self.backend.samples, self.config.batch_size))
        self.backend.require_state(saved, epochs=len(progress.rows), batches=steps)
        self.backend.restore(saved)
        if self._session is not None:
            self._session.restore(progress.schedule or {})
            pruned = sum(row.stage != "dense" for row in progress.rows)
            if self._session.gate.steps > (pruned + 1) * steps:
                raise ValueError(f"the gate has taken {self._session.gate.steps:,} steps in {pruned} epochs of {steps}")
            if self._session.recorder is not None:
                self._session.recorder.require_state(telemetry, self._session.gate.steps)
                self._session.recorder.restore(telemetry)
                events = [sum(getattr(row, kind) or 0 for row in progress.rows) for kind in ("pruned", "regrown")]
                self._session.recorder.require_counted(*events)
                check_telemetry(self._session.recorder.tables(), self._session.gate.layers())
        self.rows, self._epoch_settings = list(progress.rows), list(progress.epoch_settings)
        self.dense_accuracy = progress.dense_accuracy
        self.warnings.lines.update(progress.warnings)
        self.started -= progress.seconds
        self.record.set_epochs(self.rows)

    def _add_telemetry(self) -> None:
        if self._session is not None and self._session.recorder is not None:
            self.record.add_telemetry(self._session.recorder.tables())

    def _remaining(self, stage: RunStage) -> Iterator[Epoch]:
        """Epochs of a stage that are not finished."""
        return (
            epoch for epoch in planned_epochs(self.config) if epoch.stage == stage and epoch.number > len(self.rows)
        )

    def _batches(self, epoch: Epoch) -> Iterator[NDArray[np.intp]]:
        """The batches of an epoch."""
        return epoch_batches(self.config.seed, epoch.number, self.backend.samples, self.config.batch_size)

    @contextmanager
    def _located(self, epoch: Epoch) -> Iterator[None]:
        """Add the step of the run and the way out to a NotFiniteError."""
        try:
            yield
        except NotFiniteError as error:
            raise error.at(
                f"at {self._location(epoch, error.step)}; lower {epoch.stage}.learning_rate ({epoch.learning_rate:g}) "
                "and run again"
            ) from error

    def _location(self, epoch: Epoch, step: int | None) -> str:
        """A step of an epoch in words; None stands for the epoch's last step."""
        steps = len(batch_ends(self.backend.samples, self.config.batch_size))
        number = (epoch.number - 1) * steps + (steps if step is None else step)
        return f"step {number} (epoch {epoch.number}, {epoch.stage})"

    def _after_step(self, epoch: Epoch) -> None:
        if self.backend.guard.first is not None:
            fault, step = self.backend.guard.first
            self.warnings.warn_once("skipped", f"{self._location(epoch, step)} was skipped: {fault}")
        self.after_step()

    def _train_pruning_epoch(self, epoch: Epoch, session: PruningSession[Any]) -> None:
        gate = session.gate
        self._epoch_settings = self._epoch_settings or [gate.pressure, gate.presence_lr or 0.0]
        loss = self.backend.train_pruning(
            self._batches(epoch),
            learning_rate=epoch.learning_rate,
            label_smoothing=epoch.label_smoothing,
            after_step=partial(self._after_step, epoch),
        )
        pressure, presence_lr = self._epoch_settings
        pruned, regrown = self._new_events(session)
        self._end_epoch(
            epoch,
            loss,
            density=gate.surviving() / gate.total,
            wanted=session.schedule.target_density(gate.steps),
            pressure=pressure,
            presence_lr=presence_lr,
            pruned=pruned,
            regrown=regrown,
        )
        self._epoch_settings = []

    def _new_events(self, session: PruningSession[Any]) -> tuple[int | None, int | None]:
        """Prunings and regrowths since the last epoch; None without telemetry."""
        if session.recorder is None:
            return None, None
        pruned, regrown = session.recorder.events()
        return pruned - sum(row.pruned or 0 for row in self.rows), regrown - sum(row.regrown or 0 for row in self.rows)

    def _end_epoch(
        self,
        epoch: Epoch,
        loss: float,
        *,
        density: float = 1.0,
        wanted: float = 1.0,
        pressure: float = 0.0,
        presence_lr: float = 0.0,
        pruned: int | None = 0,
        regrown: int | None = 0,
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
            pruned=pruned,
            regrown=regrown,
        )
        self.record.add_epoch(row)
        self.rows.append(row)
        self.observe(row)
