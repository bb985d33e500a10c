"""Comparing methods: the same dense networks, recipe and seeds, one run per method and budget."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hyperflux.backends import build_backend
from hyperflux.config import RunConfig
from hyperflux.errors import InputError, WriteError
from hyperflux.gates.kinds import BUDGETS, Budget, Pattern
from hyperflux.io.did_you_mean import unknown_name
from hyperflux.recipes import load_settings
from hyperflux.runs.driver import budget_name, execute, feasible_schedule, load_start, remove_leftovers, train_dense
from hyperflux.runs.folder import has_entry, read_run, remove_unfinished
from hyperflux.runs.lock import locked
from hyperflux.runs.schema import EpochRow

METHODS = {
    "hyperflux": {"method": "hyperflux", "controller": "default"},
    "published": {"method": "hyperflux", "controller": "published"},
    "magnitude": {"method": "magnitude"},
    "taylor": {"method": "taylor"},
}
"""What can be compared, and its settings."""


@dataclass(frozen=True)
class Comparison:
    """One method at one budget over all seeds.

    `share` is what was asked for: the sparsity, or the share to keep of FLOPs, parameters or time. Accuracies,
    densities and sizes are mean fractions, `reached` is the mean share left of what the budget counts, sizes and
    parameters are those of the compacted networks, None where these are not known. `spread` is the standard deviation
    of accuracy over seeds, and `seconds` the median time of a run.
    """

    method: str
    budget: Budget
    share: float
    seeds: int
    density: float
    reached: float
    flops_ratio: float | None
    parameters_ratio: float | None
    compact_parameters: float | None
    accuracy: float
    spread: float
    dense_accuracy: float | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """Runs of a comparison in `folder`; its own folders are `dense-SEED` and `METHOD-SPARSITY-SEED`.

    With gates of channels these are such as `METHOD-flops0.25-SEED`, with N:M `METHOD-2of4-SEED`.

    Attributes:
        base: The settings of all runs.
        methods: Keys of `METHODS`.
        shares: Of the budget, to remove of weights, else to keep; the one of N:M.
        seeds: One dense network for each.
        folder: Of all runs.
        budget: What the shares are of.
    """

    base: RunConfig
    methods: Sequence[str]
    shares: Sequence[float]
    seeds: Sequence[int]
    folder: Path
    budget: Budget = "sparsity"

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise unknown_name("method", method, METHODS)
        plural = "sparsities" if self.budget == "sparsity" else self.budget
        for name, values in (("methods", self.methods), (plural, self.shares), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise InputError(f"{name}: {', '.join(map(str, values)) or 'none'}; give one or more, each once")
        self.configs()  # raises where one is not valid

    def configs(self) -> list[tuple[Path, RunConfig]]:
        """Every run's folder and settings, seed by seed so that early seeds are comparable soon."""
        return [
            (self.run_folder(method, share, seed), self._config(method, share, seed))
            for seed in self.seeds
            for share in self.shares
            for method in self.methods
        ]

    def run_folder(self, method: str, share: float, seed: int) -> Path:
        """Where one run is."""
        return self.folder / f"{method}-{budget_name(self._config(method, share, seed))}-{seed}"

    def dense_folder(self, seed: int) -> Path:
        """Where the dense network of a seed is."""
        return self.folder / f"dense-{seed}"

    def _config(self, method: str, share: float, seed: int) -> RunConfig:
        settings = {name: value for name, value in self.base.to_dict().items() if name not in BUDGETS}
        if not isinstance(self.base.gate_kind, Pattern):
            settings[self.budget] = share
        checkpoint = self.base.checkpoint
        if not checkpoint and self.base.dense.epochs:
            checkpoint = str(self.dense_folder(seed) / "dense.safetensors")
        return RunConfig.from_dict({**settings, **METHODS[method], "seed": seed, "checkpoint": checkpoint})


