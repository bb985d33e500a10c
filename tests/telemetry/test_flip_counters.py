"""Counters of flips against a recount of every mask, step by step: on arrays, and on what moves t."""

import copy

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import batches
from networks import build as build_network
from torch import nn
from torch.nn.functional import cross_entropy

from hyperflux import Pruner
from hyperflux.backends.torch.gate import TorchGate
from hyperflux.backends.torch.probe import TorchProbe
from hyperflux.telemetry.host_counters import HostCounters

VALUES = (-1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, float("nan"))


class Recount:
    """Naively: the masks of all weights, compared one call after the other."""

    def __init__(self, shapes):
        self.mask = {name: np.ones(shape, bool) for name, shape in shapes.items()}
        self.flips = {name: np.zeros(shape, int) for name, shape in shapes.items()}
        self.changed_in = {name: np.zeros(shape, int) for name, shape in shapes.items()}

    def count(self, presence, interval):
        for name, t in presence.items():
            changed = (t >= 0) != self.mask[name]
            self.flips[name] += changed
            self.changed_in[name][changed] = interval
            self.mask[name] = t >= 0

    def require(self, state):
        for name in self.mask:
            for kind in ("flips", "changed_in", "mask"):
                np.testing.assert_array_equal(state[f"{kind} {name}"], getattr(self, kind)[name], err_msg=name)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.integers(1, 40),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([0.0, 0.02, 0.5]),
    st.randoms(use_true_random=False),
)
def test_host_counters_equal_a_recount(sizes, calls, dtype, share, random):
    """Few flips and many, around 0 of either sign, with intervals that end and counters read in between."""
    draws = np.random.default_rng(random.randrange(1000))
    shapes = {str(number): (size, 3) for number, size in enumerate(sizes)}
    ours, theirs = HostCounters(3 * sum(sizes)), Recount(shapes)
    presence = {name: draws.choice(VALUES, shape).astype(dtype) for name, shape in shapes.items()}
    interval = 1
    for _ in range(calls):
        for name, t in presence.items():
            drawn = draws.random(t.shape) < share
            t = np.where(drawn, draws.choice(VALUES, t.shape), t)
            presence[name] = t.astype(dtype, order=random.choice("CF"))  # in either memory layout
        ours.count(list(presence.values()), interval)
        theirs.count(presence, interval)
        if random.random() < 0.2:
            flips = np.concatenate([part.ravel() for part in theirs.flips.values()])
            np.testing.assert_array_equal(ours.flips, flips)
        if random.random() < 0.2:
            saved = [copy.copy(array) for array in (ours.flips, ours.changed_in, ours.mask)]
            ours.restore(*(array.copy() for array in saved))
        if random.random() < 0.1:
            ours = copy.deepcopy(ours)
        interval += random.random() < 0.3
    for kind in ("flips", "changed_in", "mask"):
        expected = np.concatenate([part.ravel() for part in getattr(theirs, kind).values()])
        np.testing.assert_array_equal(getattr(ours, kind), expected, err_msg=kind)


def build(dtype, memory_format):
    """A convolution, whose weights may be channels_last, and two layers whose sizes are no multiples of 8."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"conv": nn.Conv2d(3, 5, 3, bias=False), "fc": nn.Linear(7, 3), "one": nn.Linear(1, 1, bias=False)}
    ).to(dtype=dtype, memory_format=memory_format)


ACTIONS = (
    "step", "step without a gradient", "capacity", "rank", "resync", "turn layout", "restore", "read", "minus zero",
)  # fmt: skip


@given(
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
    st.lists(st.sampled_from(ACTIONS), max_size=25),
    st.integers(0, 1000),
)
def test_the_probe_equals_a_recount_whatever_moves_t(dtype, memory_format, actions, seed):
    draws = torch.Generator().manual_seed(seed)
    model = build(dtype, memory_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prunable = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    gated = TorchGate(prunable, optimizer, seed=seed, initial=(-0.1, 0.1))
    gated.presence_lr, gated.pressure = 0.05, 5.0
    probe = TorchProbe(gated)
    recount = Recount({name: tuple(p.shape) for name, p in prunable.items()})
    for number, action in enumerate(actions):
        if action in ("step", "step without a gradient"):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=draws, dtype=dtype)
            if action != "step":
                model["fc"].weight.grad = None
            optimizer.step()
        elif action == "capacity":
            gated.meet_capacity(1 + (seed + number) % 150)
        elif action == "rank":
            gated.meet_capacity(1 + (seed + number) % 150, "magnitude")
        elif action == "resync":
            with torch.no_grad():
                model["fc"].weight.add_(1)
            gated.resync()
        elif action == "turn layout":
            other = torch.channels_last if model["conv"].weight.is_contiguous() else torch.contiguous_format
            model["conv"].to(memory_format=other)
        elif action == "restore":
            probe.restore(probe.state())
        elif action == "read":
            probe.layers(flux=False)
        else:
            for state in gated.states.values():
                state.presence[::2] = -0.0
            gated.write_effective()
        interval = 1 + number // 4
        probe.count(interval)
        recount.count({name: state.presence.numpy() for name, state in gated.states.items()}, interval)
        if number % 3 == 0:
            assert sum(int(flips.sum()) for flips in probe.flip_counts()) == sum(
                f.sum() for f in recount.flips.values()
            )
    recount.require(probe.state())
    for layer in probe.layers(flux=True):
        np.testing.assert_array_equal(layer.flips, recount.flips[layer.name])
        np.testing.assert_array_equal(layer.changed_in, recount.changed_in[layer.name])


@given(st.sampled_from(["mlp", "convolutional"]), st.integers(0, 30), st.integers(1, 30), st.integers(0, 100))
def test_events_are_those_of_every_step_also_after_loading_a_state(kind, before, after, seed):
    """Capacity lowers t after steps; a step without a gradient moves only that; another Pruner goes on half-way."""
    pruner, events, mask = None, np.zeros(2, int), None
    for number, (inputs, labels) in enumerate(batches(before + after, seed=seed)):
        if number in (0, before):
            model = build_network(kind, seed)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            saved = None if pruner is None else pruner.state_dict()
            pruner = Pruner(model, optimizer, target_sparsity=0.8, pruning_steps=30, regrowth_steps=20,
                            presence_lr=0.05)  # fmt: skip
            if saved is not None:
                pruner.load_state_dict(saved)
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        if (seed + number) % 4 == 0:
            next(iter(pruner.selection.prunable.values())).grad = None
        optimizer.step()
        now = torch.cat([part.ravel() for part in pruner.masks().values()]).numpy()
        mask = np.ones_like(now) if mask is None else mask
        events += [(mask & ~now).sum(), (~mask & now).sum()]
        mask = now
        assert pruner.session.recorder.events() == tuple(events)
    assert events.sum() > 0
