"""A step that raises an error or is interrupted leaves the pruned network, at once, and pruning can go on."""

import copy
import sys

import pytest
import torch
from networks import batches, build
from torch.nn.functional import cross_entropy

from hyperflux import Pruner

SETTINGS = {"target_sparsity": 0.6, "pruning_steps": 14, "regrowth_steps": 5, "presence_lr": 0.02}
SPREAD = 131
"""Lines between two interruptions; a step has about 2,600."""


class InterruptAt:
    """A trace function that raises KeyboardInterrupt before the `number`-th line."""

    def __init__(self, number):
        self.number, self.lines = number, 0

    def __call__(self, frame, event, argument):
        self.lines += event == "line"
        if event == "line" and self.lines == self.number:
            raise KeyboardInterrupt
        return self


def started(make=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)):
    model = build("mlp", dtype=torch.float32)
    optimizer = make(model.parameters())
    return model, optimizer, Pruner(model, optimizer, **SETTINGS)


def backward(model, inputs, labels):
    model.zero_grad()
    cross_entropy(model(inputs), labels).backward()


def require_pruned(model, pruner):
    """θ = w·m in every parameter."""
    for name, t in pruner.presence().items():
        assert torch.equal(model.get_parameter(name), torch.where(t >= 0, pruner.latent()[name], 0)), name


def interrupted(number, at_step):
    """A whole course whose step `at_step` is interrupted before a line and not repeated; returns lines and count."""
    model, optimizer, pruner = started()
    trace = InterruptAt(number)
    for done, (inputs, labels) in enumerate(batches(20, dtype=torch.float32)):
        backward(model, inputs, labels)
        if done == at_step:
            sys.settrace(trace)
            try:
                optimizer.step()
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)
            assert torch.is_grad_enabled()
            require_pruned(model, pruner)
        else:
            optimizer.step()
    assert pruner.stage == "done"
    return trace.lines, pruner.surviving


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("at_step", [4, 6])
def test_a_step_interrupted_before_any_line_leaves_the_pruned_network(at_step):
    """Steps with and without a control step, in torch's code and in ours; the course ends at its exact count."""
    lines, expected = interrupted(0, at_step)
    assert lines > 500
    for number in range(1 + at_step, lines, SPREAD):
        assert interrupted(number, at_step)[1] == expected, number


class Interrupted(torch.optim.SGD):
    """An interrupt between the last line of a no_grad and its end, where Python ends no `with` any more."""

    def step(self, closure=None):
        torch.set_grad_enabled(False)
        raise KeyboardInterrupt


def test_an_interrupt_leaves_gradients_as_they_were():
    model, optimizer, pruner = started(lambda p: Interrupted(p, lr=0.05))
    backward(model, torch.ones(2, 1, 8, 8), torch.tensor([0, 1]))
    try:
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
        assert torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)
    require_pruned(model, pruner)


class OutOfMemory(torch.optim.SGD):
    def step(self, closure=None):
        if self.state.pop("fails", False):
            self.param_groups[0]["params"][0].data.add_(1.0)
            raise RuntimeError("out of memory")
        return super().step(closure)


def scheduled_before(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 100)


@pytest.mark.parametrize("scheduler", ["none", "before", "after"])
def test_a_step_that_fails_leaves_the_pruned_network(scheduler):
    """Whoever replaces the optimizer's `step` too, before or after, as schedulers of learning rates do."""
    model = build("mlp", dtype=torch.float32)
    optimizer = OutOfMemory(model.parameters(), lr=0.05)
    schedulers = [scheduled_before(optimizer)] if scheduler == "before" else []
    pruner = Pruner(model, optimizer, **SETTINGS)
    schedulers += [scheduled_before(optimizer)] if scheduler == "after" else []
    for done, (inputs, labels) in enumerate(batches(20, dtype=torch.float32)):
        backward(model, inputs, labels)
        if done == 6:
            optimizer.state["fails"] = True
            with pytest.raises(RuntimeError, match="out of memory"):
                optimizer.step()
            require_pruned(model, pruner)
            zeros = sum(int((value == 0).sum()) for value in model.state_dict().values())
            assert zeros >= sum(int((~mask).sum()) for mask in pruner.masks().values()) > 0
        else:
            optimizer.step()
        for following in schedulers:
            following.step()
    assert pruner.stage == "done"
    assert pruner.surviving == round(0.4 * sum(mask.numel() for mask in pruner.masks().values()))


@pytest.mark.parametrize("scheduler", ["none", "before", "after"])
def test_a_finished_pruner_leaves_the_step_as_it_was(scheduler):
    model = build("mlp", dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    schedulers = [scheduled_before(optimizer)] if scheduler == "before" else []
    before = vars(optimizer).get("step")
    pruner = Pruner(model, optimizer, **SETTINGS)
    schedulers += [scheduled_before(optimizer)] if scheduler == "after" else []
    pruner.release()
    if scheduler != "after":
        assert vars(optimizer).get("step") is before
    ((inputs, labels),) = batches(1, dtype=torch.float32)
    backward(model, inputs, labels)
    optimizer.step()
    for following in schedulers:
        following.step()
    assert all(bool((parameter != 0).any()) for parameter in model.parameters())


def test_a_copied_optimizer_steps_itself():
    """Its own step, not that of the original."""
    model, optimizer, pruner = started()
    its_model, its_optimizer, its_pruner = copy.deepcopy((model, optimizer, pruner))
    before = [parameter.clone() for parameter in model.parameters()]
    ((inputs, labels),) = batches(1, dtype=torch.float32)
    backward(its_model, inputs, labels)
    its_optimizer.step()
    assert its_pruner.step_count == 1
    assert pruner.step_count == 0
    assert all(map(torch.equal, before, model.parameters()))
    assert not any(map(torch.equal, before, its_model.parameters()))
