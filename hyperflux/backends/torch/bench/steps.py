"""Interleaved timing of training steps: dense and pruned, with and without telemetry."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hyperflux.backends.torch.bench.memory import StepMemory, measure_memory
from hyperflux.backends.torch.bench.update import UpdateCost, time_update
from hyperflux.backends.torch.models import build_model
from hyperflux.backends.torch.pruner import Pruner
from hyperflux.backends.torch.selection import select
from hyperflux.backends.torch.training import Precision, choose_device
from hyperflux.io.ranges import count_in
from hyperflux.models import check_model, is_mlp
from hyperflux.telemetry.columns import Tables
from hyperflux.telemetry.file import file_content
from hyperflux.telemetry.levels import LEVELS, Level
from hyperflux.timing import MAX_BATCH, MAX_ROUNDS, Timing, Turn, interleave

STEPS_A_TURN = 10
"""Steps of a variant per turn; in the default course two of them are control steps."""
PLANNED_STEPS = 100_000
"""Pruning steps of the timed course: many, so that control steps are as rare as possible."""
WATCHED_STEPS = 3910
"""Pruning steps of the course in which telemetry is timed: ten epochs of CIFAR-10 in batches of 128."""
CLASSES = 10
DEFAULTS = "default course, light telemetry"
"""The variant with all the defaults of `Pruner`."""


@dataclass(frozen=True)
class TelemetryCost:
    """Cost of a level of telemetry.

    Attributes:
        time: Time of a step, compared with no telemetry.
        file_bytes: Size of telemetry.npz after the timed steps, scaled to the intervals of the whole course.
    """

    time: Timing
    file_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.time.to_dict(), "file_bytes": self.file_bytes}


@dataclass(frozen=True)
class StepCost:
    """Cost of a training step.

    Attributes:
        times: Time of a step, per variant.
        memory: Memory of a step, per variant.
        update: Cost of the pruning update alone.
    """

    times: list[Timing]
    memory: list[StepMemory]
    update: UpdateCost

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        times, memory = ([row.to_dict() for row in rows] for rows in (self.times, self.memory))
        return {"times": times, "memory": memory, "update": self.update.to_dict()}


def measure_steps(
    model: str, batch_size: int, rotations: int, device: str = "auto", *, amp: str = "off", channels_last: bool = False
) -> StepCost:
    """Measure a dense step, one under the gate alone, and one of the default course without and with telemetry.

    An interval of light telemetry takes 500 steps of this course, so hardly a turn includes its end. The end is timed
    after every turn instead, and a 500th of it is added to a step.

    Args:
        model: Name of the model.
        batch_size: Images per step.
        rotations: Turns per variant.
        device: Name of the device, or "auto".
        amp: Precision of the forward pass: "off", "bfloat16" or "float16".
        channels_last: Whether images and filters keep their channels together in memory.

    Raises:
        InputError: A model, device, precision or count is refused, or the kernel chosen for the device does not agree
            with the plain one.
    """
    workload = _Workload.of(model, batch_size, rotations, device, amp, channels_last)
    pruned = select(workload.network, _optimizer(workload.network), None, None).prunable
    update = time_update(
        [parameter.detach().clone() for parameter in pruned.values()],
        rotations,
        functools.partial(_wait, workload.inputs.device),
    )
    trained = {
        "dense": workload.dense(),
        "gate": workload.pruner(PLANNED_STEPS, "published", "off"),
        "gate and default course": workload.pruner(PLANNED_STEPS, "default", "off"),
        DEFAULTS: workload.pruner(PLANNED_STEPS, "default", "light"),
    }
    turns = {name: workload.turn(parts, STEPS_A_TURN) for name, parts in trained.items()}
    interval = _steps_per_interval(PLANNED_STEPS)
    turns[DEFAULTS] = replace(turns[DEFAULTS], rare=trained[DEFAULTS].summarise, rare_calls=interval)
    times = workload.interleave(turns, rotations)
    memory = [
        measure_memory(name, parts.model, parts.optimizer, parts.kept(), workload.turn(parts, 1).run)
        for name, parts in trained.items()
    ]
    return StepCost(times, memory, update)


def time_telemetry(model: str, batch_size: int, rotations: int, device: str = "auto") -> list[TelemetryCost]:
    """Time a step of the default course at every level of telemetry; a turn is one interval of `light`.

    Args:
        model: Name of the model.
        batch_size: Images per step.
        rotations: Turns per level.
        device: Name of the device, or "auto".

    Raises:
        InputError: A model, device or count is refused.
    """
    workload = _Workload.of(model, batch_size, rotations, device)
    pruners = {name: workload.pruner(WATCHED_STEPS, "default", name) for name in LEVELS}
    steps = _steps_per_interval(WATCHED_STEPS)
    times = workload.interleave({name: workload.turn(p, steps) for name, p in pruners.items()}, rotations)
    sizes = [_file_bytes(pruners[name].tables(), level) for name, level in LEVELS.items()]
    return [TelemetryCost(time, size) for time, size in zip(times, sizes, strict=True)]


def _steps_per_interval(steps: int) -> int:
    """Steps per interval of light telemetry in a course of `steps`."""
    light = LEVELS["light"]
    assert light is not None
    return math.ceil(steps / light.intervals)


def _file_bytes(tables: Tables, level: Level | None) -> int:
    if level is None:
        return 0
    return round(len(file_content(tables)) * level.intervals / len(tables["network"]))


@dataclass(frozen=True)
class _Trained:
    """A network, its optimizer, and its Pruner; None if it is dense."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    pruner: Pruner | None = None

    def kept(self) -> list[torch.Tensor]:
        """Tensors that pruning and telemetry hold."""
        return [] if self.pruner is None else self.pruner.held_tensors()

    def summarise(self) -> None:
        """What telemetry computes at the end of an interval."""
        assert self.pruner is not None
        assert self.pruner.session.recorder is not None
        self.pruner.session.recorder.summaries(flux=True)

    def tables(self) -> Tables:
        return {} if self.pruner is None else self.pruner.telemetry()


