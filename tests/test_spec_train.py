"""The specification's training loop against the machines that users run: NumPy to the bit, torch to rounding."""

import itertools

import numpy as np
import pytest
import torch
from tolerances import ROUNDING

from hyperflux import Pruner, spec
from hyperflux.backends.numpy.channel_gate import ChannelGate
from hyperflux.backends.numpy.channels import Channels
from hyperflux.backends.numpy.gate import NumpyGate
from hyperflux.backends.numpy.mlp import MLP
from hyperflux.backends.numpy.optimizers import SGD
from hyperflux.backends.torch.gate import TorchGate
from hyperflux.backends.torch.models import MLP as TorchMLP
from hyperflux.schedules.controllers import PublishedController
from hyperflux.schedules.default import DefaultSchedule
from hyperflux.schedules.factory import counted_schedule
from hyperflux.schedules.magnitude import MagnitudeSchedule
from hyperflux.schedules.published import PublishedSchedule
from hyperflux.schedules.scheduler import PruningScheduler

SIZES = (6, 8, 4)
TOTAL = 80
COUNT = 16
PRUNING_STEPS, REGROWTH_STEPS = 90, 60
PRESENCE_LR = 0.02
SMOOTHING = 0.1
PUBLISHED = PublishedController(step=0.01)
"""A small step: this network is small and its course short."""
SCHEDULES = {
    "default": DefaultSchedule(TOTAL, COUNT, PRUNING_STEPS, REGROWTH_STEPS, PRESENCE_LR),
    "published": PublishedSchedule(
        COUNT / TOTAL, PRUNING_STEPS, REGROWTH_STEPS, PRUNING_STEPS, REGROWTH_STEPS, PRESENCE_LR, controller=PUBLISHED
    ),
    "published, three intervals per step": PublishedSchedule(
        COUNT / TOTAL, PRUNING_STEPS, REGROWTH_STEPS, 3 * PRUNING_STEPS, 2, PRESENCE_LR, 3.0,
        controller=PublishedController(step=0.002),
    ),
    "magnitude": MagnitudeSchedule(TOTAL, COUNT, PRUNING_STEPS, REGROWTH_STEPS),
}  # fmt: skip


def learning_rate(n):
    """A rate that changes from step to step."""
    return 0.05 / (1 + 0.02 * n)


def batch(n):
    """Samples whose label is their largest feature among the first ones: weights matter, and so flux does."""
    inputs = np.random.default_rng(n).normal(size=(16, SIZES[0]))
    return inputs, inputs[:, : SIZES[-1]].argmax(axis=1)


class NumpyTraining:
    """A network's loss, its biases and its optimizers: all that `spec.train` leaves to its user."""

    def __init__(self):
        self._mlp = MLP(SIZES)
        self._weights, self._biases = self._mlp.initial(0, np.dtype(np.float64))
        self._for_weights, self._for_biases = (
            SGD(momentum=0.9, nesterov=False, weight_decay=decay) for decay in (1e-3, 0)
        )

    def start(self, interval, gates=TOTAL):
        presence = spec.initial_presence(gates, np.random.default_rng(1), interval)
        return spec.State(self._weights, presence, spec.Moments.zeros_like(presence))

    def loss_gradient(self, n, theta):
        inputs, labels = batch(n)
        values = self._mlp.forward(theta, self._biases, inputs)
        _, logits_gradient = spec.smoothed_cross_entropy(values[-1], labels, SMOOTHING)
        gradient, bias_gradient = self._mlp.backward(theta, values, logits_gradient)
        self._biases = self._for_biases.update(self._biases, bias_gradient, learning_rate(n))
        return gradient

    def update_weights(self, n, weights, gradient):
        return self._for_weights.update(weights, gradient, learning_rate(n))


def specified(schedule):
    """The state before the first step and after each one, by the loop."""
    training = NumpyTraining()
    start = training.start(schedule.initial_presence)
    return [start, *spec.train(start, schedule, training.loss_gradient, training.update_weights)]


