"""What a gate holds: a weight, a channel, or a weight in an N:M pattern; and what its budget is counted in."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from hyperflux.errors import InputError
from hyperflux.io.safe_read import shown

Budget = Literal["sparsity", "flops", "parameters", "latency"]
BUDGETS: tuple[Budget, ...] = ("sparsity", "flops", "parameters", "latency")
"""What a budget is a share of: prunable weights (of which the sparsity is removed), FLOPs, parameters, time."""
MAX_GROUP = 64
"""Largest M of N:M."""


class Pattern(NamedTuple):
    """N:M sparsity: of every M weights in a row along the input dimension, N are left (E18)."""

    kept: int
    group: int

    @property
    def density(self) -> float:
        """N/M."""
        return self.kept / self.group

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"


Gates = Literal["weights", "channels"] | Pattern


def gate_kind(value: Any) -> Gates:
    """What gates hold, from "weights", "channels" or a pattern such as "2:4".

    Raises:
        InputError: It is none of these.
    """
    if isinstance(value, Pattern):
        value = str(value)
    if isinstance(value, str):
        if value == "weights":
            return "weights"
        if value == "channels":
            return "channels"
        if found := re.fullmatch(r"([1-9][0-9]?):([1-9][0-9]?)", value, re.ASCII):
            kept, group = map(int, found.groups())
            if kept < group <= MAX_GROUP:
                return Pattern(kept, group)
    raise InputError(
        f"gates: {shown(value)} is not known; give weights, channels, or N:M such as 2:4 with N < M <= {MAX_GROUP}"
    )


def require_weights(kind: Gates) -> None:
    """Raise InputError unless a gate holds a single weight, as in a pressure sweep."""
    if kind != "weights":
        raise InputError(f"gates {kind}: a pressure sweep prunes single weights; leave gates out")
