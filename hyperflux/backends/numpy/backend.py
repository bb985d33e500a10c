"""The NumPy backend: an MLP, its data and its optimizers; the algorithm itself is `hyperflux.spec`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux import spec
from hyperflux.backends.base import CompactedSize, Evaluation, Tensors
from hyperflux.backends.numpy.channel_gate import ChannelGate
from hyperflux.backends.numpy.channels import Channels
from hyperflux.backends.numpy.finite import state_fault
from hyperflux.backends.numpy.gate import NumpyGate
from hyperflux.backends.numpy.loss import LossGradient
from hyperflux.backends.numpy.mlp import MLP
from hyperflux.backends.numpy.optimizers import build_optimizer
from hyperflux.backends.numpy.pattern_gate import PatternGate
from hyperflux.backends.numpy.probe import NumpyProbe
from hyperflux.config import RunConfig
from hyperflux.data import Dataset
from hyperflux.errors import InputError
from hyperflux.gates.budget import CapacityPlan, capacity_plan
from hyperflux.gates.kinds import Pattern, require_weights
from hyperflux.gates.latency import LatencyTable
from hyperflux.io import fingerprints
from hyperflux.io.find_weights import find_weights, misfit, misfits
from hyperflux.io.flatten import flatten, subtree
from hyperflux.io.ranges import MAX_INTEGER
from hyperflux.io.saved_arrays import require_floats, require_like, whole
from hyperflux.io.weights_file import max_bytes, read_weights
from hyperflux.models import layer_sizes
from hyperflux.schedules.base import LayerCount, PruningSchedule
from hyperflux.seeding import generator
from hyperflux.session.nonfinite import NonFiniteGuard, NotFiniteError, require_in_range
from hyperflux.session.pruning import PruningSession
from hyperflux.session.warnings import Warnings
from hyperflux.spec import Array, Mask
from hyperflux.telemetry.levels import level

EVALUATION_BATCH = 4096

Step = Callable[[Callable[[Array], Array], Callable[[Array, Array], Array]], None]
"""A training step; its arguments are θ -> ∂L/∂θ and (w, gradient of w) -> next w."""


class NumpyBackend:
    """Trains an MLP; the interface is `hyperflux.backends.base.Backend`."""

    def __init__(self, config: RunConfig, data: Dataset) -> None:
        """Build the model of `config` with its initial weights. Raises InputError if it does not fit `data`."""
        self._config = config
        self._dtype = np.dtype(config.dtype)
        self._mlp = MLP(layer_sizes(config.model, data.features, data.classes))
        self._train_inputs, self._test_inputs = self._flat(data.train_inputs), self._flat(data.test_inputs)
        self._train_labels, self._test_labels = data.train_labels, data.test_labels
        self._sample_shape = data.sample_shape
        self._channels = Channels(self._mlp.sizes, config.gate_inputs)
        weights, self._biases = self._mlp.initial(config.seed, self._dtype)
        # Dense training is Hyperflux with every weight present.
        self._gate = self._fresh_gate(weights, spec.INITIAL_PRESENCE)
        self._session: PruningSession[Any] | None = None
        self._fresh_optimizers()
        self._losses: list[tuple[float, int]] = []
        self.guard = NonFiniteGuard(config.on_nonfinite)
        self._resumed = False

    @property
    def samples(self) -> int:
        """Number of training samples."""
        return len(self._train_labels)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of a sample: (features,) or (channels, height, width)."""
        return self._sample_shape

    @property
    def classes(self) -> int:
        """Number of classes, which is the number of logits per sample."""
        return self._mlp.sizes[-1]

    def train_dense(
        self,
        batches: Iterable[NDArray[np.intp]],
        *,
        learning_rate: float,
        label_smoothing: float,
        after_step: Callable[[], None] = lambda: None,
    ) -> float:
        """Train one epoch without a gate."""
        return self._train(batches, learning_rate, label_smoothing, self._gate.dense_step, after_step)

    def capacity_plan(self) -> CapacityPlan | None:
        """What a schedule of this network counts; None where gates hold one weight each."""
        if isinstance(self._gate, ChannelGate):
            budget, share = self._config.budget
            return capacity_plan(self._channels.cost(budget), budget, share)
        return self._gate.plan if isinstance(self._gate, PatternGate) else None

    def latency_table(self, given: LatencyTable | None = None) -> LatencyTable | None:
        """None: the settings refuse a budget of time for this backend."""
        return None

    def channels(self) -> list[LayerCount]:
        """With gates of channels, all and open channels by the layer that makes them; else empty."""
        return self._gate.layers() if isinstance(self._gate, ChannelGate) else []

    def compacted(self) -> CompactedSize | None:
        """Size of the network of the open channels alone; None for other gates, which leave no channel out."""
        if not isinstance(self._gate, ChannelGate):
            return None
        present = self._gate.present()
        flops, parameters = (
            (cost.total(present), cost.total(np.ones_like(present)))
            for cost in (self._channels.cost("flops"), self._channels.cost("parameters"))
        )
        return CompactedSize(flops[0] / flops[1], parameters[0] / parameters[1], parameters[0])

    def start_gate(self, initial: tuple[float, float]) -> NumpyGate:
        """Draw t by seed and parameter name, and start with new optimizers. Raises InputError for gates of others."""
        require_weights(self._config.gate_kind)
        return self._start_gate(initial)

    def start_pruning(
        self, schedule: PruningSchedule[Any], warnings: Warnings, telemetry: str = "off"
    ) -> PruningSession[Any]:
        """Start a gate and the session that steers it by `schedule`."""
        gate, watched = self._start_gate(schedule.initial_presence), level(telemetry)
        probe = None if watched is None else NumpyProbe(gate)
        self._session = PruningSession(schedule, gate, warnings, probe=probe, level=watched)
        return self._session

    def train_pruning(
        self,
        batches: Iterable[NDArray[np.intp]],
        *,
        learning_rate: float,
        label_smoothing: float,
        after_step: Callable[[], None],
    ) -> float:
        """Train one epoch of Hyperflux: every step is `spec.step`."""
        return self._train(batches, learning_rate, label_smoothing, self._gate.step, after_step)

    @np.errstate(over="ignore", invalid="ignore")  # a diverging run has large weights
    def evaluate(self) -> Evaluation:
        """Loss and accuracy on the whole test part."""
        weights, count = self._effective_weights(), len(self._test_labels)
        loss, correct = 0.0, 0
        for start in range(0, count, EVALUATION_BATCH):
            labels = self._test_labels[start : start + EVALUATION_BATCH]
            inputs = self._test_inputs[start : start + EVALUATION_BATCH]
            logits = self._mlp.forward(weights, self._biases, inputs)[-1]
            loss += spec.smoothed_cross_entropy(logits, labels, 0.0)[0] * len(labels)
            correct += int((logits.argmax(axis=1) == labels).sum())
        return Evaluation(loss / count, correct / count, count)

    def loss_gradient(self, label_smoothing: float) -> Tensors:
        """Mean of g over the training part, by weight matrix."""
        theta, count = self._effective_weights(), self.samples
        total = np.zeros_like(theta)
        for start in range(0, count, EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            inputs, labels = self._train_inputs[part], self._train_labels[part]
            total += LossGradient(self._mlp, self._biases, inputs, labels, label_smoothing)(theta) * len(labels)
        return dict(zip(self._weight_names, self._mlp.split_weights(total / count), strict=True))

    def masks(self) -> dict[str, Mask]:
        """The weights that are left of every weight matrix by name, first layer first.

        They are those of the mask m; with gates of channels, without what makes a closed one.
        """
        return dict(zip(self._weight_names, self._mlp.split_weights(self._gate.live()), strict=True))

    def layers(self) -> list[LayerCount]:
        """Prunable and surviving weights of each weight matrix, first layer first."""
        return [LayerCount(name, mask.size, int(np.count_nonzero(mask))) for name, mask in self.masks().items()]

    def tensors(self) -> Tensors:
        """Copies of the effective weights and the biases."""
        return {name: view.copy() for name, view in self._mlp.named(self._effective_weights(), self._biases).items()}

    def load_weights(self, path: str) -> str:
        """Load all parameters from a safetensors file. Raises InputError if it does not fit."""
        own = self._shapes()
        tensors = read_weights(path, max_bytes(self._gate.state.weights.size + self._biases.size))
        try:
            found = find_weights(tensors, own, self._config.model, shape_of=_shape, same=_same)
            self.load_tensors(found.tensors)
            matrices = self._mlp.split_weights(self._gate.state.weights)
            for name, weights in zip(self._weight_names, matrices, strict=True):
                require_in_range(name, float(np.abs(weights).max()), float(np.finfo(weights.dtype).max))
        except InputError as error:
            raise InputError(f"weights file {path}: {error}") from error
        return found.place

    def state(self) -> Tensors:
        """Copies of everything that the next step depends on, and loss and size of each batch of the epoch so far."""
        losses = np.array(self._losses, np.float64).reshape(-1, 2)
        optimizers = {"weights": self._weight_optimizer.state(), "biases": self._bias_optimizer.state()}
        counts = {name: np.array(count) for name, count in self.guard.counts().items()}
        own = {"biases": self._biases, "losses": losses, **counts}
        parts = {"own": own, "gate": self._gate.to_arrays(), "optimizer": flatten(optimizers)}
        return {name: array.copy() for name, array in flatten(parts).items()}

    def require_state(self, saved: Mapping[str, NDArray[Any]], *, epochs: int, batches: int) -> None:
        """Raise ValueError if `restore` could not continue from a saved state."""
        own = {name: array for name, array in self.state().items() if not name.startswith(("own/losses", "optimizer/"))}
        require_like(saved, own)
        for name in ("own/skipped", "own/skipped_in_a_row", "gate/taken", "gate/steps"):
            whole(saved, name, MAX_INTEGER)
        for name in sorted({"gate/second", "gate/pressure_mean", "gate/prices"} & own.keys()):
            if saved[name].min(initial=0) < 0:
                raise ValueError(f"{name}: holds a value below 0")
        losses = saved.get("own/losses", np.empty(0))
        require_floats(saved, "own/losses", [(min(len(losses), batches), 2)], np.dtype(np.float64))
        if losses.min(initial=0) < 0 or (losses[:, 1] % 1).any():
            raise ValueError("own/losses: a loss or a size below 0, or a size that is not whole")
        optimizers = {"weights": self._weight_optimizer, "biases": self._bias_optimizer}
        for owner, parameter in (("weights", self._gate.state.weights), ("biases", self._biases)):
            optimizers[owner].require_state(subtree(saved, f"optimizer/{owner}"), parameter)

    def restore(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Continue from a saved state."""
        state = {name: array.copy() for name, array in saved.items()}
        self._gate.restore(subtree(state, "gate"))
        for owner, optimizer in (("weights", self._weight_optimizer), ("biases", self._bias_optimizer)):
            optimizer.restore(subtree(state, f"optimizer/{owner}"))
        self._biases = state["own/biases"]
        self._losses = [(float(loss), int(size)) for loss, size in state["own/losses"]]
        self.guard.restore(subtree(state, "own"))
        self._resumed = True

    def require_finite(self) -> None:
        """Check parameters, t, moments and momentum. Raises NotFiniteError if a value is not finite."""
        gate, named = self._gate, self._mlp.named
        weights, biases = self._weight_optimizer.state(), self._bias_optimizer.state()
        state = {
            "the parameter": named(gate.state.weights, self._biases),
            "a presence parameter of": gate.named(gate.state.presence),
            "a moment of": gate.named(gate.state.moments.first),
            "a squared moment of": gate.named(gate.state.moments.second),
            **{f"the optimizer's {key} of": named(weights[key], biases[key]) for key in weights if weights[key].ndim},
        }
        if fault := state_fault(state):
            raise NotFiniteError(fault, len(self._losses) or None)

    def fingerprint(self) -> str:
        """A hash of training and test data."""
        parts = ((self._train_inputs, self._train_labels), (self._test_inputs, self._test_labels))
        return " ".join(fingerprints.of_samples(*arrays) for arrays in parts)

    def files(self) -> Mapping[str, str]:
        """Empty: the data are arrays."""
        return {}

    def place(self) -> str:
        """The host; NumPy does not say how many threads its linear algebra uses."""
        return "cpu"

    def versions(self) -> Mapping[str, str]:
        """Empty: NumPy trains."""
        return {}

    def load_tensors(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Load all parameters, cast to the run's dtype. Raises InputError if names, shapes or values do not fit."""
        weights, biases = np.empty_like(self._gate.state.weights), np.empty_like(self._biases)
        views = self._mlp.named(weights, biases)
        if wrong := misfits({name: tensor.shape for name, tensor in tensors.items()}, self._shapes()):
            raise misfit(self._config.model, wrong)
        for name, view in views.items():
            with np.errstate(over="ignore"):  # found below
                view[...] = tensors[name]
            if not np.isfinite(view).all():
                beyond = f"beyond {view.dtype}" if np.isfinite(tensors[name]).all() else "not finite"
                raise InputError(f"tensor {name} holds values that are {beyond}")
        self._gate, self._biases = self._fresh_gate(weights, spec.INITIAL_PRESENCE), biases

    @np.errstate(over="ignore", invalid="ignore")  # LossGradient finds values that are not finite
    def _train(
        self,
        batches: Iterable[NDArray[np.intp]],
        learning_rate: float,
        label_smoothing: float,
        step: Step,
        after_step: Callable[[], None],
    ) -> float:
        """Train one epoch; `step` is called with the loss gradient of each batch and the update of w.

        The loss gradient raises NotFiniteError before anything is updated.
        """
        if not self._resumed:
            self._losses = []
        self._resumed = False
        for batch in islice(batches, len(self._losses), None):
            network = LossGradient(
                self._mlp, self._biases, self._train_inputs[batch], self._train_labels[batch], label_smoothing
            )
            try:
                step(network, lambda w, gradient: self._weight_optimizer.update(w, gradient, learning_rate))
            except NotFiniteError as error:
                self.guard.skip(error.fault, len(self._losses) + 1)
                self._losses.append((0.0, 0))
            else:
                self.guard.accept()
                self._biases = self._bias_optimizer.update(self._biases, network.bias_gradient, learning_rate)
                self._losses.append((network.loss, len(batch)))
                self._act()
            after_step()
        losses, sizes = zip(*self._losses, strict=True)
        self._losses = []
        return float(np.average(losses, weights=sizes)) if any(sizes) else math.nan

    def _act(self) -> None:
        """Call the pruning session after a step; name the step if a value is not finite."""
        if self._session is not None:
            try:
                self._session.after_step()
            except NotFiniteError as error:
                raise error.in_step(len(self._losses)) from error

    def _fresh_gate(self, weights: Array, initial: tuple[float, float]) -> NumpyGate:
        """A gate on these weights with newly drawn t, all present."""
        kind, matrices = self._config.gate_kind, self._mlp.split_weights(weights)
        sizes = {name: matrix.size for name, matrix in zip(self._weight_names, matrices, strict=True)}
        drawn = [
            spec.initial_presence(size, generator(self._config.seed, f"{name} presence"), initial)
            for name, size in (self._channels.sets if kind == "channels" else sizes).items()
        ]
        presence = np.concatenate([np.empty(0), *drawn]).astype(self._dtype)
        state = spec.State(weights, presence, spec.Moments.zeros_like(presence))
        if kind == "channels":
            return ChannelGate(state, sizes, self._channels, self._config.budget[0])
        if isinstance(kind, Pattern):
            return PatternGate(state, sizes, [matrix.shape for matrix in matrices], kind)
        return NumpyGate(state, sizes)

    def _start_gate(self, initial: tuple[float, float]) -> NumpyGate:
        """Draw t, and start with new optimizers."""
        self._gate, self._session = self._fresh_gate(self._gate.state.weights, initial), None
        self._fresh_optimizers()
        return self._gate

    def _fresh_optimizers(self) -> None:
        self._weight_optimizer = build_optimizer(self._config.optimizer)
        settings = self._config.optimizer
        self._bias_optimizer = build_optimizer(settings if settings.decay_all else replace(settings, weight_decay=0.0))

    @property
    def _weight_names(self) -> list[str]:
        return [f"{name}.weight" for name in self._mlp.names]

    def _effective_weights(self) -> Array:
        return self._gate.effective_weights()

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        views = self._mlp.named(self._gate.state.weights, self._biases)
        return {name: view.shape for name, view in views.items()}

    def _flat(self, inputs: NDArray[np.float32]) -> Array:
        return inputs.reshape(len(inputs), -1).astype(self._dtype, copy=False)


def _shape(array: NDArray[Any]) -> tuple[int, ...]:
    return array.shape


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return np.array_equal(one, other)