def equal_bits(one, other):
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_loop_is_the_numpy_machine_to_the_bit(kind):
    """E1 to E6, E8 to E10, E12 to E14: scheduler and gate give the same w, t and moments after every step."""
    schedule, training = SCHEDULES[kind], NumpyTraining()
    gate = NumpyGate(training.start(schedule.initial_presence), {"all": TOTAL})
    scheduler = PruningScheduler(schedule, gate)
    states = specified(schedule)[1:]
    assert len(states) == PRUNING_STEPS + REGROWTH_STEPS
    stages = set()
    for n, state in enumerate(states, start=1):
        stages.add(scheduler.stage)
        gate.step(
            lambda theta, n=n: training.loss_gradient(n, theta),
            lambda w, gradient, n=n: training.update_weights(n, w, gradient),
        )
        scheduler.after_step()
        assert equal_bits(state.weights, gate.state.weights), n
        assert equal_bits(state.presence, gate.state.presence), n
        assert equal_bits(state.moments.first, gate.state.moments.first), n
        assert equal_bits(state.moments.second, gate.state.moments.second), n
        assert state.moments.steps == gate.state.moments.steps
    assert stages == {"pruning", "regrowth"}
    assert scheduler.stage == "done"
    scheduler.finish()
    assert equal_bits(spec.gate(states[-1].presence), gate.mask()), "the end of a whole course changed the mask"


class UnitCost:
    """FLOPs of the network whose inputs and hidden units a mask opens, written as a product of widths."""

    layers = np.repeat([0, 1], SIZES[:2])

    def total(self, present):
        inputs, hidden = np.count_nonzero(present[: SIZES[0]]), np.count_nonzero(present[SIZES[0] :])
        return 2.0 * hidden * (inputs + SIZES[2])

    def prices(self, present):
        inputs, hidden = np.count_nonzero(present[: SIZES[0]]), np.count_nonzero(present[SIZES[0] :])
        return np.repeat([2.0 * hidden, 2.0 * (inputs + SIZES[2])], SIZES[:2])


@pytest.mark.parametrize("method", ["hyperflux", "magnitude", "taylor"])
def test_the_loop_with_gates_and_prices_is_the_numpy_machine_to_the_bit(method):
    """E15 to E17: gates of inputs and hidden units at the columns that read them, under a budget of FLOPs."""
    channels, training, cost = SIZES[0] + SIZES[1], NumpyTraining(), UnitCost()
    schedule = counted_schedule(
        2 * TOTAL, 48, PRUNING_STEPS, REGROWTH_STEPS, method=method, presence_lr=PRESENCE_LR, gates=channels
    )
    columns = [np.tile(np.arange(SIZES[0]), SIZES[1]), np.tile(SIZES[0] + np.arange(SIZES[1]), SIZES[2])]
    gates = spec.Gates(np.concatenate(columns), np.ones(channels))
    start, specified = training.start(schedule.initial_presence, channels), NumpyTraining()
    states = spec.train(start, schedule, specified.loss_gradient, specified.update_weights, gates, cost)
    gate = ChannelGate(start, {"fc1.weight": 48, "fc2.weight": 32}, Channels(SIZES, inputs=True), "flops")
    scheduler, masks = PruningScheduler(schedule, gate), []
    for n, state in enumerate(states, start=1):
        gate.step(
            lambda theta, n=n: training.loss_gradient(n, theta),
            lambda w, gradient, n=n: training.update_weights(n, w, gradient),
        )
        scheduler.after_step()
        assert equal_bits(state.weights, gate.state.weights), n
        assert equal_bits(state.presence, gate.state.presence), n
        assert equal_bits(state.moments.first, gate.state.moments.first), n
        assert equal_bits(state.moments.second, gate.state.moments.second), n
        masks.append(spec.gate(state.presence))
        assert n > PRUNING_STEPS or cost.total(masks[-1]) <= schedule.target_count(n)
    assert n == PRUNING_STEPS + REGROWTH_STEPS
    assert 24 < cost.total(masks[-1]) <= 48
    came_back = sum(np.count_nonzero(later & ~earlier) for earlier, later in itertools.pairwise(masks))
    assert bool(came_back) is (method == "hyperflux"), "a baseline brings nothing back"


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_loop_runs_a_whole_course(kind):
    """E12, E14: pressure or capacity prunes, weights come back, and the exact courses end on their count."""
    masks = [spec.gate(state.presence) for state in specified(SCHEDULES[kind])]
    counts = [int(np.count_nonzero(mask)) for mask in masks]
    assert counts[0] == TOTAL
    assert 0 < min(counts) < TOTAL / 2
    came_back = sum(np.count_nonzero(later & ~earlier) for earlier, later in itertools.pairwise(masks))
    assert bool(came_back) is (kind != "magnitude")
    if "published" not in kind:
        assert counts[-1] == COUNT


