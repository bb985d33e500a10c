"""The interface between the driver and a backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hyperflux.gates.budget import CapacityPlan
from hyperflux.gates.latency import LatencyTable
from hyperflux.schedules.base import Gate, LayerCount, PruningSchedule
from hyperflux.session.nonfinite import NonFiniteGuard
from hyperflux.session.pruning import PruningSession
from hyperflux.session.warnings import Warnings

Tensors = dict[str, NDArray[Any]]
"""Parameters and buffers by name: `fc1.weight` (out, in), `fc1.bias` (out,), ..."""


@dataclass(frozen=True)
class Evaluation:
    """Results on the test part.

    Attributes:
        loss: Mean cross-entropy, without label smoothing.
        accuracy: Share of correct answers, a fraction.
        samples: Number of test samples.
    """

    loss: float
    accuracy: float
    samples: int


@dataclass(frozen=True)
class CompactedSize:
    """The pruned network without what no longer matters, next to the dense one.

    Attributes:
        flops_ratio: Its FLOPs, as a share of the dense network's.
        parameters_ratio: The same for parameters.
        parameters: Its parameters.
    """

    flops_ratio: float
    parameters_ratio: float
    parameters: int


class Backend(Protocol):
    """A network, its data and its optimizers. Batches are index arrays into the training part.

    Training raises NotFiniteError if `guard` stops the run. A step that `guard` skips changes nothing, and its loss
    does not count.

    Attributes:
        guard: Decides about non-finite steps.
    """

    guard: NonFiniteGuard

    @property
    def samples(self) -> int:
        """Number of training samples."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of a sample: (features,) or (channels, height, width)."""

    @property
    def classes(self) -> int:
        """Number of classes, which is the number of logits per sample."""

    def train_dense(
        self,
        batches: Iterable[NDArray[np.intp]],
        *,
        learning_rate: float,
        label_smoothing: float,
        after_step: Callable[[], None] = lambda: None,
    ) -> float:
        """Train one epoch without a gate. Arguments and return value as in `train_pruning`."""

    def capacity_plan(self) -> CapacityPlan | None:
        """What a schedule of this network counts; None where gates hold one weight each and nothing else counts.

        Raises:
            InputError: The budget can't be reached.
        """

    def latency_table(self, given: LatencyTable | None = None) -> LatencyTable | None:
        """The layer times that the budget is counted by; None where it is not the time.

        Args:
            given: The table to use; measured if not given. All ranks use that of rank 0.

        Raises:
            InputError: It is of another network, or the budget can't be reached.
        """

    def channels(self) -> list[LayerCount]:
        """With gates of channels, all and open channels by the layer that makes them; else empty."""

    def compacted(self) -> CompactedSize | None:
        """Size of the compacted network, as it is now; None where this backend can't tell."""

    def start_gate(self, initial: tuple[float, float]) -> Gate:
        """Start with new optimizers and a gate that the caller steers.

        Args:
            initial: Interval from which t of every prunable weight is drawn (see E2).
        """

    def start_pruning(
        self, schedule: PruningSchedule[Any], warnings: Warnings, telemetry: str = "off"
    ) -> PruningSession[Any]:
        """Start with new optimizers and a session that acts after every optimizer step.

        Args:
            schedule: The pruning schedule.
            warnings: Receives the warnings.
            telemetry: A level of `hyperflux.telemetry.levels`.
        """

    def train_pruning(
        self,
        batches: Iterable[NDArray[np.intp]],
        *,
        learning_rate: float,
        label_smoothing: float,
        after_step: Callable[[], None],
    ) -> float:
        """Train one epoch under the gate; every step is E1 to E7.

        Args:
            batches: The batches of the epoch.
            learning_rate: Learning rate of w.
            label_smoothing: Label smoothing of the loss.
            after_step: Called after every optimizer step.

        Returns:
            Mean loss over samples; NaN if every step was skipped.

        Raises:
            NotFiniteError: A value is not finite, and the step cannot or must not be skipped.
        """

    def evaluate(self) -> Evaluation:
        """Evaluate the effective weights on the whole test part, without label smoothing."""

    def loss_gradient(self, label_smoothing: float) -> Tensors:
        """Mean of g = ∂L/∂θ over the training part, by prunable parameter, in evaluation mode.

        Network, optimizers and random generators stay unchanged.
        """

    def masks(self) -> dict[str, NDArray[np.bool_]]:
        """The mask m of every prunable parameter by name, in the network's order."""

    def layers(self) -> list[LayerCount]:
        """Prunable and surviving weights of each parameter, in the network's order."""

    def tensors(self) -> Tensors:
        """Effective weights and biases by name: pruned weights are exact zeros."""

    def load_weights(self, path: str) -> str:
        """Load all parameters from a file, where they may lie under keys of a training script and behind a prefix.

        Returns:
            Where in the file they were, in words; empty for the network's own names at the top.

        Raises:
            InputError: The file cannot be read, or names or shapes do not fit; then nothing has changed.
        """

    def state(self) -> Tensors:
        """Copies of everything that the next step depends on, by name, and the epoch's loss so far.

        Call it between epochs, or in `after_step`.
        """

    def require_state(self, saved: Mapping[str, NDArray[Any]], *, epochs: int, batches: int) -> None:
        """Check a saved state before it is restored; in pruning, call `start_pruning` first.

        Args:
            saved: The state, whatever it holds.
            epochs: Epochs that were finished when it was saved.
            batches: Batches of an epoch.

        Raises:
            ValueError: `restore` could not continue from it.
        """

    def restore(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Continue bit for bit from a saved state of the same settings; in pruning, call `start_pruning` first.

        If the state was saved within an epoch, pass all batches of that epoch to the next training call: it skips the
        finished ones and returns the mean loss of the whole epoch.
        """

    def require_finite(self) -> None:
        """Raise NotFiniteError if a value in the state is not finite."""

    def fingerprint(self) -> str:
        """A hash of training and test data: shapes, labels and some samples."""

    def files(self) -> Mapping[str, str]:
        """What is compared of the files of a folder of images, see `hyperflux.runs.checkpoints.data_files`."""

    def place(self) -> str:
        """What the last bits of results may depend on: the device, and the number of threads."""

    def versions(self) -> Mapping[str, str]:
        """Versions of the libraries that train, other than NumPy."""
