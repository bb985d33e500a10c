"""What the gates of a network will hold, and what a schedule will count: decided once, before pruning starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from hyperflux.backends.torch.channels.layout import ChannelLayout, channel_layout
from hyperflux.backends.torch.channels.states import ChannelStates
from hyperflux.backends.torch.pattern_layout import PatternLayout
from hyperflux.backends.torch.pattern_states import PatternStates
from hyperflux.backends.torch.presence_store import Build
from hyperflux.backends.torch.weight_states import WeightStates
from hyperflux.errors import InputError
from hyperflux.gates.budget import CapacityPlan, capacity_plan, pattern_plan
from hyperflux.gates.kinds import Budget, Gates, Pattern


@dataclass(frozen=True)
class GatePlan:
    """The gates of one network.

    Attributes:
        kind: What they hold.
        build: Builds their presence parameters.
        capacity: What a schedule counts; None for the weights themselves.
        layout: The gates of channels, if they hold these.
        words: What a pattern means for each prunable parameter, by name.
    """

    kind: Gates = "weights"
    build: Build = WeightStates.of
    capacity: CapacityPlan | None = None
    layout: ChannelLayout | None = None
    words: Mapping[str, str] = field(default_factory=dict)


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

    Raises:
        InputError: The network can't be read, no channel can have a gate, the budget can't be met, or a pattern finds
            no inputs or removes nothing.
    """
    if kind == "weights":
        return GatePlan()
    if isinstance(kind, Pattern):
        pattern = PatternLayout.of(model, prunable, kind)
        counted = pattern_plan(kind, pattern.total, pattern.kept)
        return GatePlan(kind, partial(PatternStates, pattern), counted, words=pattern.described())
    if example_input is None:
        raise InputError("example_input: gates of channels need one, to follow them through the network; give a batch")
    layout = channel_layout(model, example_input, prunable, gate_inputs=gate_inputs)
    cost = layout.costs[budget]
    plan = capacity_plan(cost, budget, share, argument)
    return GatePlan(kind, partial(ChannelStates, layout, cost), plan, layout)
