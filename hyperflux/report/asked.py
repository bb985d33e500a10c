"""What was asked of a run: what its gates hold, and what bounds the network that they leave."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from hyperflux.config import RunConfig
from hyperflux.gates.budget import kept_share
from hyperflux.gates.kinds import Budget, Gates, Pattern
from hyperflux.report.formatting import percent

COUNTED: dict[Budget, str] = {
    "sparsity": "weights",
    "flops": "FLOPs",
    "parameters": "parameters",
    "latency": "time per batch",
}
"""What each budget counts, in words."""


@dataclass(frozen=True)
class Asked:
    """What was asked of a run.

    Attributes:
        gates: What a gate holds.
        budget: What bounds the network.
        share: Its share: to remove where it is the sparsity, else to keep.
    """

    gates: Gates
    budget: Budget
    share: float

    @classmethod
    def of(cls, config: RunConfig) -> Asked:
        """What the settings of a run ask for."""
        return cls(config.gate_kind, *config.budget)

    @property
    def density(self) -> float:
        """The share that is wanted of what the budget counts; of N:M, N/M."""
        return self.gates.density if isinstance(self.gates, Pattern) else float(kept_share(self.budget, self.share))

    @property
    def counted(self) -> str:
        """What the budget counts: "weights", "FLOPs"."""
        return COUNTED[self.budget]

    @property
    def of_channels(self) -> bool:
        """Whether a gate holds a channel."""
        return self.gates == "channels"

    @property
    def words(self) -> str:
        """ "98 % sparsity", "2:4 sparsity", "channels to 25 % of the FLOPs"."""
        if isinstance(self.gates, Pattern):
            return f"{self.gates} sparsity"
        amount = f"{percent(self.share)} {'sparsity' if self.budget == 'sparsity' else f'of the {self.counted}'}"
        return f"channels to {amount}" if self.of_channels else amount


def gate_noun(asked: Collection[Asked]) -> str:
    """What is left or removed in all of these runs: a weight, a channel, or a gate where they differ."""
    kinds = {one.of_channels for one in asked}
    return "gate" if len(kinds) > 1 else "channel" if True in kinds else "weight"
