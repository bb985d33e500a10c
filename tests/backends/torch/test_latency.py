"""Layer times: what is timed, that nothing of the user's is touched, and a Pruner that goes on with saved ones."""

import copy
import io
import itertools
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from processes import run_together
from prunable_networks import FAMILIES
from replicas import of_weights, with_layer_times
from torch import nn

from hyperflux import InputError, Pruner
from hyperflux.backends.torch.channels import latency
from hyperflux.backends.torch.channels.layout import traced_layout
from hyperflux.backends.torch.gate_plan import gate_plan
from hyperflux.backends.torch.selection import select
from hyperflux.gates.latency import LatencyTable


class Image(nn.Module):
    """Every kind of layer: plain, depthwise, grouped and transposed convolutions, and a linear one behind them."""

    def __init__(self):
        super().__init__()
        self.plain, self.depthwise = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, groups=6, bias=False)
        self.grouped, self.up = nn.Conv2d(6, 12, 1, groups=3), nn.ConvTranspose2d(12, 5, 2, stride=2)
        self.norm, self.head = nn.BatchNorm2d(12), nn.Linear(5 * 144, 4)

    def forward(self, x):
        x = torch.relu(self.depthwise(self.plain(x)))
        return self.head(torch.relu(self.up(self.norm(self.grouped(x)))).flatten(1))


def planned(model, inputs, **settings):
    """The plan of gates of channels under a budget of time."""
    prunable = select(model, torch.optim.SGD(model.parameters(), lr=0.1)).prunable
    return gate_plan(model, prunable, "channels", "latency", 0.6, inputs, **settings)


@pytest.fixture
def elements(monkeypatch):
    """Every call takes as many nanoseconds as its result has numbers, the whole network a million; gives the results.

    It is called as it would be timed.
    """
    results = []

    def called(calls, wait):
        wait()
        found = {key: call() for key, call in calls.items()}
        results.extend(found.values())
        whole = {"network": 10**6, "smallest network": 10**5}
        return {key: whole.get(key, result.numel()) for key, result in found.items()}

    monkeypatch.setattr(latency, "_nanoseconds", called)
    return results


def test_layers_are_called_with_the_batch_and_with_fewer_channels(elements):
    table = planned(Image(), torch.randn(7, 3, 16, 16)).latency
    assert (table.device, table.dtype, table.batch_size, table.nanoseconds) == ("cpu", "float32", 7, 10**6)
    layers = {layer.name: layer for layer in table.layers}
    sides = {name: (layer.inputs, layer.outputs) for name, layer in layers.items()}
    assert sides == {
        "plain": ([3], [1, 2, 3, 4, 5, 6]),
        "depthwise": ([1], [1, 2, 3, 4, 5, 6]),
        "grouped": ([1], [4, 8, 12]),
        "up": ([1, 3, 4, 6, 7, 9, 10, 12], [1, 2, 3, 4, 5]),
        "head": ([1, 180, 181, 360, 361, 540, 541, 720], [4]),
    }
    positions = {"plain": 64, "depthwise": 36, "grouped": 36, "up": 144, "head": 1}
    for name, layer in layers.items():
        row = [7 * positions[name] * outputs for outputs in layer.outputs]
        assert layer.nanoseconds == [row] * len(layer.inputs)
        assert layer.elements == row[-1]


@pytest.mark.parametrize(("dtype", "last"), [(torch.float64, False), (torch.float32, True)])
def test_layers_are_called_in_the_networks_format_and_layout(elements, dtype, last):
    layout = torch.channels_last if last else torch.contiguous_format
    model = Image().to(dtype).to(memory_format=layout)
    table = planned(model, torch.randn(7, 3, 16, 16).to(dtype, memory_format=layout)).latency
    assert {result.dtype for result in elements} == {dtype}
    assert table.dtype == str(dtype).removeprefix("torch.")
    wide = [result for result in elements if result.ndim == 4 and min(result.shape[1:]) > 1]
    assert wide
    assert {result.is_contiguous(memory_format=layout) for result in wide} == {True}


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_family_of_networks_is_timed(elements, family, data):
    model, shape = data.draw(FAMILIES[family])
    model, inputs = model.double(), torch.randn(3, *shape, dtype=torch.float64)
    model.eval()(inputs)
    traced = None
    with suppress(InputError):  # where it has no channels
        traced = traced_layout(model, inputs, dict(model.named_parameters()), gate_inputs=data.draw(st.booleans()))
    assume(traced)
    table = latency.measure(traced, (inputs,), torch.device("cpu"))
    assert LatencyTable.from_dict(table.to_dict()) == table
    assert traced.layout.latency(table).total(np.ones(traced.layout.gates, bool)) == 10**6


def test_a_layer_may_be_called_with_its_input_by_name(elements):
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(input=torch.relu(self.first(x)))

    assert [layer.name for layer in planned(ByName(), torch.randn(3, 4)).latency.layers] == ["first", "head"]


def test_the_smallest_network_has_one_gate_of_every_layer(elements, monkeypatch):
    made, cut = [], latency.compact
    monkeypatch.setattr(latency, "compact", lambda *given: made.append(cut(*given)) or made[-1])
    planned(Image(), torch.randn(2, 3, 16, 16))
    shapes = {name: tuple(own.shape) for name, own in made[0].named_parameters() if own.ndim > 1}
    assert shapes == {
        "plain.weight": (2, 3, 3, 3),  # two that one group reads
        "depthwise.weight": (2, 1, 3, 3),
        "grouped.weight": (4, 2, 1, 1),
        "up.weight": (4, 1, 2, 2),
        "head.weight": (4, 144),
    }


