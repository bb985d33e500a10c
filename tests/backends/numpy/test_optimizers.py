"""Weight optimizers against torch's published update rules, in plain floats."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import ROUNDING

from hyperflux.backends.numpy.optimizers import build_optimizer
from hyperflux.config import OptimizerSettings

gradients = st.lists(st.floats(-10, 10), min_size=1, max_size=8)
decays = st.sampled_from([0.0, 5e-4, 0.1])


def run(settings, gradients, rate=0.1, start=2.0):
    optimizer, parameter = build_optimizer(settings), np.array([start])
    for gradient in gradients:
        parameter = optimizer.update(parameter, np.array([gradient]), rate)
    return parameter[0]


@given(gradients, st.floats(0.1, 0.99), st.booleans(), decays)
def test_sgd(gradients, momentum, nesterov, weight_decay):
    p, buffer = 2.0, 0.0
    for g in gradients:
        g += weight_decay * p
        buffer = momentum * buffer + g
        p -= 0.1 * (g + momentum * buffer if nesterov else buffer)
    settings = OptimizerSettings("sgd", momentum, nesterov, weight_decay)
    assert run(settings, gradients) == pytest.approx(p, rel=ROUNDING, abs=ROUNDING * 100)


@given(gradients, decays)
def test_sgd_without_momentum(gradients, weight_decay):
    p = 2.0
    for g in gradients:
        p -= 0.1 * (g + weight_decay * p)
    settings = OptimizerSettings("sgd", weight_decay=weight_decay)
    assert run(settings, gradients) == pytest.approx(p, rel=ROUNDING, abs=ROUNDING * 100)


@given(gradients, decays)
def test_adam(gradients, weight_decay):
    p, m, v = 2.0, 0.0, 0.0
    for count, g in enumerate(gradients, start=1):
        g += weight_decay * p
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p -= 0.1 * (m / (1 - 0.9**count)) / (math.sqrt(v / (1 - 0.999**count)) + 1e-8)
    settings = OptimizerSettings("adam", weight_decay=weight_decay)
    assert run(settings, gradients) == pytest.approx(p, rel=1e-9)


def test_the_array_given_is_not_changed():
    for settings in (OptimizerSettings("sgd", momentum=0.9, weight_decay=0.1), OptimizerSettings("adam")):
        optimizer, parameter, gradient = build_optimizer(settings), np.ones(3), np.ones(3)
        optimizer.update(optimizer.update(parameter, gradient, 0.1), gradient, 0.1)
        assert parameter.tolist() == gradient.tolist() == [1, 1, 1]
