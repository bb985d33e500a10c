"""The NumPy backend: every step is the specification's, counts are conserved, weights load and leave whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from small_backend import batches, make_backend, make_data
from tolerances import ROUNDING

from hyperflux import InputError, RunConfig, spec
from hyperflux.backends.numpy import NumpyBackend
from hyperflux.backends.numpy.mlp import MLP
from hyperflux.seeding import generator

SIZES = (6, 5, 3)
N = 6 * 5 + 5 * 3
PRUNING = {"learning_rate": 0.05, "label_smoothing": 0.1, "after_step": lambda: None}


def start(backend, pressure=0.0):
    """Start pruning under a constant pressure."""
    gate = backend.start_gate(spec.INITIAL_PRESENCE)
    gate.pressure, gate.presence_lr = pressure, 0.05
    return gate


optimizers = st.sampled_from(
    [{"name": "adam"}, {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, {"name": "sgd"}]
)


@given(optimizers, st.floats(0, 100), st.integers(0, 100))
def test_training_is_the_specification_applied_batch_by_batch(optimizer, pressure, seed):
    """E1 to E7: θ after several steps equals a second implementation of the loop, written here with `spec` and
    a network's gradient from central pieces, bit for bit."""
    from hyperflux.backends.numpy.optimizers import build_optimizer

    backend = make_backend(optimizer=optimizer, seed=seed)
    mlp, data = MLP(SIZES), make_data()
    weights, biases = mlp.initial(seed, np.dtype(np.float64))
    presence = np.concatenate(
        [spec.initial_presence(size, generator(seed, f"fc{i}.weight presence")) for i, size in ((1, 30), (2, 15))]
    )
    state = spec.State(weights, presence, spec.Moments.zeros_like(presence))
    settings = RunConfig.from_dict({"optimizer": optimizer}).optimizer
    for_weights, for_biases = build_optimizer(settings), build_optimizer(settings)
    for batch in batches():
        inputs, labels = data.train_inputs[batch].astype(np.float64), data.train_labels[batch]
        mask = spec.gate(state.presence)
        theta = spec.effective_weights(state.weights, mask)
        values = mlp.forward(theta, biases, inputs)
        _, logits_gradient = spec.smoothed_cross_entropy(values[-1], labels, 0.1)
        gradient, bias_gradient = mlp.backward(theta, values, logits_gradient)
        weight_gradient, presence_gradient = spec.straight_through(gradient, state.weights, mask)
        presence, moments = spec.update_presence(state.presence, presence_gradient + pressure / N, state.moments, 0.05)
        state = spec.State(for_weights.update(state.weights, weight_gradient, 0.05), presence, moments)
        biases = for_biases.update(biases, bias_gradient, 0.05)
    start(backend, pressure)
    backend.train_pruning(batches(), **PRUNING)
    theta = spec.effective_weights(state.weights, spec.gate(state.presence))
    tensors = backend.tensors()
    assert np.concatenate([tensors["fc1.weight"].ravel(), tensors["fc2.weight"].ravel()]).tolist() == theta.tolist()
    assert np.concatenate([tensors["fc1.bias"], tensors["fc2.bias"]]).tolist() == biases.tolist()


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=5), optimizers)
def test_present_and_pruned_add_up(course, optimizer):
    """E1: present + pruned = N always."""
    backend = make_backend(optimizer=optimizer)
    gate = start(backend)
    for epoch, pressure in enumerate(course):
        gate.pressure = pressure
        backend.train_pruning(batches(seed=epoch), **PRUNING)
        layers = backend.layers()
        assert [layer.total for layer in layers] == [30, 15]
        tensors = backend.tensors()
        pruned = sum(int((tensors[layer.name] == 0).sum()) for layer in layers)
        assert sum(layer.surviving for layer in layers) + pruned == N
        assert sum(layer.surviving for layer in layers) == gate.surviving()


def test_pressure_prunes_and_flux_brings_back():
    """E4, E5: under pressure weights go; without it, the flux of those that matter returns some."""
    backend = make_backend()
    gate = start(backend, pressure=0.1)
    backend.train_pruning(batches(12), **PRUNING)
    pressed = gate.mask()
    gate.pressure = 0.0
    backend.train_pruning(batches(40, seed=1), **PRUNING)
    assert np.count_nonzero(~pressed) > N / 4
    assert (gate.mask() & ~pressed).any()