@dataclass(frozen=True)
class _Workload:
    """A network and one batch of random images of shape (3, 32, 32), for an MLP (1, 28, 28)."""

    network: nn.Module
    inputs: torch.Tensor
    labels: torch.Tensor
    precision: Precision

    @classmethod
    def of(
        cls,
        model: str,
        batch_size: int,
        rotations: int,
        device: str,
        amp: str = "off",
        channels_last: bool = False,
    ) -> _Workload:
        count_in("batch_size", batch_size, 1, MAX_BATCH)
        count_in("rotations", rotations, 1, MAX_ROUNDS)
        check_model(model)
        place = choose_device(device)
        shape = (1, 28, 28) if is_mlp(model) else (3, 32, 32)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        network = build_model(model, shape, CLASSES, seed=0).to(place, torch.float32).to(memory_format=layout)
        inputs = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0))
        labels = (torch.arange(batch_size) % CLASSES).to(place)
        return cls(network, inputs.to(place, memory_format=layout), labels, Precision(amp, place))

    def dense(self) -> _Trained:
        """A copy of the network."""
        model = copy.deepcopy(self.network)
        return _Trained(model, _optimizer(model))

    def pruner(self, steps: int, controller: Any, telemetry: Any) -> _Trained:
        """A copy under a Pruner whose pruning stage has `steps` steps."""
        dense = self.dense()
        pruner = Pruner(
            dense.model,
            dense.optimizer,
            target_sparsity=0.95,
            pruning_steps=steps,
            regrowth_steps=0,
            controller=controller,
            telemetry=telemetry,
        )
        return _Trained(dense.model, dense.optimizer, pruner)

    def turn(self, trained: _Trained, steps: int) -> Turn:
        """A turn of `steps` training steps."""
        model, optimizer = trained.model, trained.optimizer

        def take() -> None:
            for _ in range(steps):
                with self.precision.autocast():
                    loss = nn.functional.cross_entropy(model(self.inputs), self.labels)
                self.precision.backward(loss, optimizer)
                self.precision.step(optimizer)

        return Turn(take, steps)

    def interleave(self, variants: Mapping[str, Turn], rotations: int) -> list[Timing]:
        """Interleaved timing of all variants; waits for the device before and after each turn."""
        return interleave(variants, rotations, functools.partial(_wait, self.inputs.device))


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
