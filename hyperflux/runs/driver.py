"""The training driver: settings -> backend -> pruning session -> the run's folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from hyperflux.backends import build_backend
from hyperflux.backends.base import Backend, CompactedSize, Evaluation
from hyperflux.config import RunConfig
from hyperflux.errors import DataFileError, InputError, LostWorkerError, RunError, WriteError
from hyperflux.gates.kinds import Pattern
from hyperflux.gates.latency import LatencyTable
from hyperflux.io.arguments import as_path, kind_of
from hyperflux.io.parse import parse_dataclass
from hyperflux.runs.checkpoints import DEFAULT_INTERVAL
from hyperflux.runs.checkpoints.data_files import ImageFiles, changed_data
from hyperflux.runs.checkpoints.file import Checkpoint, most_bytes
from hyperflux.runs.checkpoints.folder import CheckpointFolder
from hyperflux.runs.checkpoints.provenance import Provenance, versions
from hyperflux.runs.checkpoints.writer import CheckpointInterval, CheckpointWriter, Stop
from hyperflux.runs.data_order import batch_ends
from hyperflux.runs.epochs import Observer, RunProgress, Training
from hyperflux.runs.folder import (
    CHECKPOINTS,
    RunFolder,
    UnwrittenFolder,
    has_entry,
    read_outcome,
    recorded_config,
    recorded_times,
    require_unused,
    resume_command,
)
from hyperflux.runs.lock import LOCK, locked
from hyperflux.runs.schema import Outcome
from hyperflux.schedules.base import PruningSchedule
from hyperflux.schedules.factory import counted_schedule
from hyperflux.session.nonfinite import NotFiniteError, skipped_line
from hyperflux.session.processes import SINGLE_PROCESS, ProcessGroup, from_rank_zero, raise_on_all_ranks
from hyperflux.session.warnings import at_chance

T = TypeVar("T")

DEFAULT_CHECKPOINT_INTERVAL = CheckpointInterval.parse(DEFAULT_INTERVAL)


def default_folder(config: RunConfig) -> Path:
    """`runs/<dataset>-<model>-<budget>-<seed>`, followed by the method or controller unless it is the default.

    The budget is the sparsity of weights, or such as `flops0.25`, or `2of4`.
    """
    parts = [config.dataset, config.model.replace(":", "-"), budget_name(config), str(config.seed)]
    if config.method != "hyperflux":
        parts.append(config.method)
    elif config.controller != "default":
        parts.append(config.controller)
    return Path("runs") / "-".join(parts)


def budget_name(config: RunConfig) -> str:
    """What bounds the network, as part of a file name."""
    kind, (budget, share) = config.gate_kind, config.budget
    if isinstance(kind, Pattern):
        return f"{kind.kept}of{kind.group}"
    return f"{share}" if kind == "weights" else f"{budget}{share}"


def total_epochs(config: RunConfig) -> int:
    """Number of epochs that a run of `config` trains, over all stages."""
    dense = 0 if config.checkpoint else config.dense.epochs
    return dense + config.pruning.epochs + config.regrowth.epochs


def execute(
    config: RunConfig,
    folder: Path,
    observe: Observer = lambda row: None,
    *,
    every: CheckpointInterval = DEFAULT_CHECKPOINT_INTERVAL,
    stop: Stop = lambda: None,
    announce: Callable[[str], None] = lambda line: None,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Outcome:
    """Train dense (unless a weights file is given), prune, regrow, and write the run's folder.

    Nothing is written before all input has been read and checked. All ranks of a process group call this with the same
    arguments; rank 0 writes, observes and announces.

    Args:
        config: The settings.
        folder: A folder that is empty or does not exist yet.
        observe: Receives the row of each epoch.
        every: How often to write a checkpoint, besides the end of each stage.
        stop: Returns the number of a signal that asks the run to stop; a checkpoint is written first.
        announce: Receives each line that the user should know.
        processes: The process group.

    Returns:
        The outcome.

    Raises:
        InputError: Bad input.
        RunError: The run failed.
        Interrupted: `stop` asked for it.
    """
    if not isinstance(config, RunConfig):
        raise InputError(f"config: {kind_of(config)} is not a RunConfig; build one by RunConfig.from_dict")
    folder, started = as_path("folder", folder), time.monotonic()
    observe, announce = _on_rank_zero(processes, observe), _on_rank_zero(processes, announce)
    with raise_on_all_ranks(processes):
        config.with_absolute_paths()  # raises where config.toml could not hold them
    backend, schedule, provenance = _prepared(config, processes, announce)
    if (times := backend.latency_table()) is not None:
        announce(
            f"the dense network takes {times.milliseconds:.4g} ms for {times.circumstances}; times of its layers are "
            "in latency.json"
        )
    with _held_by_rank_zero(processes, _claimed(folder, announce)):
        checkpoints = CheckpointFolder(folder / CHECKPOINTS)
        with raise_on_all_ranks(processes):
            if processes.rank == 0:
                record = RunFolder.create(folder, config, checkpoints=True, times=times)
            else:
                record = UnwrittenFolder(folder)
        training = Training(config, backend, record, observe, started, announce, processes=processes)
        return _carry_out(training, schedule, checkpoints, provenance, every, stop)


def resume(
    folder: Path,
    observe: Observer = lambda row: None,
    *,
    every: CheckpointInterval = DEFAULT_CHECKPOINT_INTERVAL,
    stop: Stop = lambda: None,
    announce: Callable[[str], None] = lambda line: None,
    processes: ProcessGroup = SINGLE_PROCESS,
    on_nonfinite: str | None = None,
    data_dir: str | None = None,
    checkpoint: str | None = None,
) -> Outcome:
    """Continue the run in a folder from its last good checkpoint; the result equals that of an uninterrupted run.

    A finished run is left as it is. The number of processes may differ from before.

    Args:
        folder: The run's folder.
        observe: As in `execute`.
        every: As in `execute`.
        stop: As in `execute`.
        announce: As in `execute`.
        processes: As in `execute`.
        on_nonfinite: A new value for that setting.
        data_dir: The folder of the data, if it has moved.
        checkpoint: The file of the dense weights, if it has moved.

    Returns:
        The outcome.

    Raises:
        InputError: There is nothing to continue, or settings, data or dense weights have changed.
        RunError: The run failed.
        Interrupted: `stop` asked for it.
    """
    folder = as_path("folder", folder)
    started, checkpoints = time.monotonic(), CheckpointFolder(folder / CHECKPOINTS)
    observe, announce = _on_rank_zero(processes, observe), _on_rank_zero(processes, announce)
    config = changed = from_rank_zero(processes, lambda: recorded_config(folder))
    settings: dict[str, Any] = {"on_nonfinite": on_nonfinite, "data_dir": data_dir, "checkpoint": checkpoint}
    if given := {name: value for name, value in settings.items() if value is not None}:
        changed = replace(config, **given).with_absolute_paths()
    if (outcome := from_rank_zero(processes, lambda: _finished_outcome(folder, announce))) is not None:
        return outcome
    with _held_by_rank_zero(processes, locked(folder, announce)):
        from_rank_zero(processes, lambda: _require_checkpoints(folder, checkpoints))
        backend, schedule, provenance = _prepared(changed, processes, lambda line: None, folder)
        most = most_bytes(backend.tensors(), backend.layers(), changed.telemetry)
        saved = from_rank_zero(processes, lambda: _last_checkpoint(folder, checkpoints, most, announce))
        record = RunFolder(folder) if processes.rank == 0 else UnwrittenFolder(folder)
        training = Training(changed, backend, record, observe, started, announce, processes=processes)
        with raise_on_all_ranks(processes):
            if saved is None:
                training.record.set_epochs([])
            else:
                _restore(training, schedule, saved, provenance)
            if changed != config:
                training.record.set_config(changed)
        del saved  # as large as the network and its optimizer
        return _carry_out(training, schedule, checkpoints, provenance, every, stop)


def train_dense(config: RunConfig, folder: Path, observe: Observer = lambda row: None) -> None:
    """Train the dense stage alone; write `config.toml`, `metrics.jsonl` and `dense.safetensors`.

    Raises:
        InputError: Bad input.
        RunError: The run failed.
    """
    backend = build_backend(config)
    with _claimed(folder, lambda line: None):
        record = RunFolder.create(folder, config)
        Training(config, backend, record, observe).dense()
        record.add_tensors("dense", backend.tensors())


def load_start(config: RunConfig, backend: Backend, announce: Callable[[str], None]) -> None:
    """Load the weights file that the settings name, if any, and announce where in it the weights were found.

    Raises InputError if it cannot be read or does not fit.
    """
    if config.checkpoint and (place := backend.load_weights(config.checkpoint)):
        announce(f"weights file {config.checkpoint}: the weights are those {place}")


def _prepared(
    config: RunConfig, processes: ProcessGroup, announce: Callable[[str], None], begun: Path | None = None
) -> tuple[Backend, PruningSchedule[Any], Provenance]:
    """Build what a run needs, before anything is written; announce where a weights file keeps the weights.

    Layer times are those in the folder of a run that has begun; else rank 0 measures them.

    Raises InputError if settings, network and data do not fit, or if any rank's differ from rank 0's.
    """
    with raise_on_all_ranks(processes):
        backend = build_backend(config, processes)

    def table() -> LatencyTable | None:
        return backend.latency_table(None if begun is None else recorded_times(begun, config))

    times = from_rank_zero(processes, table)
    with raise_on_all_ranks(processes):
        backend.latency_table(times)
        schedule = feasible_schedule(config, backend)
        load_start(config, backend, announce)
        provenance = Provenance.of(config, backend)
    every = processes.all_gather(provenance)
    with raise_on_all_ranks(processes):
        provenance.require_same_on_all_ranks(every)
    return backend, schedule, provenance


@contextmanager
def _claimed(folder: Path, announce: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a new run's folder. Raises InputError, without a lock file, if the folder is in use."""
    if os.path.isdir(folder) and not os.path.exists(folder / LOCK):  # os.path: no error for an impossible name
        try:
            require_unused(folder)
        except OSError as error:
            raise InputError(f"{folder}: cannot be read ({error.strerror}); name another folder with --out") from error
    with locked(folder, announce):
        yield