def test_dense_training_prunes_nothing_and_learns():
    backend = make_backend()
    first = backend.train_dense(batches(50), learning_rate=0.01, label_smoothing=0.0)
    last = backend.train_dense(batches(50), learning_rate=0.01, label_smoothing=0.0)
    assert last < first
    assert sum(layer.surviving for layer in backend.layers()) == N


def test_the_epochs_loss_is_the_mean_over_samples_not_over_batches():
    backend = make_backend()
    still = {"learning_rate": 0.0, "label_smoothing": 0.1}
    uneven = backend.train_dense([np.arange(30), np.arange(30, 40)], **still)
    whole = backend.train_dense([np.arange(40)], **still)
    assert uneven == pytest.approx(whole, rel=ROUNDING)


def test_evaluation_is_that_of_the_effective_weights():
    """E7 without smoothing, from the tensors a user would load."""
    backend = make_backend()
    start(backend, pressure=20.0)
    backend.train_pruning(batches(40), **PRUNING)
    t, data = backend.tensors(), make_data()
    hidden = np.maximum(data.test_inputs @ t["fc1.weight"].T + t["fc1.bias"], 0)
    logits = hidden @ t["fc2.weight"].T + t["fc2.bias"]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    losses = -np.log(probabilities[np.arange(10), data.test_labels])
    evaluation = backend.evaluate()
    assert evaluation.loss == pytest.approx(losses.mean(), rel=1e-9)
    assert evaluation.accuracy == (logits.argmax(axis=1) == data.test_labels).mean()


def test_tensors_load_back_exactly():
    source, other = make_backend(seed=1), make_backend(seed=2)
    other.load_tensors(source.tensors())
    for name, tensor in source.tensors().items():
        assert other.tensors()[name].tobytes() == tensor.tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("fc2.bias"), r"missing: fc2.bias \("),
        (lambda t: t.update(extra=np.ones(1)), r"unknown: extra \(1,\)"),
        (lambda t: t.update({"fc1.weight": np.ones((5, 7))}), r"fc1.weight \(5, 7\) instead of \(5, 6\)"),
        (lambda t: t.update({"fc1.bias": np.full(5, np.nan)}), "fc1.bias holds values that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_nothing_is_replaced(change, message):
    backend = make_backend()
    before, tensors = backend.tensors(), make_backend(seed=9).tensors()
    change(tensors)
    with pytest.raises(InputError, match=message):
        backend.load_tensors(tensors)
    assert all(np.array_equal(backend.tensors()[name], before[name]) for name in before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_runs_dtype_is_kept_throughout(dtype):
    backend = make_backend(dtype=dtype)
    start(backend, pressure=1.0)
    backend.train_pruning(batches(), **PRUNING)
    assert {tensor.dtype for tensor in backend.tensors().values()} == {np.dtype(dtype)}


def test_a_model_whose_ends_do_not_fit_the_data_is_refused_with_one_that_does():
    config = RunConfig.from_dict({"model": "mlp:784-300-10"})
    with pytest.raises(InputError, match="use mlp:6-300-3"):
        NumpyBackend(config, make_data())


def test_a_prefix_before_every_name_is_removed_and_named(tmp_path):
    source, other = make_backend(seed=1), make_backend(seed=2)
    save_file({f"model.{name}": tensor for name, tensor in source.tensors().items()}, tmp_path / "a.safetensors")
    assert other.load_weights(str(tmp_path / "a.safetensors")) == "with the prefix model."
    for name, tensor in source.tensors().items():
        assert np.array_equal(other.tensors()[name], tensor)


def test_values_beyond_the_runs_dtype_are_refused():
    backend = make_backend(dtype="float32")
    before, tensors = backend.tensors(), make_backend(dtype="float64").tensors()
    tensors["fc1.weight"][0, 0] = 1e300
    with pytest.raises(InputError, match=r"fc1\.weight holds values that are beyond float32"):
        backend.load_tensors(tensors)
    assert all(np.array_equal(backend.tensors()[name], before[name]) for name in before)
