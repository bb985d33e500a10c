"""The NumPy backend's gates of channels and N:M patterns: the budget at every step, and what is left at the end."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_backend import batches, make_backend
from tolerances import ROUNDING

from hyperflux import InputError, spec
from hyperflux.backends.numpy.channel_gate import ChannelGate
from hyperflux.backends.numpy.channels import Channels
from hyperflux.backends.numpy.mlp import MLP
from hyperflux.backends.numpy.pattern_gate import PatternGate
from hyperflux.backends.numpy.probe import NumpyProbe
from hyperflux.gates.kinds import Pattern
from hyperflux.law.sweep import prepare
from hyperflux.runs.driver import feasible_schedule
from hyperflux.seeding import generator
from hyperflux.session.warnings import Warnings

SIZES = (6, 9, 7, 3)
MODEL = "mlp:6-9-7-3"
COURSE = {"pruning": {"epochs": 10, "presence_learning_rate": 0.02}, "regrowth": {"epochs": 4}, "batch_size": 4}
RATES = {"learning_rate": 0.02, "label_smoothing": 0.1}
BUDGETS = [{"sparsity": 0.7}, {"flops": 0.3}, {"parameters": 0.35}]


def pruned(after_step=lambda backend, gate, schedule: None, **settings):
    """A backend after a whole course."""
    backend = make_backend(model=MODEL, **{**COURSE, **settings})
    schedule = feasible_schedule(backend._config, backend)
    session = backend.start_pruning(schedule, Warnings(lambda line: None), "light")
    for epoch in range(14):
        backend.train_pruning(
            batches(10, seed=epoch), **RATES, after_step=lambda: after_step(backend, session.gate, schedule)
        )
    session.finish()
    return backend, session


def open_units(backend, inputs):
    """Which units of each layer are open, from the features to the classes, by the gate's own t."""
    t, masks = backend._gate.state.presence, [np.ones(size, bool) for size in SIZES]
    for layer in range(0 if inputs else 1, len(SIZES) - 1):
        masks[layer], t = t[: SIZES[layer]] >= 0, t[SIZES[layer] :]
    assert t.size == 0
    return masks


def cost_of(masks, budget):
    widths = [int(mask.sum()) for mask in masks]
    weights = sum(one * other for one, other in pairwise(widths))
    return {"sparsity": weights, "flops": 2 * weights, "parameters": weights + sum(widths[1:])}[budget]


@pytest.mark.parametrize("inputs", [False, True], ids=["units", "inputs too"])
@pytest.mark.parametrize("given", BUDGETS, ids=lambda given: next(iter(given)))
@pytest.mark.parametrize("method", ["hyperflux", "magnitude", "taylor"])
def test_every_control_step_leaves_the_largest_network_within_its_budget(method, given, inputs):
    """E8, E14, E17: never above the trajectory, and with the next channel it would be; t decides which.

    The baselines bring nothing back.
    """
    (budget, share), checked, came_back = next(iter(given.items())), [], []

    def check(backend, gate, schedule):
        if gate.steps > schedule.pruning_steps:
            return
        allowed, masks = schedule.target_count(gate.steps), open_units(backend, inputs)
        spent = cost_of(masks, budget)
        assert spent <= allowed
        assert gate.surviving() == spent
        t = gate.state.presence
        assert gate.present().all() or t[gate.present()].min() >= t[~gate.present()].max()
        came_back.append(np.count_nonzero(gate.present() & ~before[0]) if checked else 0)
        checked.append(allowed)
        before[:] = [gate.present()]
        if method == "hyperflux" and not gate.present().all():
            one_more, state = t.copy(), gate.state
            one_more[np.argmax(np.where(gate.present(), -np.inf, t))] = 0.0
            gate.state = spec.State(state.weights, one_more, state.moments)
            assert cost_of(open_units(backend, inputs), budget) > allowed
            gate.state = state

    before = []
    backend, session = pruned(check, gates="channels", gate_inputs=inputs, method=method, **given)
    whole = cost_of([np.ones(size, bool) for size in SIZES], budget)
    assert len(checked) == 100
    assert bool(sum(came_back)) is (method == "hyperflux")
    assert checked[0] > 0.9 * whole
    final = cost_of(open_units(backend, inputs), budget)
    kept = 1 - share if budget == "sparsity" else share
    assert kept * whole * 0.7 < final <= kept * whole
    assert session.gate.total == whole


