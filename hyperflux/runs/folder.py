"""A run's folder: writing it during the run, and reading it back.

config.toml          every setting, paths absolute: `hyperflux prune --recipe config.toml` repeats the run
latency.json         where the budget is the time: how long the network and its layers take
metrics.jsonl        one line per epoch
telemetry.npz        what pruning did to weights and layers: the tables of `hyperflux.telemetry.columns`
dense.safetensors    the weights that pruning started from
model.safetensors    the pruned network: stock keys, exact zeros
report.json          the outcome; written last, so a folder that has it is complete
checkpoint/          during the run: its last two checkpoints, see `hyperflux.runs.checkpoints`
lock                 while a process works on the run: which one, see `hyperflux.runs.lock`
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import tomli_w
from safetensors.numpy import save

from hyperflux.backends.base import Tensors
from hyperflux.config import MAX_EPOCHS, RunConfig
from hyperflux.errors import InputError, RunError, WriteError
from hyperflux.gates.latency import LatencyTable
from hyperflux.io.atomic_write import part_of, write_atomic
from hyperflux.io.parse import parse_dataclass
from hyperflux.io.safe_read import inside, parse_json, read_text
from hyperflux.recipes import load_settings
from hyperflux.runs.checkpoints.folder import CheckpointFolder
from hyperflux.runs.lock import LOCK
from hyperflux.runs.schema import BEFORE_GATES, EpochRow, Outcome, RecordedRun
from hyperflux.runs.validation import (
    NewerFormatError,
    check_epochs,
    check_outcome,
    check_same_run,
    check_telemetry,
    require_format,
)
from hyperflux.telemetry.columns import Tables as Telemetry
from hyperflux.telemetry.file import file_content, read_tables

MAX_REPORT_BYTES = 1 << 22
"""Most bytes of a report.json: ten thousand layers take fewer."""
MAX_LATENCY_BYTES = 1 << 24
"""Most bytes of a latency.json: ten thousand layers take fewer."""
MAX_METRICS_BYTES = 1 << 26
"""Most bytes of a metrics.jsonl: more than the longest run writes."""
MAX_METRICS_LINE = 10_000
"""Most characters of a line of metrics.jsonl, which has twelve numbers."""

FILES = (
    "config.toml",
    "latency.json",
    "metrics.jsonl",
    "telemetry.npz",
    "dense.safetensors",
    "model.safetensors",
    "report.json",
)
"""The files that a run writes."""
CHECKPOINTS = "checkpoint"
"""Name of the folder of checkpoints in a run's folder."""