@contextmanager
def _held_by_rank_zero(processes: ProcessGroup, lock: AbstractContextManager[None]) -> Iterator[None]:
    """Hold a lock on rank 0; if it is taken, all ranks raise."""
    with ExitStack() as held:
        with raise_on_all_ranks(processes):
            if processes.rank == 0:
                held.enter_context(lock)
        yield


def _on_rank_zero(processes: ProcessGroup, listener: Callable[[T], None]) -> Callable[[T], None]:
    """The listener on rank 0; on other ranks a function that does nothing."""
    return listener if processes.rank == 0 else lambda value: None


def _finished_outcome(folder: Path, announce: Callable[[str], None]) -> Outcome | None:
    """The outcome of a finished run; None if it is unfinished."""
    outcome = read_outcome(folder)
    if outcome is not None:
        announce(f"{folder}: this run is finished; there is nothing left to do")
        remove_leftovers(folder)
    return outcome


def remove_leftovers(folder: Path) -> None:
    """Remove the checkpoints and the lock of a finished run whose process was killed before it could.

    What can't be removed stays: the folder may be read only, or in use by the process that removes them.
    """
    checkpoints = CheckpointFolder(folder / CHECKPOINTS)
    with suppress(InputError, RunError):
        if checkpoints.exists() or has_entry(folder / LOCK):
            with locked(folder, lambda line: None):
                if checkpoints.exists():
                    checkpoints.remove()


