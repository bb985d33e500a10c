"""The one training driver: config -> backend -> schedule -> record."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from hyperflux.backends import build_backend
from hyperflux.backends.base import Backend
from hyperflux.session.warnings import at_chance
from hyperflux.runs.checkpoints.file import Checkpoint
from hyperflux.runs.checkpoints.folder import CheckpointFolder
from hyperflux.runs.checkpoints.provenance import Provenance, versions
from hyperflux.runs.checkpoints.interval import DEFAULT, CheckpointInterval
from hyperflux.runs.checkpoints.writer import CheckpointWriter, Stop
from hyperflux.config import RunConfig
from hyperflux.errors import InputError, RunError, WriteError
from hyperflux.schedules.feasibility import presence_distance
from hyperflux.session.nonfinite import NotFiniteError, skipped_line
from hyperflux.runs.lock import LOCK, locked
from hyperflux.runs.data_order import batch_ends
from hyperflux.schedules.base import PruningSchedule
from hyperflux.runs.folder import (
    CHECKPOINTS,
    RunFolder,
    UnwrittenFolder,
    read_outcome,
    recorded_config,
    require_unused,
    resume_command,
)
from hyperflux.runs.schema import Outcome
from hyperflux.session.processes import SINGLE_PROCESS, ProcessGroup, from_rank_zero, raise_on_all_ranks
from hyperflux.runs.epochs import Observer, Position, Training
from hyperflux.io.parse import parse_dataclass

T = TypeVar("T")

DEFAULT_PACE = CheckpointInterval.parse(DEFAULT)


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


def execute(
    config: RunConfig,
    folder: Path,
    observe: Observer = lambda row: None,
    *,
    every: CheckpointInterval = DEFAULT_PACE,
    stop: Stop = lambda: None,
    announce: Callable[[str], None] = lambda line: None,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Outcome:
    """Train dense unless a checkpoint gives the weights, prune, regrow, and leave the run's folder.

    `observe` sees each epoch's row as it is written. Nothing is written before all input has been read and found
    good. A checkpoint of the run is written at each stage's end and at the pace `every`; where `stop` gives a signal,
    one is written after that step and the run stops. `announce` gets a line for whatever the user should know.
    The processes of a process group call this alike; the first one writes, observes and announces.
    Raises InputError for bad input, RunError for a run that can't go on, Interrupted for one that was stopped.
    """
    started = time.monotonic()
    backend, schedule, origin = _prepared(config, processes)
    with _held_by_first(processes, _claimed(folder, announce)):
        checkpoints = CheckpointFolder(folder / CHECKPOINTS)
        with raise_on_all_ranks(processes):
            record = RunFolder.create(folder, config) if processes.rank == 0 else UnwrittenFolder(folder)
            if processes.rank == 0:
                checkpoints.create()
        training = Training(config, backend, record, _heard(processes, observe), started, _heard(processes, announce), processes=processes)
        return _carry_out(training, schedule, checkpoints, origin, every, stop)


def resume(
    folder: Path,
    observe: Observer = lambda row: None,
    *,
    every: CheckpointInterval = DEFAULT_PACE,
    stop: Stop = lambda: None,
    announce: Callable[[str], None] = lambda line: None,
    processes: ProcessGroup = SINGLE_PROCESS,
    on_nonfinite: str | None = None,
) -> Outcome:
    """Go on with the run in a folder from its last good checkpoint: it ends as if it had never been interrupted.

    A run that is finished stays as it is. `on_nonfinite` changes that setting from here on; the rest is as in
    `execute`. As many processes as went before, or more, or fewer, may go on. Raises InputError where there is nothing
    to go on with, or settings, data or dense weights have changed.
    """
    started, checkpoints = time.monotonic(), CheckpointFolder(folder / CHECKPOINTS)
    config = from_rank_zero(processes, lambda: recorded_config(folder))
    if (report := from_rank_zero(processes, lambda: _finished(folder, checkpoints, announce))) is not None:
        return report
    with _held_by_first(processes, locked(folder, announce)):
        saved = from_rank_zero(processes, lambda: _last(folder, checkpoints, announce))
        changed = config if on_nonfinite is None else replace(config, on_nonfinite=on_nonfinite)
        backend, schedule, origin = _prepared(changed, processes)
        record = RunFolder(folder) if processes.rank == 0 else UnwrittenFolder(folder)
        training = Training(changed, backend, record, _heard(processes, observe), started, _heard(processes, announce), processes=processes)
        with raise_on_all_ranks(processes):
            if saved is None:
                training.record.set_epochs([])
            else:
                _restore(training, schedule, saved, origin, training.announce)
            if changed != config:
                training.record.set_config(changed)
        return _carry_out(training, schedule, checkpoints, origin, every, stop)


def train_dense(config: RunConfig, folder: Path, observe: Observer = lambda row: None) -> None:
    """The dense stage alone: leaves `config.toml`, `metrics.jsonl` and `dense.safetensors` in the folder.

    Raises InputError for bad input, RunError for a run that can't go on.
    """
    backend = build_backend(config)
    with _claimed(folder, lambda line: None):
        record = RunFolder.create(folder, config)
        Training(config, backend, record, observe).dense()
        record.add_tensors("dense", backend.tensors())


def _prepared(config: RunConfig, processes: ProcessGroup) -> tuple[Backend, PruningSchedule[Any], Provenance]:
    """What a run needs before anything is written. Raises InputError where something of it does not fit."""
    with raise_on_all_ranks(processes):
        backend = build_backend(config, processes)
        schedule = feasible_schedule(config, backend)
        if config.checkpoint:
            backend.load_weights(config.checkpoint)
        origin = Provenance.of(config, backend)
    every = processes.all_gather(origin)
    with raise_on_all_ranks(processes):
        origin.require_alike(every)
    return backend, schedule, origin


@contextmanager
def _claimed(folder: Path, announce: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a new run's folder; one that holds something else gets no lock, not even for a moment."""
    if os.path.isdir(folder) and not os.path.exists(folder / LOCK):  # also where the name is none that a disk can have
        require_unused(folder)
    with locked(folder, announce):
        yield


