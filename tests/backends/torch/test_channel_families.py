"""Gates of channels on every family of networks that compaction knows: exact, within the budget, nothing dead left."""

import copy
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prunable_networks import FAMILIES
from same_function import same
from torch import nn

from hyperflux import InputError, Pruner, compact
from hyperflux.backends.torch.flops import count_cost

STEPS = (6, 3)
"""Steps of pruning and of regrowth."""
UNITS = {"flops": "dense_flops", "parameters": "parameters"}
"""Budgets with what counts them in a compacted network."""
REFUSALS = "no channel of|but one channel of every layer|removes nothing"


def drawn_network(data, family):
    """(network, inputs) in training mode, with random weights and batch statistics."""
    model, shape = data.draw(FAMILIES[family])
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    inputs = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    model.double().eval()(inputs)  # gives lazy layers their shapes
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.train(), inputs


def built(model, optimizer, inputs, **settings):
    """A Pruner, or None where the network has no channels to close, or not so many."""
    try:
        return Pruner(
            model,
            optimizer,
            gates="channels",
            example_input=inputs,
            pruning_steps=STEPS[0],
            regrowth_steps=STEPS[1],
            presence_lr=0.1,
            telemetry="off",
            **settings,
        )
    except InputError as refusal:
        if not re.search(REFUSALS, str(refusal)):
            raise
        return None


def train(model, optimizer, inputs, steps):
    labels = torch.arange(len(inputs)) % 3
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_trained_under_gates_and_compacted_it_is_the_same_function_within_the_budget(family, data):
    """E15 to E17: the cost that gates count is that of the compacted network."""
    model, inputs = drawn_network(data, family)
    budget = data.draw(st.sampled_from(["flops", "parameters", "target_sparsity"]))
    share = data.draw(st.floats(0.1, 0.95))
    dense = count_cost(model, inputs)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    gate_inputs = data.draw(st.booleans())
    pruner = built(model, optimizer, inputs, gate_inputs=gate_inputs, **{budget: share})
    if pruner is None:
        return
    train(model, optimizer, inputs, sum(STEPS))
    pruner.finalize()
    model.eval()
    smaller = compact(model, inputs)
    for size in (4, 1, 3):
        fresh = torch.randn(size, *inputs.shape[1:], dtype=torch.float64)
        same(model(fresh), smaller(fresh))
    left, layout, mask = count_cost(smaller, inputs), pruner.plan.layout, pruner.gate.store.mask()
    for unit, attribute in UNITS.items():
        assert getattr(left, attribute) == layout.costs[unit].total(mask), unit
    if budget in UNITS:
        assert getattr(left, UNITS[budget]) <= share * getattr(dense, UNITS[budget])
    weights = sum(int(p.count_nonzero()) for name, p in model.named_parameters() if name in pruner.masks())
    assert weights == pruner.surviving == layout.costs["sparsity"].total(mask)
    if budget == "target_sparsity":
        assert pruner.surviving <= (1 - share) * pruner.total + 1e-6


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_it_is_the_largest_network_that_fits(family, data):
    """E17: with one more gate, that with the largest t of the closed ones, the budget would be overdrawn."""
    model, inputs = drawn_network(data, family)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pruner = built(model, optimizer, inputs, flops=data.draw(st.floats(0.1, 0.95)))
    if pruner is None:
        return
    train(model, optimizer, inputs, STEPS[0])
    store, cost = pruner.gate.store, pruner.plan.layout.costs["flops"]
    mask, t = store.mask(), store.channels.presence.numpy()
    budget = pruner.plan.capacity.final_count
    assert cost.total(mask) <= budget
    if not mask.all():
        mask[np.flatnonzero(~mask)[t[~mask].argmax()]] = True
        assert cost.total(mask) > budget


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_the_flux_of_a_gate_is_the_gradient_of_the_loss(family, data):
    """E15: κ Σ g w is κ times the slope of the loss when the readers' weights of a channel are scaled."""
    model, inputs = drawn_network(data, family)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = built(model, optimizer, inputs, parameters=0.9)
    if pruner is None:
        return
    shut = data.draw(st.integers(0, 3))
    store = pruner.gate.store
    store.channels.presence[:: shut + 2] = -1.0
    pruner.gate.write_effective()
    train(model, optimizer, inputs, 1)
    slope = (store.channels.first / (1 - 0.9)).numpy()  # no pressure in the first step
    scaled = copy.deepcopy({name: state.latent for name, state in store.states.items()})
    scales = torch.ones(pruner.plan.layout.gates, dtype=torch.float64)
    scales[:: shut + 2] = 0.0
    scales.requires_grad_()
    readers = pruner.plan.layout.readers()

    def parameters():
        padded = torch.cat([scales, torch.ones(1, dtype=torch.float64)])
        found = dict(model.named_parameters())
        for name, side in readers.items():
            shape = [-1 if dim == side.dim else 1 for dim in range(scaled[name].ndim)]
            found[name] = scaled[name] * padded[torch.from_numpy(side.gates)].view(shape)
        return found

    outputs = torch.func.functional_call(model, parameters(), (inputs,))
    loss = nn.functional.cross_entropy(outputs, torch.arange(len(inputs)) % 3)
    (expected,) = torch.autograd.grad(loss, scales)
    scale = max(1e-12, float(expected.abs().max()))
    np.testing.assert_allclose(slope, 0.25 * expected.numpy(), rtol=0, atol=1e-9 * scale)