class RunFolder:
    """Writes one run's folder; every file but the growing metrics.jsonl appears whole or not at all."""

    def __init__(self, path: Path) -> None:
        """The folder of a run that has begun; `create` makes a new one."""
        self.path = path
        self._metrics = path / "metrics.jsonl"

    @classmethod
    def create(
        cls, path: Path, config: RunConfig, checkpoints: bool = False, times: LatencyTable | None = None
    ) -> RunFolder:
        """Create the folder of a new run.

        With `config.toml` the run has begun: what stands before it may be begun anew, what has it goes on.

        Args:
            path: A folder that is unused, see `require_unused`, or does not exist yet.
            config: The run's settings.
            checkpoints: Whether the run keeps checkpoints, and can be resumed from its first moment on.
            times: The layer times that the budget is counted by, if it is the time.

        Raises:
            InputError: `path` can't be created or is in use.
        """
        folder = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            require_unused(path)
            if checkpoints:
                CheckpointFolder(path / CHECKPOINTS).create()
            if times is not None:
                folder._write("latency.json", (json.dumps(times.to_dict()) + "\n").encode())
            folder.set_config(config)
            folder._metrics.touch()
        except (OSError, RunError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{path}: cannot be used as a run's folder ({reason}); name one with --out") from error
        return folder

    def set_config(self, config: RunConfig) -> None:
        """Write config.toml, with absolute paths. Raises InputError for one that can't be recorded, WriteError."""
        self._write("config.toml", tomli_w.dumps(config.with_absolute_paths().to_dict()).encode())

    def set_epochs(self, rows: Sequence[EpochRow]) -> None:
        """Replace metrics.jsonl by these lines. Raises WriteError where the disk refuses."""
        self._write("metrics.jsonl", "".join(map(_line, rows)).encode())

    def add_epoch(self, row: EpochRow) -> None:
        """Append a line to metrics.jsonl. Raises WriteError where the disk refuses."""
        try:
            with self._metrics.open("a", encoding="utf-8", newline="\n") as file:
                file.write(_line(row))
        except OSError as error:
            raise WriteError(f"{self._metrics}: cannot be written ({error.strerror})") from error

    def add_tensors(self, name: Literal["dense", "model"], tensors: Tensors) -> None:
        """Write NAME.safetensors. Raises WriteError where the disk refuses."""
        self._write(f"{name}.safetensors", save(tensors))

    def add_telemetry(self, tables: Telemetry) -> None:
        """Write telemetry.npz. Raises WriteError where the disk refuses."""
        self._write("telemetry.npz", file_content(tables))

    def finish(self, outcome: Outcome) -> None:
        """Write report.json. Raises WriteError where the disk refuses."""
        self._write("report.json", (json.dumps(outcome.to_dict(), indent=2) + "\n").encode())

    def _write(self, name: str, content: bytes) -> None:
        write_atomic(self.path / name, content)


class UnwrittenFolder(RunFolder):
    """The run's folder in a process that does not write it: rank zero does."""

    def add_epoch(self, row: EpochRow) -> None:
        """Nothing."""

    def _write(self, name: str, content: bytes) -> None:
        """Nothing."""


def _line(row: EpochRow) -> str:
    return json.dumps(asdict(row)) + "\n"


def require_unused(path: Path) -> None:
    """Raise InputError where a folder holds more than what a run leaves that ended before it began.

    That is a lock, a part of config.toml, layer times, and a folder of checkpoints without any.
    """
    begun = {LOCK, "latency.json", *(part_of(path / name).name for name in ("config.toml", "latency.json"))}
    names = {file.name for file in path.iterdir()} - begun
    if names == {CHECKPOINTS}:
        checkpoints = CheckpointFolder(path / CHECKPOINTS)
        names = {file.name for file in checkpoints.path.iterdir()} if checkpoints.exists() else set()
    if names:
        raise InputError(f"{path} {_content(path)}; name another folder with --out or remove this one")


def remove_unfinished(path: Path) -> None:
    """Remove what an unfinished run has left in a folder whose lock is held; config.toml last.

    A kill in between leaves an unfinished run.

    Raises:
        InputError: The folder holds anything that no run writes; then nothing is removed.
        OSError: A file can't be removed.
    """
    checkpoints = CheckpointFolder(path / CHECKPOINTS)
    written = {file for name in FILES for file in (path / name, part_of(path / name))}
    others = set(path.iterdir()) - written - {path / LOCK, checkpoints.path}
    others |= {file for file in written if file.is_dir() and not file.is_symlink()}
    if foreign := sorted(others) + checkpoints.foreign():
        raise InputError(
            f"{foreign[0]}: is not of the unfinished run in {path}, which would be removed to start again; move it "
            "away, or name another folder with --out"
        )
    if checkpoints.exists():
        checkpoints.remove()
    for file in sorted(written - {path / "config.toml"}):
        file.unlink(missing_ok=True)
    (path / "config.toml").unlink()


def _content(path: Path) -> str:
    """What a folder that should be empty holds."""
    if has_entry(path / "report.json"):
        return "holds another run"
    if not has_entry(path / "config.toml"):
        return "is not empty"
    goes_on = CheckpointFolder(path / CHECKPOINTS).exists()
    return "holds an unfinished run" + (f"; go on with {resume_command(path)}" if goes_on else "")


def resume_command(path: Path) -> str:
    """The command that goes on with the run in a folder."""
    return f"hyperflux prune --resume --out {shlex.quote(str(path))}"


def recorded_config(path: Path) -> RunConfig:
    """The settings of the run in a folder. Raises InputError where there is none, or its config.toml is damaged."""
    if not has_entry(path / "config.toml"):
        raise InputError(f"{path}: holds no run; name the folder of one with --out")
    return RunConfig.from_dict(load_settings(path))


def recorded_times(path: Path, config: RunConfig) -> LatencyTable | None:
    """The layer times of the run in a folder; None where its budget is not the time.

    Raises:
        InputError: latency.json is missing or damaged.
    """
    if config.budget[0] != "latency":
        return None
    try:
        return LatencyTable.from_dict(parse_json(read_text(inside(path, "latency.json"), MAX_LATENCY_BYTES)))
    except OSError as error:
        raise InputError(
            f"{error.filename}: {error.strerror}; without its layer times this run can't go on or be read, so put the "
            "file back, or run its config.toml again"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: latency.json is damaged ({error}); put it back, or run config.toml again") from error


def has_entry(file: Path) -> bool:
    """Whether its folder has an entry of this name, be it a link to nothing. Raises InputError if that is not known."""
    try:
        os.lstat(file)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a NUL byte in the name
        return False
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    return True


def read_outcome(path: Path) -> Outcome | None:
    """Read the outcome of the run in a folder.

    Returns:
        The checked content of report.json; None where the run is not finished.

    Raises:
        InputError: report.json is damaged, or was written by a newer version.
    """
    if not has_entry(path / "report.json"):
        return None
    try:
        return _parse_outcome(path)
    except NewerFormatError as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: report.json is damaged ({error})") from error


def read_run(path: Path) -> RecordedRun:
    """Read a finished run's folder, all but its weights.

    Nothing in it is trusted, and no file of it may be a link that leads out of it.

    Raises:
        InputError: A file is missing, damaged, contradicts the others, or was written by a newer version.
    """
    try:
        outcome = _parse_outcome(path)
        epochs = _parse_epochs(path)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; {path} is not the folder of a finished run") from error
    except NewerFormatError as error:
        raise InputError(f"{path}: {error}") from error
    except ValueError as error:
        raise InputError(f"{path}: metrics.jsonl or report.json is damaged ({error})") from error
    config = RunConfig.from_dict(load_settings(path))
    try:
        check_same_run(outcome, config)
    except ValueError as error:
        raise InputError(f"{path}: report.json is of another run ({error})") from error
    return RecordedRun(config, epochs, outcome, _read_telemetry(path, outcome), recorded_times(path, config))


def _parse_outcome(path: Path) -> Outcome:
    """report.json, checked. Raises OSError and ValueError."""
    values = parse_json(read_text(inside(path, "report.json"), MAX_REPORT_BYTES))
    found = require_format(values)
    if isinstance(values, dict):
        values = {"warnings": [], **(BEFORE_GATES if found == 1 else {}), **values, "format": found}
    outcome = parse_dataclass(Outcome, values)
    check_outcome(outcome)
    return outcome


def _parse_epochs(path: Path) -> list[EpochRow]:
    """metrics.jsonl, checked. Raises OSError and ValueError."""
    text = read_text(inside(path, "metrics.jsonl"), MAX_METRICS_BYTES)
    if (count := text.count("\n")) > MAX_EPOCHS:
        raise ValueError(f"metrics.jsonl: {count:,} lines, and a run has at most {MAX_EPOCHS:,} epochs")
    *lines, last = text.split("\n")
    if (length := max(map(len, lines), default=0)) > MAX_METRICS_LINE:
        raise ValueError(f"metrics.jsonl: a line of {length:,} characters, more than {MAX_METRICS_LINE:,}")
    epochs = [parse_dataclass(EpochRow, parse_json(line)) for line in lines]
    if last:
        raise ValueError("metrics.jsonl: its last line is torn")
    check_epochs(epochs)
    return epochs


def _read_telemetry(path: Path, outcome: Outcome) -> Telemetry | None:
    """The tables, None where the run has none. Raises InputError."""
    try:
        file = inside(path, "telemetry.npz")
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}") from error
    if not os.path.lexists(file):
        return None
    tables = read_tables(file)
    try:
        check_telemetry(tables, outcome.gated)
    except ValueError as error:
        raise InputError(f"{file}: damaged ({error}); rerun with its config.toml") from error
    return tables