def _require_checkpoints(folder: Path, checkpoints: CheckpointFolder) -> None:
    """Raise InputError if the run in a folder keeps no checkpoints."""
    if not checkpoints.exists():
        raise InputError(f"{folder}: this run keeps no checkpoints; start it again in another folder")


def _last_checkpoint(
    folder: Path, checkpoints: CheckpointFolder, max_bytes: int, announce: Callable[[str], None]
) -> Checkpoint | None:
    """The last good checkpoint; None, announced, if none was written."""
    saved = checkpoints.last(announce, max_bytes)
    if saved is None:
        announce(f"{folder}: no checkpoint had been written yet; the run starts again")
    return saved


def _restore(training: Training, schedule: PruningSchedule[Any], saved: Checkpoint, provenance: Provenance) -> None:
    """Restore a new training from a checkpoint. Raises InputError if the checkpoint belongs to another run."""
    try:
        started_with = parse_dataclass(Provenance, saved.facts["provenance"])
        provenance.require(started_with, training.announce)
        change = None
        if provenance.data != started_with.data:
            then = parse_dataclass(ImageFiles, {"files": saved.facts.get("files", {})}).files
            change = changed_data(training.config.dataset, then, training.backend.files())
        if saved.facts.get("latency") != _plain_times(training.backend):
            raise InputError(
                f"{training.record.path}: latency.json is not what the run was started with; put it back, or run "
                "config.toml again"
            )
        progress = parse_dataclass(RunProgress, saved.facts["progress"])
        try:
            training.restore(progress, saved.arrays, schedule)
        except InputError as error:  # it names neither the run nor a way out
            raise ValueError(str(error)) from error
        training.warnings.warn_once("data", change)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError | RunError):
            raise
        raise InputError(
            f"{training.record.path}: its checkpoint does not fit this version of hyperflux ({error}); continue with "
            "the version that started the run"
        ) from error


def _plain_times(backend: Backend) -> dict[str, Any] | None:
    """The layer times that the budget is counted by, as plain values."""
    times = backend.latency_table()
    return None if times is None else times.to_dict()


