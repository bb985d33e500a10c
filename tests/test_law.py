"""E11."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflux import InputError, fit_pruning_law


@given(st.floats(0.01, 0.05), st.floats(0.1, 1), st.floats(0, 0.1))
def test_fit_recovers_the_constants_of_an_exact_law(c, alpha0, alpha1):
    """E11"""
    pressure = 2.0 ** np.arange(-3, 6)
    log_pressure = np.log(pressure)
    density = c * np.exp(-alpha0 * log_pressure - alpha1 * log_pressure**2)
    law = fit_pruning_law(pressure, density)
    assert (law.c, law.alpha0, law.alpha1) == pytest.approx((c, alpha0, alpha1), abs=1e-9)
    assert law.r2 == pytest.approx(1, abs=1e-9)
    assert law.predict(pressure) == pytest.approx(density, rel=1e-9)


def test_published_sweep_is_close_to_a_law():
    """E11: the paper's pressure sweep of ResNet-50 on CIFAR-10 (docs/algorithm.md)."""
    law = fit_pruning_law([0.125, 0.5, 2, 8, 32], [0.105, 0.0533, 0.0216, 0.0079, 0.0029])
    assert law.r2 > 0.999
    assert law.alpha0 > 0
    assert law.alpha1 > 0


def test_r2_is_the_share_of_variance_explained():
    """E11: with noise, against numpy's own polynomial fit."""
    rng = np.random.default_rng(0)
    pressure = np.exp(rng.uniform(-2, 3, 50))
    density = 0.04 * pressure**-0.6 * np.exp(rng.normal(0, 0.1, 50))
    law = fit_pruning_law(pressure, density)
    x, y = np.log(pressure), np.log(density)
    polynomial = np.polyfit(x, y, 2)
    assert (-law.alpha1, -law.alpha0, np.log(law.c)) == pytest.approx(tuple(polynomial), rel=1e-9)
    assert law.r2 == pytest.approx(1 - np.var(y - np.polyval(polynomial, x)) / np.var(y), rel=1e-9)


@pytest.mark.parametrize(
    ("pressure", "density", "message"),
    [
        ([1, 2, 3], [0.1, 0.2], "same length"),
        ([0, 1, 2], [0.3, 0.2, 0.1], "pressure: every value"),
        ([1, 2, 3], [0.3, 0.2, 1.0], "density: every value"),
        ([1, 2, float("inf")], [0.3, 0.2, 0.1], "pressure: every value"),
        ([1, 1, 2, 2], [0.3, 0.2, 0.1, 0.1], "2 different values"),
    ],
)
def test_data_that_determine_no_law_are_refused(pressure, density, message):
    with pytest.raises(InputError, match=message):
        fit_pruning_law(pressure, density)
