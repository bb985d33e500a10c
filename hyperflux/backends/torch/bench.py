"""Time of a training step: dense, under the gate alone, and under the default course, in rotation in one process."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from hyperflux.backends.torch.models import build_model
from hyperflux.backends.torch.pruner import Pruner
from hyperflux.backends.torch.training import choose_device
from hyperflux.errors import InputError
from hyperflux.models import check_model, is_mlp

STEPS_A_TURN = 10
"""Steps that each variant takes before the next one's turn: two control steps of the default course among them."""
PLANNED_STEPS = 100_000
"""The course that the timed steps belong to: long, so that control steps are as seldom as they get."""
CLASSES = 10


@dataclass(frozen=True)
class StepTime:
    """Seconds a step of one variant, medians over rotations, and the median of its ratio to the dense step."""

    variant: str
    seconds: float
    ratio: float
    lowest_ratio: float
    highest_ratio: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def time_steps(model: str, batch_size: int, rotations: int, device: str = "auto") -> list[StepTime]:
    """Time `rotations` turns of each variant on random images: (3, 32, 32), for an MLP (1, 28, 28).

    Raises InputError for a model or device that can't be had.
    """
    for name, value in (("batch_size", batch_size), ("rotations", rotations)):
        if value < 1:
            raise InputError(f"{name}: {value} is too few; give 1 or more")
    check_model(model)
    place = choose_device(device)
    shape = (1, 28, 28) if is_mlp(model) else (3, 32, 32)
    network = build_model(model, shape, CLASSES, seed=0).to(place, torch.float32)
    inputs = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0)).to(place)
    labels = (torch.arange(batch_size) % CLASSES).to(place)
    variants = {
        "dense": _stepper(network, inputs, labels, None),
        "gate": _stepper(network, inputs, labels, "published"),
        "gate and default course": _stepper(network, inputs, labels, "default"),
    }
    for turn in variants.values():
        _timed(turn, place)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rotations):
        for name, turn in variants.items():
            seconds[name].append(_timed(turn, place) / STEPS_A_TURN)
    result = []
    for name, times in seconds.items():
        ratios = sorted(own / dense for own, dense in zip(times, seconds["dense"], strict=True))
        result.append(StepTime(name, statistics.median(times), statistics.median(ratios), ratios[0], ratios[-1]))
    return result


def _stepper(network: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, controller: Any) -> Callable[[], None]:
    """`STEPS_A_TURN` training steps of a copy of the network, pruned by `controller` unless that is None."""
    model = copy.deepcopy(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    if controller is not None:
        Pruner(
            model,
            optimizer,
            target_sparsity=0.95,
            pruning_steps=PLANNED_STEPS,
            regrowth_steps=0,
            controller=controller,
        )

    def turn() -> None:
        for _ in range(STEPS_A_TURN):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(inputs), labels))
            optimizer.step()

    return turn


def _timed(turn: Callable[[], None], device: torch.device) -> float:
    """Seconds of a turn, waiting for the device before and after."""
    _wait(device)
    started = time.perf_counter()
    turn()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
