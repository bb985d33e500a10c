"""Records a gate under a schedule: counts flips after every step, measures at the end of every interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hyperflux.errors import InputError
from hyperflux.io.saved_state import entries
from hyperflux.schedules.base import Gate, LayerCount, PruningSchedule
from hyperflux.seeding import generator
from hyperflux.telemetry.columns import SCHEMA, Table, Tables
from hyperflux.telemetry.levels import Level
from hyperflux.telemetry.statistics import LayerArrays, Summary

State = dict[str, NDArray[Any]]
COUNTER_BYTES = 8
"""More than the bytes of the counters of a weight."""
GROWING = ("ends", "rows network", "rows layers", "rows sample")
"""Arrays of the state whose length grows over a run."""


class Probe(Protocol):
    """Counts flips of every weight, on the device that holds it."""

    def count(self, interval: int) -> None:
        """Count the weights whose mask changed since the last call; at first, all are present."""

    def layers(self, flux: bool) -> list[LayerArrays]:
        """Every layer now, on the host, with flux if `flux`; waits for the device."""

    def flip_counts(self) -> list[NDArray[np.integer[Any]]]:
        """Flips of each weight, one array per layer, on the host; waits for the device."""

    def state(self) -> State:
        """Copies of the counters by name."""

    def restore(self, state: State) -> None:
        """Continue from saved counters."""


class Recorder:
    """Fills the tables of `hyperflux.telemetry.columns`: call `after_step` after every step, `finish` at the end.

    It consumes none of the run's random numbers and changes nothing that it reads, so results do not depend on it.
    """

    def __init__(self, schedule: PruningSchedule[Any], gate: Gate, probe: Probe, level: Level) -> None:
        """Record the gate before the first step.

        Args:
            schedule: The schedule that steers the gate.
            gate: The presence parameters.
            probe: Counts the gate's flips.
            level: How closely to record.
        """
        self._schedule, self._gate, self._probe = schedule, gate, probe
        steps = schedule.pruning_steps + schedule.regrowth_steps
        self._every = max(1, math.ceil(steps / level.intervals))
        self._ends = [0]
        self._step = gate.steps
        self._applied = self._next = _step_settings(gate)
        self._moved = False
        self._rows: dict[str, list[tuple[Any, ...]]] = {"network": [], "layers": [], "sample": []}
        layers = probe.layers(flux=False)
        share = -(-level.sample // len(layers))
        self._sample = {layer.name: _draw_sample(layer.name, layer.presence.size, share) for layer in layers}
        self._events = {layer.name: (0, 0) for layer in layers} | {"": (0, 0)}
        self._record_sample(layers)

    def after_step(self) -> None:
        """Count the flips of the step and its control step; measure at the end of an interval."""
        if self._gate.steps == self._step:
            return  # a GradScaler skipped this step
        self._step, self._applied = self._gate.steps, self._next
        self._probe.count(len(self._ends))
        self._moved |= not math.isnan(self._applied[1])
        if self._step % self._every == 0 or self._step == self._schedule.pruning_steps:
            self._measure()
        self._next = _step_settings(self._gate)

    def finish(self) -> None:
        """Measure the last, incomplete interval; also if only the end of the run changed a mask."""
        self._probe.count(len(self._ends))
        if self._step > self._ends[-1] or self.events() != self._events[""]:
            self._measure()

    def events(self) -> tuple[int, int]:
        """Prunings and regrowths since the start; waits for the device."""
        flips = np.bincount(np.concatenate([part.ravel() for part in self._probe.flip_counts()]))
        return Summary(flips, flips, flips, {}).events

    def tables(self) -> Tables:
        """All tables so far, copied."""
        tables = {name: np.array(rows, SCHEMA[name]) for name, rows in self._rows.items()}
        _, summaries = self.summaries(flux=False)
        flips = [
            (name, times, int(weights))
            for name, summary in summaries.items()
            for times, weights in enumerate(summary.flip_counts)
            if weights
        ]
        ages = [
            (name, step, int(present), int(pruned))
            for name, summary in summaries.items()
            for step, present, pruned in zip(
                [*self._ends, self._step], summary.last_present, summary.last_pruned, strict=True
            )
            if present or pruned
        ]
        return {**tables, "flips": np.array(flips, SCHEMA["flips"]), "ages": np.array(ages, SCHEMA["ages"])}

    def state(self) -> State:
        """What a recorder of the same schedule needs to continue: arrays of numbers, the rows as bytes."""
        tables = {f"rows {name}": np.array(rows, SCHEMA[name]) for name, rows in self._rows.items()}
        rows = {name: np.frombuffer(bytearray(table.tobytes()), np.uint8) for name, table in tables.items()}
        clock = {"ends": self._ends, "step": self._step, "applied": self._applied, "moved": self._moved}
        return {**{name: np.array(value) for name, value in clock.items()}, **rows, **self._probe.state()}

    def require_state(self, state: State, steps: int) -> None:
        """Raise InputError if `restore` could not restore a state, saved when the gate had taken so many steps."""
        own = self.state()
        entries("telemetry state", state, own)
        for name, array in state.items():
            shape = (len(array),) if name in GROWING and array.ndim == 1 else own[name].shape
            if array.dtype.kind != own[name].dtype.kind or array.shape != shape:
                raise InputError(
                    f"telemetry state: {name} is {array.dtype} of shape {array.shape}, but {own[name].dtype} of shape "
                    f"{own[name].shape} here"
                )
        ends, step = state["ends"].tolist(), int(state["step"])
        if ends[:1] != [0] or sorted(set(ends)) != ends or step < ends[-1] or step != steps:
            raise InputError(f"telemetry state: intervals end at {ends[:3]}... {ends[-1:]} by step {step}")
        for name, array in state.items():
            most = {"flips": step, "changed_in": len(ends)}.get(name.partition(" ")[0])
            if most is not None and array.size and not 0 <= array.min() <= array.max() <= most:
                raise InputError(f"telemetry state: {name} holds a number that is not from 0 to {most}")
        for name in self._rows:
            try:
                _table(name, state).tolist()
            except ValueError as error:
                raise InputError(f"telemetry state: the rows of {name} can't be read ({error})") from error
        if _table("network", state)["step"].tolist() != ends[1:]:
            raise InputError("telemetry state: the rows of network are not of its intervals")

    def restore(self, state: State) -> None:
        """Continue from a saved state, which `require_state` accepts; restore the gate first."""
        self._ends, self._step = state["ends"].tolist(), int(state["step"])
        pressure, rate = state["applied"].tolist()
        self._applied, self._moved, self._next = (pressure, rate), bool(state["moved"]), _step_settings(self._gate)
        tables = {name: _table(name, state) for name in self._rows}
        self._rows = {name: table.tolist() for name, table in tables.items()}
        self._probe.restore(state)
        for name in self._events:
            rows = tables["layers"][tables["layers"]["layer"] == name] if name else tables["network"]
            self._events[name] = (int(rows["pruned"].sum()), int(rows["regrown"].sum()))

    def require_counted(self, pruned: int, regrown: int) -> None:
        """Raise InputError if restored counters are behind their own rows, or behind so many events of the network."""
        _, summaries = self.summaries(flux=False)
        found = {"": self.events(), **{name: summary.events for name, summary in summaries.items()}}
        known = {**self._events, "": np.maximum(self._events[""], (pruned, regrown))}
        if late := [name for name, least in known.items() if np.less(found[name], least).any()]:
            raise InputError(f"telemetry state: {late[0] or 'the network'} has fewer changes of mask than its rows")

    def summaries(self, flux: bool) -> tuple[list[LayerArrays], dict[str, Summary]]:
        """Arrays and summary of every layer now, as at the end of the present interval; waits for the device."""
        layers = self._probe.layers(flux)
        return layers, {layer.name: Summary.of(layer, len(self._ends)) for layer in layers}

    def _measure(self) -> None:
        layers, summaries = self.summaries(self._moved)
        self._ends.append(self._step)
        self._moved = False
        figures = {name: self._figures(name, summary) for name, summary in summaries.items()}
        network = self._figures("", Summary.merged(list(summaries.values())))
        course = {
            "stage": "pruning" if self._step <= self._schedule.pruning_steps else "regrowth",
            "wanted": self._schedule.target_density(self._step),
            "pressure": self._applied[0],
            "presence_lr": self._applied[1],
        }
        self._add("network", {"step": self._step, **course, **network})
        for name, values in figures.items():
            self._add("layers", {"step": self._step, "layer": name, **values})
        self._record_sample(layers)

    def _figures(self, name: str, summary: Summary) -> dict[str, float]:
        figures = summary.figures(self._events[name], self._ends)
        self._events[name] = summary.events
        return figures

    def _record_sample(self, layers: Sequence[LayerArrays]) -> None:
        """Add a row for every sampled weight."""
        for layer in layers:
            chosen = np.unravel_index(self._sample[layer.name], layer.presence.shape)
            t, flips = layer.presence[chosen], layer.flips[chosen]
            flux = np.full(len(t), np.nan) if layer.flux is None else layer.flux[chosen]
            for row in zip(self._sample[layer.name].tolist(), t, flux, t >= 0, flips, strict=True):
                self._rows["sample"].append((self._step, layer.name, *row))

    def _add(self, table: str, values: Mapping[str, Any]) -> None:
        self._rows[table].append(tuple(values[name] for name in SCHEMA[table].names or ()))


def most_bytes(layers: Sequence[LayerCount], level: Level) -> int:
    """Most bytes of the state of a recorder of these layers at this level."""
    intervals, share = level.intervals + 2, -(-level.sample // len(layers))
    row = SCHEMA["network"].itemsize + len(layers) * (SCHEMA["layers"].itemsize + share * SCHEMA["sample"].itemsize)
    return intervals * row + COUNTER_BYTES * sum(layer.total for layer in layers)


def _table(name: str, state: State) -> Table:
    """The rows of a table, saved as bytes."""
    return np.frombuffer(state[f"rows {name}"].tobytes(), SCHEMA[name])


def _step_settings(gate: Gate) -> tuple[float, float]:
    """γ and η_t of the next step; η_t is NaN if t is frozen."""
    return gate.pressure, math.nan if gate.presence_lr is None else gate.presence_lr


def _draw_sample(name: str, size: int, count: int) -> NDArray[np.int64]:
    """Indices of a layer's sampled weights, drawn by its name only, so that runs can be compared weight by weight."""
    return np.sort(generator(0, f"{name} sample").choice(size, min(size, count), replace=False))
