"""The network by hand: forward against a plain loop, backward against central differences."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import CENTRAL_DIFFERENCE, ROUNDING

from hyperflux import spec
from hyperflux.backends.numpy.mlp import MLP

architectures = st.lists(st.integers(1, 6), min_size=2, max_size=5)


@st.composite
def cases(draw):
    """A network of any depth, its parameters, a batch and a label smoothing."""
    sizes = draw(architectures)
    mlp, rng = MLP(sizes), np.random.default_rng(draw(st.integers(0, 2**32)))
    weights, biases = rng.normal(size=mlp.weight_count), rng.normal(size=sum(sizes[1:]))
    batch = draw(st.integers(1, 4))
    inputs, labels = rng.normal(size=(batch, sizes[0])), rng.integers(sizes[-1], size=batch)
    return mlp, weights, biases, inputs, labels, draw(st.floats(0, 0.5))


@given(cases())
def test_forward_is_its_definition(case):
    mlp, weights, biases, inputs, _, _ = case
    logits = mlp.forward(weights, biases, inputs)[-1]
    layers = list(zip(mlp.split_weights(weights), mlp.split_biases(biases), strict=True))
    for row, sample in zip(logits, inputs, strict=True):
        values = sample.tolist()
        for index, (matrix, bias) in enumerate(layers):
            linear = [
                sum(w * v for w, v in zip(unit, values, strict=True)) + b
                for unit, b in zip(matrix.tolist(), bias.tolist(), strict=True)
            ]
            values = [max(x, 0.0) for x in linear] if index < len(layers) - 1 else linear
        assert row == pytest.approx(values, rel=ROUNDING * 100, abs=ROUNDING * 100)


@given(cases())
def test_backward_is_the_central_difference(case):
    """Every weight and bias of random architectures. Draws with a ReLU within the difference's reach of its kink are
    moved off it, because no derivative exists there."""
    mlp, weights, biases, inputs, labels, smoothing = case
    step = 1e-6
    while any(np.abs(linear).min() < 1e-4 for linear in _linear_outputs(mlp, weights, biases, inputs)):
        biases = biases + 1e-3

    def loss(w, b):
        return spec.smoothed_cross_entropy(mlp.forward(w, b, inputs)[-1], labels, smoothing)[0]

    values = mlp.forward(weights, biases, inputs)
    _, logits_gradient = spec.smoothed_cross_entropy(values[-1], labels, smoothing)
    gradients = mlp.backward(weights, values, logits_gradient)
    for which, (parameters, gradient) in enumerate(zip((weights, biases), gradients, strict=True)):
        numeric = np.empty_like(parameters)
        for index in range(parameters.size):
            ends = []
            for sign in (1, -1):
                moved = parameters.copy()
                moved[index] += sign * step
                ends.append(loss(moved, biases) if which == 0 else loss(weights, moved))
            numeric[index] = (ends[0] - ends[1]) / (2 * step)
        scale = max(1.0, np.abs(numeric).max())
        np.testing.assert_allclose(gradient, numeric, rtol=0, atol=CENTRAL_DIFFERENCE * scale)


def _linear_outputs(mlp, weights, biases, inputs):
    """Outputs of every hidden layer before its ReLU."""
    values = inputs
    for matrix, bias in list(zip(mlp.split_weights(weights), mlp.split_biases(biases), strict=True))[:-1]:
        linear = values @ matrix.T + bias
        yield linear
        values = np.maximum(linear, 0)


def test_weights_are_counted_and_split_in_order():
    mlp = MLP((784, 300, 100, 10))
    assert mlp.weight_count == 266_200
    matrices = mlp.split_weights(np.arange(266_200.0))
    assert [matrix.shape for matrix in matrices] == [(300, 784), (100, 300), (10, 100)]
    assert matrices[1][0, 0] == 235_200


def test_initial_parameters_depend_on_seed_and_name_only():
    small, large = MLP((4, 3, 2)), MLP((4, 3, 9))
    dtype = np.dtype(np.float64)
    one, other = small.initial(0, dtype)[0], large.initial(0, dtype)[0]
    assert one[:12].tolist() == other[:12].tolist()
    assert small.initial(1, dtype)[0].tolist() != one.tolist()
    assert np.abs(one[:12]).max() <= 0.5
