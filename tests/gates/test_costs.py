"""What a network costs with some gates open, and what each gate saves: against sums over every pair."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hyperflux.gates.costs import ALWAYS, NetworkCost, Product


@st.composite
def networks(draw, both_sides=True):
    """Products of a few gates, which may hold any number of entries on either side, and a mask."""
    gates = draw(st.integers(0, 6))
    labels = st.lists(st.integers(ALWAYS, gates - 1), max_size=5)
    products = draw(st.lists(st.tuples(st.integers(1, 9), labels, labels), max_size=4))
    if not both_sides:
        products = [(unit, inputs, [gate for gate in outputs if gate not in inputs or gate == ALWAYS])
                    for unit, inputs, outputs in products]  # fmt: skip
    return gates, products, draw(st.lists(st.booleans(), min_size=gates, max_size=gates))


def build(gates, products):
    sides = [(unit, np.array(inputs, np.intp), np.array(outputs, np.intp)) for unit, inputs, outputs in products]
    return NetworkCost([gates], [Product(*parts) for parts in sides])


def pairs(products):
    for unit, inputs, outputs in products:
        yield from ((unit, one, other) for one in inputs for other in outputs)


def is_open(gate, mask):
    return gate == ALWAYS or mask[gate]


@given(networks())
def test_the_total_is_a_sum_over_pairs_of_open_entries(network):
    """E17."""
    gates, products, mask = network
    expected = sum(unit for unit, one, other in pairs(products) if is_open(one, mask) and is_open(other, mask))
    assert build(gates, products).total(np.array(mask, bool)) == expected


@given(networks())
def test_a_price_is_a_sum_over_pairs_whose_other_entry_is_open(network):
    """E16: also where a gate holds entries on both sides, as in a residual stream."""
    gates, products, mask = network
    expected = [
        sum(
            unit * ((one == gate) * is_open(other, mask) + (other == gate) * is_open(one, mask))
            for unit, one, other in pairs(products)
        )
        for gate in range(gates)
    ]
    prices = build(gates, products).prices(np.array(mask, bool))
    assert prices.dtype == np.float64
    assert prices.tolist() == expected


@given(networks(both_sides=False))
def test_a_price_is_what_closing_saves_and_opening_costs(network):
    """E16, E17: exactly, where no gate meets itself."""
    gates, products, mask = network
    cost, mask = build(gates, products), np.array(mask, bool)
    prices = cost.prices(mask)
    for gate in range(gates):
        opened, closed = mask.copy(), mask.copy()
        opened[gate], closed[gate] = True, False
        assert cost.total(opened) - cost.total(closed) == prices[gate]


def test_large_costs_are_exact():
    """Beyond 2^53, where float64 has gaps."""
    side = np.zeros(100_001, np.intp)
    assert NetworkCost([1], [Product(10**6 + 1, side, side)]).total(np.array([True])) == 100_001**2 * (10**6 + 1)
