"""What the driver asks of a backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hyperflux.schedules.base import Gate, LayerCount, PruningSchedule
from hyperflux.session.nonfinite import NonFiniteGuard
from hyperflux.session.pruning import PruningSession
from hyperflux.session.warnings import Warnings

Tensors = dict[str, NDArray[Any]]
"""Parameters and buffers by name: `fc1.weight` (out, in), `fc1.bias` (out,), ..."""


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy, a fraction, on the test part of so many samples."""

    loss: float
    accuracy: float
    samples: int


class Backend(Protocol):
    """A network, its data and its optimizers. Batches are index arrays into the training part.

    Whatever trains raises NotFiniteError where `guard` says so; a step that it skips changes nothing, and its loss does
    not count.
    """

    guard: NonFiniteGuard

    @property
    def samples(self) -> int:
        """Samples of the training part."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of a sample: (features,) or (channels, height, width)."""

    @property
    def classes(self) -> int:
        """Logits a sample."""

    def train_dense(
        self,
        batches: Iterable[NDArray[np.intp]],
        *,
        learning_rate: float,
        label_smoothing: float,
        after_step: Callable[[], None] = lambda: None,
    ) -> float:
        """Train one epoch without a gate; gives the mean loss over samples, as `train_pruning` does."""

    def start_gate(self, initial: tuple[float, float]) -> Gate:
        """Start with fresh optimizers and a gate that the caller steers.

        A presence parameter is drawn from `initial` for every prunable weight.
        """

    def start_pruning(
        self, schedule: PruningSchedule[Any], warnings: Warnings, telemetry: str = "off"
    ) -> PruningSession[Any]:
        """Start with fresh optimizers and a session that steers itself: it acts in every optimizer step.

        Args:
            schedule: What to do when.
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
        """Train one epoch under the gate, E1 to E7 each step; `after_step` is called after every optimizer step."""

    def evaluate(self) -> Evaluation:
        """Evaluate the effective weights on the whole test part, without label smoothing."""

    def loss_gradient(self, label_smoothing: float) -> Tensors:
        """Mean of g = ∂L/∂θ over the whole training part, by name of the prunable parameter, in evaluation mode.

        The network, its optimizers and every generator of random numbers stay as they are.
        """

    def masks(self) -> dict[str, NDArray[np.bool_]]:
        """Mask m of every prunable parameter, in the network's order."""

    def layers(self) -> list[LayerCount]:
        """Counts of every prunable parameter, in the network's order."""

    def tensors(self) -> Tensors:
        """Effective weights and biases by name: pruned weights are exact zeros."""

    def load_weights(self, path: str) -> None:
        """Replace all parameters by those of a file.

        Raises InputError where it can't be read, or names or shapes do not fit; then nothing was replaced.
        """

    def state(self) -> Tensors:
        """Copies of all that the next step depends on, as arrays by name, and the running sums of the epoch's loss.

        It is there between epochs, and in `after_step`.
        """

    def restore(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a state of the same configuration, to the bit; in pruning, call `start_pruning` before.

        Where the state is one from within an epoch, the next call that trains gets all batches of that epoch, leaves
        out those that were done, and gives the mean loss of the whole epoch.
        """

    def require_finite(self) -> None:
        """Raise NotFiniteError where something in the state is not finite."""

    def fingerprint(self) -> str:
        """A hash of the data: shapes, labels and some of the samples, of the training and the test part."""

    def place(self) -> str:
        """What computes, as far as the last bits may depend on it: the device, and the host's threads."""

    def versions(self) -> Mapping[str, str]:
        """Versions of the libraries that train, beyond NumPy."""
