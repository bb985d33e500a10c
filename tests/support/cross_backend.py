"""One training step on both backends from a shared state, and the comparison of everything that it changes."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from tolerances import ROUNDING

from hyperflux import spec
from hyperflux.backends.numpy.mlp import MLP as NumpyMLP
from hyperflux.backends.numpy.optimizers import build_optimizer as numpy_optimizer
from hyperflux.backends.torch.gate import TorchGate
from hyperflux.backends.torch.models import MLP as TorchMLP
from hyperflux.backends.torch.optimizers import build_optimizer as torch_optimizer
from hyperflux.config import OptimizerSettings


@dataclass(frozen=True)
class Case:
    """A network, a batch, settings, and the state that the step starts from: flat arrays over all layers."""

    sizes: tuple[int, ...]
    optimizer: OptimizerSettings
    inputs: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    presence: np.ndarray
    first: np.ndarray
    second: np.ndarray
    steps: int
    pressure: float
    learning_rate: float
    presence_learning_rate: float
    smoothing: float
    seed: int = 0


def numpy_steps(case, count):
    """`count` steps of the specification; arrays after each step by name, with the mask and g of the step."""
    mlp = NumpyMLP(case.sizes)
    biases = mlp.initial(case.seed, np.dtype(np.float64))[1]
    of_biases = case.optimizer if case.optimizer.decay_all else replace(case.optimizer, weight_decay=0.0)
    for_weights, for_biases = numpy_optimizer(case.optimizer), numpy_optimizer(of_biases)
    state = spec.State(case.weights, case.presence, spec.Moments(case.first, case.second, case.steps))
    for _ in range(count):
        seen = {}

        def loss_gradient(theta, biases=biases, seen=seen):
            values = mlp.forward(theta, biases, case.inputs)
            _, logits_gradient = spec.smoothed_cross_entropy(values[-1], case.labels, case.smoothing)
            seen["g"], seen["bias gradient"] = mlp.backward(theta, values, logits_gradient)
            return seen["g"]

        state = spec.step(
            state,
            loss_gradient=loss_gradient,
            update_weights=lambda w, gradient: for_weights.update(w, gradient, case.learning_rate),
            pressure=case.pressure,
            presence_learning_rate=case.presence_learning_rate,
            total=mlp.weight_count,
        )
        biases = for_biases.update(biases, seen["bias gradient"], case.learning_rate)
        mask = spec.gate(state.presence)
        yield {
            "g": seen["g"],
            "theta": spec.effective_weights(state.weights, mask),
            "w": state.weights,
            "t": state.presence,
            "first moment": state.moments.first,
            "second moment": state.moments.second,
            "biases": biases,
            "mask": mask,
        }


def torch_steps(case, count, device="cpu"):
    """The same steps under the gate of the torch backend."""
    model = TorchMLP(case.sizes, case.seed).double().to(device)
    optimizer = torch_optimizer(model, case.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = case.learning_rate
    weights = [layer.weight for layer in model.children()]
    gated, start = TorchGate({str(i): weight for i, weight in enumerate(weights)}, optimizer, seed=0), 0
    for state in gated.states.values():
        end = start + state.latent.numel()
        arrays = {"latent": case.weights, "presence": case.presence, "first": case.first, "second": case.second}
        for name, tensor in state.tensors().items():
            tensor.copy_(torch.from_numpy(arrays[name][start:end].reshape(tuple(tensor.shape))))
        state.steps, start = case.steps, end
    gated.write_effective()
    inputs, labels = torch.from_numpy(case.inputs).to(device), torch.from_numpy(case.labels).to(device)
    for _ in range(count):
        gated.pressure, gated.presence_lr = case.pressure, case.presence_learning_rate
        loss = torch.nn.functional.cross_entropy(model(inputs), labels, label_smoothing=case.smoothing)
        optimizer.zero_grad()
        loss.backward()
        gradient = _flat([weight.grad for weight in weights])
        optimizer.step()
        states = list(gated.states.values())
        yield {
            "g": gradient,
            "theta": _flat(weights),
            "w": _flat([state.latent for state in states]),
            "t": _flat([state.presence for state in states]),
            "first moment": _flat([state.first for state in states]),
            "second moment": _flat([state.second for state in states]),
            "biases": _flat([layer.bias for layer in model.children()]),
            "mask": _flat(gated.masks().values()),
        }


def assert_agree(ours, theirs, growth=1.0):
    """Every array equal to `ROUNDING` of its scale, times `growth`; masks where |t| is above that.

    The scale of an array is its largest magnitude, and of t at least 1: a step's direction comes from a quotient.
    Where a weight lies within rounding of the gate, θ may be w on one side and 0 on the other.
    """
    undecided = np.abs(ours["t"]) <= ROUNDING * growth * max(1.0, np.abs(ours["t"]).max())
    for name, array in ours.items():
        other = theirs[name]
        assert array.dtype == other.dtype, name
        assert array.shape == other.shape, name
        if name == "mask":
            np.testing.assert_array_equal(array[~undecided], other[~undecided], err_msg=name)
            continue
        if name == "theta":
            array, other = array[~undecided], other[~undecided]
        finite = np.isfinite(array)
        np.testing.assert_array_equal(array[~finite], other[~finite], err_msg=name)
        scale = np.abs(array[finite]).max(initial=0.0)
        scale = max(1.0, scale) if name == "t" else scale
        np.testing.assert_allclose(array[finite], other[finite], rtol=0, atol=ROUNDING * growth * scale, err_msg=name)


def _flat(tensors):
    return np.concatenate([tensor.detach().cpu().numpy().ravel() for tensor in tensors])