def smaller_network(backend, inputs):
    """(sizes, weights, biases, open features) of the network of the open units alone."""
    masks, tensors = open_units(backend, inputs), backend.tensors()
    weights, biases = [], []
    for number, (reads, makes) in enumerate(pairwise(masks), start=1):
        weights.append(tensors[f"fc{number}.weight"][np.ix_(makes, reads)].ravel())
        biases.append(tensors[f"fc{number}.bias"][makes])
    return [int(mask.sum()) for mask in masks], np.concatenate(weights), np.concatenate(biases), masks[0]


@pytest.mark.parametrize("inputs", [False, True], ids=["units", "inputs too"])
def test_what_is_left_is_the_smaller_network(inputs):
    """E15: masks, layers, channels, zeros of the tensors and the compacted size agree, and so do the logits."""
    backend, session = pruned(gates="channels", gate_inputs=inputs, flops=0.4)
    sizes, weights, biases, features = smaller_network(backend, inputs)
    assert sum(sizes) < sum(SIZES)
    x = np.random.default_rng(1).normal(size=(20, SIZES[0]))
    tensors = backend.tensors()
    flat = [np.concatenate([tensors[f"fc{i}.{kind}"].ravel() for i in (1, 2, 3)]) for kind in ("weight", "bias")]
    ours, theirs = MLP(SIZES).forward(*flat, x)[-1], MLP(sizes).forward(weights, biases, x[:, features])[-1]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ROUNDING * np.abs(theirs).max())

    masks = backend.masks()
    assert [layer.name for layer in backend.layers()] == list(masks)
    assert sum(layer.surviving for layer in backend.layers()) == weights.size
    for layer in backend.layers():
        np.testing.assert_array_equal(tensors[layer.name] != 0, masks[layer.name])
        assert (layer.total, layer.surviving) == (masks[layer.name].size, masks[layer.name].sum())
    counted = [("input", SIZES[0], sizes[0])] if inputs else []
    counted += [(f"fc{i}", SIZES[i], sizes[i]) for i in (1, 2)]
    assert [(c.name, c.total, c.surviving) for c in backend.channels()] == counted
    assert session.gate.layers() == backend.channels()
    size = backend.compacted()
    assert size.parameters == weights.size + biases.size
    assert size.parameters_ratio == size.parameters / (flat[0].size + flat[1].size)
    assert size.flops_ratio == weights.size / flat[0].size <= 0.4


def test_what_makes_a_closed_channel_stays_until_the_mask_is_final():
    """E15: it would be deaf; `drop_dead` changes no output, no bias and no other weight."""
    backend = make_backend(model=MODEL, **COURSE, gates="channels", flops=0.3)
    session = backend.start_pruning(feasible_schedule(backend._config, backend), Warnings(lambda line: None))
    for epoch in range(6):
        backend.train_pruning(batches(10, seed=epoch), **RATES, after_step=lambda: None)
    before, masks, accuracy = backend.tensors(), backend.masks(), backend.evaluate()
    closed = ~open_units(backend, False)[1]
    assert closed.any()
    assert (before["fc1.weight"][closed] != 0).all()
    assert not masks["fc1.weight"][closed].any()
    session.gate.drop_dead()
    after = backend.tensors()
    assert backend.evaluate() == accuracy
    for name, tensor in after.items():
        kept = masks.get(name, np.ones(tensor.shape, bool))
        np.testing.assert_array_equal(tensor[kept], before[name][kept])
        assert not tensor[~kept].any()


def test_t_of_a_set_is_drawn_by_its_name():
    backend = make_backend(model=MODEL, **COURSE, gates="channels", gate_inputs=True, flops=0.5, seed=3)
    schedule = feasible_schedule(backend._config, backend)
    gate = backend.start_pruning(schedule, Warnings(lambda line: None)).gate
    expected = [
        spec.initial_presence(size, generator(3, f"{name} presence"), schedule.initial_presence)
        for name, size in (("input", 6), ("fc1", 9), ("fc2", 7))
    ]
    assert gate.state.presence.tolist() == np.concatenate(expected).tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_is_kept(dtype):
    state = pruned(gates="channels", gate_inputs=True, flops=0.3, dtype=dtype)[1].gate.state
    kept = {array.dtype.name for array in (state.weights, state.presence, state.moments.first, state.moments.second)}
    assert kept == {dtype}
    assert np.isfinite(state.presence).all()


def constant_steps(gate, gradients, schedule):
    """Steps with given g, and the gradients of t without pressure, from sums over columns written out here."""
    slopes = []
    for gradient, (pressure, budget) in zip(gradients, schedule, strict=True):
        gate.pressure, gate.presence_lr = pressure, 0.01
        products = [spec.KAPPA * part for part in MLP(SIZES).split_weights(gradient * gate.state.weights)]
        slopes.append(np.concatenate([part.sum(axis=0) for part in products]))
        gate.step(lambda theta, gradient=gradient: gradient, lambda w, gradient: w)
        if budget is not None:
            gate.meet_capacity(budget)
    return slopes


