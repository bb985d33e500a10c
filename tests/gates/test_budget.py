"""A share of the dense network in whole units of cost: exact as the number was written, or refused with the way out."""

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflux import InputError
from hyperflux.gates.budget import CapacityPlan, capacity_plan, pattern_plan
from hyperflux.gates.costs import ALWAYS, NetworkCost, Product
from hyperflux.gates.kinds import Pattern


def cost(gates, fixed=0):
    """A cost of 1 a gate, and of `fixed` without any."""
    always = np.array([ALWAYS])
    return NetworkCost([gates], [Product(1, np.arange(gates), always), Product(1, np.full(fixed, ALWAYS), always)])


@pytest.mark.parametrize(
    ("budget", "share", "total", "left"),
    [
        ("flops", 0.29, 100, 29),  # 0.29 * 100 is below 29 in floating point
        ("sparsity", 0.9, 10, 1),  # and 1 - 0.9 below 0.1
        ("sparsity", 0.95, 2368, 118),
        ("parameters", 0.3, 10, 3),
        ("latency", 1e-3, 5000, 5),
    ],
)
def test_a_decimal_share_is_exact(budget, share, total, left):
    """E17."""
    assert capacity_plan(cost(total), budget, share) == CapacityPlan(total, left, total)


@given(st.integers(1, 9999), st.integers(1, 300), st.integers(0, 100), st.sampled_from(["flops", "sparsity"]))
def test_a_plan_is_the_largest_whole_budget_or_a_refusal(per_myriad, gates, fixed, budget):
    """E17: a refusal names a bound, and what lies on its other side is a plan."""
    everything = gates + fixed
    kept = Fraction(per_myriad if budget == "flops" else 10_000 - per_myriad, 10_000)
    left = kept * everything // 1
    if left >= fixed + 1:
        assert capacity_plan(cost(gates, fixed), budget, per_myriad / 10_000) == CapacityPlan(everything, left, gates)
        return
    with pytest.raises(InputError, match=f"^{budget}: .* leaves {left} of {everything} ") as told:
        capacity_plan(cost(gates, fixed), budget, per_myriad / 10_000)
    bound = float(re.search(r"([\d.e-]+)$", str(told.value))[1])
    assert bound == pytest.approx((fixed + 1) / everything, rel=5e-3)
    assert bound > float(kept) * 0.995


def test_a_share_that_removes_nothing_is_refused():
    with pytest.raises(InputError, match=r"^flops: 1 of 10 FLOPs removes nothing; give another fraction$"):
        capacity_plan(cost(10), "flops", 1.0)


def test_a_refusal_names_the_argument_that_was_given():
    with pytest.raises(InputError, match=r"^max_flops: 0\.1 leaves 2 of 20 FLOPs, .* take 11; give more than 0\.55$"):
        capacity_plan(cost(10, fixed=10), "flops", 0.1, "max_flops")


def test_a_network_without_channels_is_refused():
    with pytest.raises(InputError, match=r"^gates channels: the network has no channel .*--gate-inputs"):
        capacity_plan(cost(0, fixed=10), "flops", 0.5)


def test_a_pattern_has_to_remove_something():
    """E18."""
    assert pattern_plan(Pattern(2, 4), 100, 50) == CapacityPlan(100, 50, None, is_least=True)
    with pytest.raises(InputError, match=r"^gates 2:4: no layer has more than 2 inputs"):
        pattern_plan(Pattern(2, 4), 100, 100)
