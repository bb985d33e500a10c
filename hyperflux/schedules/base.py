"""What a schedule is, and the gate that it steers: numbers only, never arrays, so that backends share schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, TypeVar

from hyperflux.errors import InputError

Stage = Literal["pruning", "regrowth", "done"]
S = TypeVar("S")


@dataclass(frozen=True)
class StepSettings:
    """What holds until the next control step: γ and η_t. With a rate of None, t stays as it is."""

    pressure: float
    presence_lr: float | None


@dataclass(frozen=True)
class Observation:
    """What a control step sees: how far it lowered t, and ways to measure the density and the typical flux."""

    shift: float
    density: Callable[[], float]
    flux: Callable[[], float]


class Gate(Protocol):
    """A network's presence parameters, as a scheduler steers them."""

    pressure: float
    presence_lr: float | None

    @property
    def steps(self) -> int:
        """Optimizer steps that took place."""

    @property
    def total(self) -> int:
        """N."""

    def surviving(self) -> int:
        """Present weights now."""

    def above(self, level: float) -> int:
        """Weights whose t is at `level` or above."""

    def meet_capacity(self, kept: int) -> float:
        """Lower every t so that exactly `kept` weights are present, see E12; gives by how much."""

    def rank_by_magnitude(self) -> None:
        """Set t of the present weights to |w|, so that capacity keeps the largest; what is pruned stays below."""

    def confirm_masks(self) -> None:
        """Raise RunError where processes that train one network together have come to different masks."""

    def typical_flux(self) -> float:
        """Mean over weights of √v̂, v̂ Adam's bias-corrected second moment of t: the size of κ g w."""


class PruningSchedule(Protocol[S]):
    """A course of pruning over optimizer steps; `S` is its state, a dataclass of plain numbers."""

    @property
    def pruning_steps(self) -> int:
        """Steps of the pruning stage."""

    @property
    def regrowth_steps(self) -> int:
        """Steps of the regrowth stage."""

    def initial_state(self) -> S:
        """The state before the first step."""

    def next_control_step(self, state: S) -> int:
        """The step after which the schedule acts next."""

    def settings(self, state: S) -> StepSettings:
        """What holds until then."""

    def advance(self, state: S, seen: Observation) -> S:
        """The state after a control step."""

    def target_count(self, step: int) -> int | None:
        """Weights that the control step after `step` leaves present; None leaves it to pressure and flux."""

    def target_density(self, step: int) -> float:
        """The density wanted after `step` steps."""

    def max_travel(self, step: int) -> float:
        """How far t goes after `step` at its learning rate in every step left; inf where capacity moves it, see E12."""

    def restore(self, saved: Mapping[str, Any]) -> S:
        """A state from its dictionary. Raises InputError where it is of another program."""

    @property
    def initial_presence(self) -> tuple[float, float]:
        """The interval from which the first t are drawn."""

    @property
    def by_magnitude(self) -> bool:
        """Whether capacity keeps the largest weights instead of those with the largest t."""


def restored(kind: type[S], saved: Mapping[str, Any]) -> S:
    """A state of plain numbers from its dictionary. Raises InputError where that is not one of this kind."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(saved, Mapping) or saved.keys() != names:
        raise InputError(
            f"schedule state: {saved} does not have the fields {', '.join(sorted(names))} of {kind.__name__}"
        )
    if odd := [name for name, value in saved.items() if type(value) not in (int, float, type(None))]:
        raise InputError(f"schedule state: {odd[0]} is {saved[odd[0]]!r}, not a number")
    return kind(**saved)