@contextmanager
def _held_by_first(processes: ProcessGroup, lock: AbstractContextManager[None]) -> Iterator[None]:
    """Hold a lock in the first process of a process group; all leave where it can't be had."""
    with ExitStack() as held:
        with raise_on_all_ranks(processes):
            if processes.rank == 0:
                held.enter_context(lock)
        yield


def _heard(processes: ProcessGroup, listener: Callable[[T], None]) -> Callable[[T], None]:
    """The listener of the first process of a process group; those of the others hear nothing."""
    return listener if processes.rank == 0 else lambda heard: None


def _finished(folder: Path, checkpoints: CheckpointFolder, announce: Callable[[str], None]) -> Outcome | None:
    """The report of a run that has one; None where it is unfinished."""
    report = read_outcome(folder)
    if report is not None:
        announce(f"{folder}: this run is finished; there is nothing left to do")
        if checkpoints.path.is_dir():  # its process ended before it could remove them
            with locked(folder, announce):
                checkpoints.remove()
    return report


def _last(folder: Path, checkpoints: CheckpointFolder, announce: Callable[[str], None]) -> Checkpoint | None:
    """The last good checkpoint; None, announced, where none was written. Raises InputError where there can't be one."""
    if not checkpoints.path.is_dir():
        raise InputError(f"{folder}: this run keeps no checkpoints; begin it anew in another folder")
    saved = checkpoints.last(announce)
    if saved is None:
        announce(f"{folder}: no checkpoint had been written yet; the run begins anew")
    return saved


def _restore(
    training: Training, schedule: PruningSchedule[Any], saved: Checkpoint, origin: Provenance, announce: Callable[[str], None]
) -> None:
    """Bring a fresh training to where a checkpoint was written. Raises InputError where it is not of this run."""
    try:
        origin.require(parse_dataclass(Provenance, saved.facts["origin"]), announce)
        training.restore(parse_dataclass(Position, saved.facts["position"]), saved.arrays, schedule)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError | RunError):
            raise
        raise InputError(
            f"{training.record.path}: its checkpoint does not fit this version of hyperflux ({error}); go on with the "
            f"one that began the run"
        ) from error


def _carry_out(
    training: Training, schedule: PruningSchedule[Any], checkpoints: CheckpointFolder, origin: Provenance, every: CheckpointInterval, stop: Stop
) -> Outcome:
    """Train what is left, write the outcome, and remove the checkpoints, which nothing needs any more."""

    def content() -> Checkpoint:
        facts = {"origin": asdict(origin), "position": asdict(training.position())}
        return Checkpoint(facts, training.arrays())

    saver = CheckpointWriter(checkpoints, every, stop, content, training.processes)
    training.after_step, training.end_stage = saver.after_step, saver.save
    record, backend = training.record, training.backend
    try:
        if not training.has_begun_pruning:
            _train_dense(training)
            training.start_pruning(schedule)
            saver.save()
        training.prune()
        record.add_tensors("model", backend.tensors())
        report = _report(training)
        record.finish(report)
    except WriteError as error:
        raise RunError(f"{error}; once it can be, go on with {resume_command(record.path)}") from error
    except NotFiniteError as error:
        failure = RunError(f"{error}{_way_on(error, checkpoints)}")
        failure.reported_elsewhere = training.processes.rank > 0
        raise failure from error
    if training.processes.rank == 0:
        checkpoints.remove()
    return report


def _way_on(error: NotFiniteError, checkpoints: CheckpointFolder) -> str:
    """How a run goes on that was stopped by something that is not finite; nothing where it would only stop again."""
    if not error.fault.curable:
        return ""
    start = "go on from the last good checkpoint" if checkpoints.has_good else "begin anew"
    command = resume_command(checkpoints.path.parent)
    return f", or leave such steps out and {start} with {command} --on-nonfinite skip"


def _train_dense(training: Training) -> None:
    """The dense stage, if there is one, its network and its accuracy, where it was trained at all."""
    training.dense()
    training.record.add_tensors("dense", training.backend.tensors())
    if training.config.checkpoint or training.config.dense.epochs:
        training.dense_accuracy = training.backend.evaluate().accuracy


def _report(training: Training) -> Outcome:
    config, backend, layers = training.config, training.backend, training.backend.layers()
    surviving, total = sum(layer.surviving for layer in layers), sum(layer.total for layer in layers)
    evaluation = backend.evaluate()
    training.warnings.warn_once("accuracy", at_chance(evaluation, backend.classes, training.dense_accuracy))
    training.warnings.warn_once("steps skipped", skipped_line(backend.guard))
    return Outcome(
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
        dense_accuracy=training.dense_accuracy,
        final_accuracy=evaluation.accuracy,
        seconds=round(training.seconds, 2),
        layers=layers,
        versions=versions(backend),
        warnings=list(training.warnings.lines.values()),
    )


def feasible_schedule(config: RunConfig, backend: Backend) -> PruningSchedule[Any]:
    """The schedule of `config` on the backend's network and data. Raises InputError where it can't be carried out."""
    epoch_steps = len(batch_ends(backend.samples, config.batch_size))
    check_pruning_steps(config, epoch_steps)
    return config.schedule(sum(layer.total for layer in backend.layers()), epoch_steps)


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
