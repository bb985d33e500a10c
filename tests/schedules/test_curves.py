"""E8 and the learning-rate courses."""

import math
from itertools import pairwise

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tolerances import ROUNDING, TRAJECTORY_END

from hyperflux import InputError
from hyperflux.schedules.curves import cosine, presence_decay, trajectory

epoch_counts = st.integers(2, 500)


@given(st.floats(0.0005, 0.9999), epoch_counts)
@example(0.0005, 2)  # lower than r_0 = 0 can reach in two epochs
@example(0.9999, 500)  # higher than 0.999^500
@example(0.999**500, 500)
def test_trajectory_falls_and_ends_on_its_target(target, epochs):
    """E8: for every length and target, inside and outside of what the formula expresses."""
    densities = trajectory(target, epochs)
    assert len(densities) == epochs
    assert all(later < earlier for earlier, later in pairwise((1.0, *densities)))
    assert densities[-1] == pytest.approx(target, abs=TRAJECTORY_END)


@given(st.floats(0.001, 0.9), st.integers(20, 300))
def test_trajectory_is_the_formula_with_some_start_ratio(target, epochs):
    """E8: one r_0 in (0, 0.999), read off the first ratio, explains every other ratio."""
    assume(target < 0.999**epochs)
    densities = (1.0, *trajectory(target, epochs))
    ratios = [after / before for before, after in pairwise(densities)]
    blend = [1 / (1 + math.exp(-6 / epochs * (j - epochs / 2))) for j in range(1, epochs + 1)]
    start = (ratios[0] - 0.999 * blend[0]) / (1 - blend[0])
    assert 0 < start < 0.999
    expected = [start + (0.999 - start) * share for share in blend]
    assert ratios == pytest.approx(expected, rel=1e-9)  # ratios of products, recovered by division


def test_trajectory_by_hand():
    """E8, two epochs: blends σ(0) = 1/2 and σ(3), and r_0 the positive root of a quadratic."""
    s = 1 / (1 + math.exp(-3))
    a, b = 0.5 * (1 - s), 0.999 * (0.5 * s + 0.5 * (1 - s))
    c = 0.999**2 * 0.5 * s - 0.6
    start = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    assert trajectory(0.6, 2) == pytest.approx((start / 2 + 0.999 / 2, 0.6), rel=1e-12)


@pytest.mark.parametrize("epochs", [2, 10, 100])
@pytest.mark.parametrize("side", ["above", "below"])
def test_trajectory_joins_its_extensions_without_a_jump(epochs, side):
    """E8: just inside and just outside of what the formula expresses the courses are nearly equal."""
    blends = [1 / (1 + math.exp(-6 / epochs * (j - epochs / 2))) for j in range(1, epochs + 1)]
    edge = 0.999**epochs if side == "above" else math.prod(0.999 * blend for blend in blends)
    inside, outside = trajectory(edge * (1 - 1e-9), epochs), trajectory(edge * (1 + 1e-9), epochs)
    assert inside == pytest.approx(outside, rel=1e-6)


@pytest.mark.parametrize("target", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_trajectory_refuses_what_is_no_density(target):
    with pytest.raises(InputError, match=f"target_density: {target}"):
        trajectory(target, 10)


def test_trajectory_refuses_no_epochs():
    with pytest.raises(InputError, match="epochs: 0"):
        trajectory(0.5, 0)


def test_cosine_starts_at_its_start_and_ends_after_its_last_epoch():
    """E10: half a cosine; its middle is the mean, and epoch epochs + 1 would be at the end."""
    assert cosine(0.1, 0.001, 1, 10) == pytest.approx(0.1, rel=ROUNDING)
    assert cosine(0.1, 0.001, 6, 10) == pytest.approx((0.1 + 0.001) / 2, rel=ROUNDING)
    assert cosine(0.1, 0.001, 11, 10) == pytest.approx(0.001, rel=ROUNDING)


def test_presence_decay_is_geometric_and_exactly_zero_after_fifty_epochs():
    """E10"""
    assert presence_decay(1e-3, 0.75, 1) == 1e-3
    assert presence_decay(1e-3, 0.75, 3) == pytest.approx(1e-3 * 0.75**2, rel=ROUNDING)
    assert presence_decay(1e-3, 0.95, 50) > 0
    assert presence_decay(1e-3, 0.95, 51) == 0
