"""The one training driver: config -> backend -> program -> record."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import hyperflux
from hyperflux.backends import build_backend
from hyperflux.backends.base import Backend
from hyperflux.config import PruningSettings, RegrowthSettings, RunConfig
from hyperflux.errors import InputError, RunError
from hyperflux.feasibility import presence_distance
from hyperflux.order import batch_ends, epoch_batches
from hyperflux.programs.base import Gate, Program
from hyperflux.programs.pilot import Pilot
from hyperflux.record import EpochRow, Report, RunFolder, Stage
from hyperflux.schedule import cosine
from hyperflux.telemetry.levels import level
from hyperflux.telemetry.recorder import Recorder

Observer = Callable[[EpochRow], None]


def default_folder(config: RunConfig) -> Path:
    """`runs/<dataset>-<model>-<sparsity>-<seed>`, and what is unlike the default way of pruning."""
    parts = [config.dataset, config.model.replace(":", "-"), f"{config.sparsity:g}", str(config.seed)]
    if config.method != "hyperflux":
        parts.append(config.method)
    elif config.controller != "default":
        parts.append(config.controller)
    return Path("runs") / "-".join(parts)


def total_epochs(config: RunConfig) -> int:
    """Epochs of all stages that a run of `config` will train."""
    dense = 0 if config.checkpoint else config.dense.epochs
    return dense + config.pruning.epochs + config.regrowth.epochs


def execute(config: RunConfig, folder: Path, observe: Observer = lambda row: None) -> Report:
    """Train dense unless a checkpoint gives the weights, prune, regrow, and leave the run's folder.

    `observe` sees each epoch's row as it is written. Nothing is written before all input has been read and found
    good. Raises InputError for bad input, RunError for a run that can't go on.
    """
    started = time.monotonic()
    backend = build_backend(config)
    program = feasible_program(config, backend)
    if config.checkpoint:
        backend.load_checkpoint(config.checkpoint)
    record = RunFolder(folder, config)
    training = _Training(config, backend, record, observe)
    if not config.checkpoint:
        training.dense()
    record.add_tensors("dense", backend.tensors())
    dense_accuracy = backend.evaluate().accuracy if config.checkpoint or config.dense.epochs else None
    training.prune(program)
    record.add_tensors("model", backend.tensors())
    layers = backend.layers()
    surviving, total = sum(layer.surviving for layer in layers), sum(layer.total for layer in layers)
    report = Report(
        method=config.method,
        controller=config.controller if config.method == "hyperflux" else None,
        backend=config.backend,
        dataset=config.dataset,
        model=config.model,
        input_shape=list(backend.sample_shape),
        classes=backend.classes,
        seed=config.seed,
        target_sparsity=config.sparsity,
        final_sparsity=1 - surviving / total,
        surviving_weights=surviving,
        total_weights=total,
        dense_accuracy=dense_accuracy,
        final_accuracy=backend.evaluate().accuracy,
        seconds=round(time.monotonic() - started, 2),
        layers=layers,
        versions={
            "hyperflux": hyperflux.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            **backend.versions(),
        },
    )
    record.finish(report)
    return report


def train_dense(config: RunConfig, folder: Path, observe: Observer = lambda row: None) -> None:
    """The dense stage alone: leaves `config.toml`, `metrics.jsonl` and `dense.safetensors` in the folder.

    Raises InputError for bad input, RunError for a run that can't go on.
    """
    backend = build_backend(config)
    record = RunFolder(folder, config)
    _Training(config, backend, record, observe).dense()
    record.add_tensors("dense", backend.tensors())


def feasible_program(config: RunConfig, backend: Backend) -> Program[Any]:
    """The program of `config` on the backend's network and data. Raises InputError where it can't be carried out."""
    epoch_steps = len(batch_ends(backend.samples, config.batch_size))
    check_pruning_steps(config, epoch_steps)
    return config.program(sum(layer.total for layer in backend.layers()), epoch_steps)


def check_pruning_steps(config: RunConfig, epoch_steps: int) -> None:
    """Raise InputError where the published course has too few steps for t to cross zero."""
    if config.method != "hyperflux" or config.controller != "published":
        return
    distance, rate = presence_distance(config.sparsity), config.pruning.presence_learning_rate
    steps = config.pruning.epochs * epoch_steps
    if rate * steps < distance:
        raise InputError(
            f"pruning.epochs: {config.pruning.epochs} give {steps} steps of about {rate:g}, too few for presence "
            f"parameters to fall by the {distance:.3g} that sparsity {config.sparsity:g} takes; give --pruning-epochs "
            f"{math.ceil(distance / rate / epoch_steps)}, a higher pruning.presence_learning_rate or "
            "--controller default"
        )


@dataclass
class _Training:
    """The epochs of one run: trains each by its orders, evaluates, records."""

    config: RunConfig
    backend: Backend
    record: RunFolder
    observe: Observer
    epoch: int = 0

    def dense(self) -> None:
        settings = self.config.dense
        for epoch in range(1, settings.epochs + 1):
            rate = cosine(settings.learning_rate, settings.final_learning_rate, epoch, settings.epochs)
            loss = self.backend.train_dense(
                self._batches(), learning_rate=rate, label_smoothing=settings.label_smoothing
            )
            self._finish_epoch("dense", rate, loss)

    def prune(self, program: Program[Any]) -> None:
        gate = self.backend.start_pruning(program.initial_presence)
        pilot = Pilot(program, gate)
        watched = level(self.config.telemetry)
        recorder = None if watched is None else Recorder(program, gate, self.backend.probe(), watched)
        pilot.watcher = recorder
        try:
            self._prune(pilot, gate, recorder)
            pilot.finish()  # what is missing where a GradScaler skipped steps
        finally:  # what was seen of a run that failed tells why
            if recorder is not None:
                self.record.add_telemetry(recorder.tables())

    def _prune(self, pilot: Pilot[Any], gate: Gate, recorder: Recorder | None) -> None:
        """Both stages, epoch by epoch."""
        flips = (0, 0)
        stages: tuple[tuple[Literal["pruning", "regrowth"], PruningSettings | RegrowthSettings], ...]
        stages = (("pruning", self.config.pruning), ("regrowth", self.config.regrowth))
        for stage, settings in stages:
            for epoch in range(1, settings.epochs + 1):
                rate = cosine(settings.learning_rate, settings.final_learning_rate, epoch, settings.epochs)
                pressure, presence_lr = gate.pressure, gate.presence_lr or 0.0
                loss = self.backend.train_pruning(
                    self._batches(),
                    learning_rate=rate,
                    label_smoothing=settings.label_smoothing,
                    after_step=pilot.after_step,
                )
                density, wanted = gate.surviving() / gate.total, pilot.program.wanted(gate.steps)
                changes: tuple[int, int] | tuple[None, None] = (None, None)
                if recorder is not None:
                    before, flips = flips, recorder.events()
                    changes = (flips[0] - before[0], flips[1] - before[1])
                self._finish_epoch(stage, rate, loss, density, wanted, pressure, presence_lr, changes)

    def _batches(self) -> Iterator[NDArray[np.intp]]:
        """A fresh order of the training part, in batches."""
        self.epoch += 1
        return epoch_batches(self.config.seed, self.epoch, self.backend.samples, self.config.batch_size)

    def _finish_epoch(
        self,
        stage: Stage,
        rate: float,
        loss: float,
        density: float = 1.0,
        wanted: float = 1.0,
        pressure: float = 0.0,
        presence_lr: float = 0.0,
        changes: tuple[int, int] | tuple[None, None] = (0, 0),
    ) -> None:
        if not math.isfinite(loss):
            raise RunError(
                f"the loss became {loss} in epoch {self.epoch} ({stage}); "
                f"lower {stage}.learning_rate ({rate:g}) and run again"
            )
        evaluation = self.backend.evaluate()
        row = EpochRow(
            epoch=self.epoch,
            stage=stage,
            density=density,
            wanted=wanted,
            pressure=pressure,
            lr=rate,
            presence_lr=presence_lr,
            train_loss=loss,
            test_loss=evaluation.loss,
            accuracy=evaluation.accuracy,
            pruned=changes[0],
            regrown=changes[1],
        )
        self.record.add_epoch(row)
        self.observe(row)