def test_telemetry_shows_the_flux_of_a_channel_without_its_price():
    """E4, E15, E16: the running mean of −κ Σ g w, whatever pressure and prices were; by channel set."""
    rng = np.random.default_rng(0)
    sizes = {"fc1.weight": 54, "fc2.weight": 63, "fc3.weight": 21}
    presence = rng.uniform(0.05, 0.1, size=22)
    state = spec.State(rng.normal(size=138), presence, spec.Moments.zeros_like(presence))
    gate = ChannelGate(state, sizes, Channels(SIZES, True), "flops")
    probe = NumpyProbe(gate)
    gradients = rng.normal(size=(6, 138))
    course = [(50.0, None), (80.0, 150), (0.0, None), (20.0, 80), (90.0, None), (10.0, 100)]
    slopes = constant_steps(gate, gradients, course)
    weights = 0.1 * 0.9 ** np.arange(5, -1, -1)
    expected = -(weights @ np.array(slopes)) / (1 - 0.9**6)
    probe.count(1)
    layers = probe.layers(flux=True)
    assert [(layer.name, layer.presence.size) for layer in layers] == [("input", 6), ("fc1", 9), ("fc2", 7)]
    np.testing.assert_allclose(np.concatenate([layer.flux for layer in layers]), expected, rtol=1e-9, atol=1e-12)
    flips = np.concatenate([layer.flips for layer in layers])
    np.testing.assert_array_equal(flips, ~gate.present())
    assert 0 < flips.sum() < 22


def test_before_the_first_control_step_prices_are_those_of_the_dense_network():
    """E16: pressure alone, without any flux; an input is read by 9 units, and so on."""
    presence = np.full(22, 0.1)
    state = spec.State(np.ones(138), presence, spec.Moments.zeros_like(presence))
    gate = ChannelGate(state, {"fc1.weight": 54, "fc2.weight": 63, "fc3.weight": 21}, Channels(SIZES, True), "sparsity")
    constant_steps(gate, np.zeros((1, 138)), [(7.0, None)])
    prices = np.repeat([9, 6 + 7, 9 + 3], SIZES[:3])
    np.testing.assert_allclose(gate.state.moments.first, 0.1 * 7.0 * prices / prices.sum(), rtol=1e-12)


def test_prices_between_control_steps_are_those_of_the_last_one_also_after_a_restart():
    """E16: a gate that closes by itself changes no price before the next control step."""
    rng = np.random.default_rng(0)
    sizes, presence = {"fc1.weight": 54, "fc2.weight": 63, "fc3.weight": 21}, rng.uniform(0.0, 0.02, size=22)
    state = spec.State(rng.normal(size=138), presence, spec.Moments.zeros_like(presence))
    gate, again = (ChannelGate(state, sizes, Channels(SIZES, True), "parameters") for _ in range(2))
    course = [(5.0, 120), (5.0, None), (5.0, None)]
    constant_steps(gate, rng.normal(size=(3, 138)), course)
    now = gate._cost.prices(gate.present())
    assert (now != gate.gates.costs).any(), "no gate moved"
    again.restore({name: array.copy() for name, array in gate.to_arrays().items()})
    assert again.gates.costs.tolist() == gate.gates.costs.tolist()
    for one in (gate, again):
        constant_steps(one, [np.ones(138)], [(5.0, None)])
    assert again.state.presence.tolist() == gate.state.presence.tolist()
    assert again.pressure_mean.tolist() == gate.pressure_mean.tolist()


@pytest.mark.parametrize("name", ["gate/prices", "gate/pressure_mean", "gate/second"])
def test_a_saved_state_with_what_can_not_be_below_0_is_refused(name):
    backend = make_backend(model=MODEL, gates="channels", flops=0.5)
    saved = backend.state()
    backend.require_state(saved, epochs=0, batches=1)
    saved[name][0] = -1e-9
    with pytest.raises(ValueError, match=f"^{name}: holds a value below 0$"):
        backend.require_state(saved, epochs=0, batches=1)


@pytest.mark.parametrize(
    ("name", "place", "told"),
    [("presence", 10, "a presence parameter of fc1"), ("weights", 60, "a latent weight of fc2.weight")],
)
def test_a_value_that_is_not_finite_is_named(name, place, told):
    gate = make_backend(model=MODEL, gates="channels", gate_inputs=True, flops=0.5)._gate
    assert gate.fault(latent=True) is None
    getattr(gate.state, name)[place] = np.nan
    assert gate.fault(latent=True).what == told