def test_layers_that_are_alike_are_timed_once(elements):
    layers = [layer for _ in range(5) for layer in (nn.Linear(8, 8), nn.ReLU())]
    planned(nn.Sequential(*layers, nn.Linear(8, 2)), torch.randn(3, 8))
    # Two networks; layers with 1 to 8 channels on both sides, or before 2 outputs.
    assert len(elements) == 2 + 8 * 8 + 8


def test_another_batch_may_be_timed_than_the_network_is_read_with(elements):
    assert planned(Image(), torch.randn(2, 3, 16, 16), timed_input=torch.randn(5, 3, 16, 16)).latency.batch_size == 5


def test_measuring_leaves_the_model_and_all_generators_alone(monkeypatch):
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    monkeypatch.setattr("hyperflux.timing.TURN_SECONDS", 0.0)
    torch.manual_seed(3)
    model, inputs = Image().train(), torch.randn(4, 3, 16, 16)
    before = copy.deepcopy(model.state_dict())
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    traced = traced_layout(model, inputs, dict(model.named_parameters()))
    table = latency.measure(traced, (inputs,), torch.device("cpu"))
    assert min(time for layer in table.layers for row in layer.nanoseconds for time in row) >= 1
    assert LatencyTable.from_dict(table.to_dict()) == table
    assert all(torch.equal(own, before[name]) for name, own in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert np.random.get_state()[1].tolist() == generators[1]  # noqa: NPY002


INPUTS = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))


def started(**settings):
    """(model, optimizer, Pruner) of a perceptron."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    settings = {"gates": "channels", "example_input": INPUTS, "latency": 0.6, "presence_lr": 2e-2, **settings}
    return model, optimizer, Pruner(model, optimizer, pruning_steps=20, regrowth_steps=10, **settings)


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(INPUTS), torch.arange(12) % 4).backward()
        optimizer.step()


@pytest.fixture
def shifting(monkeypatch):
    """Every measurement is a little different."""
    count = itertools.count()
    monkeypatch.setattr(latency, "_nanoseconds", lambda calls, wait: of_weights(calls, next(count)))


def test_a_pruner_stays_within_the_time_and_shows_the_table(shifting):
    """E17."""
    model, optimizer, pruner = started()
    shown = str(pruner.selection).splitlines()
    assert next(line for line in shown if "24 inputs" in line).split(None, 1) == [
        "2",
        "24 inputs, 16 outputs: 0.001636 ms, 0.000104 ms with fewest channels",
    ]
    whole = next(number for number, line in enumerate(shown) if line.startswith("whole network"))
    assert "0.004 ms, 0.001 ms with one channel of every layer; a batch of 12 in float32 on cpu" in shown[whole]
    train(model, optimizer, 30)
    assert 0.4 < pruner.cost_ratio <= 0.6
    assert pruner.gate.total == 4000
    pruner.finalize()


def test_a_pruner_goes_on_to_the_bit_with_the_table_that_was_saved(shifting):
    model, optimizer, pruner = started()
    train(model, optimizer, 12)
    file = io.BytesIO()
    torch.save([own.state_dict() for own in (model, optimizer, pruner)], file)
    train(model, optimizer, 18)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, stepper, other = started()
    with pytest.raises(
        InputError, match=r'other layer times than this Pruner has; build it with latency_table=state\["la'
    ):
        other.load_state_dict(saved[2])
    other.release()
    again, stepper, other = started(latency_table=saved[2]["latency"])
    for own, state in zip((again, stepper, other), saved, strict=True):
        own.load_state_dict(state)
    train(again, stepper, 18)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(t, other.presence()[name]) for name, t in pruner.presence().items())
    assert other.plan.latency == pruner.plan.latency
    assert started(latency_table=pruner.plan.latency)[2].plan.latency == pruner.plan.latency


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"latency": None, "flops": 0.5, "latency_table": {}},
            r"^latency_table: is for the budget latency; leave it out$",
        ),
        ({"latency_table": {"device": 1}}, r"^latency_table: is not what was measured \(not a LatencyTable: "),
        ({"latency_table": "latency.json"}, r"^latency_table: is not what was measured \(not a LatencyTable: 'lat"),
        (
            {"latency": 0.001},
            r"^latency: 0\.001 leaves 4 of 4,000 nanoseconds, but one channel of every layer ",
        ),
    ],
)
def test_what_is_no_table_or_out_of_reach_is_refused(shifting, settings, message):
    with pytest.raises(InputError, match=message):
        started(**settings)


def test_a_table_of_another_network_is_refused(shifting):
    table = planned(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)), INPUTS).latency
    with pytest.raises(InputError, match=r"^latency: the table of layer times is of another network, as layer 0 shows"):
        started(latency_table=table)


def test_ranks_use_the_table_of_the_first():
    (one, first), (other, second) = run_together(with_layer_times, 2, 0.7)
    assert one == other
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not all(mask.all() for mask in first.values())


def test_ranks_are_refused_together():
    errors = run_together(with_layer_times, 2, 1e-3)
    assert [str(error) for error in errors] == [str(errors[0])] * 2
    assert str(errors[0]).startswith("latency: 0.001 leaves 4 of 4,000 nanoseconds, ")
    assert [error.reported_elsewhere for error in errors] == [False, True]
