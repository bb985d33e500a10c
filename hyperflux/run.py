"""The one training driver: config -> backend -> program -> record."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import hyperflux
from hyperflux.backends import build_backend
from hyperflux.backends.base import Backend, EpochResult
from hyperflux.config import RunConfig
from hyperflux.errors import InputError, RunError
from hyperflux.feasibility import kept_weights, presence_distance
from hyperflux.program import Orders, ProgramState
from hyperflux.record import EpochRow, Report, RunFolder
from hyperflux.schedule import cosine
from hyperflux.seeding import generator

Observer = Callable[[EpochRow], None]


def default_folder(config: RunConfig) -> Path:
    """`runs/<dataset>-<model>-<sparsity>-<seed>`."""
    model = config.model.replace(":", "-")
    return Path("runs") / f"{config.dataset}-{model}-{config.sparsity:g}-{config.seed}"


def total_epochs(config: RunConfig) -> int:
    """Epochs of all stages that a run of `config` will train."""
    return (0 if config.checkpoint else config.dense.epochs) + config.program().epochs


def execute(config: RunConfig, folder: Path, observe: Observer = lambda row: None) -> Report:
    """Train dense unless a checkpoint gives the weights, prune, regrow, and leave the run's folder.

    `observe` sees each epoch's row as it is written. Nothing is written before all input has been read and found
    good. Raises InputError for bad input, RunError for a run that can't go on.
    """
    started = time.monotonic()
    backend = build_backend(config)
    check_pruning_steps(config, backend.samples)
    kept_weights(sum(layer.total for layer in backend.layers()), config.sparsity, config.model)
    if config.checkpoint:
        backend.load_checkpoint(config.checkpoint)
    record = RunFolder(folder, config)
    training = _Training(config, backend, record, observe)
    if not config.checkpoint:
        training.dense()
    record.add_tensors("dense", backend.tensors())
    dense_accuracy = backend.evaluate().accuracy
    training.prune()
    record.add_tensors("model", backend.tensors())
    layers = backend.layers()
    surviving, total = sum(layer.surviving for layer in layers), sum(layer.total for layer in layers)
    report = Report(
        method="hyperflux",
        backend=config.backend,
        dataset=config.dataset,
        model=config.model,
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


def check_pruning_steps(config: RunConfig, samples: int) -> None:
    """Raise InputError where too few steps for t to cross zero make the wanted sparsity impossible."""
    distance = presence_distance(config.sparsity)
    rate, steps_an_epoch = config.pruning.presence_learning_rate, math.ceil(samples / config.batch_size)
    steps = config.pruning.epochs * steps_an_epoch
    if rate * steps < distance:
        needed = math.ceil(distance / rate) if rate else None
        way_out = f"--pruning-epochs {math.ceil(needed / steps_an_epoch)} or a higher" if needed else "a positive"
        raise InputError(
            f"pruning.epochs: {config.pruning.epochs} give {steps} steps of about {rate:g}, too few for presence "
            f"parameters to fall by the {distance:.3g} that sparsity {config.sparsity:g} takes; "
            f"give {way_out} pruning.presence_learning_rate"
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
            result = self.backend.train_dense(
                self._batches(), learning_rate=rate, label_smoothing=settings.label_smoothing
            )
            self._finish_epoch(Orders("dense", 1.0, 0.0, rate, 0.0), result, density=1.0)

    def prune(self) -> None:
        program, state = self.config.program(), ProgramState()
        self.backend.start_pruning()
        while program.stage(state) != "done":
            orders = program.orders(state)
            settings = self.config.pruning if orders.stage == "pruning" else self.config.regrowth
            result = self.backend.train_pruning(
                self._batches(),
                learning_rate=orders.learning_rate,
                label_smoothing=settings.label_smoothing,
                pressure=orders.pressure,
                presence_learning_rate=orders.presence_learning_rate,
            )
            layers = self.backend.layers()
            density = sum(layer.surviving for layer in layers) / sum(layer.total for layer in layers)
            self._finish_epoch(orders, result, density)
            state = program.advance(state, density)

    def _batches(self) -> Iterator[NDArray[np.intp]]:
        """A fresh order of the training part; the last batch may be smaller, but takes in a lone last sample, of
        which a batch norm could make nothing.
        """
        self.epoch += 1
        samples, size = self.backend.samples, self.config.batch_size
        order = generator(self.config.seed, f"data order of epoch {self.epoch}").permutation(samples)
        ends = list(range(size, samples, size))
        if ends and samples - ends[-1] == 1 < size:
            ends.pop()
        yield from np.split(order, ends)

    def _finish_epoch(
        self,
        orders: Orders,
        result: EpochResult,
        density: float,
    ) -> None:
        if not math.isfinite(result.loss):
            raise RunError(
                f"the loss became {result.loss} in epoch {self.epoch} ({orders.stage}); "
                f"lower {orders.stage}.learning_rate ({orders.learning_rate:g}) and run again"
            )
        evaluation = self.backend.evaluate()
        row = EpochRow(
            epoch=self.epoch,
            stage=orders.stage,
            density=density,
            wanted=orders.wanted,
            pressure=orders.pressure,
            lr=orders.learning_rate,
            presence_lr=orders.presence_learning_rate,
            train_loss=result.loss,
            test_loss=evaluation.loss,
            accuracy=evaluation.accuracy,
            pruned=result.pruned,
            regrown=result.regrown,
        )
        self.record.add_epoch(row)
        self.observe(row)