def test_a_network_without_hidden_units_has_no_channels():
    backend = make_backend(model="mlp:6-3", gates="channels", flops=0.5)
    with pytest.raises(InputError, match="no channel between two layers; gate its inputs too"):
        backend.capacity_plan()
    plan = make_backend(model="mlp:6-3", gates="channels", gate_inputs=True, flops=0.5).capacity_plan()
    assert plan == (36, 18, 6, False)


@pytest.mark.parametrize("gates", ["channels", "2:4"])
def test_a_pressure_sweep_is_refused(gates, tmp_path):
    backend = make_backend(model=MODEL, gates=gates)
    for act in (lambda: backend.start_gate((0.2, 0.5)), lambda: prepare(backend._config, tmp_path / "sweep")):
        with pytest.raises(
            InputError, match=f"^gates {gates}: a pressure sweep prunes single weights; leave gates out$"
        ):
            act()
    assert not (tmp_path / "sweep").exists()


def groups(matrix, size):
    """The groups of a matrix: every `size` weights in a row, the last of a row perhaps shorter."""
    return [row[start : start + size] for row in matrix for start in range(0, len(row), size)]


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 4), Pattern(3, 8), Pattern(1, 2)], ids=str)
@pytest.mark.parametrize("method", ["hyperflux", "magnitude"])
def test_n_of_m_in_every_group_at_every_step_and_exactly_at_the_end(method, pattern):
    """E8, E18: the count falls to the kept places, N of every group and of a shorter one at most all."""
    kept = sum(
        min(pattern.kept, len(group)) for i, o in pairwise(SIZES) for group in groups(np.ones((o, i)), pattern.group)
    )
    counts = []

    def check(backend, gate, schedule):
        for mask in backend.masks().values():
            assert all(group.sum() >= min(pattern.kept, group.size) for group in groups(mask, pattern.group))
        if gate.steps <= schedule.pruning_steps:
            assert gate.surviving() == schedule.target_count(gate.steps)
        counts.append(gate.surviving())

    backend, session = pruned(check, gates=str(pattern), method=method)
    assert backend.capacity_plan() == (138, kept, None, True)
    assert counts[0] > 120
    assert counts[-1] == kept == session.gate.surviving()
    for name, mask in backend.masks().items():
        assert all(group.sum() == min(pattern.kept, group.size) for group in groups(mask, pattern.group))
        np.testing.assert_array_equal(backend.tensors()[name] != 0, mask)
    assert (backend.channels(), backend.compacted()) == ([], None)


@st.composite
def patterned(draw):
    shapes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=3))
    size = draw(st.integers(2, 6))
    pattern = Pattern(draw(st.integers(1, size - 1)), size)
    total = sum(outputs * inputs for outputs, inputs in shapes)
    presence = draw(arrays(np.float64, total, elements=st.floats(-2, 2), unique=True))
    return shapes, pattern, presence


@given(patterned(), st.data())
def test_the_largest_of_every_group_stay_and_the_rest_compete_in_the_whole_network(situation, data):
    """E18: against sorting, group by group; a count below the kept places is taken for theirs."""
    shapes, pattern, presence = situation
    state = spec.State(np.ones_like(presence), presence, spec.Moments.zeros_like(presence))
    gate = PatternGate(state, {str(i): o * n for i, (o, n) in enumerate(shapes)}, shapes, pattern)
    held, rest, start = set(), [], 0
    for outputs, inputs in shapes:
        for group in groups(np.arange(start, start + outputs * inputs).reshape(outputs, inputs), pattern.group):
            ranked = sorted(group, key=lambda place: -presence[place])
            held |= set(ranked[: pattern.kept])
            rest += ranked[pattern.kept :]
        start += outputs * inputs
    assert gate.kept == len(held)
    if not rest:
        with pytest.raises(InputError, match="nothing would be removed"):
            _ = gate.plan
        return
    count = data.draw(st.integers(0, presence.size))
    gate.meet_capacity(count)
    chosen = sorted(rest, key=lambda place: -presence[place])[: max(0, count - len(held))]
    assert set(np.flatnonzero(gate.present())) == held | set(chosen)
    assert np.isfinite(gate.state.presence).all()


def test_a_pattern_that_removes_nothing_is_refused():
    backend = make_backend(model=MODEL, gates="9:10")
    with pytest.raises(InputError, match=r"^gates 9:10: no layer has more than 9 inputs"):
        backend.capacity_plan()


def test_single_weights_have_no_plan():
    backend = make_backend(model=MODEL)
    assert (backend.capacity_plan(), backend.channels(), backend.compacted()) == (None, [], None)
