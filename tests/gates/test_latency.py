"""The time of a network from times of its layers: exact at what was measured, never falling, and nothing on trust."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflux import InputError, spec
from hyperflux.gates.costs import ALWAYS
from hyperflux.gates.latency import MAX_NANOSECONDS, LatencyCost, LatencyTable, LayerTimes

TIMES = st.integers(1, 10**9)
HALVES = LatencyTable(
    "cpu",
    1,
    "float32",
    32,
    1000,
    250,
    [
        LayerTimes("one", [3], [1, 2, 4], [[100, 200, 400]], 128),
        LayerTimes("two", [1, 4], [2], [[60], [360]], 64),
    ],
)
"""Two layers that take 760 together, and 160 with one channel in between; of the other 240 thus 90 stay."""
SIDES = {"one": (np.full(3, ALWAYS), np.arange(4)), "two": (np.arange(4), np.full(2, ALWAYS))}


@st.composite
def networks(draw):
    """(sizes, table, sides): layers whose sides hold any gates, with any times."""
    gates = draw(st.integers(1, 8))
    layers, sides = [], {}
    for number in range(draw(st.integers(1, 4))):
        own = [draw(st.lists(st.integers(ALWAYS, gates - 1), min_size=1, max_size=6)) for _ in range(2)]
        known = [sorted({len(side), *draw(st.sets(st.integers(1, len(side))))}) for side in own]
        rows = [draw(st.lists(TIMES, min_size=len(known[1]), max_size=len(known[1]))) for _ in known[0]]
        layers.append(LayerTimes(f"layer {number}", *known, rows, draw(TIMES)))
        sides[f"layer {number}"] = tuple(np.array(side, np.intp) for side in own)
    first = draw(st.integers(1, gates))
    sizes = [first, gates - first] if first < gates else [first]
    return sizes, LatencyTable("cpu", 1, "float32", 2, draw(TIMES), draw(TIMES), layers), sides


def everything(cost):
    return np.ones(cost.gates, bool)


@given(networks(), st.data())
def test_all_open_it_is_the_dense_network_and_a_gate_that_comes_back_never_lowers_it(network, data):
    """E17."""
    cost = LatencyCost(*network)
    assert cost.total(everything(cost)) == network[1].nanoseconds
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=cost.gates, max_size=cost.gates)))
    gate = data.draw(st.integers(0, cost.gates - 1))
    with_it, without = mask.copy(), mask.copy()
    with_it[gate], without[gate] = True, False
    assert 0 <= cost.total(without) <= cost.total(with_it) <= network[1].nanoseconds
    prices = cost.prices(mask)
    assert (prices.shape, prices.dtype) == ((cost.gates,), np.float64)
    assert np.isfinite(prices).all()
    assert prices.min() >= 0
    assert prices.any()


@given(networks(), st.floats(0, 1), st.integers(0, 99))
def test_the_largest_network_within_a_budget_is_found(network, share, seed):
    """E17."""
    cost = LatencyCost(*network)
    presence = np.random.default_rng(seed).normal(size=cost.gates)
    budget = int(share * network[1].nanoseconds)
    kept, _ = spec.meet_budget(presence, cost, budget)
    held = len(set(cost.layers))
    assert cost.total(spec.gate(kept)) <= budget or np.count_nonzero(spec.gate(kept)) == held
    if not spec.gate(kept).all():
        opened = spec.gate(kept)
        opened[np.flatnonzero(~opened)[np.argmax(presence[~opened])]] = True
        assert cost.total(opened) > budget


def test_between_what_was_measured_it_is_bilinear_and_of_the_rest_stays_what_the_smallest_network_takes():
    cost = LatencyCost([4], HALVES, SIDES)
    # Layer one with 4, 3, 2, 1 outputs: 400, 300, 200, 100; layer two with as many inputs: 360, 260, 160, 60.
    # The rest: 90, and of 150 what 3, 2, 1, 0 outputs are to 3; at 3 it lies between those at 2 and at 4.
    expected = [760 + 240, 560 + 90 + 100, 360 + 90 + 50, 160 + 90]
    masks = [np.arange(4) < count for count in (4, 3, 2, 1)]
    assert [cost.total(mask) for mask in masks] == expected
    assert cost.total(np.zeros(4, bool)) == 0
    assert cost.prices(masks[0]).tolist() == [(1000 - 250) / 3] * 4
    assert cost.prices(masks[2]).tolist() == [500 - 250] * 4
    assert cost.prices(masks[3]).tolist() == [250] * 4


def test_layers_that_take_longer_than_the_whole_network_are_scaled_down():
    table = LatencyTable(**{**vars(HALVES), "nanoseconds": 380})
    cost = LatencyCost([4], table, SIDES)
    assert [cost.total(np.arange(4) < count) for count in (4, 2)] == [380, 180]


@pytest.mark.parametrize(("least", "stays"), [(1, 160), (10**9, 400)])
def test_a_smallest_network_that_noise_made_impossible(least, stays):
    """Faster than its layers, or slower than the dense network."""
    cost = LatencyCost([4], LatencyTable(**{**vars(HALVES), "least_nanoseconds": least}), SIDES)
    assert [cost.total(np.arange(4) < count) for count in (4, 1)] == [1000, stays]


def test_noise_is_taken_as_the_largest_time_of_fewer_channels_and_equal_times_as_equal_prices():
    layer, sides = LayerTimes("one", [1, 2], [1, 2], [[7, 5], [5, 5]], 2), {"one": (np.arange(2), np.arange(2, 4))}
    cost = LatencyCost([4], LatencyTable("cpu", 1, "float32", 1, 7, 7, [layer]), sides)
    assert cost.total(np.array([True, False, False, True])) == 7
    assert cost.prices(everything(cost)).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_table_of_another_network_is_refused(name):
    sides = {**SIDES, name: (np.arange(4), np.arange(4))}
    message = rf"^latency: the table of layer times is of another network, as layer {name} shows; give that of this one"
    with pytest.raises(InputError, match=message):
        LatencyCost([4], HALVES, sides)
    with pytest.raises(InputError, match="as layer three shows"):
        LatencyCost([4], HALVES, {**SIDES, "three": SIDES["one"]})
    with pytest.raises(InputError, match="as layer two shows"):
        LatencyCost([4], HALVES, {"one": SIDES["one"]})


def test_a_table_comes_back_from_json():
    assert LatencyTable.from_dict(json.loads(json.dumps(HALVES.to_dict()))) == HALVES


def changed(path, value):
    """A table's plain values with another one at a path."""
    values = copy.deepcopy(HALVES.to_dict())
    *parents, last = path
    place = values
    for key in parents:
        place = place[key]
    place[last] = value
    return values


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        changed(["more"], 1),
        changed(["device"], 3),
        changed(["device"], "\x1b[2J"),
        changed(["device"], "x" * 1001),
        changed(["threads"], 0),
        changed(["batch_size"], 0),
        changed(["nanoseconds"], 0),
        changed(["nanoseconds"], 1.5),
        changed(["nanoseconds"], MAX_NANOSECONDS + 1),
        changed(["nanoseconds"], True),
        changed(["layers"], []),
        changed(["layers"], [HALVES.to_dict()["layers"][0]] * 2),
        changed(["layers", 0, "name"], "a\nb"),
        changed(["layers", 0, "name"], "x" * 1001),
        changed(["layers", 0, "inputs"], []),
        changed(["layers", 0, "inputs"], [0]),
        changed(["layers", 0, "inputs"], [1 << 40]),
        changed(["layers", 0, "outputs"], [2, 1, 4]),
        changed(["layers", 0, "outputs"], [1, 2, 3, 4]),
        changed(["layers", 0, "nanoseconds"], [[100, 200]]),
        changed(["layers", 0, "nanoseconds"], [[100, 200, -400]]),
        changed(["layers", 0, "nanoseconds"], [[100, 200, float("nan")]]),
        changed(["layers", 0, "nanoseconds"], [[100, 200, 400]] * 2),
        changed(["layers", 0, "nanoseconds"], {}),
        changed(["least_nanoseconds"], 0),
        changed(["layers", 0, "elements"], 0),
        changed(["layers", 0, "elements"], 1 << 60),
    ],
    ids=lambda values: str(values)[:60],
)
def test_what_no_measurement_gives_is_refused_in_one_line(values):
    with pytest.raises(ValueError, match=r"none that was measured|not a |is not |control character") as told:
        LatencyTable.from_dict(values)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 300
