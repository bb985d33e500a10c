"""The course of a run, pruning then regrowth, as a pure state machine that sees numbers only, never arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from hyperflux.controller import PublishedController, PublishedState
from hyperflux.errors import InputError
from hyperflux.schedule import cosine, presence_decay, trajectory

MOST_EPOCHS = 100_000
"""The longest stage: what lies above is a slip of the keyboard."""

Stage = Literal["dense", "pruning", "regrowth"]


@dataclass(frozen=True)
class PruningCourse:
    """Settings of the pruning stage; learning rates are those of its first and (just after) its last epoch."""

    epochs: int
    learning_rate: float
    final_learning_rate: float
    presence_learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        require_epochs("pruning", self.epochs, least=1)
        _require_rates("pruning", self)


@dataclass(frozen=True)
class RegrowthCourse:
    """Settings of the regrowth stage; t's rate starts at `presence_learning_rate` and shrinks by `presence_decay`."""

    epochs: int
    learning_rate: float
    final_learning_rate: float
    presence_learning_rate: float = 1e-3
    presence_decay: float = 0.75

    def __post_init__(self) -> None:
        require_epochs("regrowth", self.epochs, least=0)
        _require_rates("regrowth", self)


@dataclass(frozen=True)
class ProgramState:
    """Everything a program carries from epoch to epoch: it can be saved as JSON and restored."""

    finished_epochs: int = 0
    pressure: float = 0.0
    controller: PublishedState = field(default_factory=PublishedState)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> ProgramState:
        """Restore what `to_dict` gave. Raises InputError where fields are missing or unknown."""
        try:
            return cls(**{**saved, "controller": PublishedState(**saved["controller"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"program state: {error}; it was not written by this version of hyperflux") from error


@dataclass(frozen=True)
class Orders:
    """What a backend is to do in one epoch; `wanted` is the density it should end at (in dense training, 1)."""

    stage: Stage
    wanted: float
    pressure: float
    learning_rate: float
    presence_learning_rate: float


@dataclass(frozen=True)
class Program:
    """The published course for a wanted density: trajectory (E8), controller (E9), two stages (E10)."""

    target_density: float
    pruning: PruningCourse
    regrowth: RegrowthCourse
    controller: PublishedController = field(default_factory=PublishedController)
    trajectory: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "trajectory", trajectory(self.target_density, self.pruning.epochs))

    @property
    def epochs(self) -> int:
        """Epochs of both stages together."""
        return self.pruning.epochs + self.regrowth.epochs

    def stage(self, state: ProgramState) -> Literal["pruning", "regrowth", "done"]:
        """The stage of the epoch that comes next."""
        if state.finished_epochs < self.pruning.epochs:
            return "pruning"
        return "regrowth" if state.finished_epochs < self.epochs else "done"

    def orders(self, state: ProgramState) -> Orders:
        """Orders for the next epoch: the controller's pressure while pruning, none in regrowth (E10).

        The weights' learning rate follows a cosine in each stage; t's is constant while pruning, then restarts and
        decays. Raises ValueError once the program is done.
        """
        epoch = state.finished_epochs + 1
        match self.stage(state):
            case "pruning":
                course = self.pruning
                rate = cosine(course.learning_rate, course.final_learning_rate, epoch, course.epochs)
                return Orders(
                    "pruning", self.trajectory[epoch - 1], state.pressure, rate, course.presence_learning_rate
                )
            case "regrowth":
                regrowth, epoch = self.regrowth, epoch - self.pruning.epochs
                rate = cosine(regrowth.learning_rate, regrowth.final_learning_rate, epoch, regrowth.epochs)
                presence_rate = presence_decay(regrowth.presence_learning_rate, regrowth.presence_decay, epoch)
                return Orders("regrowth", self.target_density, 0.0, rate, presence_rate)
            case _:
                raise ValueError(f"the program is done after its {self.epochs} epochs")

    def advance(self, state: ProgramState, density: float) -> ProgramState:
        """The state after an epoch that ended at `density`; the controller acts after each pruning epoch.

        Raises ValueError once the program is done.
        """
        stage, finished = self.stage(state), state.finished_epochs + 1
        if stage == "done":
            raise ValueError(f"the program is done after its {self.epochs} epochs")
        if stage == "regrowth":
            return ProgramState(finished, 0.0, state.controller)
        controller, pressure = self.controller.update(state.controller, self.trajectory[finished - 1], density)
        return ProgramState(finished, pressure, controller)


def require_epochs(stage: str, epochs: int, least: int) -> None:
    """Raise InputError unless a stage's number of epochs is from `least` to `MOST_EPOCHS`."""
    if epochs < least:
        raise InputError(f"{stage}.epochs: {epochs} is too few; give --{stage}-epochs {least} or more")
    if epochs > MOST_EPOCHS:
        raise InputError(f"{stage}.epochs: {epochs} is too many; give --{stage}-epochs {MOST_EPOCHS} or fewer")


def _require_rates(stage: str, course: PruningCourse | RegrowthCourse) -> None:
    for name, value in asdict(course).items():
        if name != "epochs" and not (math.isfinite(value) and value >= 0):
            raise InputError(f"{stage}.{name}: {value} is not a finite number of at least 0")