def _carry_out(
    training: Training,
    schedule: PruningSchedule[Any],
    checkpoints: CheckpointFolder,
    provenance: Provenance,
    every: CheckpointInterval,
    stop: Stop,
) -> Outcome:
    """Train the remaining epochs, write the outcome, and remove the checkpoints."""

    def content() -> Checkpoint:
        facts = {"provenance": asdict(provenance), "progress": asdict(training.progress())}
        if (times := _plain_times(training.backend)) is not None:
            facts["latency"] = times
        return Checkpoint({**facts, "files": dict(training.backend.files())}, training.arrays())

    writer = CheckpointWriter(checkpoints, every, stop, content, training.processes)
    training.after_step, training.end_stage = writer.after_step, writer.save
    record, backend = training.record, training.backend
    try:
        if not training.has_begun_pruning:
            _train_dense(training)
            training.start_pruning(schedule)
            writer.save()
        training.prune()
        record.add_tensors("model", backend.tensors())
        outcome = _outcome(training)
        record.finish(outcome)
    except WriteError as error:
        raise RunError(f"{error}; make room, then continue with {resume_command(record.path)}") from error
    except (DataFileError, LostWorkerError) as error:
        raise _to_be_mended(error, training, writer) from error
    except NotFiniteError as error:
        failure = RunError(f"{error}{_way_out(error, checkpoints)}")
        failure.reported_elsewhere = training.processes.rank > 0
        raise failure from error
    if training.processes.rank == 0:
        checkpoints.remove()
    return outcome


def _to_be_mended(
    error: DataFileError | LostWorkerError, training: Training, writer: CheckpointWriter
) -> DataFileError | LostWorkerError:
    """The error of data met within the run, with the command that goes on, after a checkpoint of the last step.

    Raises Interrupted where the run was asked to stop, since what asked may have ended a worker too.
    """
    if training.processes.size == 1:  # the other ranks wait for this one, and can't take part
        writer.save()
        writer.stop_if_asked()
    return type(error)(f"{error}; then go on with {resume_command(training.record.path)}")


def _way_out(error: NotFiniteError, checkpoints: CheckpointFolder) -> str:
    """The way out after a non-finite value; empty if skipping the step would not help."""
    if not error.fault.skippable:
        return ""
    start = "continue from the last good checkpoint" if checkpoints.has_good else "start again"
    command = resume_command(checkpoints.path.parent)
    return f", or skip such steps and {start} with {command} --on-nonfinite skip"


def _train_dense(training: Training) -> None:
    """Train the dense stage, if any, and write the dense network; measure its accuracy if it has been trained."""
    training.dense()
    training.record.add_tensors("dense", training.backend.tensors())
    if training.config.checkpoint or training.config.dense.epochs:
        training.dense_accuracy = training.backend.evaluate().accuracy


def _outcome(training: Training) -> Outcome:
    config, backend, layers = training.config, training.backend, training.backend.layers()
    (budget, share), size = config.budget, _compacted_size(training)
    surviving, total = sum(layer.surviving for layer in layers), sum(layer.total for layer in layers)
    evaluation = backend.evaluate()
    training.warnings.warn_once("accuracy", _guessing(training, evaluation))
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
        target_sparsity=share if budget == "sparsity" else None,
        final_sparsity=1 - surviving / total,
        surviving_weights=surviving,
        total_weights=total,
        dense_accuracy=training.dense_accuracy,
        final_accuracy=evaluation.accuracy,
        seconds=round(training.seconds, 2),
        layers=layers,
        versions=versions(backend),
        warnings=list(training.warnings.lines.values()),
        gates=config.gates,
        flops_ratio=None if size is None else size.flops_ratio,
        parameters_ratio=None if size is None else size.parameters_ratio,
        compact_parameters=None if size is None else size.parameters,
        channels=backend.channels(),
    )


def _compacted_size(training: Training) -> CompactedSize | None:
    """Size of the compacted network; None, with a warning, where compaction fails: the run itself is done."""
    try:
        return training.backend.compacted()
    except Exception as error:  # compaction runs any network's own code on parts of it
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        training.warnings.warn_once("compacted", f"the size of the compacted network is not known ({reason[:200]})")
        return None


def _guessing(training: Training, evaluation: Evaluation) -> str | None:
    return at_chance(evaluation.accuracy, evaluation.samples, training.backend.classes, training.dense_accuracy)


def feasible_schedule(config: RunConfig, backend: Backend) -> PruningSchedule[Any]:
    """The schedule of `config` for the backend's network and data. Raises InputError if they make it infeasible."""
    epoch_steps = len(batch_ends(backend.samples, config.batch_size))
    plan = backend.capacity_plan()
    if plan is None:
        return config.schedule(sum(layer.total for layer in backend.layers()), epoch_steps)
    return counted_schedule(
        plan.total,
        plan.final_count,
        config.pruning.epochs * epoch_steps,
        config.regrowth.epochs * epoch_steps,
        method=config.method,
        course=config.course,
        presence_lr=config.pruning.presence_learning_rate,
        gates=plan.gates,
        is_least=plan.is_least,
    )