def execute_plan(
    plan: Plan, announce: Callable[[str], None], observe: Callable[[EpochRow], None] = lambda row: None
) -> list[Comparison]:
    """Do the runs that are not there yet, restart unfinished ones, and compare all.

    Args:
        plan: The runs.
        announce: Gets a line before each run, and one if a weights file keeps the weights under keys or a prefix.
        observe: Gets every epoch of every run.

    Returns:
        A row per share and method, over all seeds.

    Raises:
        InputError: A folder holds a run with other settings; also what the runs themselves raise.
    """
    runs = plan.configs()
    missing = [number for number, (folder, config) in enumerate(runs) if not _is_there(folder, config)]
    if missing:
        _require_feasible(plan, [runs[number][1] for number in missing], announce)
    if missing and not plan.base.checkpoint and plan.base.dense.epochs:
        for seed in plan.seeds:
            config, folder = replace(plan.base, seed=seed), plan.dense_folder(seed)
            if not _is_there(folder, config, "dense.safetensors"):
                announce(f"dense network, seed {seed}")
                train_dense(config, folder, observe)
    for number in missing:
        folder, config = runs[number]
        announce(f"run {number + 1} of {len(runs)}: {folder.name}")
        execute(config, folder, observe)
    return list(_compared(plan))


def _require_feasible(plan: Plan, missing: Sequence[RunConfig], announce: Callable[[str], None]) -> None:
    """Raise InputError where a run that is missing can't be done; announce where a weights file keeps the weights."""
    backend = build_backend(plan.base)
    load_start(plan.base, backend, announce)
    built = plan.base.budget
    for config in sorted(missing, key=lambda config: config.budget):
        if plan.base.gate_kind == "channels" and config.budget != built:  # what a schedule counts depends on it
            backend, built = build_backend(replace(config, checkpoint="")), config.budget
        feasible_schedule(config, backend)


def _is_there(folder: Path, config: RunConfig, last_file: str = "report.json") -> bool:
    """Whether the run is finished; an unfinished one is removed.

    Its settings must be those of the plan, except for the machine's own, `on_nonfinite`, and the spelling of the path
    to the dense weights.
    """
    if not has_entry(folder / "config.toml"):
        return False
    found = RunConfig.from_dict(load_settings(folder))
    machine = {name: getattr(config, name) for name in ("data_dir", "device", "workers", "telemetry", "on_nonfinite")}
    if found.checkpoint and config.checkpoint and _same_weights(found.checkpoint, config.checkpoint, folder):
        machine["checkpoint"] = config.checkpoint
    if replace(found, **machine) != config:
        raise InputError(f"{folder}: holds a run of other settings; name another folder with --out or remove this one")
    if has_entry(folder / last_file):
        if last_file == "report.json":
            read_run(folder)  # find damage before any run starts
        remove_leftovers(folder)
        return True
    try:
        with locked(folder, lambda line: None):
            remove_unfinished(folder)
    except (OSError, WriteError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{folder}: an unfinished run that can't be removed ({reason})") from error
    return False


def _same_weights(found: str, named: str, folder: Path) -> bool:
    """Whether two paths to weights mean the same file, or both this comparison's own, whose folder has moved."""
    real = Path(os.path.realpath(named))
    own = real.parent.parent == Path(os.path.realpath(folder)).parent
    return os.path.realpath(found) == str(real) or (own and Path(found).parts[-2:] == real.parts[-2:])


def _compared(plan: Plan) -> Iterable[Comparison]:
    for share in plan.shares:
        for method in plan.methods:
            runs = [read_run(plan.run_folder(method, share, seed)) for seed in plan.seeds]
            outcomes = [run.outcome for run in runs]
            accuracies = [outcome.final_accuracy for outcome in outcomes]
            yield Comparison(
                method=method,
                budget=plan.budget,
                share=share,
                seeds=len(outcomes),
                density=statistics.mean(1 - outcome.final_sparsity for outcome in outcomes),
                reached=statistics.mean(run.reached for run in runs),
                flops_ratio=_mean([outcome.flops_ratio for outcome in outcomes]),
                parameters_ratio=_mean([outcome.parameters_ratio for outcome in outcomes]),
                compact_parameters=_mean([outcome.compact_parameters for outcome in outcomes]),
                accuracy=statistics.mean(accuracies),
                spread=statistics.stdev(accuracies) if len(outcomes) > 1 else 0.0,
                dense_accuracy=_mean([outcome.dense_accuracy for outcome in outcomes]),
                seconds=statistics.median(outcome.seconds for outcome in outcomes),
            )


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where a value is not known."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if len(known) == len(values) else None