def torch_machine(kind, model, optimizer):
    """(name -> t, name -> w, name -> m) of the torch backend's own pruning under a schedule, as functions."""
    if kind == "magnitude":
        gate = TorchGate({name: p for name, p in model.named_parameters() if p.dim() == 2}, optimizer, seed=0)
        gate.after_step = PruningScheduler(SCHEDULES[kind], gate).after_step
        return (
            lambda: {name: state.presence for name, state in gate.states.items()},
            lambda: {name: state.latent for name, state in gate.states.items()},
            gate.masks,
        )
    pruner = Pruner(
        model,
        optimizer,
        target_sparsity=1 - COUNT / TOTAL,
        pruning_steps=PRUNING_STEPS,
        regrowth_steps=REGROWTH_STEPS,
        presence_lr=PRESENCE_LR,
        controller=PUBLISHED if kind == "published" else kind,
        telemetry="off",
    )
    return pruner.presence, pruner.latent, pruner.masks


def flat(tensors):
    return np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors.values()])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["default", "published", "magnitude"])
def test_the_loop_is_the_torch_machine_to_rounding(kind):
    """E1 to E6, E8 to E10, E12 to E14: in float64 the same masks after every step, and w and t to rounding, which grows
    over the steps. `Pruner` has no magnitude pruning; its gate and scheduler do."""
    model = TorchMLP(SIZES, 0).double()
    decay = [
        {"params": [p for p in model.parameters() if (p.dim() == 2) is of_weights], "weight_decay": rate}
        for of_weights, rate in ((True, 1e-3), (False, 0.0))
    ]
    optimizer = torch.optim.SGD(decay, lr=learning_rate(1), momentum=0.9)
    presence, latent, masks = torch_machine(kind, model, optimizer)
    training = NumpyTraining()
    moments = spec.Moments.zeros_like(np.zeros(TOTAL))
    start = spec.State(flat(latent()), flat(presence()), moments)
    states = spec.train(start, SCHEDULES[kind], training.loss_gradient, training.update_weights)
    changes = 0
    for n, state in enumerate(states, start=1):
        before = flat(masks())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(n)
        inputs, labels = map(torch.from_numpy, batch(n))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels, label_smoothing=SMOOTHING).backward()
        optimizer.step()
        mask = spec.gate(state.presence)
        np.testing.assert_array_equal(flat(masks()), mask, err_msg=str(n))
        for ours, theirs in ((state.weights, latent()), (state.presence, presence())):
            assert flat(theirs).dtype == ours.dtype
            np.testing.assert_allclose(flat(theirs), ours, rtol=0, atol=1e3 * ROUNDING, err_msg=str(n))
        theta = flat({name: p for name, p in model.named_parameters() if p.dim() == 2})
        expected = spec.effective_weights(state.weights, mask)
        np.testing.assert_allclose(theta, expected, rtol=0, atol=1e3 * ROUNDING)
        changes += np.count_nonzero(mask ^ before)
    assert n == PRUNING_STEPS + REGROWTH_STEPS
    assert changes > TOTAL / 2, "the run tried nothing"
