"""Interfaces of a pruning schedule and the gate that it steers, in plain numbers, so that backends share schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Protocol, TypeVar, get_args, get_type_hints

from hyperflux.errors import InputError
from hyperflux.io.arguments import kind_of
from hyperflux.io.ranges import number_in, whole_number
from hyperflux.io.saved_state import count, finite
from hyperflux.spec import Observation as Observation
from hyperflux.spec import Ranking as Ranking
from hyperflux.spec import StepSettings as StepSettings

Stage = Literal["pruning", "regrowth", "done"]
S = TypeVar("S")


@dataclass(frozen=True)
class LayerCount:
    """Prunable and surviving weights of one parameter."""

    name: str
    total: int
    surviving: int


class Gate(Protocol):
    """The presence parameters of a network, as a scheduler steers them. Steps are optimizer steps."""

    pressure: float
    presence_lr: float | None

    @property
    def steps(self) -> int:
        """Optimizer steps taken; skipped steps do not count."""

    @property
    def total(self) -> int:
        """N, the number of prunable weights; for gates of channels, the cost of the dense network."""

    def surviving(self) -> int:
        """Number of present weights, or the cost of what is present."""

    def above(self, level: float) -> int:
        """Number of t at `level` or above."""

    def meet_capacity(self, count: int, ranking: Ranking = "presence") -> float:
        """Lower every t by the same τ (see E12). Returns τ.

        Args:
            count: Weights to leave present, or the largest cost allowed: as many gates stay open as fit (see E17).
            ranking: What is kept the largest of. For a baseline it becomes t before, and −1 where pruned.
        """

    def confirm_masks(self) -> None:
        """Raise RunError if replicas of the network hold different masks."""

    def typical_flux(self) -> float:
        """Mean over weights of √v̂, where v̂ is Adam's bias-corrected second moment of t: the size of κ g w."""


class PruningSchedule(Protocol[S]):
    """A schedule of pruning over optimizer steps. `S` is its state, a dataclass of plain numbers."""

    @property
    def pruning_steps(self) -> int:
        """Steps of the pruning stage."""

    @property
    def regrowth_steps(self) -> int:
        """Steps of the regrowth stage."""

    @property
    def initial_presence(self) -> tuple[float, float]:
        """Interval from which each t is first drawn (see E2)."""

    @property
    def ranking(self) -> Ranking:
        """What capacity keeps the largest of."""

    def initial_state(self) -> S:
        """The state before the first step."""

    def next_control_step(self, state: S) -> int:
        """The step after which the next control step is due."""

    def settings(self, state: S) -> StepSettings:
        """The settings of every step until the next control step."""

    def advance(self, state: S, observation: Observation) -> S:
        """The state after a control step."""

    def target_count(self, step: int) -> int | None:
        """Weights present after the control step at `step`; None leaves the count to pressure and flux."""

    def target_density(self, step: int) -> float:
        """The target density after `step` steps, a fraction."""

    def max_travel(self, step: int) -> float:
        """How far t can move in the steps after `step`; inf if capacity can move it any distance (see E12)."""

    def restore(self, saved: Mapping[str, Any]) -> S:
        """A state from its dictionary. Raises InputError if another schedule saved it."""


def require_schedule(value: Any) -> None:
    """Raise InputError for an object that lacks a part of `PruningSchedule`."""
    wanted = [name for name in vars(PruningSchedule) if not name.startswith("_")]
    if isinstance(value, type) or (missing := [name for name in wanted if not hasattr(value, name)]):
        what = kind_of(value) if isinstance(value, type) else f"{kind_of(value)}, without {missing[0]},"
        raise InputError(f"schedule: {what} is not a pruning schedule; build one by hyperflux.schedules.factory")


def settle_counts(settings: Any, **least: int) -> None:
    """Make each named field of a frozen dataclass a plain int. Raises InputError if one is below its least value."""
    for name, low in least.items():
        object.__setattr__(settings, name, whole_number(name, getattr(settings, name), low))


def settle_totals(settings: Any) -> None:
    """`settle_counts` for a schedule with a final count. Raises InputError also if that is not below the total."""
    settle_counts(settings, total=1, final_count=1, pruning_steps=1, regrowth_steps=0)
    if settings.final_count >= settings.total:
        raise InputError(f"final_count: {settings.final_count} is not below the total, {settings.total}")


def settle_gates(settings: Any) -> None:
    """Make the number of gates of a frozen dataclass a plain int, unless it is None. Raises InputError below 1."""
    if settings.gates is not None:
        settle_counts(settings, gates=1)


def settle_number(settings: Any, name: str, low: float, high: float = math.inf, ends: str = "[)") -> None:
    """Make a field of a frozen dataclass a plain float. Raises InputError if it is out of its range."""
    object.__setattr__(settings, name, number_in(name, getattr(settings, name), low, high, ends))


def restored(kind: type[S], saved: Mapping[str, Any]) -> S:
    """A state of plain numbers from its dictionary.

    Raises:
        InputError: The fields are not those of `kind`, or a value is not a finite number of the field's type.
    """
    types = get_type_hints(kind)
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(saved, Mapping) or saved.keys() != names:
        raise InputError(
            f"schedule state: {saved} does not have the fields {', '.join(sorted(names))} of {kind.__name__}"
        )
    for name, value in saved.items():
        _require_number(f"schedule state, {name}", value, types[name])
    return kind(**saved)


def _require_number(what: str, value: Any, annotation: Any) -> None:
    """Raise InputError unless a value is a count, a finite number or None, as a field's annotation allows."""
    allowed = set(get_args(annotation) or (annotation,))
    if is_dataclass(value) or (value is None and type(None) in allowed):
        return
    if type(value) not in (int, float):
        raise InputError(f"{what}: {value!r} is not a number")
    if float in allowed:
        finite(what, value)
    else:
        count(what, value)
