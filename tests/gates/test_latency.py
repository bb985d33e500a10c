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
    [
        LayerTimes("one", [3], [1, 2, 4], [[100, 200, 400]], [10, 10, 30]),
        LayerTimes("two", [1, 4], [2], [[60], [360]], [20]),
    ],
)
"""Two layers that take 760 together; of the other 240 the first has 144, the second 96."""
SIDES = {"one": (np.full(3, ALWAYS), np.arange(4)), "two": (np.arange(4), np.full(2, ALWAYS))}


@st.composite
def networks(draw):
    """(sizes, table, sides): layers whose sides hold any gates, with any times."""
    gates = draw(st.integers(1, 8))
    layers, sides = [], {}
    for number in range(draw(st.integers(1, 4))):
        own = [draw(st.lists(st.integers(ALWAYS, gates - 1), min_size=1, max_size=6)) for _ in range(2)]
        known = [sorted({len(side), *draw(st.sets(st.integers(1, len(side))))}) for side in own]
        rows = [draw(st.lists(TIMES, min_size=len(known[1]), max_size=len(known[1]))) for _ in range(len(known[0]) + 1)]
        layers.append(LayerTimes(f"layer {number}", *known, rows[1:], rows[0]))
        sides[f"layer {number}"] = tuple(np.array(side, np.intp) for side in own)
    first = draw(st.integers(1, gates))
    sizes = [first, gates - first] if first < gates else [first]
    return sizes, LatencyTable("cpu", 1, "float32", 2, draw(TIMES), layers), sides


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
        opened[np.flatnonzero(~opened)[np.argmax(kept[~opened])]] = True
        assert cost.total(opened) > budget


def test_between_what_was_measured_it_is_bilinear_with_what_elementwise_calls_take():
    cost = LatencyCost([4], HALVES, SIDES)
    # Layer one with 4, 3, 2, 1 outputs: 400, 300, 200, 100, and of 144 what 30, 20, 10, 10 are to 30.
    # Layer two with 4, 3, 2, 1 inputs: 360, 260, 160, 60, and 96.
    expected = [400 + 144 + 360 + 96, 300 + 96 + 260 + 96, 200 + 48 + 160 + 96, 100 + 48 + 60 + 96]
    masks = [np.arange(4) < count for count in (4, 3, 2, 1)]
    assert [cost.total(mask) for mask in masks] == expected
    assert cost.total(np.zeros(4, bool)) == 0
    assert cost.prices(masks[0]).tolist() == [(544 - 148) / 3 + 100] * 4
    assert cost.prices(masks[2]).tolist() == [100 + 100] * 4
    assert cost.prices(masks[3]).tolist() == [148 + 156] * 4


def test_layers_that_take_longer_than_the_whole_network_are_scaled_down():
    table = LatencyTable(**{**vars(HALVES), "nanoseconds": 380})
    cost = LatencyCost([4], table, SIDES)
    assert [cost.total(np.arange(4) < count) for count in (4, 2)] == [380, 180]


def test_noise_is_taken_as_the_largest_time_of_fewer_channels_and_equal_times_as_equal_prices():
    layer = LayerTimes("one", [1, 2], [1, 2], [[7, 5], [5, 5]], [1, 1])
    cost = LatencyCost([4], LatencyTable("cpu", 1, "float32", 1, 7, [layer]), {"one": (np.arange(2), np.arange(2, 4))})
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
        changed(["layers", 0, "elementwise"], [10, 10]),
        changed(["layers", 0, "elementwise"], [10, 0, 10]),
    ],
    ids=lambda values: str(values)[:60],
)
def test_what_no_measurement_gives_is_refused_in_one_line(values):
    with pytest.raises(ValueError, match=r"none that was measured|not a |is not |control character") as told:
        LatencyTable.from_dict(values)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 300
