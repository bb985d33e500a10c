"""Gradual magnitude pruning: the cubic course, the largest weights of the whole network, and nothing comes back."""

import numpy as np
import pytest
import torch
from networks import batches, build
from torch.nn.functional import cross_entropy

from hyperflux import InputError
from hyperflux.backends.torch.gate import TorchGate
from hyperflux.schedules.magnitude import MagnitudeSchedule
from hyperflux.schedules.scheduler import PruningScheduler

SCHEDULE = MagnitudeSchedule(1632, 163, 40, 20)


def test_the_course_is_cubic_and_ends_on_the_target():
    """Zhu and Gupta's s(x) = target·(1 − (1 − x)³), in sparsity."""
    target = 1 - 163 / 1632
    for step in range(61):
        sparsity = target * (1 - (1 - min(1, step / 40)) ** 3)
        assert SCHEDULE.target_count(step) == pytest.approx(1632 * (1 - sparsity), abs=0.5)
    assert (SCHEDULE.target_count(0), SCHEDULE.target_count(40), SCHEDULE.target_count(60)) == (1632, 163, 163)


def test_the_largest_weights_of_the_whole_network_stay_and_nothing_comes_back():
    model = build("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    gate = TorchGate({"1": model[1].weight, "3": model[3].weight}, optimizer, 0, SCHEDULE.initial_presence)
    scheduler = PruningScheduler(SCHEDULE, gate)
    before = np.ones(1632, bool)
    for inputs, labels in batches(60):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        magnitude = np.concatenate([state.latent.abs().flatten().numpy() for state in gate.states.values()])
        scheduler.after_step()
        mask = np.concatenate([mask.flatten().numpy() for mask in gate.masks().values()])
        assert mask.sum() == SCHEDULE.target_count(gate.steps)
        assert not (mask & ~before).any(), "a pruned weight came back"
        assert magnitude[mask].min() >= magnitude[before & ~mask].max(initial=0), "a larger one went"
        theta = np.concatenate([layer.weight.detach().flatten().numpy() for layer in (model[1], model[3])])
        assert not theta[~mask].any(), "the mask does not hold after the optimizer's step"
        before = mask
    assert before.sum() == 163


def test_a_state_of_another_program_is_refused():
    with pytest.raises(InputError, match="schedule state"):
        SCHEDULE.restore({"step": 3})
