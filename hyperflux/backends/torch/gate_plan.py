"""What the gates of a network will hold, and what a schedule will count: decided once, before pruning starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from hyperflux.backends.torch.channels.latency import measure
from hyperflux.backends.torch.channels.layout import ChannelLayout, traced_layout
from hyperflux.backends.torch.channels.states import ChannelStates
from hyperflux.backends.torch.pattern_layout import PatternLayout
from hyperflux.backends.torch.pattern_states import PatternStates
from hyperflux.backends.torch.presence_store import Build
from hyperflux.backends.torch.weight_states import WeightStates
from hyperflux.errors import InputError
from hyperflux.gates.budget import CapacityPlan, capacity_plan, pattern_plan
from hyperflux.gates.costs import WholeCost
from hyperflux.gates.kinds import Budget, Gates, Pattern
from hyperflux.gates.latency import LatencyTable


@dataclass(frozen=True)
class GatePlan:
    """The gates of one network.

    Attributes:
        kind: What they hold.
        build: Builds their presence parameters.
        capacity: What a schedule counts; None for the weights themselves.
        layout: The gates of channels, if they hold these.
        words: What a pattern means for each prunable parameter, by name.
        latency: The times that the network's cost is computed from, if that is its time.
        budget: What bounds the network, and its share.
    """

    kind: Gates = "weights"
    build: Build = WeightStates.of
    capacity: CapacityPlan | None = None
    layout: ChannelLayout | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    latency: LatencyTable | None = None
    budget: tuple[Budget, float] | None = None


def gate_plan(
    model: nn.Module,
    prunable: Mapping[str, nn.Parameter],
    kind: Gates,
    budget: Budget,
    share: float,
    example_input: Any = None,
    *,
    gate_inputs: bool = False,
    argument: str | None = None,
    timed_input: Any = None,
    latency_table: LatencyTable | None = None,
) -> GatePlan:
    """Plan the gates of a network.

    Args:
        model: The network, without wrappers.
        prunable: The prunable parameters by name.
        kind: What gates hold.
        budget: What bounds the network.
        share: The share of it, see `hyperflux.gates.budget.capacity_plan`.
        example_input: One input, or a tuple of all; needed for channels.
        gate_inputs: Whether the input features get gates too.
        argument: Name of the share in messages.
        timed_input: What the network's time is measured with, on the network's device; the example by default.
        latency_table: Times of the network; measured if they are needed and not given.

    Raises:
        InputError: The network can't be read, no channel can have a gate, the budget can't be met, a table is of
            another network, or a pattern finds no inputs or removes nothing.
    """
    if kind == "weights":
        return GatePlan()
    if isinstance(kind, Pattern):
        pattern = PatternLayout.of(model, prunable, kind)
        counted = pattern_plan(kind, pattern.total, pattern.kept)
        return GatePlan(
            kind, partial(PatternStates, pattern), counted, words=pattern.described(), budget=(budget, share)
        )
    if example_input is None:
        raise InputError("example_input: gates of channels need one, to follow them through the network; give a batch")
    traced = traced_layout(model, example_input, prunable, gate_inputs=gate_inputs)
    layout = traced.layout
    cost: WholeCost
    if budget == "latency":
        if latency_table is None:
            timed = example_input if timed_input is None else timed_input
            device = next(iter(prunable.values())).device
            latency_table = measure(traced, timed if isinstance(timed, tuple) else (timed,), device)
        cost = layout.latency(latency_table)
    else:
        cost, latency_table = layout.costs[budget], None
    plan = capacity_plan(cost, budget, share, argument)
    build = partial(ChannelStates, layout, cost)
    return GatePlan(kind, build, plan, layout, latency=latency_table, budget=(budget, share))
