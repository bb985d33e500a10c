"""What a run's files hold, as typed records: the epochs of metrics.jsonl, the outcome of report.json, a whole run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from hyperflux.config import RunConfig
from hyperflux.gates.latency import LatencyTable
from hyperflux.schedules.base import LayerCount
from hyperflux.telemetry.columns import Tables as Telemetry

RunStage = Literal["dense", "pruning", "regrowth"]
FORMAT = 2
"""Version of a run's folder. It rises whenever an older hyperflux could not read, or would misread, a new folder."""


@dataclass(frozen=True)
class EpochRow:
    """One line of metrics.jsonl. Densities and accuracy are fractions, losses mean cross-entropies in nats.

    Attributes:
        epoch: Counts from 1 over all stages.
        stage: The stage that the epoch belongs to.
        density: Share present at the end of the epoch: of the prunable weights, or with gates of channels of what the
            budget counts.
        wanted: The density that the epoch aimed at.
        pressure: γ at the epoch's first step.
        lr: Learning rate of the weights, at the epoch's first step.
        presence_lr: Learning rate of the presence parameters, at the epoch's first step.
        train_loss: Over the epoch's training batches.
        test_loss: On the test part after the epoch.
        accuracy: On the test part after the epoch.
        pruned: Prunings in the epoch, a gate counting each time; None without telemetry.
        regrown: Regrowths in the epoch, counted likewise.
    """

    epoch: int
    stage: RunStage
    density: float
    wanted: float
    pressure: float
    lr: float
    presence_lr: float
    train_loss: float
    test_loss: float
    accuracy: float
    pruned: int | None
    regrown: int | None


@dataclass(frozen=True)
class Outcome:
    """report.json: what came of a run. Accuracies are fractions on the test part, sparsities fractions of all weights.

    Attributes:
        method: How the run pruned: hyperflux, magnitude or taylor.
        controller: Hyperflux's controller; None for other methods.
        backend: numpy or torch.
        dataset: The data set's name.
        model: The model's name. With `input_shape` and `classes` the network can be built again.
        input_shape: Shape of a sample, without the batch.
        classes: Number of classes.
        seed: The run's seed.
        target_sparsity: The sparsity asked for; None where another budget was.
        final_sparsity: The sparsity reached.
        surviving_weights: Prunable weights that are left.
        total_weights: All prunable weights.
        dense_accuracy: Of the dense network that pruning started from; None where its weights were untrained.
        final_accuracy: With the final mask, after the last epoch.
        seconds: Time that the run took.
        layers: Counts of every prunable parameter, in the network's order.
        versions: Versions of the libraries that computed it, by name.
        format: Version of the whole folder.
        warnings: The warnings given during the run, one line each.
        gates: What a gate held: weights, channels, or N:M.
        flops_ratio: FLOPs of the compacted network over those of the dense one; None where it can't be compacted.
        parameters_ratio: The same for parameters.
        compact_parameters: Parameters of the compacted network.
        channels: With gates of channels, all and open channels of each layer that makes them.
    """

    method: str
    controller: str | None
    backend: str
    dataset: str
    model: str
    input_shape: list[int]
    classes: int
    seed: int
    target_sparsity: float | None
    final_sparsity: float
    surviving_weights: int
    total_weights: int
    dense_accuracy: float | None
    final_accuracy: float
    seconds: float
    layers: list[LayerCount]
    versions: dict[str, str]
    format: int = FORMAT
    warnings: list[str] = field(default_factory=list)
    gates: str = "weights"
    flops_ratio: float | None = None
    parameters_ratio: float | None = None
    compact_parameters: int | None = None
    channels: list[LayerCount] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @property
    def gated(self) -> list[LayerCount]:
        """All and open gates by layer, the layers of telemetry: channels, or prunable weights."""
        return self.channels or self.layers


BEFORE_GATES: dict[str, Any] = {
    "gates": "weights",
    "flops_ratio": None,
    "parameters_ratio": None,
    "compact_parameters": None,
    "channels": [],
}
"""What a report.json of version 1 does not say."""


@dataclass(frozen=True)
class RecordedRun:
    """A finished run, read back; `telemetry` is None where the run had none, `times` where its budget is no time."""

    config: RunConfig
    epochs: list[EpochRow]
    outcome: Outcome
    telemetry: Telemetry | None
    times: LatencyTable | None = None

    @property
    def reached(self) -> float:
        """Share that is left of what the budget counts: of the prunable weights, FLOPs, parameters or time."""
        outcome = self.outcome
        if self.config.budget[0] != "sparsity":
            measured = {"flops": outcome.flops_ratio, "parameters": outcome.parameters_ratio}
            if (found := measured.get(self.config.budget[0])) is not None:
                return found
            if self.epochs:
                return self.epochs[-1].density
        return outcome.surviving_weights / outcome.total_weights
