"""E15 to E18: gates that hold several weights, their price, budgets, and N of M."""

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from autograd_oracle import StraightThroughGate
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tolerances import ROUNDING
from torch import nn

from hyperflux import spec
from hyperflux.gates.costs import ALWAYS, NetworkCost, Product
from hyperflux.schedules.factory import counted_schedule

presences = st.one_of(st.sampled_from([0.0, -0.0, 1e-300, -1e-300, 0.25, -0.25]), st.floats(-2, 2))
INPUTS, HIDDEN, CLASSES = 6, 5, 3


def network(seed=0):
    """Weights of the two layers of a small perceptron, (hidden, inputs) and (classes, hidden)."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(HIDDEN, INPUTS)), rng.normal(size=(CLASSES, HIDDEN))


def of_readers():
    """Gates of inputs and hidden units at the weights that read them: columns of both layers, inputs first."""
    first = np.broadcast_to(np.arange(INPUTS), (HIDDEN, INPUTS))
    second = INPUTS + np.broadcast_to(np.arange(HIDDEN), (CLASSES, HIDDEN))
    return np.concatenate([first.ravel(), second.ravel()])


def of_producers():
    """Gates of hidden units at the weights that make them; the others hold a weight each."""
    rows = np.repeat(np.arange(HIDDEN), INPUTS)
    return np.concatenate([rows, HIDDEN + np.arange(CLASSES * HIDDEN)])


def loss_gradient(theta, x, labels):
    """g of the mean cross-entropy of the perceptron, (N,)."""
    first, second = theta[: HIDDEN * INPUTS].reshape(HIDDEN, INPUTS), theta[HIDDEN * INPUTS :].reshape(CLASSES, HIDDEN)
    before = x @ first.T
    hidden = np.maximum(before, 0)
    _, logits = spec.smoothed_cross_entropy(hidden @ second.T, labels, 0.1)
    back = (logits @ second) * (before > 0)
    return np.concatenate([(back.T @ x).ravel(), (logits.T @ hidden).ravel()])


def batch(seed=0, count=8):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, INPUTS)), rng.integers(CLASSES, size=count)


def autograd(weights, presence, costs, pressure, x, labels):
    """Gradients for w and t of a perceptron whose columns are gated: the loss of E7 plus that of E16."""
    w = [torch.tensor(layer, requires_grad=True) for layer in weights]
    t = torch.tensor(presence, requires_grad=True)
    gates = StraightThroughGate.apply(t)
    hidden = torch.relu(torch.from_numpy(x) @ (w[0] * gates[:INPUTS]).T)
    logits = hidden @ (w[1] * gates[INPUTS:]).T
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=0.1)
    priced = pressure * (torch.from_numpy(costs) / costs.sum() * t).sum()
    (loss + priced).backward()
    return np.concatenate([layer.grad.numpy().ravel() for layer in w]), t.grad.numpy()


def ours(weights, presence, costs, pressure, x, labels):
    """The same by the specification: what `spec.step` gives to the two optimizers."""
    w, seen = np.concatenate([layer.ravel() for layer in weights]), {}

    def update_weights(w, gradient):
        seen["w"] = gradient
        return w

    start = spec.State(w, presence, spec.Moments.zeros_like(presence))
    after = spec.step(
        start,
        loss_gradient=lambda theta: loss_gradient(theta, x, labels),
        update_weights=update_weights,
        pressure=pressure,
        presence_learning_rate=1e-3,
        total=w.size,
        gates=spec.Gates(of_readers(), costs),
    )
    return seen["w"], after.moments.first / (1 - spec.ADAM_BETAS[0])


@st.composite
def situations(draw):
    presence = draw(arrays(np.float64, INPUTS + HIDDEN, elements=presences))
    costs = draw(arrays(np.float64, INPUTS + HIDDEN, elements=st.floats(0.1, 100)))
    return network(draw(st.integers(0, 99))), presence, costs, draw(st.floats(0, 10)), *batch(draw(st.integers(0, 99)))


def assert_same_gradients(situation):
    for one, other in zip(ours(*situation), autograd(*situation), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=ROUNDING * max(1.0, np.abs(other).max()))


@given(situations())
def test_gates_at_readers_follow_autograd(situation):
    """E15, E16: w and t get the gradients of the chain rule through a gate for each column, and of priced pressure."""
    assert_same_gradients(situation)


MUTANTS = {
    "flux summed over the wrong axis": (
        "gathered",
        lambda self, slopes: np.concatenate(
            [
                np.resize(slopes[: HIDDEN * INPUTS].reshape(HIDDEN, INPUTS).sum(1), INPUTS),
                np.resize(slopes[HIDDEN * INPUTS :].reshape(CLASSES, HIDDEN).sum(1), HIDDEN),
            ]
        ),
    ),
    "flux averaged over the weights": (
        "gathered",
        lambda self, slopes: np.bincount(self.of, weights=slopes) / np.bincount(self.of),
    ),
    "a price forgotten": (
        "pressure_gradient",
        lambda self, pressure: np.full_like(self.costs, pressure / len(self.costs)),
    ),
    "a price not divided by their sum": ("pressure_gradient", lambda self, pressure: pressure * self.costs),
    "the masks of other gates": ("spread", lambda self, mask: mask[self.of[::-1]]),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_comparison_with_autograd_kills_a_mutant(mutant, monkeypatch):
    presence, costs = np.linspace(-1, 1, INPUTS + HIDDEN), np.linspace(1, 3, INPUTS + HIDDEN)
    situation = network(), presence, costs, 2.0, *batch()
    assert_same_gradients(situation)
    monkeypatch.setattr(spec.Gates, *MUTANTS[mutant])
    with pytest.raises(AssertionError):
        assert_same_gradients(situation)


@given(situations())
def test_one_weight_a_gate_is_the_step_without_gates(situation):
    """E15, E16: equal costs, in any order of the gates; to the bit."""
    weights, _, _, pressure, x, labels = situation
    w = np.concatenate([layer.ravel() for layer in weights])
    presence = np.random.default_rng(0).normal(size=w.size)
    order = np.random.default_rng(1).permutation(w.size)
    states = []
    for gates, t in (
        (None, presence),
        (spec.Gates(np.arange(w.size), np.ones(w.size)), presence),
        (spec.Gates(order, np.ones(w.size)), presence[np.argsort(order)]),
    ):
        state = spec.State(w, t, spec.Moments.zeros_like(t))
        for _ in range(3):
            state = spec.step(
                state,
                loss_gradient=lambda theta: loss_gradient(theta, x, labels),
                update_weights=lambda w, gradient: w - 0.1 * gradient,
                pressure=pressure,
                presence_learning_rate=1e-2,
                total=w.size,
                gates=gates,
            )
        states.append(state)
    assert all(np.array_equal(state.weights, states[0].weights) for state in states)
    assert np.array_equal(states[1].presence, states[0].presence)
    assert np.array_equal(states[2].presence[order], states[0].presence)


def flux_of_gone(gates, gone):
    """Flux of a hidden unit that is gone, on several batches."""
    weights = np.concatenate([layer.ravel() for layer in network()])
    mask = np.ones(gates.costs.size, bool)
    mask[gone] = False
    theta = spec.effective_weights(weights, gates.spread(mask))
    slopes = [spec.KAPPA * loss_gradient(theta, *batch(seed)) * weights for seed in range(5)]
    return [gates.gathered(slope)[gone] for slope in slopes]


@pytest.mark.parametrize("unit", range(HIDDEN))
def test_a_gate_at_the_producer_is_deaf_and_one_at_the_readers_hears(unit):
    """E15: the unit is 0 either way, but only at its readers is there flux that can call it back."""
    at_producer, at_readers = of_producers(), of_readers()
    assert flux_of_gone(spec.Gates(at_producer, np.ones(at_producer.max() + 1)), unit) == [0.0] * 5
    assert all(flux_of_gone(spec.Gates(at_readers, np.ones(at_readers.max() + 1)), INPUTS + unit))


@st.composite
def budgets(draw):
    """t of the units of a few layers, a cost in which they multiply, and a budget."""
    layers = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    presence = draw(arrays(np.float64, sum(layers), elements=presences))
    labels = [np.arange(one, other) for one, other in pairwise(np.cumsum([0, *layers]))]
    sides = [np.full(4, ALWAYS), *labels, np.full(3, ALWAYS)]
    cost = NetworkCost(layers, [Product(1, one, other) for one, other in pairwise(sides)])
    return presence, cost, draw(st.floats(0, 1.2)) * cost.total(np.ones(presence.size, bool))


def held_by(presence, layers):
    """The first gate with the largest t of every layer."""
    held = np.zeros(presence.size, bool)
    for layer in np.unique(layers):
        own = np.flatnonzero(layers == layer)
        held[own[presence[own].argmax()]] = True
    return held


@given(budgets(), st.booleans())
def test_the_largest_network_within_the_budget_is_left(situation, regrow):
    """E17, E12: in every layer the largest t, then those with the largest t; one gate more would cost too much."""
    presence, cost, budget = situation
    held = held_by(presence, cost.layers)
    shifted, tau = spec.meet_budget(presence, cost, budget, regrow)
    mask = spec.gate(shifted)
    assert mask[held].all()
    assert cost.total(mask) <= max(budget, cost.total(held))
    free, closed = ~held & mask, ~held & ~mask
    if free.any() and closed.any():
        assert presence[free].min() >= presence[closed].max()
    if not regrow:
        assert not (mask & ~spec.gate(presence) & ~held).any()
    candidates = closed if regrow else closed & spec.gate(presence)
    if candidates.any():
        more = mask.copy()
        more[np.flatnonzero(candidates)[presence[candidates].argmax()]] = True
        assert cost.total(more) > budget
    if free.any():
        np.testing.assert_array_equal(shifted[free], presence[free] - tau)
    np.testing.assert_array_equal(shifted[held], np.maximum(presence[held] - tau, 0))


@given(arrays(np.float64, st.integers(1, 20), elements=presences), st.data())
def test_a_budget_in_gates_is_capacity(presence, data):
    """E17: with cost 1 a gate in one layer, a budget of n is n gates."""
    budget = data.draw(st.integers(1, presence.size))
    cost = NetworkCost([presence.size], [Product(1, np.arange(presence.size), np.array([ALWAYS]))])
    assert spec.gate(spec.meet_budget(presence, cost, budget)[0]).sum() == budget


@given(st.data(), st.integers(1, 6), st.integers(1, 5), st.sampled_from([np.float32, np.float64]))
def test_every_group_keeps_its_largest_and_the_rest_compete(data, groups, size, dtype):
    """E18: the exact count; at least N of each group, those with its largest t; the others by t alone."""
    presence = data.draw(arrays(dtype, (groups, size), elements=presences.map(lambda t: float(dtype(t)))))
    kept = data.draw(st.integers(1, size))
    count = data.draw(st.integers(groups * kept, groups * size))
    shifted, _ = spec.meet_pattern(presence, kept, count)
    mask = spec.gate(shifted)
    assert shifted.dtype == dtype
    assert mask.sum() == count
    assert (mask.sum(axis=1) >= kept).all()
    for row, t in zip(mask, presence, strict=True):
        if 0 < row.sum() < size:
            assert t[row].min() >= t[~row].max()
    ranks = np.argsort(np.argsort(-presence, axis=1, kind="stable"), axis=1, kind="stable")
    free = presence[ranks >= kept], mask[ranks >= kept]
    if free[1].any() and not free[1].all():
        assert free[0][free[1]].min() >= free[0][~free[1]].max()


def test_where_no_place_is_left_nothing_is_shifted():
    """E18: a controller of the pressure sees no shift, however far the others have risen."""
    presence = np.array([[0.5, 0.25, 0.75, -0.5], [-0.5, -0.25, -0.75, 0.0]])
    shifted, tau = spec.meet_pattern(presence, 2, 4)
    below = -np.finfo(np.float64).tiny
    assert tau == 0.0
    np.testing.assert_array_equal(shifted, [[0.5, below, 0.75, -0.5], [-0.5, 0.0, -0.75, 0.0]])


def test_a_pattern_of_all_weights_prunes_nothing():
    """E18 with N = M, also where t is below 0."""
    shifted, tau = spec.meet_pattern(np.array([[-1.0, 0.5], [0.0, -0.25]]), 2, 4)
    assert spec.gate(shifted).all()
    assert tau == 0.0


def perceptron_cost():
    """Weights of the perceptron with some of its inputs and units open."""
    inputs, hidden = np.arange(INPUTS), INPUTS + np.arange(HIDDEN)
    outputs = np.full(CLASSES, ALWAYS)
    return NetworkCost([INPUTS, HIDDEN], [Product(1, inputs, hidden), Product(1, hidden, outputs)])


@pytest.mark.parametrize("ranking", get_args(spec.Ranking))
def test_the_loop_ends_within_the_budget_and_keeps_the_units_that_matter(ranking):
    """E8, E12 to E17: the cost of the perceptron falls to its budget; only two inputs carry the labels."""
    rng = np.random.default_rng(0)

    def labelled(n):
        x = np.random.default_rng(n).normal(size=(32, INPUTS))
        return x, (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)

    cost = perceptron_cost()
    weights = np.concatenate([layer.ravel() for layer in network()])
    everything = cost.total(np.ones(INPUTS + HIDDEN, bool))
    assert everything == weights.size
    budget = 18
    method = "hyperflux" if ranking == "presence" else ranking
    schedule = counted_schedule(everything, budget, 600, 200, method=method, gates=INPUTS + HIDDEN)
    assert schedule.ranking == ranking
    gates = spec.Gates(of_readers(), np.ones(INPUTS + HIDDEN))
    t = spec.initial_presence(INPUTS + HIDDEN, rng, schedule.initial_presence)
    states = list(
        spec.train(
            spec.State(weights, t, spec.Moments.zeros_like(t)),
            schedule,
            lambda n, theta: loss_gradient(theta, *labelled(n)),
            lambda n, w, gradient: w - 0.1 * gradient,
            gates,
            cost,
        )
    )
    costs = [cost.total(spec.gate(state.presence)) for state in states]
    assert all(spent <= schedule.target_count(n) for n, spent in enumerate(costs[:600], start=1))
    last = spec.gate(states[-1].presence)
    assert cost.total(last) <= budget
    assert cost.total(last) > budget - 8
    if ranking != "magnitude":
        assert last[:2].all(), "an input that carries the labels is gone"
    theta = spec.effective_weights(states[-1].weights, gates.spread(last))
    first, second = theta[: HIDDEN * INPUTS].reshape(HIDDEN, INPUTS), theta[HIDDEN * INPUTS :]
    assert np.count_nonzero(first[last[INPUTS:]]) + np.count_nonzero(second) == cost.total(last)
